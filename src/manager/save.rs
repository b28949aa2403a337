//! Saving tokens: a refreshed one before it is served, and one that the store would not take as
//! soon as it does.
//!
//! Every save is a compare-and-set, so it can be repeated whatever became of the one before: over
//! the version that was consumed, over the incarnation that a login replaces, or over nothing.

use std::sync::Arc;

use super::cached_token::CachedToken;
use super::entry::{Replaces, Unsaved, UserEntry};
use super::metrics::GaugeGuard;
use super::revocation;
use crate::error::Error;
use crate::store::{Over, Row, Version};

/// How often a save starts over because the row has changed in between.
const MAX_ROUNDS: u32 = 5;

/// Saves a refreshed token, then serves it. Where the store fails, the token is served from memory
/// and saved as soon as possible.
pub(super) async fn save_and_serve(
    entry: &Arc<UserEntry>,
    epoch: u32,
    cached: &Arc<CachedToken>,
    consumed: Version,
) {
    if let Err(error) = save(entry, epoch, cached, consumed).await {
        tracing::warn!(user = ?entry.subject(), %error, "could not save a new token; it is served from memory and saved later");
        let replaces = Replaces::Version(consumed);
        let unsaved = Unsaved { cached: Arc::clone(cached), replaces };
        // The user may have logged in or been removed here meanwhile. Whether in the store too, only
        // the store can tell: it may hold a login of another process, whose token this is.
        let is_late = !entry.install_unsaved(epoch, &unsaved);
        spawn_save_retry(entry, epoch, unsaved, is_late);
    }
}

/// Saves a token over the version that it consumed. Where the row has moved on, what it holds is
/// served instead.
async fn save(
    entry: &Arc<UserEntry>,
    epoch: u32,
    cached: &Arc<CachedToken>,
    consumed: Version,
) -> Result<(), Error> {
    let (context, key) = (&entry.context, entry.key());
    let Some(version) = cached.version else {
        return Ok(());
    };
    let mut over = consumed;
    for _ in 0..MAX_ROUNDS {
        let stored = context.stored(cached);
        if context.store.save(&key, over, version.revision, stored).await? {
            entry.install(epoch, cached);
            return Ok(());
        }
        match context.store.read(&key).await? {
            // The store was restored to an earlier day: this token is newer than the row's.
            Some(row) if version.is_newer_than(row.version) => over = row.version,
            row => return adopt_winner(entry, epoch, cached, row.as_ref()).await,
        }
    }
    Err(changing())
}

/// Serves what the store has instead of a token that it will not have: a peer was first, or the
/// user was removed or logged in anew. Nobody is to have our token then.
async fn adopt_winner(
    entry: &Arc<UserEntry>,
    epoch: u32,
    ours: &Arc<CachedToken>,
    row: Option<&Row>,
) -> Result<(), Error> {
    let theirs = row.map(|row| entry.decode(row)).transpose()?.flatten();
    match &theirs {
        // An earlier call that seemed to fail did save it.
        Some(theirs) if theirs.has_same_access_token(ours) && theirs.version == ours.version => {
            entry.install(epoch, ours);
            return Ok(());
        }
        Some(theirs) => {
            tracing::debug!(user = ?entry.subject(), "another process saved its token first");
            entry.install(epoch, theirs);
        }
        None => {
            tracing::debug!(user = ?entry.subject(), "the user was removed meanwhile");
            entry.clear(epoch);
        }
    }
    if !theirs.is_some_and(|theirs| ours.is_continued_by(&theirs)) {
        // Boxed, since it is rare: refreshes need no room for it.
        Box::pin(revocation::revoke_orphan(entry, ours)).await;
    }
    Ok(())
}

/// Puts a token back over the row of an earlier one of the same login.
pub(super) async fn write_back(
    entry: &UserEntry,
    cached: &Arc<CachedToken>,
    over: Version,
) -> Result<(), Error> {
    let Some(version) = cached.version else {
        return Ok(());
    };
    tracing::warn!(user = ?entry.subject(), revision = over.revision, "restored a newer token over an older row");
    let stored = entry.context.stored(cached);
    // Where the row has changed in between, the next look decides.
    let restored = entry.context.store.save(&entry.key(), over, version.revision, stored).await?;
    if restored {
        entry.with(|state| {
            state.unsaved.take_if(|unsaved| Arc::ptr_eq(&unsaved.cached, cached));
        });
    }
    Ok(())
}

/// Puts a login into the store that would not take it before, unless the user was removed or logged
/// in anew since, here or elsewhere.
pub(super) async fn save_unsaved_login(entry: &Arc<UserEntry>) -> Result<(), Error> {
    if !has_unsaved_login(entry) {
        return Ok(());
    }
    let _writing = entry.lock_writes().await;
    let (epoch, unsaved) = (entry.epoch(), entry.with(|state| state.unsaved.clone()));
    match unsaved {
        Some(unsaved) => save_unsaved(entry, epoch, &unsaved).await,
        None => Ok(()),
    }
}

/// Whether there is a login that the store has not taken yet.
pub(super) fn has_unsaved_login(entry: &UserEntry) -> bool {
    entry.with(|state| {
        let unsaved = state.unsaved.as_ref();
        unsaved.is_some_and(|unsaved| !matches!(unsaved.replaces, Replaces::Version(_)))
    })
}

/// Tries once to save a token that the store has not taken.
async fn save_unsaved(entry: &Arc<UserEntry>, epoch: u32, unsaved: &Unsaved) -> Result<(), Error> {
    let Unsaved { cached, replaces } = unsaved;
    let replaced = match *replaces {
        Replaces::Version(consumed) => {
            save(entry, epoch, cached, consumed).await?;
            entry.with(|state| {
                state.unsaved.take_if(|unsaved| Arc::ptr_eq(&unsaved.cached, cached));
            });
            return Ok(());
        }
        Replaces::Incarnation(replaced) => replaced,
        Replaces::Unknown => {
            let row = entry.context.store.read(&entry.key()).await?;
            row.filter(|row| row.token.is_some()).map(|row| row.version.incarnation)
        }
    };
    let incarnation = cached.version.map_or(0, |version| version.incarnation);
    let over = match replaced {
        Some(replaced) => Over::Incarnation(replaced),
        None => Over::Nothing,
    };
    entry.with(|state| {
        if let Some(unsaved) = &mut state.unsaved {
            unsaved.replaces = Replaces::Incarnation(replaced);
        }
    });
    let (key, stored) = (entry.key(), entry.context.stored(cached));
    if entry.context.store.put(&key, incarnation, stored, over).await? {
        tracing::debug!(user = ?entry.subject(), "saved a login that the store had not taken");
        entry.with(|state| state.unsaved = None);
        return Ok(());
    }
    let row = entry.context.store.read(&key).await?;
    adopt_winner(entry, epoch, cached, row.as_ref()).await?;
    entry.with(|state| state.unsaved = None);
    Ok(())
}

/// Retries a failed save in the background until the store takes the token or has moved on, the
/// user's token changes, or the time of the shutdown is over. A late token is one that is not served
/// any more; where the store will not have it, it is revoked.
pub(super) fn spawn_save_retry(
    entry: &Arc<UserEntry>,
    epoch: u32,
    unsaved: Unsaved,
    is_late: bool,
) {
    let (entry, context) = (Arc::clone(entry), Arc::clone(&entry.context));
    let gauge = GaugeGuard::unsaved_token();
    entry.with(|state| state.late_saves += usize::from(is_late));
    context.clone().spawn(async move {
        let _gauge = gauge;
        for tries in 0.. {
            // A login is looked after at once, before somebody else logs in.
            if tries > 0 || matches!(unsaved.replaces, Replaces::Version(_)) {
                let pause = context.delay(context.policy.backoff(), tries + 1);
                context.sleep_unless_closing(pause).await;
            }
            let outcome = if is_late {
                save_unsaved(&entry, epoch, &unsaved).await
            } else {
                retry_save(&entry, epoch, &unsaved.cached).await
            };
            match outcome {
                Ok(()) => break,
                Err(error) if context.is_past_closing() => {
                    tracing::error!(user = ?entry.subject(), %error, "a new token could not be saved before the end");
                    return;
                }
                Err(error) => {
                    tracing::warn!(user = ?entry.subject(), %error, "saving the token failed again");
                }
            }
        }
        entry.with(|state| state.late_saves -= usize::from(is_late));
    });
}

async fn retry_save(
    entry: &Arc<UserEntry>,
    epoch: u32,
    cached: &Arc<CachedToken>,
) -> Result<(), Error> {
    let _writing = entry.lock_writes().await;
    let unsaved = entry.with(|state| state.unsaved.clone());
    match unsaved.filter(|unsaved| Arc::ptr_eq(&unsaved.cached, cached)) {
        Some(unsaved) => save_unsaved(entry, epoch, &unsaved).await,
        None => Ok(()),
    }
}

fn changing() -> Error {
    Error::store("could not save the token: the row is changing concurrently")
}
