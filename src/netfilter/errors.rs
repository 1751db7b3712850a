//! Counts the requests that the kernel refused, if the caller continues without a result.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::netlink::Error;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedRequests {
    pub count: u64,
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

    /// Returns the value of a result, or counts the error.
    pub(super) fn ok<T>(&self, result: Result<T, Error>) -> Option<T> {
        result.inspect_err(|error| self.add(error)).ok()
    }

    /// The requests that were refused since the last call.
    pub(super) fn take(&self) -> RefusedRequests {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, RefusedRequests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
