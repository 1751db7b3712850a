//! Shows the progress of a long replay on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// No progress bar for shorter files.
const MIN_LENGTH: u64 = 32 << 20;
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
const WIDTH: usize = 40;

/// A progress bar on standard error.
#[derive(Debug)]
pub(super) struct Progress {
    name: String,
    length: u64,
    began: Instant,
    drawn: Instant,
    is_drawn: bool,
}

impl Progress {
    /// None for a short file, without a terminal, or if the report goes to the same terminal.
    pub(super) fn for_file(name: &str, length: Option<u64>) -> Option<Self> {
        let length = length.filter(|&length| length >= MIN_LENGTH)?;
        if !io::stderr().is_terminal() || io::stdout().is_terminal() {
            return None;
        }
        let now = Instant::now();
        Some(Self { name: name.to_owned(), length, began: now, drawn: now, is_drawn: false })
    }

    pub(super) fn update(&mut self, bytes: u64) {
        let now = Instant::now();
        if now.duration_since(self.drawn) < REDRAW_INTERVAL {
            return;
        }
        self.drawn = now;
        self.is_drawn = true;
        let done = bytes.min(self.length);
        let filled = usize::try_from(done * WIDTH as u64 / self.length).unwrap_or(WIDTH);
        let percent = done * 100 / self.length;
        let rate = bytes as f64 / 1e6 / now.duration_since(self.began).as_secs_f64();
        let (full, empty) = ("#".repeat(filled), ".".repeat(WIDTH - filled));
        let _ = write!(io::stderr(), "\r{} [{full}{empty}] {percent:>3} %  {rate:.0} MB/s ", self.name);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_drawn {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
