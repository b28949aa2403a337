//! A walk over the due users whom nobody reads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::TokenManager;
use crate::error::Error;
use crate::store::{Claim, Release, StoreKey, UserKind};
use crate::user::UserId;

/// The walk that [`TokenManager::keep_alive`](super::TokenManager::keep_alive) starts. It ends when
/// this is stopped or dropped; refreshes under way finish all the same.
#[derive(Debug)]
pub struct KeepAlive {
    stop: watch::Sender<bool>,
    walker: JoinHandle<()>,
}

impl KeepAlive {
    pub(super) fn start(manager: TokenManager, interval: Duration) -> Self {
        let inner = Arc::clone(&manager.inner);
        let interval = interval.max(inner.policy.shortest_pause());
        let (stop, mut stopped) = watch::channel(false);
        let walker = inner.runtime.clone().spawn(async move {
            let mut closing = inner.closing.subscribe();
            let walk = async {
                loop {
                    if let Err(error) = manager.walk(interval).await {
                        tracing::warn!(%error, "the walk over due users failed");
                    }
                    // Not all replicas at the same moment.
                    let jitter = inner.random.next_u64() % 1_000;
                    inner.clock.sleep(interval + Duration::from_millis(jitter)).await;
                }
            };
            tokio::select! {
                () = walk => {}
                // An error means that nobody is left to stop it: dropped.
                _ = stopped.wait_for(|stop| *stop) => {}
                _ = closing.wait_for(Option::is_some) => {}
            }
        });
        Self { stop, walker }
    }

    /// Stops the walk and waits until it has stopped.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // An error is the walk's own end, one way or the other.
        let _ = self.walker.await;
    }
}

impl TokenManager {
    /// Walks once, if no other process does or has just done.
    async fn walk(&self, interval: Duration) -> Result<(), Error> {
        let Ok(nobody) = UserId::new("keep_alive") else {
            return Ok(());
        };
        let inner = &self.inner;
        let key = inner.key(UserKind::Walk, &nobody);
        let lease_id = inner.random_id();
        let (lease, _) = inner.policy.lease_and_deadline();
        let mut total = 0_usize;
        let version = loop {
            let incarnation = inner.random_id();
            let claim = Claim { lease_id, lease, expected: None, incarnation };
            let claimed = inner.store.claim(&key, claim).await?;
            let Some(row) = claimed.row.filter(|_| claimed.granted) else {
                return Ok(());
            };
            let due = inner.store.due(&inner.realm, inner.at_once).await?;
            let may_be_more = due.len() >= inner.at_once;
            let renewed = self.renew_all(due).await;
            total += renewed;
            // Were they all to fail, the rest would hardly fare better.
            if renewed == 0 || !may_be_more {
                break row.version;
            }
        };
        tracing::debug!(total, "walked over the due users");
        let release = Release { not_before: interval, refused: false };
        inner.store.release(&key, version, lease_id, release).await
    }

    /// How many were due here too, and are fresh now. Not so: who is left alone after a failure, and
    /// who is due by the store alone, since a token was not saved or another policy stored it.
    /// The store would name them again and again.
    async fn renew_all(&self, due: Vec<StoreKey>) -> usize {
        let mut renewals = JoinSet::new();
        for key in due {
            let manager = self.clone();
            let renewal = async move {
                let inner = &manager.inner;
                let entry = manager.users.entry(inner, key.kind(), key.subject());
                let is_fresh = || entry.current.load().is_fresh(inner.clock.now());
                if is_fresh() {
                    return false;
                }
                // The first may only bring the token in from the store.
                for _ in 0..2 {
                    let Ok(mut landing) = inner.join(&entry, false) else {
                        return false;
                    };
                    let _ = landing.wait_for(Option::is_some).await;
                    if is_fresh() {
                        return true;
                    }
                }
                false
            };
            renewals.spawn_on(renewal, &self.inner.runtime);
        }
        let mut renewed = 0;
        while let Some(outcome) = renewals.join_next().await {
            renewed += usize::from(outcome.unwrap_or(false));
        }
        renewed
    }
}
