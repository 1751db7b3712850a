//! Writes log lines to standard error without delaying packets.
//!
//! Every write to a terminal, a pipe or the journal is a system call and may block. So threads put lines into a
//! buffer in memory, and a separate thread writes them: the first line at once, the lines of a busy server in batches.
//! Lines that do not fit into the buffer are counted and reported as lost.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// The size of the buffer in bytes: about ten thousand lines.
const CAPACITY: usize = 1 << 20;
/// How long lines gather after each write.
const BATCH_DELAY: Duration = Duration::from_millis(10);

/// The threads write log lines to it.
#[derive(Clone, Debug, Default)]
pub(super) struct LogSink(Arc<LogBuffer>);

#[derive(Debug, Default)]
struct LogBuffer {
    pending: Mutex<PendingLines>,
    not_empty: Condvar,
    /// Held by the thread that writes, so that lines stay in order.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct PendingLines {
    lines: Vec<u8>,
    lost: u64,
}

/// Writes the lines of a [`LogSink`]. Dropping it writes the pending lines.
#[derive(Debug)]
pub(super) struct LogWriter(LogSink);

impl LogSink {
    /// Lines are buffered until the [`LogWriter`] starts to write or is dropped.
    pub(super) fn for_standard_error() -> (Self, LogWriter) {
        let sink = Self::default();
        (sink.clone(), LogWriter(sink))
    }

    fn push(&self, line: &[u8]) {
        let mut pending = self.pending();
        if pending.lines.len() + line.len() > CAPACITY {
            pending.lost += 1;
            return;
        }
        if pending.lines.is_empty() {
            self.0.not_empty.notify_one();
        }
        pending.lines.extend_from_slice(line);
    }

    fn wait(&self) {
        let pending = self.0.not_empty.wait_while(self.pending(), |pending| pending.lines.is_empty());
        drop(pending.unwrap_or_else(PoisonError::into_inner));
    }

    fn write_to(&self, out: &mut impl Write) {
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let PendingLines { mut lines, lost } = std::mem::take(&mut *self.pending());
        if lost > 0 {
            lines.extend_from_slice(
                format!("{lost} log lines were lost: they came faster than they could be written\n").as_bytes(),
            );
        }
        // An error of the log cannot be logged.
        let _ = out.write_all(&lines).and_then(|()| out.flush());
    }

    fn pending(&self) -> MutexGuard<'_, PendingLines> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogWriter {
    /// Starts the thread that writes lines as they come.
    pub(super) fn start_writing(&self) {
        let Self(sink) = self;
        let sink = sink.clone();
        thread::spawn(move || {
            loop {
                sink.wait();
                sink.write_to(&mut io::stderr());
                thread::sleep(BATCH_DELAY);
            }
        });
    }

    /// Writes the pending lines.
    pub(super) fn write(&self) {
        let Self(sink) = self;
        sink.write_to(&mut io::stderr());
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.write();
    }
}

impl Write for LogSink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogSink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(sink: &LogSink) -> String {
        let mut out = Vec::new();
        sink.write_to(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn lines_are_written_once_and_in_order() {
        let sink = LogSink::default();
        sink.push(b"one\n");
        sink.push(b"two\n");
        assert_eq!(written(&sink), "one\ntwo\n");
        assert_eq!(written(&sink), "");
    }

    #[test]
    fn lines_that_do_not_fit_are_counted_and_reported() {
        let sink = LogSink::default();
        let long = vec![b'x'; CAPACITY - 1];
        sink.push(&long);
        sink.push(b"too much\n");
        sink.push(b"this too\n");
        let text = written(&sink);
        assert_eq!(
            text.len(),
            CAPACITY - 1 + "2 log lines were lost: they came faster than they could be written\n".len()
        );
        sink.push(b"there is room again\n");
        assert_eq!(written(&sink), "there is room again\n");
    }
}
