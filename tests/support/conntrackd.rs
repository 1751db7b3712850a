//! conntrackd with its FTP helper, another helper in userspace, for comparison.
//!
//! Needs Debian's packages conntrackd and nfct, and a kernel with `nfnetlink_cthelper` and no other helper named `ftp`.

use std::fs;
use std::path::PathBuf;

use lab::{Child, KERNEL_HELPER, Namespace, Result};

use super::daemon::{TIMEOUT, new_folder};

/// The manual's configuration with other paths. One queue each for IPv4 and IPv6.
const CONFIGURATION: &str = "
Helper {
    Type ftp inet tcp {
        QueueNum 0
        QueueLen 10240
        Policy ftp { ExpectMax 1
            ExpectTimeout 300 }
    }
    Type ftp inet6 tcp {
        QueueNum 1
        QueueLen 10240
        Policy ftp { ExpectMax 1
            ExpectTimeout 300 }
    }
}
General {
    Syslog no
    LockFile {folder}/lock
    UNIX { Path {folder}/control }
}
";

/// It runs in a namespace, and helps the control connections that begin there.
pub(crate) struct Conntrackd {
    _child: Child,
    folder: PathBuf,
}

impl Conntrackd {
    pub(crate) fn start(namespace: &Namespace) -> Result<Self> {
        // The kernel has one list of helpers for all namespaces. It may contain this one already.
        for family in ["inet", "inet6"] {
            let add = namespace.command("nfct").args(["helper", "add", "ftp", family, "tcp"]).spawn()?;
            let _ = add.wait(TIMEOUT)?;
        }
        let folder = new_folder();
        let file = folder.join("conntrackd.conf");
        let text = CONFIGURATION.replace("{folder}", &folder.to_string_lossy());
        fs::write(&file, text).expect("a file can be written");
        let mut child = namespace.command("conntrackd").arg("-C").arg(&file).spawn()?;
        lab::wait_until("conntrackd to read its queues", TIMEOUT, || {
            assert!(child.is_running()?, "conntrackd has ended: {}", child.output());
            // Before a queue has a reader, this file may not exist.
            let queues = namespace.read("/proc/thread-self/net/netfilter/nfnetlink_queue").unwrap_or_default();
            Ok(queues.lines().count() == 2)
        })?;
        namespace.nft(KERNEL_HELPER)?;
        Ok(Self { _child: child, folder })
    }
}

impl Drop for Conntrackd {
    fn drop(&mut self) {
        // Nothing depends on it, and a test that failed has more important things to say.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
