//! A walk over the due users whom nobody reads.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::TokenManager;
use crate::error::{Error, ErrorKind};
use crate::store::{Claim, Release, RowKind, StoreKey};
use crate::user::UserId;

/// So many rows that cannot be read are passed by in one walk.
const UNREADABLE: usize = 1_000;

/// What became of a user whom the store named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visit {
    /// Due here too, and fresh now; or revoked at last.
    Renewed,
    /// Left alone after a failure, or due by the store alone, since a token was not saved or another
    /// policy stored it.
    Left,
    /// The row cannot be read, now or later.
    Unreadable,
}

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
        let inner = &self.inner;
        let key = inner.key(RowKind::KeepAliveLock, &UserId::internal("keep_alive"));
        let lease_id = inner.random_id();
        let (lease, _) = inner.policy.lease_and_deadline();
        let mut total = 0_usize;
        // The store names them again and again, before all others.
        let mut unreadable = HashSet::new();
        let version = loop {
            let incarnation = inner.random_id();
            let claim = Claim { lease_id, lease, expected: None, incarnation };
            let claimed = inner.store.claim(&key, claim).await?;
            let Some(row) = claimed.row.filter(|_| claimed.granted) else {
                return Ok(());
            };
            let wanted = inner.at_once + unreadable.len();
            let mut due = inner.store.due(&inner.realm, wanted).await?;
            let may_be_more = due.len() >= wanted && unreadable.len() < UNREADABLE;
            due.retain(|key| !unreadable.contains(key));
            let mut is_of_use = false;
            for (key, visit) in self.renew_all(due).await {
                total += usize::from(visit == Visit::Renewed);
                is_of_use |= visit != Visit::Left;
                if visit == Visit::Unreadable {
                    unreadable.insert(key);
                }
            }
            // Were they all to fail, the rest would hardly fare better.
            if !is_of_use || !may_be_more {
                break row.version;
            }
        };
        if !unreadable.is_empty() {
            tracing::warn!(rows = unreadable.len(), "due users' rows cannot be read");
        }
        tracing::debug!(total, "walked over the due users");
        let release = Release { not_before: interval, refused: false };
        inner.store.release(&key, version, lease_id, release).await
    }

    async fn renew_all(&self, due: Vec<StoreKey>) -> Vec<(StoreKey, Visit)> {
        let mut renewals = JoinSet::new();
        for key in due {
            let manager = self.clone();
            let renewal = async move {
                let visit = manager.renew(&key).await;
                (key, visit)
            };
            renewals.spawn_on(renewal, &self.inner.runtime);
        }
        let mut visits = Vec::with_capacity(renewals.len());
        while let Some(visit) = renewals.join_next().await {
            visits.extend(visit);
        }
        visits
    }

    async fn renew(&self, key: &StoreKey) -> Visit {
        let inner = &self.inner;
        if key.kind() == RowKind::PendingRevocation {
            return match inner.finish_revocation(key).await {
                Ok(true) => Visit::Renewed,
                Err(error) if error.kind() == ErrorKind::Store && !error.is_temporary() => {
                    Visit::Unreadable
                }
                outcome => {
                    if let Err(error) = outcome {
                        tracing::warn!(error = %error.for_log(), "a token is not revoked yet");
                    }
                    Visit::Left
                }
            };
        }
        let entry = self.users.entry(inner, key.kind(), key.subject());
        let is_fresh = || entry.current.load().is_fresh(inner.clock.now());
        if is_fresh() {
            return Visit::Left;
        }
        // The first may only bring the token in from the store.
        for _ in 0..2 {
            let landed = match inner.join(&entry, false) {
                Ok(landing) => landing.wait().await,
                Err(error) => Err(error),
            };
            match landed {
                _ if is_fresh() => return Visit::Renewed,
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Store && !error.is_temporary() => {
                    return Visit::Unreadable;
                }
                Err(_) => return Visit::Left,
            }
        }
        Visit::Left
    }
}
