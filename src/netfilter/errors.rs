//! Counts the requests that the kernel refused, where the caller goes on without an answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::netlink::Error;

/// The requests that the kernel refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedRequests {
    /// Their number.
    pub count: u64,
    /// The latest error.
    pub latest: Option<Error>,
}

/// Counts refused requests. Its clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct ErrorCounter(Arc<Mutex<RefusedRequests>>);

impl ErrorCounter {
    pub(super) fn add(&self, error: &Error) {
        let mut refused = self.lock();
        refused.count += 1;
        refused.latest = Some(error.clone());
    }

    /// The value of a result; counts an error.
    pub(super) fn ok<T>(&self, result: Result<T, Error>) -> Option<T> {
        result.inspect_err(|error| self.add(error)).ok()
    }

    /// What was counted since the last call.
    pub(super) fn take(&self) -> RefusedRequests {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, RefusedRequests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
