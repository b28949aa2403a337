//! Single flight: at most one refresh of a user runs in this process, and all who need its outcome
//! wait for the same one.

use std::sync::Arc;

use tokio_util::task::task_tracker::TaskTrackerToken;

use super::completion::{Completer, Completion, cut_off};
use super::entry::UserEntry;
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
pub(super) fn join_or_start(
    entry: &Arc<UserEntry>,
    priority: Priority,
) -> Result<Completion, Error> {
    let context = &entry.context;
    let (completer, completion) = entry.with(|state| {
        // A flight that is complete but still registered is about to be removed by its task.
        if let Some(flight) = state.flight.as_ref().filter(|flight| !flight.is_complete()) {
            return Ok((None, flight.clone()));
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
        let (completer, completion) = Completion::channel();
        state.flight = Some(completion.clone());
        Ok((Some((completer, token)), completion))
    })?;
    if priority == Priority::Foreground {
        completion.promote();
    }
    if let Some((completer, token)) = completer {
        let flight = Flight { entry: Arc::clone(entry), completer, _token: token };
        context.runtime.spawn(flight.run());
    }
    Ok(completion)
}

/// A refresh that this task owns. Dropped before its end, by a panic or with the runtime, it fails
/// for all its waiters, and the next caller can start another one.
struct Flight {
    entry: Arc<UserEntry>,
    completer: Completer,
    _token: TaskTrackerToken,
}

impl Flight {
    async fn run(self) {
        let outcome = refresh::run(&self.entry, &self.completer).await;
        self.entry.with(|state| state.flight = None);
        self.completer.complete(outcome);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let clock = &self.entry.context.clock;
        self.entry.with(|state| {
            let is_ours =
                state.flight.as_ref().is_some_and(|flight| self.completer.completes(flight));
            if is_ours {
                state.flight = None;
                let pause = self.entry.context.policy.backoff().initial;
                state.pause.begin(clock.now(), pause, Some(cut_off()));
            }
        });
    }
}
