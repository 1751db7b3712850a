//! The control socket, signals, and notifications to systemd.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{geteuid, umask};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::AbortHandle;
use tracing::{debug, error, info, warn};

use super::status::Request;
use super::{Shared, open_metrics};
use crate::core::policy;
use crate::netfilter::queue::processors;

/// The directory of the control sockets, unless the variable `PINHOLE_SOCKET` names a path.
const DIRECTORY: &str = "/run/pinhole";
/// The network namespace of this thread.
const NETWORK_NAMESPACE: &str = "/proc/thread-self/ns/net";
const MAX_REQUEST: u64 = 256;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How many clients are served at a time. A further client closes the oldest connection.
const MAX_CLIENTS: usize = 32;

/// The answer to all other users.
const NOT_ALLOWED: &str = "only root and the daemon's own user may use the control socket";

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("another pinhole is running: it answers at {}", .0.display())]
    SecondInstance(PathBuf),
    #[error(
        "cannot create the control socket {}: {cause}; the variable PINHOLE_SOCKET can name another path",
        path.display()
    )]
    Create { path: PathBuf, cause: io::Error },
    #[error("no daemon answers at {}: {cause}; {}", path.display(), advice(cause))]
    NoAnswer { path: PathBuf, cause: io::Error },
}

fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        ErrorKind::PermissionDenied => NOT_ALLOWED,
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            "is it running? `systemctl status pinhole`, or start it with `pinhole run`"
        }
        _ => "it hangs or has just ended; see its log",
    }
}

/// The path of the control socket. Each network namespace has its own, as each has its own table and queues; the inode
/// number of the namespace tells them apart.
pub fn path() -> PathBuf {
    std::env::var_os("PINHOLE_SOCKET").map_or_else(|| path_in(namespace().ok()), PathBuf::from)
}

fn namespace() -> io::Result<u64> {
    std::fs::metadata(NETWORK_NAMESPACE).map(|namespace| namespace.ino())
}

/// The path for the network namespace with this inode number.
fn path_in(namespace: Option<u64>) -> PathBuf {
    let name = namespace.map_or_else(|| "control.sock".to_owned(), |inode| format!("control-{inode}.sock"));
    Path::new(DIRECTORY).join(name)
}

/// Creates the socket. Only this user has permissions for it from the first moment on.
///
/// No other thread may create files meanwhile, because all threads share the umask.
pub(super) fn listen(path: &Path) -> Result<UnixListener, ControlError> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ControlError::SecondInstance(path.to_owned()));
    }
    let create = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let previous = umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        umask(previous);
        listener
    };
    create().map_err(|cause| ControlError::Create { path: path.to_owned(), cause })
}

/// What to do with the table at the end.
pub(super) enum Shutdown {
    /// Remove it, because of this signal.
    Remove(&'static str),
    /// Leave it to the next start.
    HandOver,
}

/// Answers requests at the socket `path` until a signal ends the daemon.
pub(super) async fn serve(
    listener: &UnixListener,
    path: &Path,
    shared: &Shared,
    source: Option<&Path>,
) -> io::Result<Shutdown> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut hand_over = signal(SignalKind::user_defined2())?;
    notify_systemd(&[sd_notify::NotifyState::Ready]);
    let mut watchdog = tokio::time::interval(watchdog_interval());
    let mut clients = Clients::default();
    let shutdown = loop {
        tokio::select! {
            _ = terminate.recv() => break Shutdown::Remove("SIGTERM"),
            _ = interrupt.recv() => break Shutdown::Remove("SIGINT"),
            _ = hand_over.recv() => break Shutdown::HandOver,
            _ = hangup.recv() => drop(reload(shared, source)),
            _ = watchdog.tick() => {
                // This takes the engine's lock. If the engine is stuck, systemd is not notified and restarts the daemon.
                shared.lock().expire();
                notify_systemd(&[sd_notify::NotifyState::Watchdog]);
            }
            Ok((stream, _)) = listener.accept() => clients.serve(stream, shared, source),
        }
    };
    notify_systemd(&[sd_notify::NotifyState::Stopping]);
    let _ = std::fs::remove_file(path);
    Ok(shutdown)
}

/// The tasks that serve clients, the oldest in front.
#[derive(Default)]
struct Clients(VecDeque<AbortHandle>);

impl Clients {
    /// Serves a client in its own task, so that an idle client does not block other clients.
    fn serve(&mut self, stream: UnixStream, shared: &Shared, source: Option<&Path>) {
        let Self(clients) = self;
        match stream.peer_cred().map(|peer| peer.uid()) {
            Ok(user) if is_allowed(user, geteuid().as_raw()) => {}
            Ok(user) => {
                debug!("control socket: user {user} is not allowed");
                // A few bytes fit into an empty buffer.
                let _ = stream.try_write(format!("error: {NOT_ALLOWED}\n").as_bytes());
                return;
            }
            Err(error) => return warn!("control socket: the client's user is not known: {error}"),
        }
        clients.retain(|client| !client.is_finished());
        if clients.len() >= MAX_CLIENTS
            && let Some(oldest) = clients.pop_front()
        {
            debug!("control socket: more than {MAX_CLIENTS} clients, closing the connection of the first");
            oldest.abort();
        }
        let (shared, source) = (shared.clone(), source.map(Path::to_owned));
        let serve = async move {
            match tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &shared, source.as_deref())).await {
                Ok(Ok(())) => {}
                // The client has gone.
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    debug!("control socket: {error}");
                }
                Ok(Err(error)) => warn!("control socket: {error}"),
                Err(_) => debug!("control socket: a client sent no request in time"),
            }
        };
        clients.push_back(tokio::spawn(serve).abort_handle());
    }
}

/// Checks the peer's user ID (`SO_PEERCRED`). The socket's mode keeps other users out, too, but it can be changed, and a
/// connected socket can be passed to another process.
const fn is_allowed(user: u32, own: u32) -> bool {
    user == 0 || user == own
}

async fn answer(mut stream: UnixStream, shared: &Shared, source: Option<&Path>) -> io::Result<()> {
    let mut request = String::new();
    (&mut stream).take(MAX_REQUEST).read_to_string(&mut request).await?;
    if request.is_empty() {
        // `pinhole check` and a second `pinhole run` connect to see whether a daemon answers.
        return Ok(());
    }
    let answer = match serde_json::from_str(&request) {
        Ok(Request::Status) => shared.lock().status().to_string(),
        Ok(Request::Json) => serde_json::to_string(&shared.lock().status())? + "\n",
        Ok(Request::Metrics(format)) => {
            let status = shared.lock().status();
            open_metrics::encode(status, format)
        }
        Ok(Request::Reload) => match reload(shared, source) {
            Ok(()) => format!("policy reloaded: {}\n", name_of(source)),
            Err(ReloadError { full, .. }) => format!("error: {full}\n"),
        },
        Ok(Request::Explain { client, server }) => {
            serde_json::to_string(&shared.lock().explain(client, server))? + "\n"
        }
        Err(error) => format!("error: {error}\n"),
    };
    stream.write_all(answer.as_bytes()).await
}

struct ReloadError {
    /// For the log.
    one_line: String,
    /// For `pinhole reload`.
    full: String,
}

impl From<String> for ReloadError {
    fn from(text: String) -> Self {
        Self { one_line: text.clone(), full: text }
    }
}

/// Reads the policy again. After an error the old policy stays in force.
fn reload(shared: &Shared, source: Option<&Path>) -> Result<(), ReloadError> {
    let result = read(source)
        .and_then(|policy| shared.lock().reload(policy).map_err(|error| ReloadError::from(error.to_string())));
    match &result {
        Ok(()) => info!("reloaded the policy: {}", name_of(source)),
        Err(ReloadError { one_line, .. }) => error!("reload failed, the old policy stays in force: {one_line}"),
    }
    result
}

fn name_of(source: Option<&Path>) -> String {
    source.map_or_else(|| "the embedded one".to_owned(), |source| source.display().to_string())
}

fn read(source: Option<&Path>) -> Result<policy::Policy, ReloadError> {
    let Some(source) = source else { return Ok(policy::Policy::embedded().on(processors())) };
    let name = source.display().to_string();
    let bytes = std::fs::read(source).map_err(|error| format!("cannot read {name}: {error}"))?;
    let parsed = policy::parse_bytes(&name, &bytes).map_err(|problems| {
        let headlines: Vec<String> = problems.iter().map(policy::Problem::headline).collect();
        ReloadError { one_line: headlines.join("; "), full: problems.to_string() }
    })?;
    for warning in &parsed.warnings {
        warn!("{}", warning.headline());
    }
    Ok(parsed.policy.on(processors()))
}

/// Half of what systemd allows.
fn watchdog_interval() -> Duration {
    sd_notify::watchdog_enabled().map_or(Duration::from_secs(10), |limit| limit / 2)
}

fn notify_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot notify systemd: {error}");
    }
}

/// Sends a request to the running daemon, and returns its answer.
pub fn request(request: Request) -> Result<String, ControlError> {
    use std::io::{Read, Write};
    let path = path();
    let exchange = || {
        let mut stream = std::os::unix::net::UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(REQUEST_TIMEOUT * 2))?;
        let mut answer = String::new();
        let sent = stream.write_all(serde_json::to_string(&request)?.as_bytes());
        let sent = sent.and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        let read = stream.read_to_string(&mut answer);
        // A user that is not allowed gets the answer before the request is sent.
        if !answer.starts_with("error: ") {
            sent?;
            read?;
        }
        Ok(answer)
    };
    exchange().map_err(|cause| ControlError::NoAnswer { path: path.clone(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_namespace_has_its_own_socket() {
        assert_eq!(path_in(Some(4_026_531_840)), Path::new("/run/pinhole/control-4026531840.sock"));
        assert!(namespace().is_ok_and(|inode| inode > 0), "/proc has the namespace of this thread");
    }

    #[test]
    fn only_root_and_the_own_user_are_allowed() {
        for (user, own, may) in [(0, 0, true), (0, 990, true), (990, 990, true), (1000, 990, false), (1000, 0, false)] {
            assert_eq!(is_allowed(user, own), may, "{user} asks {own}");
        }
    }
}
