//! Exponential backoff with jitter: the one rule by which this crate waits before it asks again.

use std::time::Duration;

/// Pauses that double from `initial` to `max`. Each is drawn between half of that and all of it, so
/// that many clients do not return in lockstep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) initial: Duration,
    pub(crate) max: Duration,
}

impl Backoff {
    pub(crate) const fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max }
    }

    /// The longest pause after `failures` in a row.
    pub(crate) fn bound(self, failures: u32) -> Duration {
        let doubled = 2_u32.checked_pow(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.initial.saturating_mul(doubled).min(self.max)
    }

    /// The pause after `failures` in a row; `random` has 64 random bits.
    pub(crate) fn delay(self, failures: u32, random: u64) -> Duration {
        // By halves, so that no bound is too long to be computed with.
        let half = self.bound(failures) / 2;
        half + half.mul_f64(fraction(random))
    }
}

/// A number from 0 to 1 made of 64 random bits.
#[allow(clippy::cast_precision_loss, reason = "a fraction needs no more than 53 bits")]
pub(crate) fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_within_bounds() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        for (failures, bound) in [(1, 1_000), (2, 2_000), (5, 16_000), (99, 300_000)] {
            let bound = Duration::from_millis(bound);
            assert_eq!(backoff.delay(failures, 0), bound / 2);
            assert!(backoff.delay(failures, u64::MAX) <= bound);
            assert!(backoff.delay(failures, u64::MAX) > bound * 9 / 10);
        }
        let endless = Backoff::new(Duration::MAX, Duration::MAX);
        assert!(endless.delay(1, u64::MAX) <= Duration::MAX);
    }
}
