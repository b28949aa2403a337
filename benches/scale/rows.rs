//! The rows of very many users: sealed as a manager seals them, and written many at once.

use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hurdlr_oauth2::secrecy::{ExposeSecret, SecretString};
use hurdlr_oauth2::store::{KeyRing, MemoryStore, Sealed, SealingKey, TokenStore};
use hurdlr_oauth2::{Error, TokenManager, UserId};
use sqlx::postgres::PgPool;

use crate::harness::Outcome;
use crate::provider::{client, token_json};
use crate::{Options, count};

/// How many rows one statement inserts.
const CHUNK: usize = 10_000;

/// A user id as long as a UUID, and as little in order as those are.
pub(crate) fn user(n: usize) -> Result<UserId, Error> {
    let high = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    UserId::new(format!("{:08x}-{:04x}-4000-8000-{n:012x}", high >> 32, (high >> 16) & 0xffff))
}

pub(crate) fn keys() -> Outcome<KeyRing> {
    let secret = SecretString::from("b2YgMzIgYnl0ZXMsIGFzIG1hbnkgYXMgdGhlcmUgYXI=");
    Ok(KeyRing::new(SealingKey::from_base64(&secret)?))
}

/// Inserts so many users who logged in at the provider at `url`. Each token is of an age at which
/// it is not due yet, and all these ages are equally likely, as they are in the long run.
pub(crate) async fn insert(options: &Options, users: usize, pool: &PgPool, url: &str) -> Outcome {
    let halves = [0..users / 2, users / 2..users];
    let halves = halves.map(|half| {
        let (options, pool, url) = (options.clone(), pool.clone(), url.to_owned());
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(options.seed ^ count(half.start).to_bits());
            for start in half.clone().step_by(CHUNK) {
                let chunk = start..half.end.min(start + CHUNK);
                insert_chunk(&options, chunk, &pool, &url, &mut random).await?;
            }
            Outcome::Ok(())
        })
    });
    for half in halves {
        half.await??;
    }
    Ok(())
}

async fn insert_chunk(
    options: &Options,
    users: Range<usize>,
    pool: &PgPool,
    url: &str,
    random: &mut fastrand::Rng,
) -> Outcome {
    // A manager seals the tokens into memory, from where the table takes them as they are.
    let memory = MemoryStore::new();
    let sealed = Sealed::new(memory.clone(), keys()?);
    let manager = TokenManager::builder(client(url)?, sealed).build()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let length = users.len();
    for n in users {
        let json = token_json(n as u64, options.lifetime.as_secs(), now);
        manager.import_if_absent(&user(n)?, manager.hurdlr().import(json)?).await?;
    }
    let realm = Arc::new(manager.hurdlr().realm());
    let rows = memory.scan(&realm, None, length + 1).await?;
    if rows.len() != length {
        return Err("not all users were sealed".into());
    }
    let (mut subjects, mut payloads) = (Vec::new(), Vec::new());
    let (mut incarnations, mut revisions) = (Vec::new(), Vec::new());
    let (mut ages, mut dues) = (Vec::new(), Vec::new());
    for (key, row) in rows {
        let row = row?;
        let token = row.token.ok_or("a row without a token")?;
        let due_in = token.due_in.as_secs_f64() * 1e3;
        let age = due_in * random.f64();
        subjects.push(key.subject().as_str().to_owned());
        payloads.push(token.payload.expose_secret().clone());
        incarnations.push(i64::try_from(row.version.incarnation)?);
        revisions.push(i64::try_from(row.version.revision)?);
        ages.push(age);
        dues.push(due_in - age);
    }
    sqlx::query(INSERT)
        .bind(realm.api_version().to_string())
        .bind(realm.environment())
        .bind(realm.client_id())
        .bind(subjects)
        .bind(incarnations)
        .bind(revisions)
        .bind(payloads)
        .bind(ages)
        .bind(dues)
        .execute(pool)
        .await?;
    Ok(())
}

/// Writes rows as a save leaves them.
const INSERT: &str = "INSERT INTO scale.hurdlr_tokens (api_version, environment, client_id, kind, \
     subject, incarnation, revision, payload, stamped_at, obtained_at, due_at, refused, in_flight) \
     SELECT $1, $2, $3, 'login', subject, incarnation, revision, payload, now - age, now - age, \
     now + due, FALSE, FALSE \
     FROM UNNEST($4::text[], $5::bigint[], $6::bigint[], $7::bytea[], $8::float8[], $9::float8[]) \
     AS sealed (subject, incarnation, revision, payload, age, due), \
     (SELECT FLOOR(EXTRACT(EPOCH FROM now()) * 1000)::bigint) AS clock (now)";

/// Lets time pass in the table until all users are due. The server counts the updates at once.
pub(crate) const MAKE_DUE: &str = "UPDATE scale.hurdlr_tokens SET \
     stamped_at = stamped_at - (due_at - now), obtained_at = obtained_at - (due_at - now), \
     due_at = now FROM (SELECT FLOOR(EXTRACT(EPOCH FROM now()) * 1000)::bigint) AS clock (now) \
     WHERE kind = 'login' AND due_at > now; SELECT pg_stat_force_next_flush()";
