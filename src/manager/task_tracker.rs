//! Tracks background tasks for shutdown, and completes a refresh for all its waiters.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Notify, SetOnce};

use crate::error::{Error, ErrorKind};

/// Counts running tasks and notifies when the count reaches zero.
#[derive(Default)]
pub(super) struct TaskTracker(Arc<Count>);

#[derive(Default)]
struct Count {
    /// The number of tasks, beside [`CLOSED`].
    running: AtomicUsize,
    idle: Notify,
}

/// The bit that is set once no new task may start.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// One running task, until it is dropped.
pub(super) struct TaskToken(Arc<Count>);

impl Count {
    fn running(&self) -> usize {
        // Acquire: pairs with the release of the last token, so that the waiter sees its effects.
        self.running.load(Ordering::Acquire) & !CLOSED
    }
}

impl TaskTracker {
    /// Counts a task that must run even after [`close`](Self::close).
    pub(super) fn token(&self) -> TaskToken {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        TaskToken(Arc::clone(&self.0))
    }

    /// Like [`token`](Self::token), but fails after `close`. Check and increment are one atomic
    /// step, so `wait_idle` cannot miss this task.
    pub(super) fn try_token(&self) -> Option<TaskToken> {
        let before = self.0.running.fetch_add(1, Ordering::AcqRel);
        let token = TaskToken(Arc::clone(&self.0));
        (before & CLOSED == 0).then_some(token)
    }

    pub(super) fn close(&self) {
        self.0.running.fetch_or(CLOSED, Ordering::AcqRel);
    }

    pub(super) async fn wait_idle(&self) {
        loop {
            // Registered before the look at the count, so that no notification is missed.
            let idle = self.0.idle.notified();
            if self.0.running() == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for TaskToken {
    fn drop(&mut self) {
        // Release: the task's effects are visible to whoever sees the count without it.
        if self.0.running.fetch_sub(1, Ordering::AcqRel) & !CLOSED == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl fmt::Debug for TaskTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.running().fmt(f)
    }
}

/// The outcome of a refresh, for all who wait for it.
#[derive(Clone, Debug)]
pub(super) struct Completion(Arc<Outcome>);

#[derive(Debug, Default)]
struct Outcome {
    result: SetOnce<Result<(), Error>>,
    /// Whether a caller waits. Set once, and told to whoever runs the refresh.
    has_caller: AtomicBool,
    caller_came: Notify,
}

/// Completes the refresh. Dropped without an outcome, it reports that the refresh was cut off.
pub(super) struct Completer(Completion);

impl Completion {
    pub(super) fn channel() -> (Completer, Self) {
        let completion = Self(Arc::default());
        (Completer(completion.clone()), completion)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.0.result.initialized()
    }

    /// Says that a caller waits for the refresh.
    pub(super) fn promote(&self) {
        // Relaxed: the flag publishes nothing but itself; `Notify` orders the wake-up.
        if !self.0.has_caller.swap(true, Ordering::Relaxed) {
            self.0.caller_came.notify_one();
        }
    }

    pub(super) async fn wait(&self) -> Result<(), Error> {
        self.0.result.wait().await.clone()
    }
}

impl Completer {
    /// Waits until a caller waits for the refresh.
    pub(super) async fn promoted(&self) {
        let Outcome { has_caller, caller_came, .. } = &*self.0.0;
        while !has_caller.load(Ordering::Relaxed) {
            // `notify_one` leaves a permit behind, so a caller who came just before is not missed.
            caller_came.notified().await;
        }
    }

    pub(super) fn completes(&self, completion: &Completion) -> bool {
        Arc::ptr_eq(&self.0.0, &completion.0)
    }

    pub(super) fn complete(&self, outcome: Result<(), Error>) {
        // An error means that it is complete already.
        let _ = self.0.0.result.set(outcome);
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if !self.0.is_complete() {
            self.complete(Err(cut_off()));
        }
    }
}

/// The error of work that ended before its end.
pub(super) fn cut_off() -> Error {
    let message = if std::thread::panicking() {
        "the refresh panicked"
    } else {
        "the runtime of the token manager was shut down"
    };
    Error::new(ErrorKind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    /// A task that was counted before the close is over when the tracker is idle.
    #[test]
    fn tracker_waits_for_counted_tasks() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("nothing it needs");
        for round in 0..4_000 {
            let trackers: Vec<_> = std::iter::repeat_with(TaskTracker::default).take(500).collect();
            let done: Vec<_> = std::iter::repeat_with(AtomicBool::default).take(500).collect();
            let start = Barrier::new(2);
            thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    start.wait();
                    let rounds = trackers.iter().zip(&done).map(|(tracker, done)| {
                        let token = tracker.try_token();
                        done.store(true, Ordering::Relaxed);
                        token.is_some()
                    });
                    rounds.collect::<Vec<_>>()
                });
                start.wait();
                let over: Vec<_> = runtime.block_on(async {
                    let mut over = Vec::new();
                    for (tracker, done) in trackers.iter().zip(&done) {
                        tracker.close();
                        tracker.wait_idle().await;
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
