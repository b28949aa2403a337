//! Single flight: at most one refresh of a user runs in this process, and all who need its outcome
//! wait for the same one.

use std::sync::Arc;

use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument;

use super::entry::UserEntry;
use super::flight::{Flight, cut_off};
use super::refresh;
use crate::error::{Error, ErrorKind};

/// Why a refresh is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// A caller waits for it.
    Foreground,
    /// The token is due and still served.
    Background,
}

/// Joins the user's refresh in flight, or starts one. An error where the user is paused after a
/// failure, or the manager is shutting down.
///
/// A caller who joins a refresh that waits in the background queue moves it to the front.
pub(super) fn join_or_start(entry: &Arc<UserEntry>, priority: Priority) -> Result<Flight, Error> {
    let context = &entry.context;
    let came = context.clock.now();
    let (flight, started) = entry.with(|state| {
        if let Some(flight) = &state.flight {
            return Ok((flight.clone(), None));
        }
        let is_paused = !state.pause.left(&context.clock).is_zero();
        match &state.pause.error {
            Some(error) if is_paused => {
                return Err(refresh::error_for_callers(entry, state, error));
            }
            None if is_paused && priority == Priority::Background => {
                return Err(Error::new(ErrorKind::Unavailable, "the token was just refreshed"));
            }
            _ => {}
        }
        let token = context.try_track().ok_or_else(refresh::shutting_down)?;
        // A root: it outlives the caller who starts it, and is linked to all who wait.
        let span = tracing::info_span!(parent: None, "refresh", user = ?entry.subject());
        Ok((state.flight.insert(Flight::new(span)).clone(), Some(token)))
    })?;
    if priority == Priority::Foreground {
        flight.promote(came);
    }
    if let Some(token) = started {
        let task = Task { entry: Arc::clone(entry), flight: flight.clone(), _token: token };
        let refreshed = async move {
            let outcome = refresh::run(&task.entry, &task.flight).await;
            task.entry.with(|state| state.flight = None);
            task.flight.complete(outcome);
        };
        context.runtime.spawn(refreshed.instrument(flight.span()));
    }
    Ok(flight)
}

/// The task of a refresh. Dropped before its end, by a panic or with the runtime, it fails the
/// refresh for all who wait, and the next caller can start another one.
struct Task {
    entry: Arc<UserEntry>,
    flight: Flight,
    _token: TaskTrackerToken,
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.flight.is_complete() {
            return;
        }
        let context = &self.entry.context;
        self.entry.with(|state| {
            state.flight = None;
            let pause = context.policy.backoff.initial;
            state.pause.begin(context.clock.now(), pause, Some(cut_off()));
        });
        self.flight.complete(Err(cut_off()));
    }
}
