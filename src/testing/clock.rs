//! The provider's clock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// Wall time at the start, plus what tokio's clock counted since, plus what a test turned it by.
///
/// Elapsed time is tokio's, so that a paused runtime drives the provider as it drives its client.
#[derive(Debug)]
pub(super) struct Clock {
    wall_at_start: SystemTime,
    start: Instant,
    /// Nanoseconds. A `u64` holds 584 years of them, which keeps every date printable: HTTP dates
    /// end with the year 9999.
    turned: AtomicU64,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { wall_at_start: SystemTime::now(), start: Instant::now(), turned: AtomicU64::new(0) }
    }

    pub(super) fn now(&self) -> SystemTime {
        let turned = Duration::from_nanos(self.turned.load(Ordering::Acquire));
        self.wall_at_start + self.start.elapsed() + turned
    }

    pub(super) fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        let add = |turned: u64| Some(turned.saturating_add(by));
        // The closure always answers `Some`, so the update cannot fail. It releases, and `now`
        // acquires: who sees the later time sees what the test did before it turned the clock.
        let _ = self.turned.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }
}
