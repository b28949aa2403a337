//! Promises of durable stores beyond the contract: to processes, to old and new tables, and to
//! whoever reads their errors.

mod clocks;
mod damage;
mod failures;
mod file;
mod many_users;
mod migrations;
mod processes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::secrecy::SecretBox;
use hurdlr_oauth2::store::{
    Claim, PostgresStore, Realm, Release, Rewrite, Row, RowKind, Save, SqliteStore, StoreKey,
    StoredToken, TokenStore, Version,
};
use hurdlr_oauth2::testing::seed_row;
use hurdlr_oauth2::{ApiVersion, Error, ErrorKind, UserId};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use crate::postgres::Server;
use crate::support::everything_said;

const LEASE: Duration = Duration::from_secs(600);

/// The texts that must not be in any error.
const SECRET: &str = "hidden-marker";

fn url_of(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

async fn sqlite_at(path: &Path) -> SqliteStore {
    let store = SqliteStore::at(url_of(path)).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// The store's tables are in a schema of their own, so that tests do not meet.
async fn postgres_in(server: &Server, schema: &str) -> PostgresStore {
    let store = PostgresStore::at(server.url()).schema(schema);
    let store = store.open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    store
}

async fn pool_of(server: &Server) -> PgPool {
    PgPool::connect(&server.url()).await.unwrap()
}

async fn run(pool: &PgPool, sql: impl Into<String>) {
    let sql = AssertSqlSafe(sql.into());
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}

fn key(subject: &str) -> StoreKey {
    let realm = Realm::new(ApiVersion::V4, "https://store.example.com", "client");
    let subject = UserId::new(subject).unwrap();
    StoreKey::new(Arc::new(realm), RowKind::Login, subject)
}

fn token() -> StoredToken {
    StoredToken {
        payload: SecretBox::new(Box::new(SECRET.into())),
        age: Duration::ZERO,
        due_in: Duration::ZERO,
    }
}

/// Where the user is not known, the row is made under the holder's number.
fn claim(holder: u64, known: Option<Version>) -> Claim {
    Claim { holder, lease: LEASE, known, create: known.is_none().then_some(holder) }
}

async fn put(store: &impl TokenStore, key: &StoreKey) {
    seed_row(store, key, Version { incarnation: 7, revision: 1 }, token()).await;
}

async fn try_read(store: &impl TokenStore, key: &StoreKey) -> Result<Option<Row>, Error> {
    store.read(std::slice::from_ref(key)).await?.pop().unwrap()
}

async fn read(store: &impl TokenStore, key: &StoreKey) -> Option<Row> {
    try_read(store, key).await.unwrap()
}

async fn rewrite(
    store: &impl TokenStore,
    key: &StoreKey,
    version: Version,
    texts: [&str; 2],
) -> Result<bool, Error> {
    let [old, new] = texts.map(|text| SecretBox::new(Box::new(text.into())));
    let done = store.rewrite(vec![Rewrite { key: key.clone(), version, old, new }]).await?;
    Ok(done[0])
}

async fn due(store: &impl TokenStore, realm: &Arc<Realm>, limit: usize) -> Vec<StoreKey> {
    let rows = store.due(realm, None, limit).await.unwrap();
    rows.into_iter().map(|row| row.key.unwrap()).collect()
}

/// Does each call, and returns the errors.
async fn errors_of_all_calls(store: &impl TokenStore) -> Vec<(&'static str, Error)> {
    let key = key("ann");
    let version = Version { incarnation: 7, revision: 1 };
    let mut errors = Vec::new();
    let mut note = |call, error: Option<Error>| errors.extend(error.map(|error| (call, error)));
    note("read", try_read(store, &key).await.err());
    note("cold claim", store.claim(&key, claim(1, None)).await.err());
    note("claim", store.claim(&key, claim(1, Some(version))).await.err());
    note(
        "save",
        store
            .save(
                &key,
                Save { over: version, version: Version { revision: 2, ..version }, token: token() },
            )
            .await
            .err(),
    );
    let release = Release { refused: true, ..Release::default() };
    note("release", store.release(&key, version, 1, release).await.err());
    note("forget", store.forget(&key, Some(version)).await.err());
    note("forget", store.forget(&key, None).await.err());
    note("redeem", store.redeem(&[7; 32], LEASE).await.err());
    note("due", store.due(key.realm(), None, 10).await.err());
    note("scan", store.scan(key.realm(), None, 10).await.err());
    note("rewrite", rewrite(store, &key, version, [SECRET; 2]).await.err());
    errors
}

/// Of an error of a store: its kind, that it says what is the matter, and no secret.
fn assert_says(error: &Error, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Store, "{error:?}");
    let said = everything_said(error);
    assert!(said.contains(what), "no {what:?} in: {said}");
    assert!(!said.contains(SECRET), "{said}");
}
