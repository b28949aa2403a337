//! Permits: how many refreshes run at once.
//!
//! Waiting callers and background work share one semaphore. Background work takes a permit of a
//! second one first, of the same size, so that no more of it than is running can stand in the queue
//! before a caller. A request that the provider leaves unanswered for [`SLOW_AFTER`] moves to a
//! third semaphore and makes room, so that a few users whose requests hang do not stop all others.
//!
//! Closing the semaphores ends everything that waits in them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a request may keep others from starting. Far above a provider's usual answer.
pub(super) const SLOW_AFTER: Duration = Duration::from_millis(500);

/// How many slow requests there may be for each permit. When they are used up, a slow request keeps
/// its own permit.
const SLOW_PER_PERMIT: usize = 4;

#[derive(Debug)]
pub(super) struct Permits {
    running: Arc<Semaphore>,
    background: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    /// How many refreshes run at once, slow ones aside.
    pub(super) max: usize,
}

/// The right to run a refresh, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _running: OwnedSemaphorePermit,
    _background: Option<OwnedSemaphorePermit>,
}

impl Permits {
    pub(super) fn new(max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS / SLOW_PER_PERMIT);
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            running: semaphore(max),
            background: semaphore(max),
            slow: semaphore(max * SLOW_PER_PERMIT),
            max,
        }
    }

    /// How many refreshes run at once, slow ones included.
    pub(super) fn max_with_slow(&self) -> usize {
        self.max * (1 + SLOW_PER_PERMIT)
    }

    /// Waits for a permit. Background work goes to the front once `promoted` is over: a caller
    /// waits for it. `None` after [`close`](Self::close).
    pub(super) async fn acquire(&self, promoted: impl Future<Output = ()>) -> Option<Permit> {
        let background = tokio::select! {
            biased;
            () = promoted => None,
            permit = Arc::clone(&self.background).acquire_owned() => Some(permit.ok()?),
        };
        let running = Arc::clone(&self.running).acquire_owned().await.ok()?;
        Some(Permit { _running: running, _background: background })
    }

    /// Runs a request to its end. Once `slow` is over, [`SLOW_AFTER`] its start, its permit goes to
    /// the next one.
    pub(super) async fn run<T>(
        &self,
        permit: Permit,
        slow: impl Future<Output = ()>,
        request: impl Future<Output = T>,
    ) -> (T, Permit) {
        let mut request = std::pin::pin!(request);
        let outcome = tokio::select! {
            biased;
            outcome = &mut request => Some(outcome),
            () = slow => None,
        };
        match outcome {
            Some(outcome) => (outcome, permit),
            None => match Arc::clone(&self.slow).try_acquire_owned() {
                Ok(slow) => {
                    drop(permit);
                    (request.await, Permit { _running: slow, _background: None })
                }
                Err(_) => (request.await, permit),
            },
        }
    }

    /// Ends all waiting for permits, now and from now on.
    pub(super) fn close(&self) {
        self.running.close();
        self.background.close();
    }
}
