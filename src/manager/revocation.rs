//! Revocations: tokens that nobody is to have any more are recorded in the store and retried until
//! the provider has revoked them, or their time is over.
//!
//! A record is a row of its own under a random name. So a revocation does not end with the process
//! that began it: every walk over the due users finishes what it meets.

use std::sync::Arc;
use std::time::Duration;

use super::cached_token::whole_seconds;
use super::entry::{Context, UserEntry};
use crate::backoff::Backoff;
use crate::error::Error;
use crate::store::{Claim, Release, Row, RowKind, Save, StoreKey, StoredToken, Version};
use crate::token::{Notes, Token};
use crate::wire::user::UserId;

/// Pauses between two tries.
const RETRY: Backoff = Backoff::new(Duration::from_mins(1), Duration::from_hours(24));

/// How long the revocation of a refresh token is tried. Nobody knows when such a token ends.
const REFRESH_TOKEN_BOUND: Duration = Duration::from_hours(7 * 24);

/// A token on its way to be revoked.
pub(super) struct PendingRevocation {
    /// The row of the record, and its version; `None` where the store did not take it.
    key: StoreKey,
    version: Option<Version>,
    token: Token,
}

/// Records revocations. Where the store fails, this process alone knows of them.
pub(super) async fn record(
    entry: &UserEntry,
    tokens: impl Iterator<Item = Token>,
) -> Vec<PendingRevocation> {
    let context = &entry.context;
    let now = context.clock.now();
    let mut pending = Vec::new();
    for token in tokens.filter(|token| !time_left(token, Duration::ZERO).is_zero()) {
        let name = UserId::internal(format!("{:016x}", context.random_id()));
        let key = context.key(RowKind::PendingRevocation, &name);
        let age = token.age_at(now);
        let notes = Notes { superseded: Vec::new(), pending_since: Some(whole_seconds(age)) };
        // Not due elsewhere until this process has had its time.
        let due_in = context.policy.lease;
        let stored = StoredToken { payload: token.payload(&notes), age, due_in };
        let saved = async {
            let over = context.make_row(&key).await?.version;
            let save = Save { over, version: over.next(), token: stored };
            context.store.save(&key, save).await.map(|_| over.next())
        };
        let saved = saved.await;
        if let Err(error) = &saved {
            tracing::warn!(user = ?entry.subject(), %error, "could not record a revocation; only this process tries it");
        }
        let version = saved.ok();
        pending.push(PendingRevocation { key, version, token });
    }
    pending
}

/// How long it is worth trying still: an access token to the end of its life, a refresh token for a
/// week from when it was recorded.
fn time_left(token: &Token, pending_for: Duration) -> Duration {
    let left = REFRESH_TOKEN_BOUND.saturating_sub(pending_for);
    match token.refresh_token() {
        Some(_) => left,
        None => token.remaining().unwrap_or(left),
    }
}

/// Deletes the record of a token that is revoked, or still in use.
pub(super) async fn delete_record(context: &Context, pending: &PendingRevocation) {
    if let Err(error) = context.store.forget(&pending.key, None).await {
        // A walk asks for it once more, which does no harm.
        tracing::warn!(%error, "could not delete a finished revocation record");
    }
}

/// Has tokens revoked that the store does not hold, or not any more, where the version can.
pub(super) async fn revoke_tokens(entry: &Arc<UserEntry>, tokens: impl Iterator<Item = Token>) {
    if entry.context.hurdlr.can_revoke() {
        let pending = record(entry, tokens).await;
        revoke(entry, pending).await;
    }
}

/// Has tokens revoked; where that fails, in the background. After a failure that will pass, the
/// others are not even tried now.
pub(super) async fn revoke(entry: &Arc<UserEntry>, pending: Vec<PendingRevocation>) {
    let mut outage = None;
    for pending in pending {
        let outcome = match outage.clone() {
            Some(error) => Err(error),
            None => try_once(&entry.context, &pending).await,
        };
        if let Err(error) = outcome {
            tracing::warn!(user = ?entry.subject(), error = %error.for_log(), "could not revoke a token; trying again later");
            outage = outage.or_else(|| error.is_temporary().then(|| error.clone()));
            spawn_retry(entry, pending, error);
        }
    }
}

async fn try_once(context: &Context, pending: &PendingRevocation) -> Result<(), Error> {
    let revocation = context.hurdlr.revocation_operation(&pending.token)?;
    context.hurdlr.call(revocation, Some(context.policy.refresh_timeout)).await?;
    tracing::debug!("revoked a token");
    delete_record(context, pending).await;
    Ok(())
}

/// Retries in the background, at pauses that grow to a day, until the token is revoked or its time
/// is over. A shutdown leaves it to other processes where the store has the record; else it tries
/// once more.
pub(super) fn spawn_retry(entry: &Arc<UserEntry>, pending: PendingRevocation, error: Error) {
    entry.with(|state| {
        state.unrevoked.0 += 1;
        state.unrevoked.1 = Some(error.clone());
    });
    let entry = Arc::clone(entry);
    let context = Arc::clone(&entry.context);
    context.clone().spawn(async move {
        let began = context.clock.now();
        let mut last = error;
        for failures in 1.. {
            let asked_for = last.retry_after().unwrap_or_default();
            let pause = context.delay(RETRY, failures).max(asked_for);
            if let Some(version) = pending.version {
                let release = Release { not_before: pause, ..Release::default() };
                let noted = context.store.release(&pending.key, version, context.holder, release);
                if let Err(error) = noted.await {
                    tracing::debug!(%error, "could not note the pause of a revocation");
                }
            }
            context.sleep_unless_closing(pause).await;
            if context.is_closing() && (pending.version.is_some() || !asked_for.is_zero()) {
                return;
            }
            if time_left(&pending.token, context.clock.now().since(began)).is_zero() {
                give_up(Some(&last));
                delete_record(&context, &pending).await;
                break;
            }
            match try_once(&context, &pending).await {
                Ok(()) => break,
                Err(_) if context.is_closing() => {
                    tracing::error!(user = ?entry.subject(), "a token could not be revoked before the end");
                    return;
                }
                Err(error) => last = error,
            }
        }
        entry.with(|state| state.unrevoked.0 -= 1);
    });
}

/// Tells that a token will not be revoked any more.
fn give_up(error: Option<&Error>) {
    let error = error.map(|error| tracing::field::display(error.for_log()));
    tracing::error!(
        error,
        "gave up revoking a token: the provider refused for as long as it can live"
    );
}

/// Finishes a revocation that a walk met, unless another process is at it. Says whether it is over.
pub(super) async fn finish(context: Arc<Context>, key: StoreKey) -> Result<bool, Error> {
    let Some(Row { version, token: Some(stored), .. }) = context.store.read(&key).await? else {
        return Ok(false);
    };
    let token = Token::from_payload(&stored.payload, stored.age, &context.clock)?;
    let pending_since = Notes::of_payload(&stored.payload).pending_since.unwrap_or(0);
    let pending_for = stored.age.saturating_sub(Duration::from_secs(pending_since.into()));
    let pending = PendingRevocation { key, version: Some(version), token };
    if time_left(&pending.token, pending_for).is_zero() {
        give_up(None);
        delete_record(&context, &pending).await;
        return Ok(true);
    }
    // A holder of its own, since the task that recorded it may be at it in this process.
    let claim = Claim { holder: context.random_id(), ..context.claim(Some(version), false) };
    if !context.store.claim(&pending.key, claim).await?.granted {
        return Ok(false);
    }
    let Err(error) = try_once(&context, &pending).await else {
        return Ok(true);
    };
    // The pause is as long as the record has been pending, so it doubles in every process alike.
    let pause = pending_for.clamp(RETRY.initial, RETRY.max);
    let not_before = error.retry_after().unwrap_or_default().max(pause);
    let release = Release { not_before, ..Release::default() };
    context.store.release(&pending.key, version, claim.holder, release).await?;
    Err(error)
}
