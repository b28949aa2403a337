//! A clock whose time of day the plan turns.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use hurdlr_oauth2::{Clock, Timestamp};

use crate::record;

/// The machine's clocks, the time of day set forward or back. A suspended machine looks the same:
/// its monotonic clock stands still, and its time of day goes on.
#[derive(Clone, Debug, Default)]
pub(crate) struct TurnedClock(Arc<AtomicI64>);

impl TurnedClock {
    pub(crate) fn jump(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for TurnedClock {
    fn now(&self) -> Timestamp {
        let ahead = self.0.load(Ordering::SeqCst);
        let span = Duration::from_secs(ahead.unsigned_abs());
        let wall = SystemTime::now();
        let wall = if ahead < 0 { wall.checked_sub(span) } else { wall.checked_add(span) };
        let wall = wall.unwrap_or(SystemTime::UNIX_EPOCH);
        Timestamp::new(Duration::from_micros(record::now()), wall)
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(duration))
    }
}
