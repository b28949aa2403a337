//! A clock that stands still beside a database.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hurdlr_oauth2::{Clock, Timestamp};
use tokio::sync::watch;

/// A clock that stands still until it is turned, and whose sleepers sleep until then.
///
/// `ManualClock` goes by tokio's, which cannot be paused beside a database: tokio would take each
/// wait for the database for idleness, and run ahead to the next timeout.
#[derive(Clone, Debug)]
pub(crate) struct StandingClock {
    start: SystemTime,
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Default)]
struct State {
    passed: Duration,
    waits: Vec<Duration>,
}

impl StandingClock {
    pub(crate) fn at(start: SystemTime) -> Self {
        Self { start, state: Arc::default() }
    }

    pub(crate) fn turn(&self, by: Duration) {
        self.state.send_modify(|state| state.passed += by);
    }

    /// The time since the start.
    pub(crate) fn passed(&self) -> Duration {
        self.state.borrow().passed
    }

    /// How many sleeps there were that take at least `shortest`.
    pub(crate) fn count(&self, shortest: Duration) -> usize {
        self.state.borrow().waits.iter().filter(|wait| **wait >= shortest).count()
    }

    /// Waits for the `nth` sleep, from 0 on, that takes at least `shortest`, and tells how long.
    pub(crate) async fn asked(&self, nth: usize, shortest: Duration) -> Duration {
        let long =
            |state: &State| state.waits.iter().filter(|wait| **wait >= shortest).nth(nth).copied();
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| long(state).is_some()).await;
        long(&state.unwrap()).unwrap()
    }
}

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        Timestamp::new(self.passed(), self.start + self.passed())
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.state.send_modify(|state| state.waits.push(duration));
        let until = self.passed() + duration;
        let mut state = self.state.subscribe();
        Box::pin(async move {
            // The sender is `self`'s, so it cannot be gone.
            let _ = state.wait_for(|state| state.passed >= until).await;
        })
    }
}
