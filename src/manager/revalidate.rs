//! Background revalidation: re-reads active users from the store to pick up other processes'
//! changes. Many users are read by one query, and an error about one row is that user's alone.

use std::sync::Arc;

use super::cached_token::CachedToken;
use super::entry::{Context, UserEntry};
use super::save;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::store::{Row, StoreKey};

/// How many users are looked up by one query.
const BATCH: usize = 500;

/// Queues the user for the next batch once half of the setting `revalidate_after` has passed since
/// the store last confirmed the token, which keeps busy users within the bound.
pub(super) fn schedule(entry: &Arc<UserEntry>, cached: &CachedToken, now: Timestamp) {
    let context = &entry.context;
    let since_verified = match cached.version {
        Some(_) => cached.since_verified(now),
        // A user without a token is looked up only while a pause keeps refreshes from doing so.
        None => entry.with(|state| state.pause.since_verified(now)),
    };
    if since_verified < context.revalidate_after || context.is_closing() {
        return;
    }
    if context.revalidation.push(entry) {
        let context = Arc::clone(context);
        context.clone().spawn(async move { run(&context).await });
    }
}

async fn run(context: &Arc<Context>) {
    let mut failures = 0;
    while let Some(entries) = context.revalidation.take() {
        let Err(error) = compare(context, &entries).await else {
            failures = 0;
            continue;
        };
        failures += 1;
        tracing::warn!(%error, "revalidation failed; living tokens are served on");
        context.revalidation.back_off();
        let pause = context.delay(context.policy.backoff(), failures);
        context.sleep_unless_closing(pause.min(context.revalidate_after)).await;
    }
}

/// Compares users with the store: adopts newer tokens, and writes back where the store has an older
/// one.
pub(super) async fn compare(context: &Context, entries: &[Arc<UserEntry>]) -> Result<(), Error> {
    for batch in entries.chunks(BATCH) {
        compare_batch(context, batch).await?;
    }
    Ok(())
}

async fn compare_batch(context: &Context, entries: &[Arc<UserEntry>]) -> Result<(), Error> {
    let asked = context.clock.now();
    // The answer is younger than the token that is compared with it.
    let (mut served, mut keys) = (Vec::new(), Vec::<StoreKey>::new());
    for entry in entries {
        if let Some((epoch, seen)) = entry.snapshot() {
            served.push((entry, epoch, seen));
            keys.push(entry.key());
        }
    }
    let rows = context.store.read_all(&keys).await?;
    for ((entry, epoch, seen), row) in served.into_iter().zip(rows) {
        match seen.version {
            Some(_) => seen.verified(asked),
            None => entry.with(|state| state.pause.verified(asked)),
        }
        let applied = match row {
            Ok(row) => apply_row(entry, epoch, &seen, row).await,
            Err(error) => Err(error),
        };
        if let Err(error) = applied {
            tracing::warn!(user = ?entry.subject(), %error, "could not revalidate a user");
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
            save::write_back(entry, seen, row.version).await?;
        }
        row => match row.map(|row| entry.decode(&row)).transpose()?.flatten() {
            Some(theirs) => entry.adopt(epoch, &theirs),
            None => entry.clear(epoch),
        },
    }
    Ok(())
}
