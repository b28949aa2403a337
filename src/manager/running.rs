//! What is under way: how much of it, and how a refresh ends for all who wait for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, SetOnce};

use super::abandoned;
use crate::error::Error;

/// Counts what goes on, and tells when nothing does.
#[derive(Default)]
pub(super) struct Counter(Arc<Count>);

#[derive(Default)]
struct Count {
    running: AtomicUsize,
    none_left: Notify,
}

/// One of those counted; until it is dropped.
pub(super) struct Counted(Arc<Count>);

impl Counter {
    pub(super) fn count_one(&self) -> Counted {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        Counted(Arc::clone(&self.0))
    }

    pub(super) async fn none_left(&self) {
        loop {
            // It hears of what happens from now on, and not only once it is polled.
            let none_left = self.0.none_left.notified();
            if self.0.running.load(Ordering::Acquire) == 0 {
                return;
            }
            none_left.await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.running.fmt(f)
    }
}

/// The end of a refresh, once it has come.
#[derive(Clone, Debug)]
pub(super) struct Landing(Arc<SetOnce<Result<(), Error>>>);

/// Who brings that end about. Dropped without an outcome, the refresh is abandoned.
pub(super) struct Lander(Landing);

impl Landing {
    pub(super) fn expected() -> (Lander, Self) {
        let landing = Self(Arc::default());
        (Lander(landing.clone()), landing)
    }

    pub(super) fn has_come(&self) -> bool {
        self.0.initialized()
    }

    pub(super) async fn wait(&self) -> Result<(), Error> {
        self.0.wait().await.clone()
    }
}

impl Lander {
    pub(super) fn land(self, outcome: Result<(), Error>) {
        // Nobody else lands it.
        let _ = self.0.0.set(outcome);
    }
}

impl Drop for Lander {
    fn drop(&mut self) {
        if !self.0.has_come() {
            let _ = self.0.0.set(Err(abandoned()));
        }
    }
}
