//! A walk that seals all rows anew, beside one that changes one row at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::Hurdlr;
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretBox};
use hurdlr_oauth2::store::{
    KeyRing, PostgresStore, Realm, ResealOutcome, Rewrite, Sealed, SealingKey, TokenStore,
};
use sqlx::postgres::PgPool;

use crate::harness::Outcome;
use crate::postgres::Server;
use crate::warm_start::{copies, log_in};
use crate::{Size, count, median};

/// How many rows are read by one statement.
const PAGE: usize = 500;

/// On a server whose commits wait for the disk, as in production.
pub(crate) async fn beside_single_rows(size: Size) -> Outcome {
    let server = Server::start_durable();
    let hurdlr = Hurdlr::builder("client-id", "client-secret".into()).build()?;
    let store = PostgresStore::at(server.url()).open_plaintext().await?;
    store.migrate().await?;
    log_in(&hurdlr, store.clone(), 1).await?;
    let pool = PgPool::connect(&server.url()).await?;
    sqlx::query(copies("hurdlr_tokens", size.resealed - 1)).execute(&pool).await?;
    let realm = Arc::new(hurdlr.realm());

    let key = |secret: &[u8; 32]| SealingKey::from_bytes(&secret.to_vec().into());
    let [one, other] =
        [key(b"one key of 32 bytes, not random.")?, key(b"other key of 32 bytes, no random")?];
    let ring = |first: &SealingKey, other: &SealingKey| {
        KeyRing::new(first.clone()).with_opening_key(other.clone())
    };
    let (mut from, mut to) = (ring(&other, &one), ring(&one, &other));
    // The first walk seals the plaintext, and is a warm-up.
    walk(&store, &from, &realm, true, size.resealed).await?;
    single_rows(&store, &realm, size.resealed).await?;
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..size.walks {
        let batch = walk(&store, &to, &realm, false, size.resealed).await?;
        let single = single_rows(&store, &realm, size.resealed).await?;
        ratios.push(single.as_secs_f64() / batch.as_secs_f64());
        rates.push(count(size.resealed) / batch.as_secs_f64());
        std::mem::swap(&mut from, &mut to);
    }
    size.figure("stores.reseal_batch_vs_single", median(ratios), "x");
    size.figure("stores.reseal_rows_per_second", median(rates), "per s");
    Ok(())
}

/// Seals all rows by the first key of `keys`.
async fn walk(
    store: &PostgresStore,
    keys: &KeyRing,
    realm: &Arc<Realm>,
    include_plaintext: bool,
    rows: usize,
) -> Outcome<Duration> {
    let start = Instant::now();
    let mut walk = Sealed::new(store.clone(), keys.clone()).reseal(Arc::clone(realm));
    if include_plaintext {
        walk = walk.include_plaintext();
    }
    let mut resealed = 0;
    while let Some(row) = walk.next().await {
        resealed += usize::from(matches!(row?.outcome, ResealOutcome::Resealed));
    }
    let time = start.elapsed();
    if resealed == rows { Ok(time) } else { Err("not all rows were sealed anew".into()) }
}

/// Changes all rows, read in pages, by a statement for each. Nothing is sealed, which would take
/// longer.
async fn single_rows(store: &PostgresStore, realm: &Arc<Realm>, rows: usize) -> Outcome<Duration> {
    let start = Instant::now();
    let (mut after, mut changed) = (None, 0);
    loop {
        let page = store.scan(realm, after.as_ref(), PAGE).await?;
        let read = page.len();
        for (key, row) in page {
            let row = row?;
            let old = row.token.ok_or("a row without a token")?.payload;
            let new = SecretBox::new(Box::new(old.expose_secret().clone()));
            let rewrite = Rewrite { key: key.clone(), version: row.version, old, new };
            changed += usize::from(store.rewrite(vec![rewrite]).await? == [true]);
            after = Some(key);
        }
        if read < PAGE {
            break;
        }
    }
    let time = start.elapsed();
    if changed == rows { Ok(time) } else { Err("not all rows were changed".into()) }
}
