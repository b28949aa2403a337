//! `CallPolicy`: the calls that are authorized, and how long they may be repeated.

use std::fmt;

use url::Url;

use crate::client::retry::RetryPolicy;
use crate::clock::SharedClock;
use crate::error::Error;
use crate::rng::SharedRng;
use crate::wire::endpoint::{Origin, RedactedUrl, secret_bearing_url};

/// Rules for the calls that are authorized, and for an answer of 429.
///
/// An origin is a scheme, a host and a port. Calls to any other than the provider's own and those
/// named here go out as they are, so that a pasted URL never carries a token elsewhere. So does a
/// call whose URL has user info: that is credentials of its own.
///
/// ```
/// use std::time::Duration;
///
/// use hurdlr_oauth2::{CallPolicy, RetryPolicy};
///
/// let policy = CallPolicy::default()
///     .origin("https://reports.example.com")
///     .retry(RetryPolicy::default().total_timeout(Duration::from_secs(300)));
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CallPolicy {
    origins: Vec<String>,
    retry: RetryPolicy,
    repeats_every_method: bool,
}

impl fmt::Debug for CallPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origins: Vec<_> = self.origins.iter().map(|url| RedactedUrl(url)).collect();
        f.debug_struct("CallPolicy")
            .field("origins", &origins)
            .field("retry", &self.retry)
            .field("repeats_every_method", &self.repeats_every_method)
            .finish()
    }
}

impl CallPolicy {
    /// One more origin whose calls are authorized, by any of its URLs: `https`, or `http` on a
    /// loopback host. The origin that tokens come from need not be named.
    #[must_use]
    pub fn origin(mut self, url: impl Into<String>) -> Self {
        self.origins.push(url.into());
        self
    }

    /// How often a call is repeated that was answered 429, and how long it waits: as the answer's
    /// `Retry-After` says, else by backoff. A pause that does not fit into
    /// [`total_timeout`](RetryPolicy::total_timeout), or into the request's own timeout, is not
    /// begun: the caller gets the 429. By default four attempts in 60 s; [`RetryPolicy::never`]
    /// hands out every 429.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Whether such calls are repeated whatever their method is. By default only those of
    /// idempotent methods are (RFC 9110 section 9.2.2): neither POST nor PATCH.
    #[must_use]
    pub fn repeat_every_method(mut self, repeat: bool) -> Self {
        self.repeats_every_method = repeat;
        self
    }
}

/// A validated [`CallPolicy`].
pub(super) struct ResolvedPolicy {
    /// The first is where tokens come from.
    pub(super) origins: Vec<Url>,
    pub(super) retry: RetryPolicy,
    pub(super) repeats_every_method: bool,
    pub(super) clock: SharedClock,
    pub(super) rng: SharedRng,
}

/// Without the queries of origins, which may hold a secret.
impl fmt::Debug for ResolvedPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origins: Vec<_> = self.origins.iter().map(|url| RedactedUrl(url.as_str())).collect();
        f.debug_struct("ResolvedPolicy")
            .field("origins", &origins)
            .field("retry", &self.retry)
            .field("repeats_every_method", &self.repeats_every_method)
            .finish_non_exhaustive()
    }
}

impl ResolvedPolicy {
    pub(super) fn new(home: &Url, clock: SharedClock) -> Self {
        Self {
            origins: vec![home.clone()],
            retry: RetryPolicy::default(),
            repeats_every_method: false,
            clock,
            rng: SharedRng::default(),
        }
    }

    /// The same home under another policy.
    pub(super) fn with(&self, policy: CallPolicy) -> Result<Self, Error> {
        let mut origins: Vec<_> = self.origins.first().cloned().into_iter().collect();
        for text in &policy.origins {
            origins.push(secret_bearing_url("origin", text)?);
        }
        let retry = policy.retry.judged()?;
        let repeats_every_method = policy.repeats_every_method;
        let (clock, rng) = (self.clock.clone(), self.rng.clone());
        Ok(Self { origins, retry, repeats_every_method, clock, rng })
    }

    /// Whether a token may travel in the clear, to a loopback host.
    #[cfg(feature = "middleware")]
    pub(super) fn admit_plain_http(&self) -> bool {
        self.origins.iter().any(|url| url.scheme() == "http")
    }

    /// Whether a token may travel there.
    pub(super) fn admits(&self, origin: Option<&Origin<'_>>) -> bool {
        let is_ours = |url| Origin::of_url(url).as_ref() == origin;
        origin.is_some() && self.origins.iter().any(is_ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn resolved(home: &str) -> ResolvedPolicy {
        ResolvedPolicy::new(&home.parse().unwrap(), SharedClock::new(SystemClock))
    }

    #[test]
    fn token_travels_to_its_origins_only() {
        let policy = CallPolicy::default().origin("http://[::1]:81/x");
        let home = resolved("https://api.example.com/rest/v4/auth/token");
        let resolved = home.with(policy).unwrap();
        for (url, admitted) in [
            ("https://api.example.com/rest/v4/me?x=1", true),
            ("http://[::1]:81/", true),
            ("http://api.example.com/", false),
            ("https://user@api.example.com/", false),
            ("https://user@evil.example/", false),
            ("data:x", false),
        ] {
            let url = url.parse().unwrap();
            assert_eq!(resolved.admits(Origin::of_url(&url).as_ref()), admitted, "{url}");
        }
        assert!(!resolved.admits(None));
    }

    #[test]
    fn unusable_policies_are_refused_by_name() {
        let resolved = resolved("https://api.example.com/");
        let never = RetryPolicy::default().max_attempts(0);
        for (policy, name) in [
            (CallPolicy::default().origin("http://api.example.com"), "origin"),
            (CallPolicy::default().origin("api.example.com"), "origin"),
            (CallPolicy::default().retry(never), "max_attempts"),
        ] {
            assert!(resolved.with(policy).unwrap_err().to_string().contains(name));
        }
    }
}
