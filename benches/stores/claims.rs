//! The write-ahead log that PostgreSQL writes for claims that are not granted.

use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::secrecy::SecretBox;
use hurdlr_oauth2::store::{
    Claim, PostgresStore, Realm, Release, RowKind, StoreKey, StoredToken, TokenStore, Version,
};
use hurdlr_oauth2::testing::seed_row;
use hurdlr_oauth2::{ApiVersion, UserId};
use sqlx::postgres::PgPool;

use crate::Size;
use crate::harness::Outcome;
use crate::postgres::Server;

const LONG: Duration = Duration::from_hours(1);

/// Claims of a row that another holder has leased, at another version, of a paused row and of a
/// refused one.
pub(crate) async fn ungranted_wal(server: &Server, size: Size) -> Outcome {
    let store = PostgresStore::at(server.url()).schema("claims").open_plaintext().await?;
    store.migrate().await?;
    let realm = Arc::new(Realm::new(ApiVersion::V4, "https://sandbox.hurdlr.com/", "client-id"));
    let at = Version { incarnation: 1, revision: 1 };
    let key = |user: &str| {
        Outcome::Ok(StoreKey::new(Arc::clone(&realm), RowKind::Login, UserId::new(user)?))
    };
    let claim = |holder, known| Claim { holder, lease: LONG, known: Some(known), create: Some(2) };
    let [leased, paused, refused] = [key("leased")?, key("paused")?, key("refused")?];
    for key in [&leased, &paused, &refused] {
        let payload = SecretBox::new(Box::new(b"token".to_vec()));
        let token = StoredToken { payload, age: Duration::ZERO, due_in: LONG };
        seed_row(&store, key, at, token).await;
        store.claim(key, claim(1, at)).await?;
    }
    let pause = Release { not_before: LONG, ..Release::default() };
    store.release(&paused, at, 1, pause).await?;
    let refusal = Release { refused: true, ..Release::default() };
    store.release(&refused, at, 1, refusal).await?;

    let pool = PgPool::connect(&server.url()).await?;
    // Otherwise the first read of a page removes earlier versions of its rows, which is logged.
    sqlx::query("VACUUM FREEZE").execute(&pool).await?;
    let written = async || {
        let written = "SELECT CAST(pg_current_wal_insert_lsn() - '0/0' AS BIGINT)";
        sqlx::query_scalar::<_, i64>(written).fetch_one(&pool).await
    };
    // The server writes a record of its own each 15 s, which no more than one of the rounds has.
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let before = written().await?;
        for _ in 0..size.claims {
            let claims = [(&leased, at), (&leased, at.next()), (&paused, at), (&refused, at)];
            for (key, known) in claims {
                if store.claim(key, claim(2, known)).await?.granted {
                    return Err("a claim was granted".into());
                }
            }
        }
        rounds.push(i32::try_from(written().await? - before)?);
    }
    let bytes = rounds.into_iter().min().unwrap_or_default();
    size.figure("stores.ungranted_claim_wal_bytes", f64::from(bytes), "bytes");
    Ok(())
}
