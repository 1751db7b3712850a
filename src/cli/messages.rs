//! Formats messages, for a person at standard error or for systemd's journal (one line per record).

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use super::log::{LogSink, LogWriter};
use tracing::{Event, Level, Subscriber, error};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The level of a record, in the numbers of syslog, which the journal reads at the beginning of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

impl From<&Level> for Priority {
    fn from(level: &Level) -> Self {
        match *level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warning,
            Level::INFO => Self::Info,
            Level::DEBUG | Level::TRACE => Self::Debug,
        }
    }
}

/// A text as one record of systemd's journal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a>(pub(super) Priority, pub(super) &'a str);

impl fmt::Display for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(priority, text) = *self;
        write!(f, "<{}>", priority as u8)?;
        // The journal makes a record of each line, and only the first would have the priority.
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.enumerate().try_for_each(|(index, line)| write!(f, "{}{line}", if index == 0 { "" } else { " | " }))
    }
}

/// Starts logging. Lines are buffered until [`LogWriter::start_writing`] is called, and then written to standard error.
/// `RUST_LOG` sets the level.
pub(super) fn start_log() -> LogWriter {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let (sink, writer) = LogSink::for_standard_error();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(sink).with_target(false);
    if goes_to_journal() {
        builder.event_format(JournalFormat).init();
    } else {
        builder.with_ansi(io::stderr().is_terminal()).compact().init();
    }
    std::panic::set_hook(Box::new(|panic| error!("this is a bug, please report it: {panic}")));
    writer
}

/// Whether standard error is the journal. The variable alone is not enough: the children of a service inherit it, but may
/// have another standard error.
pub(super) fn goes_to_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    named.is_some_and(|named| is_stream(&named, io::stderr().as_fd()))
}

fn is_stream(named: &str, fd: BorrowedFd<'_>) -> bool {
    let Some((device, inode)) = named.split_once(':') else { return false };
    let metadata = fd.try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    metadata.is_ok_and(|metadata| Ok(metadata.dev()) == device.parse() && Ok(metadata.ino()) == inode.parse())
}

/// Formats events as records; the journal adds the time.
struct JournalFormat;

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        writeln!(writer, "{}", Record(event.metadata().level().into(), &text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_of_several_lines_is_one_line() {
        assert_eq!(Record(Priority::Info, "opened").to_string(), "<6>opened");
        let text = "nft refused the ruleset:\n  line 3\n\n  ^^^^\n";
        assert_eq!(Record(Priority::Error, text).to_string(), "<3>nft refused the ruleset: | line 3 | ^^^^");
    }

    #[test]
    fn journal_is_recognised_by_device_and_inode() {
        let file = File::open("/proc/self/exe").expect("this program");
        let about = file.metadata().expect("it is open");
        let right = format!("{}:{}", about.dev(), about.ino());
        assert!(is_stream(&right, file.as_fd()));
        for wrong in [format!("{}:{}", about.dev(), about.ino() + 1), about.ino().to_string(), "".into(), "8:".into()] {
            assert!(!is_stream(&wrong, file.as_fd()), "{wrong}");
        }
    }
}
