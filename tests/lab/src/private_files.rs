//! A mount namespace for FTP servers, with files in memory and user accounts of its own.
//!
//! FTP servers need a user of the system and fixed places for their state, and leave files behind. In this namespace
//! `/run` is an empty tmpfs, and the account files are copies with one more user. Nothing of it is on the machine's
//! disk, no other program sees it, and it ends with its last holder, also after `kill -9`.

use super::error::{Context, Result};
use super::namespace::on_a_thread;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The user who may log in to the lab's FTP servers.
pub const USER: &str = "pinhole";
/// And the password. It protects nothing: it is valid in the private files of the lab only.
pub const PASSWORD: &str = "secret";

/// `PASSWORD` as /etc/shadow wants it: `openssl passwd -6 -salt 'rounds=1000$pinhole' secret`. No fewer rounds are taken:
/// an emulated processor spends a noticeable time on the usual number.
const PASSWORD_HASH: &str =
    "$6$rounds=1000$pinhole$RIK8IEaPm/pacSVMKikx6ZirELiO/Vys7evUgqTX6gFsFSb5rLEK75P8boymxHw0ZSczB0282Pk6aOwhFE.PH.";
const USER_ID: u32 = 61021;

/// The path of the private folder, for the programs that see it.
pub const INSIDE: &str = "/run/pinhole-lab";
/// The home folder of [`USER`], for the programs in it.
pub const HOME_INSIDE: &str = "/run/pinhole-lab/home";

/// A private set of files. Clones are the same one.
#[derive(Clone, Debug)]
pub struct PrivateFiles(Arc<Held>);

#[derive(Debug)]
struct Held {
    mounts: File,
    folder: File,
}

impl PrivateFiles {
    /// A new one, in which the user [`USER`] has an empty home folder.
    pub fn new() -> Result<Self> {
        on_a_thread("private files", || {
            unshare(CloneFlags::CLONE_NEWNS).doing(|| "make a mount namespace".to_owned())?;
            mount_private_files()
                .doing(|| "mount_private_files a private mount namespace for an FTP server".to_owned())?;
            let mounts = File::open("/proc/thread-self/ns/mnt").doing(|| "hold a mount namespace".to_owned())?;
            let folder = File::open(INSIDE).doing(|| format!("open {INSIDE} in a mount namespace"))?;
            Ok(Self(Arc::new(Held { mounts, folder })))
        })?
    }

    /// Its folder as this process sees it. Good only here, and only while the value is held.
    pub fn folder(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.folder.as_raw_fd()))
    }

    /// The home folder of [`USER`] as this process sees it.
    pub fn home(&self) -> PathBuf {
        self.folder().join("home")
    }

    /// Puts a file into the home folder, as the user's own.
    pub fn place(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.home().join(name);
        fs::write(&path, content)
            .and_then(|()| chown(&path, Some(USER_ID), Some(USER_ID)))
            .doing(|| format!("place {name} in the home folder of an FTP user"))
    }

    /// Writes a file that is not the user's, and returns the path that the programs in it have for it.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<String> {
        fs::write(self.folder().join(name), content).doing(|| format!("write {name} in private files"))?;
        Ok(format!("{INSIDE}/{name}"))
    }

    /// Moves the calling thread into it, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        // A thread shares its working folder with its process, and must not while it changes namespaces.
        unshare(CloneFlags::CLONE_FS)
            .and_then(|()| setns(&self.0.mounts, CloneFlags::CLONE_NEWNS))
            .doing(|| "enter a private mount namespace".to_owned())
    }
}

/// Makes the calling thread's mounts private, and changes them.
fn mount_private_files() -> io::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    // An own /run: servers keep their state there, and without the system's log socket nothing of theirs reaches
    // the system's log.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))?;
    for folder in [HOME_INSIDE, "/run/vsftpd/empty", "/run/pure-ftpd", "/run/proftpd"] {
        fs::create_dir_all(folder)?;
    }
    chown(HOME_INSIDE, Some(USER_ID), Some(USER_ID))?;
    let more = [
        (
            "/etc/passwd",
            // vsftpd wants a user `ftp` whose home exists.
            format!(
                "{USER}:x:{USER_ID}:{USER_ID}::{HOME_INSIDE}:/bin/sh\nftp:x:61022:{USER_ID}::/run/vsftpd/empty:/bin/false\n"
            ),
        ),
        ("/etc/group", format!("{USER}:x:{USER_ID}:\n")),
        ("/etc/shadow", format!("{USER}:{PASSWORD_HASH}:19000:0:99999:7:::\n")),
    ];
    for (path, lines) in more {
        let ours = Path::new(INSIDE).join(path.trim_start_matches("/etc/"));
        let theirs = fs::read_to_string(path)?;
        let kept = theirs.lines().filter(|line| !line.starts_with("ftp:") && !line.starts_with(&format!("{USER}:")));
        let mut content: String = kept.flat_map(|line| [line, "\n"]).collect();
        content.push_str(&lines);
        fs::write(&ours, content)?;
        fs::set_permissions(&ours, Permissions::from_mode(if path == "/etc/shadow" { 0o600 } else { 0o644 }))?;
        mount(Some(&ours), path, NONE, MsFlags::MS_BIND, NONE)?;
    }
    let pam = Path::new(INSIDE).join("pam.d");
    fs::create_dir(&pam)?;
    fs::write(
        pam.join("vsftpd"),
        "auth required pam_unix.so nodelay\naccount required pam_unix.so\nsession required pam_permit.so\n",
    )?;
    // A machine without PAM's folder has no PAM, hence nothing that would read it.
    if Path::new("/etc/pam.d").exists() {
        mount(Some(&pam), "/etc/pam.d", NONE, MsFlags::MS_BIND, NONE)?;
    }
    Ok(())
}
