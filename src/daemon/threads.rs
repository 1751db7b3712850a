//! The threads beside the main thread. When one of them ends, the program ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Starts threads.
pub(super) struct Workers(UnboundedSender<String>);

/// Reports the first thread that ends.
pub(super) struct FirstExit(UnboundedReceiver<String>);

pub(super) fn workers() -> (Workers, FirstExit) {
    let (sender, receiver) = unbounded_channel();
    (Workers(sender), FirstExit(receiver))
}

impl Workers {
    /// Starts a thread. `work` returns only if it cannot continue; its result is the reason.
    pub(super) fn start(&self, task: &'static str, work: impl FnOnce() -> String + Send + 'static) {
        let Self(sender) = self;
        let sender = sender.clone();
        let named = thread::Builder::new().name(task.to_owned());
        let started = named.spawn(move || {
            let why = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| "it panicked".to_owned());
            // The receiver is dropped only when the program ends.
            let _ = sender.send(format!("{task}: {why}"));
        });
        started.expect("the system has room for a thread");
    }
}

impl FirstExit {
    /// Waits until a thread ends, and returns its task and reason.
    pub(super) async fn wait(&mut self) -> String {
        let Self(receiver) = self;
        receiver.recv().await.unwrap_or_else(|| "there are no threads".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_exit(work: impl FnOnce() -> String + Send + 'static) -> String {
        let (workers, mut first_exit) = workers();
        workers.start("watching", || {
            loop {
                thread::park();
            }
        });
        workers.start("reading", work);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(first_exit.wait())
    }

    #[test]
    fn thread_that_ends_or_panics_is_reported() {
        assert_eq!(first_exit(|| "it is gone".to_owned()), "reading: it is gone");
        assert_eq!(first_exit(|| panic!("this panic is part of a test")), "reading: it panicked");
    }
}
