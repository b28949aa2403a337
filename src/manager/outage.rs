//! Outages of the store, and the moments after one.
//!
//! A server that took over from another may lack the last minutes, and leases end during a long
//! outage. In both cases a process that knows no better would send a refresh token that is spent. So
//! once the store answers again, each process first compares the users who changed lately with it and
//! writes back what is missing; no refresh begins before that and [`GRACE`] are over.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::entry::{Context, UserEntry};
use super::revalidate;
use super::users::Users;
use crate::clock::{SharedClock, Timestamp};

/// How long a store leaves all calls unanswered in an outage. A shorter failure changes nothing.
const SHORTEST: Duration = Duration::from_secs(3);

/// Pauses between two looks whether it answers again.
const LOOK: Duration = Duration::from_millis(500);

/// The time that other processes have to find that it does, and to compare their users.
const GRACE: Duration = Duration::from_secs(2);

/// A store that is slow at all times is in no outage each time that it answers.
const BETWEEN_OUTAGES: Duration = Duration::from_mins(1);

/// The age up to which a token is compared: replication is never behind for longer.
const LATELY: Duration = Duration::from_mins(10);

/// Whether the store answers.
#[derive(Debug)]
pub(super) struct Availability {
    clock: SharedClock,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    answered_at: Timestamp,
    settled_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Answering,
    /// No call was answered that was made since then.
    Failing(Timestamp),
    /// It answers again after an outage. Users are being compared with it.
    Settling,
}

impl Availability {
    pub(super) fn new(clock: SharedClock) -> Self {
        let state = State { phase: Phase::Answering, answered_at: clock.now(), settled_at: None };
        Self { clock, state: watch::Sender::new(state) }
    }

    /// Notes the end of a call that was made at `asked`.
    pub(super) fn note(&self, asked: Timestamp, is_answer: bool) {
        let now = self.clock.now();
        self.state.send_if_modified(|State { phase, answered_at, settled_at }| {
            let next = match *phase {
                Phase::Answering if !is_answer => Phase::Failing(asked),
                Phase::Answering | Phase::Failing(_) if is_answer => {
                    let silent_since = match *phase {
                        Phase::Failing(since) => since,
                        _ => asked,
                    };
                    // Another call may have been answered meanwhile.
                    let silent = now.since(silent_since).min(now.since(*answered_at));
                    let is_first = settled_at.is_none_or(|at| now.since(at) >= BETWEEN_OUTAGES);
                    let was_away = silent >= SHORTEST && is_first;
                    if was_away { Phase::Settling } else { Phase::Answering }
                }
                unchanged => unchanged,
            };
            if is_answer {
                *answered_at = now;
            }
            let is_change = std::mem::discriminant(phase) != std::mem::discriminant(&next);
            *phase = next;
            is_change
        });
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

/// Compares the users with the store after each outage, while the manager exists. Callers can wait
/// for longer than that, and are not held up.
pub(super) fn watch(users: &Arc<Users>, context: &Arc<Context>) {
    let mut state = context.store.availability().state.subscribe();
    let runtime = context.runtime.clone();
    let (users, context) = (Arc::downgrade(users), Arc::downgrade(context));
    runtime.spawn(async move {
        while state.wait_for(|state| !matches!(state.phase, Phase::Answering)).await.is_ok() {
            let Some(context) = context.upgrade() else { return };
            let phase = state.borrow().phase;
            match phase {
                Phase::Answering => {}
                Phase::Failing(since) => {
                    context.clock.sleep(LOOK).await;
                    if context.clock.now().since(since) >= SHORTEST {
                        // Its outcome is noted.
                        let _ = context.check_store().await;
                    }
                }
                Phase::Settling => {
                    if let Some(users) = users.upgrade() {
                        // A panic must not hold up all refreshes.
                        let _ = context.runtime.spawn(settle(users)).await;
                    }
                    context.store.availability().state.send_modify(|state| {
                        state.phase = Phase::Answering;
                        state.settled_at = Some(context.clock.now());
                    });
                }
            }
        }
    });
}

async fn settle(users: Arc<Users>) {
    let context = users.context();
    tracing::info!("the store answers again; users who changed lately are compared with it");
    let grace = context.clock.sleep(GRACE);
    for shard in users.shards() {
        let now = context.clock.now();
        let is_recent = |entry: &Arc<UserEntry>| {
            let current = entry.current.load();
            current.version.is_some() && current.token.age_at(now) < LATELY
        };
        let recent: Vec<_> = shard.into_iter().filter(is_recent).collect();
        if let Err(error) = revalidate::compare(context, &recent).await {
            // The store is away again, and the next outage has begun.
            tracing::warn!(%error, "could not compare users with the store");
            break;
        }
    }
    grace.await;
}
