//! Saving tokens: a refreshed one before it is served, and one that the store would not take as
//! soon as it does.
//!
//! Every save is a compare-and-set over a version that was read before, so it can be repeated
//! whatever became of the one before.

use std::sync::Arc;

use super::cached_token::CachedToken;
use super::entry::{MAX_ROUNDS, Unsaved, UserEntry, row_changes};
use super::revocation;
use super::store_calls::is_unreadable;
use crate::backoff::Backoff;
use crate::error::Error;
use crate::metrics::GaugeGuard;
use crate::store::{Release, Row, Save, Version};

/// Saves a refreshed token, then serves it. Where the store fails, the token is served from memory
/// and saved as soon as possible.
pub(super) async fn save_and_serve(
    entry: &Arc<UserEntry>,
    epoch: u32,
    cached: Arc<CachedToken>,
    consumed: Version,
) {
    let mut unsaved = Unsaved { cached, over: Some(consumed) };
    if let Err(error) = save(entry, epoch, &mut unsaved).await {
        tracing::warn!(user = ?entry.subject(), %error, "could not save a new token; it is served from memory and saved later");
        // The user may have logged in or been removed here meanwhile. Only the store can tell
        // whether there too: it may hold a login of another process, whose token this is.
        let is_late = !entry.install(epoch, &unsaved.cached, Some(unsaved.clone()));
        spawn_save_retry(entry, epoch, unsaved, is_late);
    }
}

/// Saves a token over a version that the row had, or a login over whatever the row has. Where the
/// row has moved on from that version, what it holds is served instead.
///
/// After an error, `over` is the version over which the token may have been saved all the same.
pub(super) async fn save(
    entry: &Arc<UserEntry>,
    epoch: u32,
    unsaved: &mut Unsaved,
) -> Result<(), Error> {
    let Unsaved { cached, over: last } = unsaved;
    let (context, key) = (&entry.context, entry.key());
    let Some(version) = cached.version else {
        return Ok(());
    };
    let is_login = last.is_none();
    for _ in 0..MAX_ROUNDS {
        let over = match *last {
            Some(over) => over,
            None => *last.insert(version_of_row(entry).await?),
        };
        if context.store.save(&key, Save { over, version, token: context.stored(cached) }).await? {
            if !is_login {
                entry.install(epoch, cached, None);
            }
            return Ok(());
        }
        if is_login {
            *last = None; // a refresh, a removal or another login was first
            continue;
        }
        match context.store.read(&key).await? {
            // The store was restored to an earlier day: this token is newer than the row's.
            Some(row) if version.is_newer_than(row.version) => *last = Some(row.version),
            // The login that this one replaces was refreshed meanwhile.
            Some(row) if row.version.is_newer_than(over) && !version.is_newer_than(over) => {
                *last = Some(row.version);
            }
            row => return adopt_winner(entry, epoch, cached, row.as_ref()).await,
        }
    }
    Err(row_changes())
}

/// The version of the user's row, which is made where there is none. A row that nobody here can
/// read gives way.
async fn version_of_row(entry: &UserEntry) -> Result<Version, Error> {
    let (context, key) = (&entry.context, entry.key());
    match context.store.read_row(&key).await? {
        Ok(Some(row)) => return Ok(row.version),
        Ok(None) => {}
        Err(error) if is_unreadable(&error) => {
            context.store.forget(&key, None).await?;
        }
        Err(error) => return Err(error),
    }
    context.make_row(&key).await.map(|row| row.version)
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
            entry.install(epoch, ours, None);
            return Ok(());
        }
        Some(theirs) => {
            tracing::debug!(user = ?entry.subject(), "another process saved its token first");
            entry.install(epoch, theirs, None);
        }
        None => {
            tracing::debug!(user = ?entry.subject(), "the user was removed meanwhile");
            entry.clear(epoch);
        }
    }
    if !theirs.is_some_and(|theirs| ours.ends_with(&theirs, entry.kind())) {
        // Boxed, since it is rare: refreshes need no room for it.
        Box::pin(revocation::revoke_tokens(entry, ours.revocable())).await;
    }
    Ok(())
}

/// Puts a token back over the older row of the same login. A pause that the row had stays.
pub(super) async fn write_back(
    entry: &UserEntry,
    cached: &Arc<CachedToken>,
    older: &Row,
) -> Result<(), Error> {
    let (context, key) = (&entry.context, entry.key());
    let Some(version) = cached.version else {
        return Ok(());
    };
    let user = entry.subject();
    tracing::warn!(?user, revision = older.version.revision, "restores a token over an older row");
    let save = Save { over: older.version, version, token: context.stored(cached) };
    if !context.store.save(&key, save).await? {
        return Ok(()); // the row has changed in between: the next look decides
    }
    entry.with(|state| state.unsaved.take_if(|it| Arc::ptr_eq(&it.cached, cached)));
    if let Some(not_before) = older.not_before {
        let release = Release { not_before, ..Release::default() };
        context.store.release(&key, version, context.holder, release).await?;
    }
    Ok(())
}

/// Saves a token that the store would not take before, unless the user was removed or logged in
/// anew since, here or elsewhere.
pub(super) async fn save_unsaved(entry: &Arc<UserEntry>) -> Result<(), Error> {
    if entry.with(|state| state.unsaved.is_none()) {
        return Ok(());
    }
    let _writing = entry.lock_writes().await;
    let (epoch, unsaved) = (entry.epoch(), entry.with(|state| state.unsaved.clone()));
    match unsaved {
        Some(unsaved) => retry_save(entry, epoch, unsaved).await,
        None => Ok(()),
    }
}

async fn retry_save(entry: &Arc<UserEntry>, epoch: u32, mut unsaved: Unsaved) -> Result<(), Error> {
    let saved = save(entry, epoch, &mut unsaved).await;
    entry.with(|state| {
        let ours = state.unsaved.take_if(|it| Arc::ptr_eq(&it.cached, &unsaved.cached));
        if saved.is_err() && ours.is_some() {
            state.unsaved = Some(unsaved);
        }
    });
    saved
}

/// Retries a failed save in the background until the store takes the token or has moved on, the
/// user's token changes, or the time of the shutdown is over. A late token is one that is not
/// served any more; where the store will not have it, it is revoked.
pub(super) fn spawn_save_retry(
    entry: &Arc<UserEntry>,
    epoch: u32,
    unsaved: Unsaved,
    is_late: bool,
) {
    let (entry, context) = (Arc::clone(entry), Arc::clone(&entry.context));
    let gauge = GaugeGuard::unsaved_token();
    entry.with(|state| state.late_saves += usize::from(is_late));
    // At the end of the lease another process may send the refresh token that this one replaced.
    let initial = context.policy.backoff.initial;
    let backoff = Backoff::new(initial, initial.max(context.policy.lease / 16));
    context.clone().spawn(async move {
        let _gauge = gauge;
        for tries in 0.. {
            // A login for which the store has not answered is tried at once, before somebody else
            // logs in.
            if tries > 0 || unsaved.over.is_some() {
                let pause = context.delay(backoff, tries + 1);
                tokio::select! {
                    () = context.sleep_unless_closing(pause) => {}
                    () = context.store.availability.changed() => {}
                }
            }
            let outcome = if is_late {
                retry_save(&entry, epoch, unsaved.clone()).await
            } else {
                save_unsaved(&entry).await
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
