//! Metrics by the `metrics` facade. Without the feature nothing is recorded.
//!
//! `docs/operations.md` lists them, with their units and labels.
//!
//! No label ever names a user.

#![cfg_attr(
    not(feature = "metrics"),
    allow(dead_code, unused_variables, reason = "without the feature nothing is recorded")
)]

use std::time::Duration;

#[cfg(feature = "metrics")]
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::error::ErrorKind;
use crate::store::RowKind;

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

#[cfg(feature = "metrics")]
pub(crate) fn describe() {
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

pub(crate) fn looked_up(hit: bool) {
    #[cfg(feature = "metrics")]
    counter!(LOOKUPS, "result" => if hit { "hit" } else { "miss" }).increment(1);
}

pub(crate) fn refreshed(kind: RowKind, outcome: Result<(), ErrorKind>, took: Duration) {
    let outcome = outcome.map_or_else(ErrorKind::name, |()| "refreshed");
    #[cfg(feature = "metrics")]
    {
        counter!(REFRESHES, "outcome" => outcome, "user" => user(kind)).increment(1);
        histogram!(PROVIDER_SECONDS, "outcome" => outcome, "user" => user(kind)).record(took);
    }
}

pub(crate) fn adopted(kind: RowKind) {
    #[cfg(feature = "metrics")]
    counter!(ADOPTIONS, "user" => user(kind)).increment(1);
}

/// `call` is the name of the store's method.
pub(crate) fn store_call(call: &'static str, ok: bool, took: Duration) {
    let outcome = if ok { "ok" } else { "error" };
    #[cfg(feature = "metrics")]
    histogram!(STORE_SECONDS, "call" => call, "outcome" => outcome).record(took);
}

#[cfg(feature = "metrics")]
pub(crate) fn users_expiring(users: usize) {
    #[allow(clippy::cast_precision_loss, reason = "nobody has 2^53 users")]
    gauge!(USERS_EXPIRING).set(users as f64);
}

#[cfg(any(feature = "middleware", feature = "tower"))]
pub(crate) fn call_healed() {
    #[cfg(feature = "metrics")]
    counter!(HEALED).increment(1);
}

#[cfg(any(feature = "middleware", feature = "tower"))]
pub(crate) fn call_waited() {
    #[cfg(feature = "metrics")]
    counter!(WAITED).increment(1);
}

/// One more in a gauge, until it is dropped.
#[derive(Debug)]
pub(crate) struct GaugeGuard(&'static str);

impl GaugeGuard {
    pub(crate) fn waiting_caller() -> Self {
        Self::up(WAITING_CALLERS)
    }

    pub(crate) fn unsaved_token() -> Self {
        Self::up(UNSAVED_TOKENS)
    }

    fn up(name: &'static str) -> Self {
        #[cfg(feature = "metrics")]
        gauge!(name).increment(1.0);
        Self(name)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        #[cfg(feature = "metrics")]
        gauge!(self.0).decrement(1.0);
    }
}
