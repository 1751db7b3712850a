//! The control socket, signals, and what systemd wants to hear.

use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, error, info, warn};

use super::Shared;
use super::status::Request;
use crate::capture::queue::processors;
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
    #[error(
        "cannot make the control socket {}: {cause}; name another place in the variable PINHOLE_SOCKET",
        path.display()
    )]
    Make {
        /// Where.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Nobody answers.
    #[error("no pinhole answers at {}: {cause}; {}", path.display(), advice(cause))]
    NobodyThere {
        /// Where.
        path: PathBuf,
        /// What happened.
        cause: io::Error,
    },
}

/// What to do where nobody answers.
fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        ErrorKind::PermissionDenied => "only root may ask",
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            "does it run? `systemctl status pinhole`, or `pinhole run`"
        }
        _ => "it hangs, or has just ended; its log says more",
    }
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
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    make().map_err(|cause| ControlError::Make { path: path.clone(), cause })
}

/// How the service was told to end.
pub(super) enum End {
    /// By that signal: nothing may be left behind.
    ForGood(&'static str),
    /// Another one starts right away, and goes on with what stands.
    ForTheNext,
}

/// Serves the control plane until a signal ends it.
pub(super) async fn serve(listener: &UnixListener, shared: &Shared, source: Option<&Path>) -> io::Result<End> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut make_way = signal(SignalKind::user_defined2())?;
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    let mut watchdog = tokio::time::interval(watchdog_interval());
    let ended_by = loop {
        tokio::select! {
            _ = terminate.recv() => break End::ForGood("SIGTERM"),
            _ = interrupt.recv() => break End::ForGood("SIGINT"),
            _ = make_way.recv() => break End::ForTheNext,
            _ = hangup.recv() => drop(reload(shared, source)),
            _ = watchdog.tick() => {
                // Taking the lock shows that the engine is not stuck.
                shared.lock().pass_time();
                tell_systemd(&[sd_notify::NotifyState::Watchdog]);
            }
            Ok((stream, _)) = listener.accept() => {
                match tokio::time::timeout(PATIENCE, answer(stream, shared, source)).await {
                    Ok(Ok(())) => {}
                    // Whoever asked does not want to know any more.
                    Ok(Err(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                        debug!("the control socket: {error}");
                    }
                    Ok(Err(error)) => warn!("the control socket: {error}"),
                    Err(_) => debug!("the control socket: somebody connected and did not ask in time"),
                }
            }
        }
    };
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    let _ = std::fs::remove_file(path());
    Ok(ended_by)
}

async fn answer(mut stream: UnixStream, shared: &Shared, source: Option<&Path>) -> io::Result<()> {
    let mut request = String::new();
    (&mut stream).take(LONGEST_REQUEST).read_to_string(&mut request).await?;
    if request.is_empty() {
        // Somebody looked whether we are here: `pinhole check`, or a second `pinhole run`.
        return Ok(());
    }
    let answer = match serde_json::from_str(&request) {
        Ok(Request::Status) => shared.lock().status().to_string(),
        Ok(Request::Json) => serde_json::to_string(&shared.lock().status())? + "\n",
        Ok(Request::Reload) => match reload(shared, source) {
            Ok(()) => "the policy is loaded\n".to_owned(),
            Err(NotLoaded { in_full, .. }) => format!("error: {in_full}\n"),
        },
        Err(error) => format!("error: {error}\n"),
    };
    stream.write_all(answer.as_bytes()).await
}

/// Why another policy does not hold.
struct NotLoaded {
    /// For the log, in one line.
    in_brief: String,
    /// For whoever asked.
    in_full: String,
}

impl From<String> for NotLoaded {
    fn from(text: String) -> Self {
        Self { in_brief: text.clone(), in_full: text }
    }
}

/// Reads the policy anew; a bad one is refused and the old one stays.
fn reload(shared: &Shared, source: Option<&Path>) -> Result<(), NotLoaded> {
    let result = read(source)
        .and_then(|policy| shared.lock().reload(policy).map_err(|error| NotLoaded::from(error.to_string())));
    match &result {
        Ok(()) => info!("the policy is loaded anew"),
        Err(NotLoaded { in_brief, .. }) => error!("the policy is not loaded, the old one stays: {in_brief}"),
    }
    result
}

fn read(source: Option<&Path>) -> Result<policy::Policy, NotLoaded> {
    let Some(source) = source else { return Ok(policy::Policy::embedded().on(processors())) };
    let name = source.display().to_string();
    let bytes = std::fs::read(source).map_err(|error| format!("cannot read {name}: {error}"))?;
    let parsed = policy::parse_bytes(&name, &bytes).map_err(|problems| {
        let headlines: Vec<String> = problems.iter().map(policy::Problem::headline).collect();
        NotLoaded { in_brief: headlines.join("; "), in_full: problems.to_string() }
    })?;
    for warning in &parsed.warnings {
        warn!("{}", warning.headline());
    }
    Ok(parsed.policy.on(processors()))
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
    ask().map_err(|cause| ControlError::NobodyThere { path: path.clone(), cause })
}
