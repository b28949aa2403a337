//! Retry rules: which requests may be repeated, how often, and after what delay.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::error::Error;
use crate::rng::SharedRng;

/// How often a call repeats a request that may be repeated, and how long it waits in between.
///
/// How often to retry is configurable; *what* may be retried is not, see below.
///
/// Waits double from [`initial_backoff`](Self::initial_backoff) to
/// [`max_backoff`](Self::max_backoff), each drawn between half of that bound and all of it, so that
/// many clients do not return in lockstep.
///
#[doc = include_str!("../../docs/retries.md")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    max_attempts: u32,
    initial_backoff: Duration,
    max_backoff: Duration,
    total_timeout: Duration,
}

impl Default for RetryPolicy {
    /// Four attempts, backoff from 250 ms to 5 s, 60 s in all.
    fn default() -> Self {
        Self {
            max_attempts: 4,
            initial_backoff: Duration::from_millis(250),
            max_backoff: Duration::from_secs(5),
            total_timeout: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// One attempt. A refresh refused for its Bearer header is still sent once more without it,
    /// since that is how one finds out whether the refresh token is good.
    #[must_use]
    pub fn never() -> Self {
        Self::default().max_attempts(1)
    }

    /// How many times one call sends its request at the most; at least 1. The one time that a
    /// refresh is sent again without its Bearer header comes on top.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// The bound of the first wait.
    #[must_use]
    pub fn initial_backoff(mut self, bound: Duration) -> Self {
        self.initial_backoff = bound;
        self
    }

    /// The bound that no wait exceeds, save one the provider names.
    #[must_use]
    pub fn max_backoff(mut self, bound: Duration) -> Self {
        self.max_backoff = bound;
        self
    }

    /// How long one call lasts at the most, waits and answers included. A pause that the provider
    /// asks for and that does not fit ends the call with
    /// [`retry_after`](crate::Error::retry_after) set.
    #[must_use]
    pub fn total_timeout(mut self, bound: Duration) -> Self {
        self.total_timeout = bound;
        self
    }

    pub(crate) fn judged(self) -> Result<Self, Error> {
        if self.max_attempts == 0 {
            Err(Error::config("retry max_attempts is 0: use 1 for no repetition"))
        } else if self.initial_backoff > self.max_backoff {
            Err(Error::config(format!(
                "retry initial_backoff ({:?}) is longer than max_backoff ({:?})",
                self.initial_backoff, self.max_backoff
            )))
        } else if self.total_timeout.is_zero() {
            Err(Error::config("retry total_timeout is 0: no request could be sent"))
        } else {
            Ok(self)
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.initial_backoff, self.max_backoff)
    }
}

/// The kind of a request: one of the provider's grants (RFC 6749 sections 4.1, 4.4 and 6), or a
/// revocation (RFC 7009).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestType {
    AuthorizationCode,
    ClientCredentials,
    RefreshToken,
    Revocation,
}

/// The fate of a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureClass {
    /// It never left.
    NotSent,
    /// The provider turned it away unread.
    Throttled,
    /// It may have taken effect.
    Unanswered,
    /// It was refused, and the Bearer header beside it may be the reason.
    RetryWithoutBearer,
    /// It was answered; repeating it changes nothing.
    Final,
}

impl RequestType {
    /// For logs; of a grant, its `grant_type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "authorization_code",
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
            Self::Revocation => "revocation",
        }
    }

    /// Whether a lost answer loses nothing. Client credentials need no refresh token (RFC 6749
    /// section 4.4.3): one in a broken answer is no reason not to ask again.
    pub(crate) fn is_repeatable(self) -> bool {
        matches!(self, Self::ClientCredentials)
    }
}

/// The attempts of one call.
pub(crate) struct Attempts<'a> {
    policy: &'a RetryPolicy,
    rng: &'a SharedRng,
    request: RequestType,
    total_timeout: Duration,
    /// Whether a pause that the provider names is waited for here. A manager does it instead, for
    /// all processes.
    waits_when_told: bool,
    sent: u32,
    /// The policy's, and one more once the Bearer header is left out.
    max_attempts: u32,
    repeated_at_once: bool,
    unanswered: bool,
}

impl<'a> Attempts<'a> {
    /// Attempts that end after the policy's time. Those of a manager end after `deadline` if that
    /// is shorter, and where the provider names a pause.
    pub(crate) fn new(
        policy: &'a RetryPolicy,
        rng: &'a SharedRng,
        request: RequestType,
        deadline: Option<Duration>,
    ) -> Self {
        let total_timeout =
            deadline.map_or(policy.total_timeout, |own| own.min(policy.total_timeout));
        let waits_when_told = deadline.is_none();
        Self {
            policy,
            rng,
            request,
            total_timeout,
            waits_when_told,
            sent: 0,
            max_attempts: policy.max_attempts,
            repeated_at_once: false,
            unanswered: false,
        }
    }

    pub(crate) fn request_type(&self) -> RequestType {
        self.request
    }

    pub(crate) fn sent(&self) -> u32 {
        self.sent
    }

    /// Whether any attempt so far may have taken effect unseen.
    pub(crate) fn unanswered(&self) -> bool {
        self.unanswered
    }

    /// The time left for one more request, if there is any, and counts it as sent.
    pub(crate) fn begin(&mut self, elapsed: Duration) -> Option<Duration> {
        let left = self.total_timeout.checked_sub(elapsed).filter(|left| !left.is_zero())?;
        self.sent += 1;
        Some(left)
    }

    /// How long to wait before the request is sent again; none if it must not be. `pause` is what
    /// the answer asked for.
    pub(crate) fn next_delay(
        &mut self,
        class: FailureClass,
        pause: Option<Duration>,
        elapsed: Duration,
    ) -> Option<Duration> {
        self.unanswered |= class == FailureClass::Unanswered;
        let more = self.sent < self.max_attempts;
        let backoff = self.policy.backoff().delay(self.sent, self.rng.next_u64());
        if pause.is_some() && !self.waits_when_told {
            return None;
        }
        let wait = match (class, self.request) {
            // Even for `Retry-After: 0`, so that clients do not return in lockstep.
            (FailureClass::NotSent | FailureClass::Throttled, _)
            | (
                FailureClass::Unanswered,
                RequestType::ClientCredentials | RequestType::Revocation,
            ) if more => backoff,
            // Once: a server that rotated repeats its answer, if it does that at all, for a short
            // time only. Later tries belong to whoever keeps the token.
            (FailureClass::Unanswered, RequestType::RefreshToken)
                if more && !self.repeated_at_once =>
            {
                self.repeated_at_once = true;
                Duration::ZERO
            }
            // The request is another one without the header, so this cannot come twice.
            (FailureClass::RetryWithoutBearer, RequestType::RefreshToken) => {
                self.max_attempts = self.max_attempts.saturating_add(1);
                Duration::ZERO
            }
            _ => return None,
        };
        let wait = wait.max(pause.unwrap_or_default());
        (elapsed.saturating_add(wait) < self.total_timeout).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: [RequestType; 4] = [
        RequestType::ClientCredentials,
        RequestType::Revocation,
        RequestType::RefreshToken,
        RequestType::AuthorizationCode,
    ];

    /// How often a request is repeated that fails the same way each time.
    fn repetitions(request: RequestType, class: FailureClass, pause: Option<Duration>) -> u32 {
        let policy = RetryPolicy::default().max_attempts(5);
        let mut attempts = Attempts::new(&policy, &SharedRng::Thread, request, None);
        while attempts.begin(Duration::ZERO).is_some() {
            if attempts.next_delay(class, pause, Duration::ZERO).is_none() {
                break;
            }
        }
        attempts.sent() - 1
    }

    #[test]
    fn the_table_of_what_may_be_repeated() {
        let pause = Some(Duration::from_secs(3));
        for (class, pause, expected) in [
            (FailureClass::NotSent, None, [4, 4, 4, 4]),
            (FailureClass::Throttled, None, [4, 4, 4, 4]),
            (FailureClass::Throttled, pause, [4, 4, 4, 4]),
            (FailureClass::Unanswered, None, [4, 4, 1, 0]),
            (FailureClass::Unanswered, pause, [4, 4, 1, 0]),
            (FailureClass::Final, pause, [0, 0, 0, 0]),
        ] {
            let found = REQUESTS.map(|request| repetitions(request, class, pause));
            assert_eq!(found, expected, "{class:?} {pause:?}");
        }
    }

    #[test]
    fn attempt_without_bearer_comes_on_top() {
        let policy = RetryPolicy::default().max_attempts(2);
        let mut attempts =
            Attempts::new(&policy, &SharedRng::Thread, RequestType::RefreshToken, None);
        for (class, is_repeated) in [
            (FailureClass::RetryWithoutBearer, true),
            (FailureClass::NotSent, true),
            (FailureClass::NotSent, false),
        ] {
            attempts.begin(Duration::ZERO);
            let delay = attempts.next_delay(class, None, Duration::ZERO);
            assert_eq!(delay.is_some(), is_repeated, "{class:?}, attempt {}", attempts.sent());
        }
    }

    #[test]
    fn named_pause_is_kept_or_ends_call() {
        let policy = RetryPolicy::default();
        let mut attempts =
            Attempts::new(&policy, &SharedRng::Thread, RequestType::ClientCredentials, None);
        attempts.begin(Duration::ZERO);
        let pause = Duration::from_secs(50);
        let delay =
            attempts.next_delay(FailureClass::Throttled, Some(pause), Duration::from_secs(1));
        assert_eq!(delay, Some(pause));
        let delay =
            attempts.next_delay(FailureClass::Throttled, Some(pause), Duration::from_secs(11));
        assert_eq!(delay, None);
    }

    #[test]
    fn nothing_is_sent_after_the_deadline() {
        let policy = RetryPolicy::default();
        let deadline = Duration::from_secs(10);
        let mut attempts =
            Attempts::new(&policy, &SharedRng::Thread, RequestType::RefreshToken, Some(deadline));
        assert_eq!(attempts.begin(Duration::from_secs(4)), Some(Duration::from_secs(6)));
        assert_eq!(attempts.begin(deadline), None);
        assert_eq!(attempts.sent(), 1);
    }

    #[test]
    fn contradictions_are_named() {
        for (policy, name) in [
            (RetryPolicy::default().max_attempts(0), "max_attempts"),
            (RetryPolicy::default().initial_backoff(Duration::from_secs(9)), "max_backoff"),
            (RetryPolicy::default().total_timeout(Duration::ZERO), "total_timeout"),
        ] {
            assert!(policy.judged().unwrap_err().to_string().contains(name));
        }
        assert!(RetryPolicy::never().judged().is_ok());
    }
}
