//! When a token is refreshed, and how long things may take.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::backoff::{Backoff, fraction};
use crate::clock::millis;
use crate::error::Error;
use crate::store::RowKind;
use crate::token::Token;
use crate::wire::user::UserId;

/// When a [`TokenManager`](super::TokenManager) refreshes tokens.
///
/// A token of lifetime L is *fresh* until L × ([`refresh_fraction`](Self::refresh_fraction) + h ×
/// [`refresh_jitter`](Self::refresh_jitter)), h between 0 and 1 by a hash of the user, so that
/// users who came together are not refreshed together. Then it is *due*: served, and refreshed in
/// the background. From [`expiry_buffer`](Self::expiry_buffer) before L on it is *expired*: callers
/// wait for the refresh.
///
/// The guide has [the defaults](crate::guide::settings).
#[must_use = "a policy does nothing until a manager is built with it"]
#[derive(Clone, Debug, PartialEq)]
pub struct RefreshPolicy {
    refresh_fraction: f64,
    refresh_jitter: f64,
    expiry_buffer: Duration,
    default_lifetime: Duration,
    pub(super) refresh_timeout: Duration,
    pub(super) lease: Duration,
    pub(super) backoff: Backoff,
}

impl Default for RefreshPolicy {
    /// A token of 90 days is due between day 50 and day 75, and expired 30 s before its end.
    fn default() -> Self {
        Self {
            refresh_fraction: 5.0 / 9.0,
            refresh_jitter: 5.0 / 18.0,
            expiry_buffer: Duration::from_secs(30),
            default_lifetime: Duration::from_hours(1),
            refresh_timeout: Duration::from_secs(45),
            lease: Duration::from_secs(60),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_mins(5)),
        }
    }
}

impl RefreshPolicy {
    /// The share of its lifetime after which a token can be due; more than 0, less than 1.
    pub fn refresh_fraction(mut self, fraction: f64) -> Self {
        self.refresh_fraction = fraction;
        self
    }

    /// The further share over which users are spread; `refresh_fraction + refresh_jitter` is at
    /// most 1.
    pub fn refresh_jitter(mut self, jitter: f64) -> Self {
        self.refresh_jitter = jitter;
        self
    }

    /// How long before its end a token counts as expired; a tenth of its life at the most.
    pub fn expiry_buffer(mut self, buffer: Duration) -> Self {
        self.expiry_buffer = buffer;
        self
    }

    /// The life of a token whose answer names none.
    pub fn default_lifetime(mut self, life: Duration) -> Self {
        self.default_lifetime = life;
        self
    }

    /// How long one refresh lasts at the most, from its turn on: claiming, sending, the answer.
    /// Shorter than the lease.
    pub fn refresh_timeout(mut self, timeout: Duration) -> Self {
        self.refresh_timeout = timeout;
        self
    }

    /// How long a process that refreshes a user may be silent before another takes over.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The longest pause after a first failure; it doubles with each further one. A pause is drawn
    /// between half of that and all of it.
    pub fn initial_backoff(mut self, pause: Duration) -> Self {
        self.backoff.initial = pause;
        self
    }

    /// The longest pause, save one that the provider names.
    pub fn max_backoff(mut self, pause: Duration) -> Self {
        self.backoff.max = pause;
        self
    }

    pub(super) fn validated(self) -> Result<Self, Error> {
        let problem = if !(self.refresh_fraction > 0.0 && self.refresh_fraction < 1.0) {
            format!("refresh_fraction is {}: it must lie between 0 and 1", self.refresh_fraction)
        } else if !(self.refresh_jitter >= 0.0
            && self.refresh_fraction + self.refresh_jitter <= 1.0)
        {
            format!(
                "refresh_fraction ({}) and refresh_jitter ({}) must not exceed 1 together, and refresh_jitter not be negative",
                self.refresh_fraction, self.refresh_jitter
            )
        } else if self.default_lifetime.is_zero() {
            "default_lifetime is 0: every token without a life would be dead".to_owned()
        } else if self.refresh_timeout.is_zero() {
            "refresh_timeout is 0: nothing could be sent".to_owned()
        } else if self.refresh_timeout >= self.lease {
            format!(
                "refresh_timeout ({:?}) must be shorter than lease ({:?}): a refresh has to be over \
                 before another process takes the user over",
                self.refresh_timeout, self.lease
            )
        } else if self.backoff.initial.is_zero() {
            "initial_backoff is 0: a failing provider would be asked without a pause".to_owned()
        } else if self.backoff.initial > self.backoff.max {
            format!(
                "initial_backoff ({:?}) is longer than max_backoff ({:?})",
                self.backoff.initial, self.backoff.max
            )
        } else {
            return Ok(self);
        };
        Err(Error::config(format!("refresh policy: {problem}")))
    }

    /// A token's phases, counted from the moment it was received.
    pub(super) fn phases(&self, token: &Token, kind: RowKind, subject: &UserId) -> Phases {
        let lifetime = token.expires_in().unwrap_or(self.default_lifetime);
        let (_, age) = token.arrival();
        let share = self.refresh_fraction + self.refresh_jitter * user_jitter(kind, subject);
        let buffer = self.expiry_buffer.min(lifetime / 10);
        let from_arrival = |span: Duration| millis(span.saturating_sub(age));
        let expired = from_arrival(lifetime.saturating_sub(buffer));
        Phases {
            due: from_arrival(lifetime.mul_f64(share)).min(expired),
            expired,
            over: from_arrival(lifetime),
        }
    }
}

/// When a token changes from fresh to due to expired, and when its life is over: milliseconds
/// since it was received.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Phases {
    pub(super) due: u64,
    pub(super) expired: u64,
    pub(super) over: u64,
}

/// A user's part of the jitter, from 0 to 1: the same in every process.
fn user_jitter(kind: RowKind, subject: &UserId) -> f64 {
    let mut hasher = DefaultHasher::new();
    (kind, subject).hash(&mut hasher);
    fraction(hasher.finish())
}
