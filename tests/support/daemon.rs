//! The built program as a service in a namespace of the lab.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pinhole::lab::{self, Child, Namespace, Result};

/// How long anything may take that should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_pinhole");

/// A running daemon in a namespace.
pub(crate) struct Daemon {
    /// Its process.
    pub(crate) child: Child,
    /// Where its policy, `policy.yaml`, and its socket, `control.sock`, lie.
    pub(crate) folder: PathBuf,
}

impl Daemon {
    /// Starts it and waits until its table stands and its socket answers.
    pub(crate) fn start(namespace: &Namespace, policy: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("pinhole-live-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let file = folder.join("policy.yaml");
        std::fs::write(&file, policy).expect("a policy can be written");
        let socket = folder.join("control.sock");
        let child = namespace
            .command(PROGRAM)
            .args(["run", "--policy"])
            .arg(&file)
            .env("PINHOLE_SOCKET", &socket)
            .env("RUST_LOG", "debug")
            .spawn()?;
        let daemon = Self { child, folder };
        lab::wait_until("the daemon answers", PATIENCE, || {
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok() && daemon.child.said().contains("stands"))
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", daemon.child.said()));
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
