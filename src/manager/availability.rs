//! Whether the store answers, by the outcomes of its calls.

use std::time::Duration;

use tokio::sync::watch;

use crate::clock::{SharedClock, Timestamp};

/// How long a store leaves all calls unanswered in an outage. A shorter failure changes nothing.
pub(super) const SHORTEST: Duration = Duration::from_secs(3);

/// An answer that took long may have come from another server. But a store that is slow at all
/// times is in no outage each time that it answers.
const BETWEEN_SLOW_ANSWERS: Duration = Duration::from_mins(1);

/// Whether the store answers.
#[derive(Debug)]
pub(super) struct Availability {
    clock: SharedClock,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    answered_at: Timestamp,
    /// Since when users are to be compared with the store, if they are.
    unsettled_since: Option<Timestamp>,
    settled_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    Answering,
    /// No call was answered that was made since then.
    Failing(Timestamp),
    /// It answers again after an outage. Users are being compared with it.
    Settling,
}

impl Availability {
    pub(super) fn new(clock: SharedClock) -> Self {
        let state = State {
            phase: Phase::Answering,
            answered_at: clock.now(),
            unsettled_since: None,
            settled_at: None,
        };
        Self { clock, state: watch::Sender::new(state) }
    }

    /// Notes the end of a call that was made at `asked`.
    pub(super) fn note(&self, asked: Timestamp, is_answer: bool) {
        let now = self.clock.now();
        self.state.send_if_modified(|State { phase, answered_at, unsettled_since, settled_at }| {
            // Another call may have been answered meanwhile.
            let was_silent = |since| now.since(since).min(now.since(*answered_at)) >= SHORTEST;
            let settled_lately = settled_at.is_some_and(|at| now.since(at) < BETWEEN_SLOW_ANSWERS);
            let silent_since = match *phase {
                Phase::Failing(since) => Some(since),
                Phase::Answering => Some(asked).filter(|_| !settled_lately),
                Phase::Settling => None,
            };
            if is_answer && silent_since.is_some_and(was_silent) {
                *unsettled_since = Some(now);
            }
            let next = match *phase {
                Phase::Settling => Phase::Settling,
                Phase::Failing(since) if !is_answer => Phase::Failing(since),
                Phase::Answering if !is_answer => Phase::Failing(asked),
                _ if unsettled_since.is_some() => Phase::Settling,
                _ => Phase::Answering,
            };
            if is_answer {
                *answered_at = now;
            }
            let is_change = std::mem::discriminant(phase) != std::mem::discriminant(&next);
            *phase = next;
            is_change
        });
    }

    /// Notes that the users have been compared with the store, or that it failed meanwhile: then
    /// its next answer begins another comparison, unless that has been tried for `longest`.
    pub(super) fn settle(&self, is_compared: bool, longest: Duration) {
        let now = self.clock.now();
        self.state.send_modify(|state| {
            let is_over = state.unsettled_since.is_none_or(|since| now.since(since) >= longest);
            if is_compared || is_over {
                state.phase = Phase::Answering;
                state.unsettled_since = None;
                state.settled_at = Some(now);
            } else {
                state.phase = Phase::Failing(now);
            }
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Whether the store answers again after an outage, and users are being compared with it.
    pub(super) fn is_settling(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Settling)
    }

    /// Waits until the users have been compared with the store after an outage.
    pub(super) async fn settled(&self) {
        let mut state = self.state.subscribe();
        // An error means that the manager is gone, and so is who would compare.
        let _ = state.wait_for(|state| !matches!(state.phase, Phase::Settling)).await;
    }

    /// Waits until the store begins or ceases to answer.
    pub(super) async fn changed(&self) {
        let _ = self.state.subscribe().changed().await;
    }
}
