//! Time as an input, so that tests turn the clock and never sleep.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(not(target_os = "linux"))]
use std::sync::LazyLock;
#[cfg(not(target_os = "linux"))]
use std::time::Instant;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(target_os = "linux")]
use rustix::time::ClockId;

/// A source of time, and the only way this crate waits.
///
/// [`SystemClock`] is the one for production; tests bring their own and turn it.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The present, on both clocks.
    fn now(&self) -> Timestamp;

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// One instant as two clocks show it, to the millisecond.
///
/// The monotonic clock cannot be set but may stand still while a machine is suspended; the wall
/// clock goes on then but can be set. Elapsed time is the longer of the two spans: a token may be
/// renewed early by that, and is never believed to live when it is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    monotonic_ms: i64,
    wall_ms: i64,
}

impl Timestamp {
    /// `monotonic` counts from any fixed start; `wall` is the time of day.
    #[must_use]
    pub fn new(monotonic: Duration, wall: SystemTime) -> Self {
        let wall_ms = match wall.duration_since(UNIX_EPOCH) {
            Ok(since) => signed_millis(since),
            Err(before) => -signed_millis(before.duration()),
        };
        Self { monotonic_ms: signed_millis(monotonic), wall_ms }
    }

    /// The time of day.
    #[must_use]
    pub fn wall(self) -> SystemTime {
        let distance = Duration::from_millis(self.wall_ms.unsigned_abs());
        let wall = if self.wall_ms < 0 {
            UNIX_EPOCH.checked_sub(distance)
        } else {
            UNIX_EPOCH.checked_add(distance)
        };
        wall.unwrap_or(UNIX_EPOCH)
    }

    /// Seconds since the Unix epoch, as the provider counts them.
    pub(crate) fn unix_seconds(self) -> i64 {
        self.wall_ms.div_euclid(1_000)
    }

    /// The time since `earlier`: the longer span of the two clocks, and zero if both were
    /// turned back.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.millis_since(earlier))
    }

    /// As [`since`](Self::since), in milliseconds.
    #[inline]
    pub(crate) fn millis_since(self, earlier: Self) -> u64 {
        let monotonic = self.monotonic_ms.saturating_sub(earlier.monotonic_ms);
        let wall = self.wall_ms.saturating_sub(earlier.wall_ms);
        u64::try_from(monotonic.max(wall)).unwrap_or(0)
    }
}

/// Milliseconds, as logs and `Timestamp` have them.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn signed_millis(span: Duration) -> i64 {
    i64::try_from(millis(span)).unwrap_or(i64::MAX)
}

/// The operating system's clocks, and tokio's timer to wait by.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    /// By the coarse clocks, since every read of a token asks: they lag by a few milliseconds and
    /// cost a few nanoseconds.
    #[cfg(target_os = "linux")]
    #[inline]
    fn now(&self) -> Timestamp {
        let read_ms = |clock| {
            let time = rustix::time::clock_gettime(clock);
            time.tv_sec * 1_000 + time.tv_nsec / 1_000_000
        };
        Timestamp {
            monotonic_ms: read_ms(ClockId::MonotonicCoarse),
            wall_ms: read_ms(ClockId::RealtimeCoarse),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn now(&self) -> Timestamp {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Timestamp::new(START.elapsed(), SystemTime::now())
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// The clock as it is handed around: every token carries one to tell its age by.
///
/// The system's is told apart by its type, so that it takes no shared count and no indirect call.
#[derive(Clone, Debug)]
pub(crate) enum SharedClock {
    System(SystemClock),
    /// Boxed, so that all of this is one pointer wide.
    Other(Arc<Box<dyn Clock>>),
}

impl SharedClock {
    pub(crate) fn new(clock: impl Clock) -> Self {
        match (&clock as &dyn Any).downcast_ref() {
            Some(system) => Self::System(*system),
            None => Self::Other(Arc::new(Box::new(clock))),
        }
    }

    #[inline]
    pub(crate) fn now(&self) -> Timestamp {
        match self {
            Self::System(clock) => clock.now(),
            Self::Other(clock) => clock.now(),
        }
    }

    /// The time of day alone, in whole seconds since the Unix epoch.
    #[inline]
    pub(crate) fn coarse_unix_seconds(&self) -> i64 {
        match self {
            #[cfg(target_os = "linux")]
            Self::System(_) => rustix::time::clock_gettime(ClockId::RealtimeCoarse).tv_sec,
            _ => self.now().unix_seconds(),
        }
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        match self {
            Self::System(clock) => clock.sleep(duration).await,
            Self::Other(clock) => clock.sleep(duration).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(monotonic: u64, wall: u64) -> Timestamp {
        Timestamp::new(Duration::from_secs(monotonic), UNIX_EPOCH + Duration::from_secs(wall))
    }

    #[test]
    fn suspended_machine_is_seen_by_wall_clock() {
        assert_eq!(moment(10, 5_000).since(moment(10, 1_000)), Duration::from_secs(4_000));
    }

    #[test]
    fn wall_clock_turned_back_stops_no_time() {
        assert_eq!(moment(70, 1_000).since(moment(10, 90_000)), Duration::from_secs(60));
    }

    #[test]
    fn both_clocks_behind_is_zero() {
        assert_eq!(moment(1, 1).since(moment(2, 2)), Duration::ZERO);
    }

    /// The coarse clocks lag by a tick, which is 10 ms at most.
    #[test]
    fn systems_clock_agrees_with_std() {
        let clock = SharedClock::new(SystemClock);
        let earliest = SystemTime::now() - Duration::from_millis(11);
        let (now, seconds, later) = (clock.now(), clock.coarse_unix_seconds(), clock.now());
        let latest = SystemTime::now();
        assert!((earliest..=latest).contains(&now.wall()), "{now:?}");
        assert!((now.unix_seconds()..=later.unix_seconds()).contains(&seconds), "{seconds}");
        assert!((1..=later.monotonic_ms).contains(&now.monotonic_ms), "{now:?} {later:?}");
    }

    #[test]
    fn time_of_day_before_1970_is_kept() {
        let early = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(Timestamp::new(Duration::ZERO, early).wall(), early);
    }
}
