//! The control socket, signals, and what systemd wants to hear.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::Shared;
use super::status::Request;
use crate::policy;

/// Where the socket lies, unless `PINHOLE_SOCKET` says otherwise.
const SOCKET: &str = "/run/pinhole/control.sock";
/// The longest question, and how long it may take to come.
const LONGEST_REQUEST: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another instance answers there.
    #[error("another pinhole runs already: it answers at {}", .0.display())]
    SecondInstance(PathBuf),
    /// The socket cannot be made.
    #[error("cannot make the control socket {}: {source}", path.display())]
    Make {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answers.
    #[error("no pinhole answers at {}: {source} (does it run? are you root?)", path.display())]
    NobodyThere {
        /// Where.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Where the control socket lies.
pub fn path() -> PathBuf {
    std::env::var_os("PINHOLE_SOCKET").map_or_else(|| PathBuf::from(SOCKET), PathBuf::from)
}

/// Begins to listen; only root may ask.
pub(super) fn listen() -> Result<UnixListener, ControlError> {
    let path = path();
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(ControlError::SecondInstance(path));
    }
    let make = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    make().map_err(|source| ControlError::Make { path: path.clone(), source })
}

/// Serves the control plane until a signal ends it; says which.
pub(super) async fn serve(listener: &UnixListener, shared: &Shared, source: Option<&Path>) -> &'static str {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
        return "signals cannot be heard";
    };
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    let mut watchdog = tokio::time::interval(watchdog_interval());
    let ended_by = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hangup.recv() => drop(reload(shared, source)),
            _ = watchdog.tick() => {
                // Taking the lock shows that the engine is not stuck.
                shared.lock().pass_time();
                tell_systemd(&[sd_notify::NotifyState::Watchdog]);
            }
            Ok((stream, _)) = listener.accept() => {
                if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, answer(stream, shared, source)).await {
                    warn!("the control socket: {error}");
                }
            }
        }
    };
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    let _ = std::fs::remove_file(path());
    ended_by
}

async fn answer(mut stream: UnixStream, shared: &Shared, source: Option<&Path>) -> io::Result<()> {
    let mut request = String::new();
    (&mut stream).take(LONGEST_REQUEST).read_to_string(&mut request).await?;
    let answer = match serde_json::from_str(&request) {
        Ok(Request::Status) => shared.lock().status().to_string(),
        Ok(Request::Json) => serde_json::to_string(&shared.lock().status())? + "\n",
        Ok(Request::Reload) => match reload(shared, source) {
            Ok(()) => "the policy is loaded\n".to_owned(),
            Err(problem) => format!("error: {problem}\n"),
        },
        Err(error) => format!("error: {error}\n"),
    };
    stream.write_all(answer.as_bytes()).await
}

/// Reads the policy anew; a bad one is refused and the old one stays.
fn reload(shared: &Shared, source: Option<&Path>) -> Result<(), String> {
    let result = read(source).and_then(|policy| shared.lock().reload(policy).map_err(|error| error.to_string()));
    match &result {
        Ok(()) => info!("the policy is loaded anew"),
        Err(problem) => error!("the policy is not loaded, the old one stays: {problem}"),
    }
    result
}

fn read(source: Option<&Path>) -> Result<policy::Policy, String> {
    let Some(source) = source else { return Ok(policy::Policy::embedded()) };
    let name = source.display().to_string();
    let bytes = std::fs::read(source).map_err(|error| format!("cannot read {name}: {error}"))?;
    let parsed = policy::parse_bytes(&name, &bytes).map_err(|problems| problems.to_string())?;
    for warning in &parsed.warnings {
        warn!("{warning}");
    }
    Ok(parsed.policy)
}

/// Half of what systemd allows, or now and then without it.
fn watchdog_interval() -> Duration {
    sd_notify::watchdog_enabled().map_or(Duration::from_secs(10), |limit| limit / 2)
}

fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot notify systemd: {error}");
    }
}

/// Asks the instance that runs, and gives its answer.
pub fn ask(request: Request) -> Result<String, ControlError> {
    use std::io::{Read, Write};
    let path = path();
    let ask = || {
        let mut stream = std::os::unix::net::UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(PATIENCE * 5))?;
        stream.write_all(serde_json::to_string(&request)?.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().map_err(|source| ControlError::NobodyThere { path: path.clone(), source })
}
