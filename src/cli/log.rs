//! Writes log lines to standard error, without making a packet wait.
//!
//! Every write to a terminal, a pipe or the journal is a system call and may block. So threads put lines into a
//! buffer in memory, and a thread of its own writes them: the first line at once, those of a busy server in larger
//! pieces. Lines that do not fit into the buffer are counted and reported as lost.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// How much may wait to be written: some ten thousand lines.
const ROOM: usize = 1 << 20;
/// How long lines gather behind one that was written.
const GATHER: Duration = Duration::from_millis(10);

/// Where log lines are put down.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<LogBuffer>);

#[derive(Debug, Default)]
struct LogBuffer {
    pile: Mutex<Pile>,
    has_come: Condvar,
    /// Held while somebody writes, so that lines stay in order.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Pile {
    lines: Vec<u8>,
    lost: u64,
}

/// Writes what has been put down when it is dropped.
#[derive(Debug)]
pub(super) struct Rest(Lines);

impl Lines {
    /// For standard error. They gather until the [`Rest`] begins to write them or is dropped.
    pub(super) fn for_standard_error() -> (Self, Rest) {
        let lines = Self::default();
        (lines.clone(), Rest(lines))
    }

    fn put_down(&self, line: &[u8]) {
        let mut pile = self.pile();
        if pile.lines.len() + line.len() > ROOM {
            pile.lost += 1;
            return;
        }
        if pile.lines.is_empty() {
            self.0.has_come.notify_one();
        }
        pile.lines.extend_from_slice(line);
    }

    fn wait(&self) {
        let pile = self.0.has_come.wait_while(self.pile(), |pile| pile.lines.is_empty());
        drop(pile.unwrap_or_else(PoisonError::into_inner));
    }

    fn write_to(&self, out: &mut impl Write) {
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Pile { mut lines, lost } = std::mem::take(&mut *self.pile());
        if lost > 0 {
            lines.extend_from_slice(
                format!("{lost} log lines were lost: they came faster than they could be written\n").as_bytes(),
            );
        }
        // Nobody is left to be told that nobody reads.
        let _ = out.write_all(&lines).and_then(|()| out.flush());
    }

    fn pile(&self) -> MutexGuard<'_, Pile> {
        self.0.pile.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rest {
    /// Starts the thread that writes them from now on.
    pub(super) fn start_writing(&self) {
        let Self(lines) = self;
        let lines = lines.clone();
        thread::spawn(move || {
            loop {
                lines.wait();
                lines.write_to(&mut io::stderr());
                thread::sleep(GATHER);
            }
        });
    }

    /// Writes what has been put down so far.
    pub(super) fn write(&self) {
        let Self(lines) = self;
        lines.write_to(&mut io::stderr());
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.write();
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put_down(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(lines: &Lines) -> String {
        let mut out = Vec::new();
        lines.write_to(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn lines_are_written_in_their_order_and_once() {
        let lines = Lines::default();
        lines.put_down(b"one\n");
        lines.put_down(b"two\n");
        assert_eq!(written(&lines), "one\ntwo\n");
        assert_eq!(written(&lines), "");
    }

    #[test]
    fn what_does_not_fit_is_counted_and_said() {
        let lines = Lines::default();
        let long = vec![b'x'; ROOM - 1];
        lines.put_down(&long);
        lines.put_down(b"too much\n");
        lines.put_down(b"this too\n");
        let text = written(&lines);
        assert_eq!(text.len(), ROOM - 1 + "2 log lines were lost: they came faster than they could be written\n".len());
        lines.put_down(b"there is room again\n");
        assert_eq!(written(&lines), "there is room again\n");
    }
}
