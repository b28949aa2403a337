//! Outages of the store, and the moments after one.
//!
//! A server that took over from another may lack the last minutes, and leases end during a long
//! outage. In both cases a process that knows no better would send a refresh token that is spent.
//! So once the store answers again, each process first compares the users who changed lately with
//! it, and writes back what is missing. No refresh begins before that and [`GRACE`] are over.

use std::sync::Arc;
use std::time::Duration;

use super::availability::{Phase, SHORTEST};
use super::entry::{Context, UserEntry};
use super::revalidate;
use super::users::Users;

/// Pauses between two looks whether it answers again.
const LOOK: Duration = Duration::from_millis(500);

/// The time that other processes have to find that it does, and to compare their users.
const GRACE: Duration = Duration::from_secs(2);

/// How long refreshes wait for one comparison, and for how long a failed one is repeated.
const LONGEST: Duration = Duration::from_secs(10);

/// The age up to which a token is compared: replication is never behind for longer.
const LATELY: Duration = Duration::from_mins(10);

/// Compares the users with the store after each outage, while the manager exists. Callers can wait
/// for longer than that, and are not held up.
pub(super) fn watch(users: &Arc<Users>, context: &Arc<Context>) {
    let mut state = context.store.availability.subscribe();
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
                    context.store.availability.settle(is_compared, LONGEST);
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
    let context = &users.context;
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
