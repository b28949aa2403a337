//! Background revalidation: re-reads active users from the store to pick up other processes'
//! changes. Many users are read by one query, and an error about one row is that user's alone.

use std::sync::Arc;

use tokio::sync::mpsc::Receiver;

use super::cached_token::CachedToken;
use super::entry::UserEntry;
use super::save;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::store::{Row, StoreKey};

/// How many users are looked up by one query.
const BATCH: usize = 500;

/// How many users wait for that, at most.
pub(super) const MAX_QUEUED: usize = 20 * BATCH;

/// Queues the user for the next batch once half of the setting `revalidate_after` has passed since
/// the last look at the store, which keeps busy users within the bound.
pub(super) fn schedule(entry: &Arc<UserEntry>, cached: &CachedToken, now: Timestamp) {
    let context = &entry.context;
    let since_look = match cached.version {
        Some(_) => cached.since_look(now),
        // A user without a token is looked up only while a pause keeps refreshes from doing so.
        None => entry.with(|state| state.pause.since_look(now)),
    };
    if since_look < context.revalidate_after || context.is_closing() {
        return;
    }
    // An error says that the queue is full: then the next read tries again.
    if context.revalidation.try_send(Arc::clone(entry)).is_ok() {
        entry.looked(cached, Some(now)); // so that the user is queued once
    }
}

/// Compares the users who are queued, a batch at a time, while the manager exists.
pub(super) async fn run(mut queue: Receiver<Arc<UserEntry>>) {
    let mut failures = 0;
    loop {
        let mut users = Vec::new();
        queue.recv_many(&mut users, BATCH).await;
        let Some(context) = users.first().map(|entry| Arc::clone(&entry.context)) else {
            return;
        };
        users.sort_by_key(|entry| Arc::as_ptr(entry).addr());
        users.dedup_by(|entry, other| Arc::ptr_eq(entry, other));
        let batch = users.clone();
        // An error of the task is a panic, which ends this batch alone.
        let compared = context.spawn(async move { compare(&batch).await }).await;
        let Ok(Err(error)) = compared else {
            failures = 0;
            continue;
        };
        failures += 1;
        tracing::warn!(%error, "revalidation failed; living tokens are served on");
        let pause = context.delay(context.policy.backoff, failures);
        context.sleep_unless_closing(pause.min(context.revalidate_after)).await;
        // They are looked up again when they are read again.
        users.extend(std::iter::from_fn(|| queue.try_recv().ok()));
        for entry in users {
            entry.looked(&entry.current.load(), None);
        }
    }
}

/// Compares users with the store: adopts newer tokens, and writes back where the store has an older
/// one.
pub(super) async fn compare(users: &[Arc<UserEntry>]) -> Result<(), Error> {
    for batch in users.chunks(BATCH) {
        let (mut served, mut keys) = (Vec::new(), Vec::<StoreKey>::new());
        for entry in batch {
            if let Some((epoch, seen)) = entry.snapshot() {
                served.push((entry, epoch, seen));
                keys.push(entry.key());
            }
        }
        let rows = batch[0].context.store.read_all(&keys).await?;
        for ((entry, epoch, seen), row) in served.into_iter().zip(rows) {
            let applied = match row {
                Ok(row) => apply_row(entry, epoch, &seen, row).await,
                Err(error) => Err(error),
            };
            if let Err(error) = applied {
                tracing::warn!(user = ?entry.subject(), %error, "could not revalidate a user");
            }
        }
    }
    Ok(())
}

async fn apply_row(
    entry: &Arc<UserEntry>,
    epoch: u32,
    seen: &Arc<CachedToken>,
    row: Option<Row>,
) -> Result<(), Error> {
    if !Arc::ptr_eq(seen, &entry.current.load()) || entry.snapshot().is_none() {
        return Ok(()); // a refresh or a login was first
    }
    match row {
        Some(row) if seen.version == Some(row.version) => {}
        Some(row) if seen.is_newer_than(row.version) => {
            save::write_back(entry, seen, &row).await?;
        }
        row => match row.map(|row| entry.decode(&row)).transpose()?.flatten() {
            Some(theirs) => entry.adopt(epoch, &theirs),
            None => entry.clear(epoch),
        },
    }
    Ok(())
}
