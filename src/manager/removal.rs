//! Removing users: from memory, from the store, and at the provider.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::cached_token::CachedToken;
use super::completion::Completion;
use super::entry::UserEntry;
use super::revocation::{self, PendingRevocation};
use crate::error::Error;
use crate::store::{Claim, Row};

/// How often a removal starts over because another process has refreshed the user in between.
const MAX_ROUNDS: u32 = 5;

/// The fate of the tokens of a user who was
/// [disconnected](super::UserHandle::disconnect).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Disconnected {
    /// The provider has revoked them, or there were none.
    Revoked,
    /// The provider has not revoked them yet, for this reason. It is asked again in the background,
    /// at growing pauses: for an access token until its life is over, for a refresh token for a
    /// week. [`shutdown`](super::TokenManager::shutdown) names the user if it still has not by
    /// then.
    Pending(Error),
    /// The API version has no revocation: they are erased here, and live on at the provider.
    Unrevoked {
        /// Until when the access token lives, by the local clock; `None` where none did. A token
        /// that a refresh in flight brings, and that is dropped, may live for longer.
        until: Option<SystemTime>,
    },
}

/// A refresh that may bring a token after the user was removed.
enum ConcurrentRefresh {
    /// In this process.
    Here(Completion),
    /// In another process, for this long at most.
    Elsewhere(Duration),
}

/// Removes the user here and from the store. Runs in a task of its own.
pub(super) async fn forget(entry: Arc<UserEntry>) -> Result<(), Error> {
    let _writing = entry.lock_writes().await;
    let forgotten = forget_row(&entry).await;
    // Again: a login may have been under way, or a read may have brought the row back into memory
    // before it was removed. A token that is not saved yet is given up, even if the store failed.
    entry.evict();
    forgotten
}

/// Removes the row at the version at which it is read, so that a call that the store carries out
/// late removes nobody who has logged in since.
async fn forget_row(entry: &UserEntry) -> Result<(), Error> {
    let (store, key) = (&entry.context.store, entry.key());
    for _ in 0..MAX_ROUNDS {
        let version = match store.read_row(&key).await? {
            Ok(None) => return Ok(()),
            Ok(Some(row)) => Some(row.version),
            Err(error) if revocation::is_unreadable(&error) => None,
            Err(error) => return Err(error),
        };
        if store.forget(&key, version).await? || version.is_none() {
            return Ok(());
        }
    }
    Err(changing())
}

fn changing() -> Error {
    Error::store("could not remove the user: the row is changing concurrently")
}

/// Removes a user who is evicted from memory already, and has their tokens revoked; `newest` is the
/// token that was served. Runs in a task of its own.
pub(super) async fn disconnect(
    entry: Arc<UserEntry>,
    newest: Arc<CachedToken>,
) -> Result<Disconnected, Error> {
    if !entry.context.hurdlr.can_revoke() {
        return erase(&entry, &newest).await;
    }
    let writing = entry.lock_writes().await;
    // Again: a login may have been under way.
    let adopted = entry.evict();
    let removed = remove(&entry).await;
    let mut pending = removed.pending;
    for served in [newest, adopted] {
        // A token that was not saved yet, or a login that the store never had.
        if served.version.is_none() {
            continue;
        }
        let mut stored = removed.stored.iter();
        if !stored.any(|stored| served.ends_with(stored, entry.kind())) {
            pending.extend(revocation::record(&entry, &served).await);
        }
    }
    // Again: a read may have brought the row back into memory before it was removed.
    entry.evict();
    drop(writing);
    if let Some(error) = removed.error {
        // The user may be there still, and is not meant to be: the tokens are to end all the same.
        for pending in pending {
            revocation::spawn_retry(&entry, pending, error.clone());
        }
        return Err(error);
    }
    revocation::revoke(&entry, pending).await;
    match removed.concurrent {
        // Its token finds no row, and is revoked by the task that got it. An error is an end too.
        Some(ConcurrentRefresh::Here(completion)) => {
            let _ = completion.wait().await;
        }
        Some(ConcurrentRefresh::Elsewhere(lease)) => {
            entry.context.sleep_unless_closing(lease).await;
        }
        None => {}
    }
    if removed.is_unreadable {
        return Ok(Disconnected::Unrevoked { until: None });
    }
    let reason = entry.with(|state| {
        let unsaved =
            || Error::store("the token of a refresh in flight is not saved or revoked yet");
        let (unrevoked, reason) = state.unrevoked.clone();
        let reason = reason.filter(|_| unrevoked > 0);
        reason.or_else(|| (state.late_saves > 0).then(unsaved))
    });
    tracing::info!(user = ?entry.subject(), revoked = reason.is_none(), "disconnected");
    Ok(reason.map_or(Disconnected::Revoked, Disconnected::Pending))
}

/// All that can be done where tokens cannot be revoked.
async fn erase(entry: &Arc<UserEntry>, newest: &CachedToken) -> Result<Disconnected, Error> {
    let context = &entry.context;
    let _writing = entry.lock_writes().await;
    // Again: a login may have been under way.
    let adopted = entry.evict();
    let stored = match context.store.read_row(&entry.key()).await? {
        Ok(row) => row.and_then(|row| entry.decode(&row).ok().flatten()),
        Err(error) if revocation::is_unreadable(&error) => None,
        Err(error) => return Err(error),
    };
    forget_row(entry).await?;
    entry.evict();
    let now = context.clock.now();
    let left = stored.map_or(Duration::ZERO, |stored| stored.alive_for(now));
    let left = left.max(newest.alive_for(now)).max(adopted.alive_for(now));
    let until = (!left.is_zero()).then(|| now.wall() + left);
    tracing::info!(user = ?entry.subject(), revoked = false, "disconnected");
    Ok(Disconnected::Unrevoked { until })
}

/// How far a removal from the store came.
#[derive(Default)]
struct Removed {
    error: Option<Error>,
    /// The row's token, and the records of its revocation.
    stored: Option<Arc<CachedToken>>,
    pending: Vec<PendingRevocation>,
    concurrent: Option<ConcurrentRefresh>,
    /// The row could not be read, so that nobody knows its token.
    is_unreadable: bool,
}

/// Records the revocation of the row's token, then removes the row at just the version at which it
/// was read. So no token is removed that was not recorded, and a refresh in flight saves nothing.
async fn remove(entry: &Arc<UserEntry>) -> Removed {
    let (context, key) = (&entry.context, entry.key());
    let mut removed = Removed::default();
    for _ in 0..MAX_ROUNDS {
        let read = match context.store.read_row(&key).await {
            Ok(read) => read,
            Err(error) => {
                removed.error = Some(error);
                return removed;
            }
        };
        let decoded = read.and_then(|row| {
            Ok((row.as_ref().map(|row| entry.decode(row)).transpose()?.flatten(), row))
        });
        let (stored, row) = match decoded {
            Ok(read) => read,
            Err(error) if revocation::is_unreadable(&error) => {
                removed.is_unreadable = true;
                removed.error = context.store.forget(&key, None).await.err();
                return removed;
            }
            Err(error) => {
                removed.error = Some(error);
                return removed;
            }
        };
        let Some(row) = row else {
            // A first grant may be in flight all the same.
            removed.concurrent = refresh_here(entry);
            return removed;
        };
        match hold_off(entry, &row).await {
            Ok(lease) => removed.concurrent = lease.map(ConcurrentRefresh::Elsewhere),
            Err(error) => {
                removed.error = Some(error);
                return removed;
            }
        }
        let pending = match &stored {
            Some(stored) => revocation::record(entry, stored).await,
            None => Vec::new(),
        };
        match context.store.forget(&key, Some(row.version)).await {
            Ok(true) => {
                removed.stored = stored;
                removed.pending = pending;
                // Now that the row is gone, no other one can begin.
                removed.concurrent = refresh_here(entry).or(removed.concurrent);
                return removed;
            }
            Ok(false) => revocation::delete_records(context, pending).await,
            Err(error) => {
                // It may be removed, and is to be revoked in any case.
                removed.stored = stored;
                removed.pending = pending;
                removed.error = Some(error);
                return removed;
            }
        }
    }
    removed.error = Some(changing());
    removed
}

/// Takes the lease, so that no process begins to refresh the user now. Returns how long another
/// process's lease lasts.
async fn hold_off(entry: &UserEntry, row: &Row) -> Result<Option<Duration>, Error> {
    let claim = Claim {
        holder: entry.context.holder,
        lease: entry.context.policy.lease_span(),
        known: Some(row.version),
        create: None,
    };
    let claimed = entry.context.store.claim(&entry.key(), claim).await?;
    Ok(claimed.row.filter(|_| !claimed.granted).and_then(|row| row.leased_for))
}

fn refresh_here(entry: &UserEntry) -> Option<ConcurrentRefresh> {
    entry.with(|state| state.flight.clone()).map(ConcurrentRefresh::Here)
}
