//! Outages of the store, and the moments after one.
//!
//! A server that took over from another may lack the last minutes, and leases end during a long
//! outage. In both cases a process that knows no better would send a refresh token that is spent.
//! So once the store answers again, each process first compares the users who changed lately with
//! it, and writes back what is missing. No refresh begins before that and [`GRACE`] are over.

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

/// How long refreshes wait for the comparison, at most: a slow store must not hold them up.
const LONGEST: Duration = Duration::from_secs(10);

/// An answer that took long may have come from another server. But a store that is slow at all
/// times is in no outage each time that it answers.
const BETWEEN_SLOW_ANSWERS: Duration = Duration::from_mins(1);

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
            // Another call may have been answered meanwhile.
            let was_silent = |since| now.since(since).min(now.since(*answered_at)) >= SHORTEST;
            let next = match *phase {
                Phase::Answering if !is_answer => Phase::Failing(asked),
                Phase::Failing(since) if is_answer && was_silent(since) => Phase::Settling,
                Phase::Failing(_) if is_answer => Phase::Answering,
                Phase::Answering if was_silent(asked) => {
                    let is_first =
                        settled_at.is_none_or(|at| now.since(at) >= BETWEEN_SLOW_ANSWERS);
                    if is_first { Phase::Settling } else { Phase::Answering }
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
                    let is_compared = settle(&context, users.upgrade()).await;
                    let now = context.clock.now();
                    context.store.availability().state.send_modify(|state| {
                        if is_compared {
                            state.phase = Phase::Answering;
                            state.settled_at = Some(now);
                        } else {
                            state.phase = Phase::Failing(now);
                        }
                    });
                }
            }
        }
    });
}

/// Compares the users who changed lately with the store. `false` where it is away again.
async fn settle(context: &Context, users: Option<Arc<Users>>) -> bool {
    let Some(users) = users else { return true };
    tracing::info!("the store answers again; users who changed lately are compared with it");
    let grace = context.clock.sleep(GRACE);
    // Tracked, and goes on where it takes longer. A panic must not hold up all refreshes either.
    let comparison = context.spawn(compare(users));
    let is_compared = tokio::select! {
        compared = comparison => compared.unwrap_or(true),
        () = context.clock.sleep(LONGEST) => true,
    };
    if is_compared {
        grace.await;
    }
    is_compared
}

async fn compare(users: Arc<Users>) -> bool {
    let context = users.context();
    for shard in users.shards() {
        let now = context.clock.now();
        let is_recent = |entry: &Arc<UserEntry>| {
            let current = entry.current.load();
            current.version.is_some() && current.token.age_at(now) < LATELY
        };
        let recent: Vec<_> = shard.into_iter().filter(is_recent).collect();
        if let Err(error) = revalidate::compare(&recent).await {
            tracing::warn!(%error, "could not compare users with the store");
            return false;
        }
    }
    true
}
