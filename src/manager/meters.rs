//! What is counted: with the feature `metrics`, by that facade; without it, nothing.
//!
//! | name | type | labels |
//! |---|---|---|
//! | `hurdlr_user_lookups_total` | counter | `result`: `hit`, `miss` (not in memory) |
//! | `hurdlr_refreshes_total` | counter | `outcome`: `refreshed`, `adopted` (a peer's), or a kind of failure; `user`: `login`, `enterprise`, `partner` |
//! | `hurdlr_refresh_seconds` | histogram | `user` |
//! | `hurdlr_waiting_callers` | gauge | |
//! | `hurdlr_unsaved_tokens` | gauge | |
//! | `hurdlr_users_ending_within_a_day` | gauge, once a minute | |
//!
//! No label ever names a user.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::store::RowKind;

/// How a user got a token.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// From the provider.
    Refreshed,
    /// From the store, where a peer had put it.
    Adopted,
}

/// How an attempt to get a user a token ended.
pub(super) type Outcome = Result<Source, ErrorKind>;

#[cfg(feature = "metrics")]
mod by_facade {
    use super::{Duration, ErrorKind, Outcome, RowKind, Source};

    fn user(kind: RowKind) -> &'static str {
        match kind {
            RowKind::Enterprise => "enterprise",
            RowKind::Partner => "partner",
            _ => "login",
        }
    }

    fn name(outcome: Outcome) -> &'static str {
        match outcome {
            Ok(Source::Refreshed) => "refreshed",
            Ok(Source::Adopted) => "adopted",
            Err(kind) => match kind {
                ErrorKind::LoginRequired => "login_required",
                ErrorKind::RotationLost => "rotation_lost",
                ErrorKind::RateLimited => "rate_limited",
                ErrorKind::Unavailable => "unavailable",
                ErrorKind::TimedOut => "timed_out",
                ErrorKind::Rejected => "rejected",
                ErrorKind::InvalidResponse => "invalid_response",
                ErrorKind::InvalidCallback => "invalid_callback",
                ErrorKind::Unsupported => "unsupported",
                ErrorKind::Config => "config",
                ErrorKind::Store => "store",
            },
        }
    }

    pub(in crate::manager) fn looked_up(hit: bool) {
        let result = if hit { "hit" } else { "miss" };
        metrics::counter!("hurdlr_user_lookups_total", "result" => result).increment(1);
    }

    pub(in crate::manager) fn ended(
        kind: RowKind,
        outcome: Outcome,
        took: impl FnOnce() -> Duration,
    ) {
        let user = user(kind);
        let outcome = name(outcome);
        metrics::counter!("hurdlr_refreshes_total", "outcome" => outcome, "user" => user)
            .increment(1);
        metrics::histogram!("hurdlr_refresh_seconds", "user" => user).record(took());
    }

    pub(in crate::manager) fn ending_within_a_day(users: usize) {
        #[allow(clippy::cast_precision_loss, reason = "nobody has 2^53 users")]
        metrics::gauge!("hurdlr_users_ending_within_a_day").set(users as f64);
    }

    /// One more in a gauge, until it is dropped.
    #[derive(Debug)]
    pub(in crate::manager) struct Gauged(&'static str);

    impl Gauged {
        pub(in crate::manager) fn waiting_caller() -> Self {
            Self::up("hurdlr_waiting_callers")
        }

        pub(in crate::manager) fn unsaved_token() -> Self {
            Self::up("hurdlr_unsaved_tokens")
        }

        fn up(name: &'static str) -> Self {
            metrics::gauge!(name).increment(1.0);
            Self(name)
        }
    }

    impl Drop for Gauged {
        fn drop(&mut self) {
            metrics::gauge!(self.0).decrement(1.0);
        }
    }
}
#[cfg(feature = "metrics")]
pub(super) use by_facade::{Gauged, ended, ending_within_a_day, looked_up};

#[cfg(not(feature = "metrics"))]
mod nothing {
    use super::{Duration, Outcome, RowKind};

    pub(in crate::manager) fn looked_up(_: bool) {}

    pub(in crate::manager) fn ended(_: RowKind, _: Outcome, _: impl FnOnce() -> Duration) {}

    #[derive(Debug)]
    pub(in crate::manager) struct Gauged;

    impl Gauged {
        pub(in crate::manager) fn waiting_caller() -> Self {
            Self
        }

        pub(in crate::manager) fn unsaved_token() -> Self {
            Self
        }
    }

    impl Drop for Gauged {
        fn drop(&mut self) {}
    }
}
#[cfg(not(feature = "metrics"))]
pub(super) use nothing::{Gauged, ended, looked_up};
