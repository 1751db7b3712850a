//! Restricts the daemon's capabilities, files and system calls once its table is installed and its sockets are open.
//!
//! The sandbox applies to the calling thread and to the threads that it starts afterwards, and cannot be left. So
//! the daemon enters it while it has one thread. An attacker who takes the daemon over can send netlink messages to the
//! netfilter of this network namespace, as the daemon does, and nothing else.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, make_bitflags,
};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// The only capability that the daemon keeps: nf_tables, conntrack and NFQUEUE require it.
const KEPT_CAPABILITY: CapabilitySet = CapabilitySet::NET_ADMIN;

/// The Landlock version whose access rights are restricted. A kernel with an earlier version restricts the rights that
/// it supports. Later versions also restrict connections to pathname sockets, which the daemon needs to notify systemd.
const LANDLOCK_ABI: ABI = ABI::V6;

/// A part of the sandbox that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    #[error("it keeps capabilities that it does not need: {0}")]
    Capabilities(Errno),
    /// A program that the daemon executes could gain privileges. Without this flag, seccomp filters are refused, too.
    #[error("it could gain privileges by starting a program (no_new_privs): {0}")]
    NoNewPrivileges(Errno),
    #[error("files are not restricted: this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, and `lsm=` at boot)")]
    Landlock,
    #[error("files are not restricted: {0}")]
    Files(Box<str>),
    #[error("system calls are not restricted: {0} (does this kernel have CONFIG_SECCOMP_FILTER?)")]
    SystemCalls(Box<str>),
}

/// The files that the daemon accesses inside the sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// A reload reads it. None if the policy is the embedded one.
    pub policy: Option<&'a Path>,
    /// The control socket, which the daemon removes when it stops.
    pub socket: &'a Path,
}

/// Drops the privileges that the daemon no longer needs. Returns the parts that failed, because this kernel or the
/// service manager does not permit them; the daemon runs without those parts.
pub fn enter(files: &Files<'_>) -> Vec<Missing> {
    let mut missing = Vec::new();
    missing.extend(drop_capabilities(KEPT_CAPABILITY).err().map(Missing::Capabilities));
    missing.extend(set_no_new_privs(true).err().map(Missing::NoNewPrivileges));
    missing.extend(restrict_files(files).err());
    missing.extend(restrict_system_calls(filters).err());
    missing
}

/// Drops the privileges that the watchdog process does not need. It reads one socket, writes log lines, and kills one
/// process by its pidfd. It keeps no capability, can open no file, and can send no signal but SIGKILL.
pub(super) fn enter_watchdog() -> Vec<Missing> {
    let mut missing = Vec::new();
    missing.extend(drop_capabilities(CapabilitySet::empty()).err().map(Missing::Capabilities));
    missing.extend(set_no_new_privs(true).err().map(Missing::NoNewPrivileges));
    // seccomp restricts signals here: Landlock would prevent the watchdog from killing the daemon.
    missing.extend(restrict(Scope::AbstractUnixSocket, []).err());
    missing.extend(restrict_system_calls(watchdog_filters).err());
    missing
}

/// Drops all capabilities but `kept`, also from the bounding set.
fn drop_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    // The kernel returns EINVAL for capabilities that it does not know.
    let dropped = all.filter(|capability| {
        !kept.contains(*capability) && capability_is_in_bounding_set(*capability).unwrap_or(false)
    });
    // Without CAP_SETPCAP this fails, but a process can always drop its own capabilities.
    let bounded = dropped.map(remove_capability_from_bounding_set).fold(Ok(()), Result::and);
    // Kernels before 4.3 have no ambient set.
    let _ = clear_ambient_capability_set();
    let current = capabilities(None)?;
    let effective = current.effective & kept;
    let permitted = current.permitted & kept;
    // A service manager may refuse capset, so it is called only if needed. The inheritable set does not matter, because
    // the daemon executes no program.
    if (current.effective, current.permitted) != (effective, permitted) {
        set_capabilities(None, CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })?;
    }
    bounded
}

/// Permits reading the policy and removing the control socket, but no other access to files, and no TCP. Open files
/// stay open.
fn restrict_files(files: &Files<'_>) -> Result<(), Missing> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let remove: BitFlags<AccessFs> = AccessFs::RemoveFile.into();
    // The directory, because editors replace the file. If the file is a symbolic link, also the directory of its target.
    let policies = files.policy.into_iter().flat_map(|path| [Some(path.to_owned()), path.canonicalize().ok()]);
    let readable = policies.flatten().map(|path| (directory(&path), read));
    restrict(Scope::Signal, readable.chain([(directory(files.socket), remove)]))
}

/// Permits only this access to these directories, no TCP, and restricts `scope` to this process.
fn restrict(scope: Scope, rules: impl IntoIterator<Item = (PathBuf, BitFlags<AccessFs>)>) -> Result<(), Missing> {
    let failed = |error: landlock::RulesetError| Missing::Files(error.to_string().into());
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(LANDLOCK_ABI)))
        .and_then(|ruleset| ruleset.scope(scope))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for (path, access) in rules {
        // The directory may have been removed meanwhile.
        let Ok(path) = PathFd::new(&path) else { continue };
        ruleset = ruleset.add_rule(PathBeneath::new(path, access)).map_err(failed)?;
    }
    match ruleset.restrict_self().map_err(failed)?.ruleset {
        RulesetStatus::NotEnforced => Err(Missing::Landlock),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Installs the seccomp filters. All system calls but the listed ones fail with EPERM instead of ending the process, so
/// that a call that is missing here does not stop all FTP on this host.
fn restrict_system_calls<const N: usize>(
    filters: impl FnOnce() -> Result<[BpfProgram; N], seccompiler::BackendError>,
) -> Result<(), Missing> {
    let failed = |error: &dyn ToString| Missing::SystemCalls(error.to_string().into());
    let filters = filters().map_err(|error| failed(&error))?;
    filters.iter().try_for_each(|filter| apply_filter(filter)).map_err(|error| failed(&error))
}

/// The daemon's filters, in the order in which they are installed. The kernel runs all of them and applies the strictest
/// result; of two error numbers, that of the filter that was installed last.
fn filters() -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let arch = TargetArch::try_from(ARCH)?;
    let program = |rules, otherwise, matched| SeccompFilter::new(rules, otherwise, matched, arch)?.try_into();
    let all = |calls: &[libc::c_long]| calls.iter().map(|call| (*call, Vec::new())).collect();
    let (allow, refuse) =
        (SeccompAction::Allow, |errno: Errno| SeccompAction::Errno(errno.raw_os_error().unsigned_abs()));
    // The daemon executes no program, so execve means that it runs an attacker's code. The kernel kills it, and the
    // service manager restarts it; sessions, transfers and pinholes survive that.
    let programs = [libc::SYS_execve, libc::SYS_execveat];
    // A filter cannot see the flags of clone3. After ENOSYS, the C library uses `clone` to create threads.
    let unknown = [libc::SYS_clone3];
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = all(&[ALLOWED, &ALLOWED_HERE, &programs, &unknown].concat());
    for (call, conditions) in conditions()? {
        allowed.entry(call).or_default().push(SeccompRule::new(conditions)?);
    }
    Ok([
        program(all(&programs), allow.clone(), SeccompAction::KillProcess)?,
        program(all(&unknown), allow.clone(), refuse(Errno::NOSYS))?,
        program(allowed, refuse(Errno::PERM), allow)?,
    ])
}

/// The filters of the watchdog process: execve kills it, and other calls that it does not need fail with EPERM.
fn watchdog_filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let arch = TargetArch::try_from(ARCH)?;
    let number = |number: i32| u64::from(number.unsigned_abs());
    let is = |argument, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let exec = number(libc::PROT_EXEC);
    let no_code = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(exec), 0)?;
    let programs = [libc::SYS_execve, libc::SYS_execveat];
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> =
        [WATCHDOG, &WATCHDOG_HERE, &programs].concat().into_iter().map(|call| (call, Vec::new())).collect();
    let conditions = [
        (libc::SYS_mmap, no_code),
        (libc::SYS_pidfd_send_signal, is(1, number(libc::SIGKILL))?),
        (libc::SYS_write, is(0, number(libc::STDERR_FILENO))?),
    ];
    for (call, condition) in conditions {
        allowed.insert(call, vec![SeccompRule::new(vec![condition])?]);
    }
    let refused = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
    let killed = programs.iter().map(|call| (*call, Vec::new())).collect();
    Ok([
        SeccompFilter::new(killed, SeccompAction::Allow, SeccompAction::KillProcess, arch)?.try_into()?,
        SeccompFilter::new(allowed, refused, SeccompAction::Allow, arch)?.try_into()?,
    ])
}

/// System calls that the watchdog process may make with any arguments.
const WATCHDOG: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_recvfrom,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendto,
    libc::SYS_sigaltstack,
];

#[cfg(target_arch = "x86_64")]
const WATCHDOG_HERE: [libc::c_long; 1] = [libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const WATCHDOG_HERE: [libc::c_long; 0] = [];

/// Calls that are allowed with some arguments only. A call with several conditions has to meet one of them.
fn conditions() -> Result<Vec<(libc::c_long, Vec<SeccompCondition>)>, seccompiler::BackendError> {
    let number = |number: i32| u64::from(number.unsigned_abs());
    let is = |argument, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let has = |argument, bits, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits), value)
    };
    let (thread, exec) = (number(libc::CLONE_THREAD), number(libc::PROT_EXEC));
    let mut conditions = vec![
        // New threads, but no new processes.
        (libc::SYS_clone, vec![has(0, thread, thread)?]),
        // No new executable memory.
        (libc::SYS_mmap, vec![has(2, exec, 0)?]),
        (libc::SYS_mprotect, vec![has(2, exec, 0)?]),
        (libc::SYS_prctl, vec![is(0, number(libc::PR_SET_NAME))?]),
        // Limits can be read, but not set.
        (libc::SYS_prlimit64, vec![SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?]),
    ];
    for family in [libc::AF_UNIX, libc::AF_NETLINK] {
        conditions.push((libc::SYS_socket, vec![is(0, number(family))?]));
        conditions.push((libc::SYS_socketpair, vec![is(0, number(family))?]));
    }
    for request in [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS] {
        conditions.push((libc::SYS_ioctl, vec![is(1, request)?]));
    }
    Ok(conditions)
}

/// Calls that are allowed with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Files that are open already, or that Landlock permits to open.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Threads, signals to this process, its exit, and waiting for the exit of the watchdog process.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Information about this process and this host.
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Calls that exist only on this architecture.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: [libc::c_long; 12] = [
    libc::SYS_access,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: [libc::c_long; 0] = [];
