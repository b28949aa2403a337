//! Metrics by the `metrics` facade. Without the feature every function is a no-op.
//!
//! | name | type | labels |
//! |---|---|---|
//! | `hurdlr_user_lookups_total` | counter | `result`: `hit`, `miss` (not in memory) |
//! | `hurdlr_refreshes_total` | counter | `outcome`: `refreshed` or a kind of failure; `user`: `login`, `enterprise`, `partner` |
//! | `hurdlr_adoptions_total` | counter: tokens taken from the store | `user` |
//! | `hurdlr_provider_seconds` | histogram: requests of refreshes | `outcome`, `user` |
//! | `hurdlr_store_seconds` | histogram | `call`: the method; `outcome`: `ok`, `error` |
//! | `hurdlr_waiting_callers` | gauge | |
//! | `hurdlr_unsaved_tokens` | gauge | |
//! | `hurdlr_users_expiring` | gauge, once a minute: users in memory whose token lives and has used up nine tenths of its life | |
//! | `hurdlr_calls_unauthorized_healed_total` | counter: calls repeated with a newer token after a 401 | |
//! | `hurdlr_calls_rate_limited_waited_total` | counter: pauses of calls after a 429 | |
//!
//! No label ever names a user.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::store::RowKind;

/// The methods of a store that the manager calls.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "the names of labels"))]
pub(super) enum StoreCall {
    Read,
    Claim,
    Save,
    Put,
    Release,
    Forget,
    Redeem,
    Due,
}

#[cfg(feature = "metrics")]
mod enabled {
    use metrics::{
        counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
    };

    use super::{Duration, ErrorKind, RowKind, StoreCall};

    const LOOKUPS: &str = "hurdlr_user_lookups_total";
    const REFRESHES: &str = "hurdlr_refreshes_total";
    const ADOPTIONS: &str = "hurdlr_adoptions_total";
    const PROVIDER_SECONDS: &str = "hurdlr_provider_seconds";
    const STORE_SECONDS: &str = "hurdlr_store_seconds";
    const WAITING_CALLERS: &str = "hurdlr_waiting_callers";
    const UNSAVED_TOKENS: &str = "hurdlr_unsaved_tokens";
    const USERS_EXPIRING: &str = "hurdlr_users_expiring";
    const HEALED: &str = "hurdlr_calls_unauthorized_healed_total";
    const WAITED: &str = "hurdlr_calls_rate_limited_waited_total";

    pub(in crate::manager) fn describe() {
        use metrics::Unit;

        describe_counter!(LOOKUPS, "Look-ups of users in memory.");
        describe_counter!(REFRESHES, "Refreshes that sent a request, by their outcome.");
        describe_counter!(ADOPTIONS, "Tokens taken from the store, where a peer had put them.");
        describe_histogram!(PROVIDER_SECONDS, Unit::Seconds, "Time of a refresh at the provider.");
        describe_histogram!(STORE_SECONDS, Unit::Seconds, "Time of a call to the store.");
        describe_gauge!(WAITING_CALLERS, "Callers that wait for a refresh.");
        describe_gauge!(UNSAVED_TOKENS, "New tokens that the store has not taken yet.");
        describe_gauge!(
            USERS_EXPIRING,
            "Users in memory whose token lives and has used up nine tenths of its life."
        );
        describe_counter!(HEALED, "Calls repeated with a newer token after a 401.");
        describe_counter!(WAITED, "Pauses of calls after a 429.");
    }

    fn user(kind: RowKind) -> &'static str {
        match kind {
            RowKind::Enterprise => "enterprise",
            RowKind::Partner => "partner",
            _ => "login",
        }
    }

    fn name(outcome: Result<(), ErrorKind>) -> &'static str {
        match outcome {
            Ok(()) => "refreshed",
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

    impl StoreCall {
        fn name(self) -> &'static str {
            match self {
                Self::Read => "read",
                Self::Claim => "claim",
                Self::Save => "save",
                Self::Put => "put",
                Self::Release => "release",
                Self::Forget => "forget",
                Self::Redeem => "redeem",
                Self::Due => "due",
            }
        }
    }

    pub(in crate::manager) fn looked_up(hit: bool) {
        let result = if hit { "hit" } else { "miss" };
        counter!(LOOKUPS, "result" => result).increment(1);
    }

    pub(in crate::manager) fn refreshed(
        kind: RowKind,
        outcome: Result<(), ErrorKind>,
        took: impl FnOnce() -> Duration,
    ) {
        let (user, outcome) = (user(kind), name(outcome));
        counter!(REFRESHES, "outcome" => outcome, "user" => user).increment(1);
        histogram!(PROVIDER_SECONDS, "outcome" => outcome, "user" => user).record(took());
    }

    pub(in crate::manager) fn adopted(kind: RowKind) {
        counter!(ADOPTIONS, "user" => user(kind)).increment(1);
    }

    pub(in crate::manager) fn store_call(
        call: StoreCall,
        ok: bool,
        took: impl FnOnce() -> Duration,
    ) {
        let outcome = if ok { "ok" } else { "error" };
        histogram!(STORE_SECONDS, "call" => call.name(), "outcome" => outcome).record(took());
    }

    pub(in crate::manager) fn users_expiring(users: usize) {
        #[allow(clippy::cast_precision_loss, reason = "nobody has 2^53 users")]
        gauge!(USERS_EXPIRING).set(users as f64);
    }

    #[cfg(any(feature = "middleware", feature = "tower"))]
    pub(crate) fn call_healed() {
        counter!(HEALED).increment(1);
    }

    #[cfg(any(feature = "middleware", feature = "tower"))]
    pub(crate) fn call_waited() {
        counter!(WAITED).increment(1);
    }

    /// One more in a gauge, until it is dropped.
    #[derive(Debug)]
    pub(in crate::manager) struct GaugeGuard(&'static str);

    impl GaugeGuard {
        pub(in crate::manager) fn waiting_caller() -> Self {
            Self::up(WAITING_CALLERS)
        }

        pub(in crate::manager) fn unsaved_token() -> Self {
            Self::up(UNSAVED_TOKENS)
        }

        fn up(name: &'static str) -> Self {
            gauge!(name).increment(1.0);
            Self(name)
        }
    }

    impl Drop for GaugeGuard {
        fn drop(&mut self) {
            gauge!(self.0).decrement(1.0);
        }
    }
}
#[cfg(feature = "metrics")]
pub(super) use enabled::{
    GaugeGuard, adopted, describe, looked_up, refreshed, store_call, users_expiring,
};
#[cfg(all(feature = "metrics", any(feature = "middleware", feature = "tower")))]
pub(crate) use enabled::{call_healed, call_waited};

#[cfg(not(feature = "metrics"))]
mod disabled {
    use super::{Duration, ErrorKind, RowKind, StoreCall};

    pub(in crate::manager) fn describe() {}

    pub(in crate::manager) fn looked_up(_: bool) {}

    pub(in crate::manager) fn refreshed(
        _: RowKind,
        _: Result<(), ErrorKind>,
        _: impl FnOnce() -> Duration,
    ) {
    }

    pub(in crate::manager) fn adopted(_: RowKind) {}

    pub(in crate::manager) fn store_call(_: StoreCall, _: bool, _: impl FnOnce() -> Duration) {}

    #[cfg(any(feature = "middleware", feature = "tower"))]
    pub(crate) fn call_healed() {}

    #[cfg(any(feature = "middleware", feature = "tower"))]
    pub(crate) fn call_waited() {}

    #[derive(Debug)]
    pub(in crate::manager) struct GaugeGuard;

    impl GaugeGuard {
        pub(in crate::manager) fn waiting_caller() -> Self {
            Self
        }

        pub(in crate::manager) fn unsaved_token() -> Self {
            Self
        }
    }

    impl Drop for GaugeGuard {
        fn drop(&mut self) {}
    }
}
#[cfg(not(feature = "metrics"))]
pub(super) use disabled::{GaugeGuard, adopted, describe, looked_up, refreshed, store_call};
#[cfg(all(not(feature = "metrics"), any(feature = "middleware", feature = "tower")))]
pub(crate) use disabled::{call_healed, call_waited};
