//! The control socket, signals, and notifications to systemd.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{geteuid, umask};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::AbortHandle;
use tracing::{debug, error, info, warn};

use super::Shared;
use super::status::Request;
use crate::core::policy;
use crate::netfilter::queue::processors;

/// Where the socket lies, unless `PINHOLE_SOCKET` says otherwise.
const SOCKET: &str = "/run/pinhole/control.sock";
/// The longest question, and how long it may take to come.
const LONGEST_REQUEST: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(5);

/// How many clients are served at a time. When one more comes, the one that connected first has to go.
const MOST_CLIENTS: usize = 32;

/// What a client is told that may not ask.
const NOT_ALLOWED: &str = "only root and the user that the service runs as may ask";

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
        ErrorKind::PermissionDenied => NOT_ALLOWED,
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

/// Begins to listen. Only this user and root may connect, from the first moment on.
///
/// No other thread may make files meanwhile.
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
        let others = umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(&path);
        umask(others);
        listener
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
    let mut clients = Clients::default();
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
            Ok((stream, _)) = listener.accept() => clients.serve(stream, shared, source),
        }
    };
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    let _ = std::fs::remove_file(path());
    Ok(ended_by)
}

/// Those who are being served, the one that connected first in front.
#[derive(Default)]
struct Clients(VecDeque<AbortHandle>);

impl Clients {
    /// Serves one more, besides the others: who connects and asks nothing keeps nobody waiting.
    fn serve(&mut self, stream: UnixStream, shared: &Shared, source: Option<&Path>) {
        let Self(clients) = self;
        match stream.peer_cred().map(|peer| peer.uid()) {
            Ok(user) if may_ask(user, geteuid().as_raw()) => {}
            Ok(user) => {
                debug!("the control socket: user {user} may not ask");
                // A few bytes fit into an empty buffer.
                let _ = stream.try_write(format!("error: {NOT_ALLOWED}\n").as_bytes());
                return;
            }
            Err(error) => return warn!("the control socket: who asks is not known: {error}"),
        }
        clients.retain(|client| !client.is_finished());
        if clients.len() >= MOST_CLIENTS
            && let Some(oldest) = clients.pop_front()
        {
            debug!("the control socket: {MOST_CLIENTS} clients at a time, the first of them has to go");
            oldest.abort();
        }
        let (shared, source) = (shared.clone(), source.map(Path::to_owned));
        let serve = async move {
            match tokio::time::timeout(PATIENCE, answer(stream, &shared, source.as_deref())).await {
                Ok(Ok(())) => {}
                // Whoever asked does not want to know any more.
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    debug!("the control socket: {error}");
                }
                Ok(Err(error)) => warn!("the control socket: {error}"),
                Err(_) => debug!("the control socket: somebody connected and did not ask in time"),
            }
        };
        clients.push_back(tokio::spawn(serve).abort_handle());
    }
}

/// Whether a user may ask, by the number that the kernel says the peer has (`SO_PEERCRED`). The socket's mode keeps
/// others out as well; but somebody may change that, or hand on a connection.
const fn may_ask(user: u32, own: u32) -> bool {
    user == 0 || user == own
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
        stream.set_read_timeout(Some(PATIENCE * 2))?;
        let mut answer = String::new();
        let asked = stream.write_all(serde_json::to_string(&request)?.as_bytes());
        let asked = asked.and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        let read = stream.read_to_string(&mut answer);
        // Who may not ask has the answer before the question.
        if !answer.starts_with("error: ") {
            asked?;
            read?;
        }
        Ok(answer)
    };
    ask().map_err(|cause| ControlError::NobodyThere { path: path.clone(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_own_user_may_ask_and_nobody_else() {
        for (user, own, may) in [(0, 0, true), (0, 990, true), (990, 990, true), (1000, 990, false), (1000, 0, false)] {
            assert_eq!(may_ask(user, own), may, "{user} asks {own}");
        }
    }
}
