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
    /// How many run, beside [`CLOSED`].
    running: AtomicUsize,
    none_left: Notify,
}

/// Set once nothing more is to begin.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// One of those counted; until it is dropped.
pub(super) struct Counted(Arc<Count>);

impl Count {
    fn left(&self) -> usize {
        self.running.load(Ordering::Acquire) & !CLOSED
    }
}

impl Counter {
    pub(super) fn count_one(&self) -> Counted {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        Counted(Arc::clone(&self.0))
    }

    /// As [`count_one`](Self::count_one), unless nothing more is to begin: in one step with the
    /// count, so that who waits for none to be left waits for this one too.
    pub(super) fn count_one_unless_closed(&self) -> Option<Counted> {
        let before = self.0.running.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(&self.0));
        (before & CLOSED == 0).then_some(counted)
    }

    pub(super) fn close(&self) {
        self.0.running.fetch_or(CLOSED, Ordering::AcqRel);
    }

    pub(super) async fn none_left(&self) {
        loop {
            // It hears of what happens from now on, and not only once it is polled.
            let none_left = self.0.none_left.notified();
            if self.0.left() == 0 {
                return;
            }
            none_left.await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) & !CLOSED == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.left().fmt(f)
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_counted_before_the_close_is_over_when_none_is_left() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("nothing it needs");
        for round in 0..4_000 {
            let counters: Vec<_> = std::iter::repeat_with(Counter::default).take(500).collect();
            let done: Vec<_> = std::iter::repeat_with(AtomicBool::default).take(500).collect();
            let start = Barrier::new(2);
            thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    start.wait();
                    let rounds = counters.iter().zip(&done).map(|(counter, done)| {
                        let counted = counter.count_one_unless_closed();
                        done.store(true, Ordering::Relaxed);
                        counted.is_some()
                    });
                    rounds.collect::<Vec<_>>()
                });
                start.wait();
                let over: Vec<_> = runtime.block_on(async {
                    let mut over = Vec::new();
                    for (counter, done) in counters.iter().zip(&done) {
                        counter.close();
                        counter.none_left().await;
                        over.push(done.load(Ordering::Relaxed));
                    }
                    over
                });
                let began = worker.join().expect("nothing panics there");
                let behind = began.iter().zip(&over).filter(|(began, over)| **began && !**over);
                assert_eq!(behind.count(), 0, "round {round}");
            });
        }
    }
}
