//! The threads beside the main thread. They run as long as the program does: when one of them ends, the program
//! ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Starts threads.
pub(super) struct Workers(UnboundedSender<String>);

/// Hears of threads that ended.
pub(super) struct Threads(UnboundedReceiver<String>);

pub(super) fn crew() -> (Threads, Workers) {
    let (sender, receiver) = unbounded_channel();
    (Threads(receiver), Workers(sender))
}

impl Workers {
    /// Starts a thread for that task. It ends only where it cannot go on, and says why.
    pub(super) fn start(&self, task: &'static str, work: impl FnOnce() -> String + Send + 'static) {
        let Self(ends) = self;
        let ends = ends.clone();
        let named = thread::Builder::new().name(task.to_owned());
        let started = named.spawn(move || {
            let why = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| "it panicked".to_owned());
            // Nobody hears it when the program is about to end anyway.
            let _ = ends.send(format!("{task}: {why}"));
        });
        started.expect("the system has room for a thread");
    }
}

impl Threads {
    /// Waits until a thread ends; says which, and why.
    pub(super) async fn first_end(&mut self) -> String {
        let Self(ends) = self;
        ends.recv().await.unwrap_or_else(|| "there are no threads".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(work: impl FnOnce() -> String + Send + 'static) -> String {
        let (mut threads, crew) = crew();
        crew.start("watching", || {
            loop {
                thread::park();
            }
        });
        crew.start("reading", work);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(threads.first_end())
    }

    #[test]
    fn a_thread_that_ends_is_heard_of_and_one_that_panics_too() {
        assert_eq!(end_of(|| "it is gone".to_owned()), "reading: it is gone");
        assert_eq!(end_of(|| panic!("this panic is part of a test")), "reading: it panicked");
    }
}
