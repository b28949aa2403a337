//! A read that takes the slow path: serve, refresh in the background, or wait for the refresh.

use std::sync::Arc;

use arc_swap::Guard;

use super::cached_token::CachedToken;
use super::entry::{MAX_ROUNDS, UserEntry};
use super::revalidate;
use super::single_flight::{Priority, join_or_start};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::metrics::GaugeGuard;

/// The token, where it can be served at once. A due one is refreshed in the background.
pub(super) fn ready(entry: &Arc<UserEntry>) -> Option<(Guard<Arc<CachedToken>>, Timestamp)> {
    let (cached, now) = served(entry)?;
    if !cached.is_fresh(now) {
        // An error means that it is paused.
        let _ = join_or_start(entry, Priority::Background);
    }
    Some((cached, now))
}

/// The token, where it can be served at once. Nothing is refreshed.
pub(super) fn served(entry: &Arc<UserEntry>) -> Option<(Guard<Arc<CachedToken>>, Timestamp)> {
    let cached = entry.current.load();
    let now = entry.context.clock.now();
    revalidate::schedule(entry, &cached, now);
    cached.is_served(now).then_some((cached, now))
}

/// The token, where it lives, for a caller who could get nothing better.
pub(super) fn alive(entry: &UserEntry) -> Option<Guard<Arc<CachedToken>>> {
    let cached = entry.current.load();
    cached.is_alive(entry.context.clock.now()).then_some(cached)
}

/// Waits for the refresh in flight, or starts one.
pub(super) async fn refreshed(entry: &Arc<UserEntry>) -> Result<Guard<Arc<CachedToken>>, Error> {
    let _waiting = GaugeGuard::waiting_caller();
    let mut outcome = Ok(());
    // A refresh ends without a token where the user has logged in or was removed meanwhile.
    for _ in 0..MAX_ROUNDS {
        outcome = match join_or_start(entry, Priority::Foreground) {
            Ok(flight) => flight.wait().await,
            Err(error) => Err(error),
        };
        match alive(entry) {
            Some(token) => return Ok(token),
            None if outcome.is_err() => break,
            None => {}
        }
    }
    let message = "the user's token changes faster than it can be read";
    Err(outcome.err().unwrap_or_else(|| Error::new(ErrorKind::Unavailable, message)))
}
