//! Whether a data connection goes to a socket of an FTP service of this host, or comes from one.
//!
//! A server listens on a port before it announces it. So at the SYN of a data connection a socket listens there, made by
//! a process in the same cgroup as the socket of the control connection: the kernel keeps the cgroup in which each socket
//! was made, and an accepted socket has that of its listener. The processes' users may differ (vsftpd: `root` and
//! `nobody`). In active mode the server's data socket is one of the service, and the client's listener one of the client.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::io::Errno;

use super::REPLY_TIMEOUT;
use super::netlink::{Cause, Error, Operation, SocketLookup, TcpState};
use crate::core::kernel::{Service, Testimony};
use crate::core::net::{Connection, Endpoint, Flow};

/// Where the hierarchy of version 2 is mounted: alone, or beside those of version 1.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The ID of the root of the hierarchy. A process is there unless something has put it into a cgroup of its own.
const ROOT: u64 = 1;

/// The cgroup of systemd itself, which makes the sockets of socket units.
const SERVICE_MANAGER: &str = "/init.scope";

/// Where systemd keeps the cgroups of system units.
const SYSTEM_UNITS: &str = "/system.slice";

/// Asks the kernel for listening sockets.
#[derive(Debug)]
pub(super) struct Witness {
    sockets: SocketLookup,
    hierarchy: Option<PathBuf>,
    /// Cgroups that say nothing: the root, those of this process and of the service manager.
    shared: Vec<u64>,
}

impl Witness {
    pub(super) fn open() -> Result<Self, Error> {
        let sockets = SocketLookup::open(REPLY_TIMEOUT)?;
        let is_mounted = |root: &&str| Path::new(root).join("cgroup.controllers").exists();
        let hierarchy = HIERARCHIES.into_iter().find(is_mounted).map(PathBuf::from);
        let own = fs::read_to_string("/proc/self/cgroup").ok();
        let own = own.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::")));
        let paths = [own, Some(SERVICE_MANAGER)].into_iter().flatten();
        let ids = paths.filter_map(|path| id(hierarchy.as_deref()?, path).ok());
        let shared = ids.chain([ROOT]).collect();
        Ok(Self { sockets, hierarchy, shared })
    }

    /// See [`Firewall::testimony`](crate::core::kernel::Firewall::testimony).
    pub(super) fn testimony(&mut self, syn: &Flow, of: &Connection, service: &Service) -> Result<Testimony, Error> {
        let mut testimony = Testimony::NoControlSocket;
        let (client, server) = (of.client(), of.server());
        for control in [(server, client), (client, server)] {
            let local = control.0.address;
            for (data, state) in
                [((syn.destination, syn.source), TcpState::Listen), ((syn.source, syn.destination), TcpState::SynSent)]
            {
                if data.0.address != local {
                    continue;
                }
                match self.vouches(control, data, state, service)? {
                    Testimony::Vouches => return Ok(Testimony::Vouches),
                    Testimony::NoControlSocket => {}
                    other => testimony = other,
                }
            }
        }
        Ok(testimony)
    }

    /// The same for one end of the control connection, and the socket of the data connection on its side. Both are given
    /// by the address here and the one of the other end.
    fn vouches(
        &mut self,
        control: (Endpoint, Endpoint),
        data: (Endpoint, Endpoint),
        state: TcpState,
        service: &Service,
    ) -> Result<Testimony, Error> {
        let control = self.sockets.find(control.0, control.1)?.filter(|socket| socket.state == TcpState::Other);
        let Some(control) = control else { return Ok(Testimony::NoControlSocket) };
        let socket = self.sockets.find(data.0, data.1)?.filter(|socket| socket.state == state);
        let Some(socket) = socket else { return Ok(Testimony::NotListening) };
        let is_of_service = match service {
            Service::SameCgroup => {
                if control.cgroup.is_none_or(|id| self.shared.contains(&id)) {
                    return Ok(Testimony::SharedCgroup);
                }
                control.cgroup == socket.cgroup
            }
            Service::Unit(name) => socket.cgroup == Some(self.cgroup(&format!("{SYSTEM_UNITS}/{name}"))?),
            Service::Cgroup(path) => socket.cgroup == Some(self.cgroup(path)?),
            Service::User(id) => socket.uid == *id,
        };
        Ok(if is_of_service { Testimony::Vouches } else { Testimony::OtherService })
    }

    /// The ID of the cgroup with this path. It changes whenever systemd starts the unit anew.
    fn cgroup(&self, path: &str) -> Result<u64, Error> {
        let found = self
            .hierarchy
            .as_deref()
            .ok_or(Errno::NOENT)
            .and_then(|root| id(root, path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)));
        found.map_err(|errno| Error::new(Operation::Read, format_args!("cgroup {path}"), Cause::SystemCall(errno)))
    }
}

/// The ID of a cgroup is the inode number of its directory.
fn id(root: &Path, path: &str) -> io::Result<u64> {
    Ok(fs::metadata(root.join(path.trim_start_matches('/')))?.ino())
}
