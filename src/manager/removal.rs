//! Removing users: from memory, from the store, and at the provider.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::cached_token::CachedToken;
use super::entry::{MAX_ROUNDS, UserEntry, row_changes};
use super::revocation::{self, PendingRevocation};
use super::store_calls::is_unreadable;
use crate::error::Error;
use crate::store::Row;

/// The fate of the tokens of a user who was [disconnected](super::UserHandle::disconnect).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Disconnected {
    /// The provider has revoked them, or there were none.
    Revoked,
    /// The provider has not revoked them yet, for this reason. It is asked again in the background,
    /// at growing pauses: for an access token until its life is over, for a refresh token for a
    /// week. [`shutdown`](super::TokenManager::shutdown) names the user if it has not by then.
    Pending(Error),
    /// The API version has no revocation: they are erased here, and live on at the provider.
    Unrevoked {
        /// Until when the access token lives, by the local clock; `None` where none did. A token
        /// that a refresh in flight brings, and that is dropped, may live for longer.
        until: Option<SystemTime>,
    },
}

/// How far a removal from the store came.
#[derive(Default)]
struct Removed {
    /// The row's token, and the records of its revocation.
    stored: Option<Arc<CachedToken>>,
    pending: Vec<PendingRevocation>,
    /// The rest of the lease of another process, whose refresh may bring a token still.
    lease: Option<Duration>,
    /// The row could not be read, so that nobody knows its token.
    is_unreadable: bool,
}

/// Removes the user here and from the store. Runs in a task of its own.
pub(super) async fn forget(entry: Arc<UserEntry>) -> Result<(), Error> {
    let _writing = entry.lock_writes().await;
    let forgotten = remove(&entry, false, &mut Removed::default()).await;
    // Again: a login may have been under way, or a read may have brought the row back into memory
    // before it was removed. A token that is not saved yet is given up, even if the store failed.
    entry.evict();
    if forgotten.is_ok() {
        tracing::info!(user = ?entry.subject(), "forgotten");
    }
    forgotten
}

/// Removes a user who is evicted from memory already, and has their tokens revoked; `newest` is the
/// token that was served. Runs in a task of its own.
pub(super) async fn disconnect(
    entry: Arc<UserEntry>,
    newest: Arc<CachedToken>,
) -> Result<Disconnected, Error> {
    let context = &entry.context;
    let can_revoke = context.hurdlr.can_revoke();
    let writing = entry.lock_writes().await;
    // Again: a login may have been under way.
    let adopted = entry.evict();
    let mut removed = Removed::default();
    let outcome = remove(&entry, can_revoke, &mut removed).await;
    // Now that the row is gone, no other one can begin.
    let flight = entry.with(|state| state.flight.clone());
    let Removed { stored, mut pending, lease, is_unreadable } = removed;
    for served in [&newest, &adopted] {
        // A token that was not saved yet, or a login that the store never had.
        let is_revoked = stored.as_ref().is_some_and(|it| served.ends_with(it, entry.kind()));
        if can_revoke && served.version.is_some() && !is_revoked {
            pending.extend(revocation::record(&entry, served.revocable()).await);
        }
    }
    // Again: a read may have brought the row back into memory before it was removed.
    entry.evict();
    drop(writing);
    if let Err(error) = outcome {
        // The user may be there still, and is not meant to be: the tokens are to end all the same.
        for pending in pending {
            revocation::spawn_retry(&entry, pending, error.clone());
        }
        return Err(error);
    }
    revocation::revoke(&entry, pending).await;
    if !can_revoke || is_unreadable {
        let now = context.clock.now();
        let known = stored.iter().chain([&newest, &adopted]);
        let left = known.map(|token| token.alive_for(now)).max().unwrap_or_default();
        let until = (!can_revoke && !left.is_zero()).then(|| now.wall() + left);
        tracing::info!(user = ?entry.subject(), revoked = false, "disconnected");
        return Ok(Disconnected::Unrevoked { until });
    }
    match (flight, lease) {
        // Its token finds no row, and is revoked by the task that got it. An error is an end too.
        (Some(flight), _) => drop(flight.wait().await),
        (None, Some(lease)) => context.sleep_unless_closing(lease).await,
        (None, None) => {}
    }
    let reason = entry.with(|state| {
        let unsaved = || Error::store("a token that was in flight is not saved or revoked yet");
        let (unrevoked, reason) = state.unrevoked.clone();
        let reason = reason.filter(|_| unrevoked > 0);
        reason.or_else(|| (state.late_saves > 0).then(unsaved))
    });
    tracing::info!(user = ?entry.subject(), revoked = reason.is_none(), "disconnected");
    Ok(reason.map_or(Disconnected::Revoked, Disconnected::Pending))
}

/// Removes the row at just the version at which it was read: a call that the store carries out late
/// removes nobody who has logged in since, and a refresh in flight saves nothing. Where the token
/// is to be revoked, that is recorded first, so that no token is removed that was not.
async fn remove(entry: &Arc<UserEntry>, revokes: bool, removed: &mut Removed) -> Result<(), Error> {
    let (context, key) = (&entry.context, entry.key());
    let mut overtaken = Removed::default();
    for _ in 0..MAX_ROUNDS {
        let row = match context.store.read_row(&key).await? {
            Err(error) if is_unreadable(&error) => {
                removed.is_unreadable = true;
                return context.store.forget(&key, None).await.map(drop);
            }
            read => read?,
        };
        let Some(row) = row else {
            // A first grant may be in flight all the same. Or another process has removed the row
            // since it was read: its token is to be revoked as well.
            *removed = overtaken;
            return Ok(());
        };
        for pending in std::mem::take(&mut overtaken).pending {
            revocation::delete_record(context, &pending).await;
        }
        let stored = match entry.decode(&row) {
            Err(error) if is_unreadable(&error) => {
                removed.is_unreadable = true;
                None
            }
            decoded => decoded?,
        };
        if revokes {
            removed.lease = hold_off(entry, &row).await?;
            if let Some(stored) = &stored {
                removed.pending = revocation::record(entry, stored.revocable()).await;
            }
        }
        removed.stored = stored;
        if context.store.forget(&key, Some(row.version)).await? {
            return Ok(());
        }
        overtaken = std::mem::take(removed);
    }
    Err(row_changes())
}

/// Takes the lease, so that no process begins to refresh the user now. Returns how long another
/// process's lease lasts.
async fn hold_off(entry: &UserEntry, row: &Row) -> Result<Option<Duration>, Error> {
    let claim = entry.context.claim(Some(row.version), false);
    let claimed = entry.context.store.claim(&entry.key(), claim).await?;
    Ok(claimed.row.filter(|_| !claimed.granted).and_then(|row| row.leased_for))
}
