//! A clock for the app under test.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::clock::{Clock, Timestamp};

/// A [`Clock`] that tests turn, for [`HurdlrBuilder::clock`](crate::HurdlrBuilder::clock).
///
/// It goes by tokio's clock, so that it stands where that is paused and waits are over at once
/// there. Clones are the same clock. The provider has a clock of its own, turned beside this one by
/// [`FakeHurdlr::advance_clock`](super::FakeHurdlr::advance_clock).
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    start: Instant,
    wall_at_start: SystemTime,
    turned: Mutex<Turned>,
    waits: Mutex<Vec<Duration>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Turned {
    both: Duration,
    wall_forward: Duration,
    wall_back: Duration,
}

impl ManualClock {
    /// A clock that shows the present. If tokio's time is paused, call it on that runtime.
    #[must_use]
    pub fn new() -> Self {
        Self::at(SystemTime::now())
    }

    /// A clock whose time of day is `wall` now. If tokio's time is paused, call it on that runtime.
    #[must_use]
    pub fn at(wall: SystemTime) -> Self {
        Self(Arc::new(Shared {
            start: Instant::now(),
            wall_at_start: wall,
            turned: Mutex::default(),
            waits: Mutex::default(),
        }))
    }

    fn turned(&self) -> MutexGuard<'_, Turned> {
        self.0.turned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time passes: both clocks go forward.
    pub fn advance(&self, by: Duration) {
        self.turned().both += by;
    }

    /// The time of day is set forward, or the machine was suspended: the wall clock alone moves.
    pub fn advance_wall(&self, by: Duration) {
        self.turned().wall_forward += by;
    }

    /// The time of day is set back.
    pub fn set_wall_back(&self, by: Duration) {
        self.turned().wall_back += by;
    }

    /// The waits that were asked of this clock so far, the first one first: the pauses between the
    /// attempts of a call, for instance.
    #[must_use]
    pub fn waits(&self) -> Vec<Duration> {
        self.0.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let turned = *self.turned();
        let passed = self.0.start.elapsed() + turned.both;
        let wall = self.0.wall_at_start + passed + turned.wall_forward;
        Timestamp::new(passed, wall.checked_sub(turned.wall_back).unwrap_or(wall))
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.0.waits.lock().unwrap_or_else(PoisonError::into_inner).push(duration);
        Box::pin(tokio::time::sleep(duration))
    }
}
