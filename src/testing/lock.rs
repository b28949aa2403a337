//! Locks that outlive a test's panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A test's panic while it held a lock is that test's failure, not every later one's.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
