//! Very many users, and what a look costs among them.

use std::path::Path;
use std::sync::Arc;

use hurdlr_oauth2::store::{PostgresStore, Release, Save, StoredToken, TokenStore, Version};
use hurdlr_oauth2::testing::store_contract;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};
use tempfile::TempDir;

use super::{LEASE, SECRET, claim, key, postgres_in, rewrite, run, sqlite_at, token};
use crate::postgres::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_keeps_very_many_users() {
    let store = postgres_in(Server::shared(), "very_many").await;
    store_contract::many_users_are_kept(&Arc::new(store), very_many()).await;
}

/// On a disk of memory, since each save waits for the disk to have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_keeps_very_many_users() {
    let folder = memory_folder();
    let store = sqlite_at(&folder.path().join("tokens.db")).await;
    store_contract::many_users_are_kept(&Arc::new(store), very_many()).await;
}

fn memory_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn very_many() -> usize {
    std::env::var("STORE_USERS").map_or(20_000, |users| users.parse().unwrap())
}

/// So many that a walk of the whole table would be felt, put there past the store.
const A_MILLION: u64 = 1_000_000;

/// One in a thousand of them is due.
fn a_million_rows(table: &str, bytes: &str) -> String {
    let (now, hour) = (1_700_000_000_000_u64, 3_600_000);
    format!(
        "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < {A_MILLION})
         INSERT INTO {table} (api_version, environment, client_id, kind, subject, incarnation,
         revision, payload, stamped_at, obtained_at, due_at, refused, in_flight)
         SELECT 'v4', 'https://store.example.com', 'client', 'login', 'user ' || n, n, 1, {bytes},
         {now}, {now}, CASE n % 1000 WHEN 7 THEN {now} + n ELSE {now} * 2 + {hour} END, FALSE, FALSE
         FROM n"
    )
}

/// Each call often enough that a prepared statement's lasting plan is used too.
async fn use_a_million(store: &impl TokenStore) {
    let realm = key("ann").realm().clone();
    for round in 0..8_u64 {
        let keys: Vec<_> = (0..1_000).map(|n| key(&format!("user {}", n * 999 + round))).collect();
        let rows = store.read(&keys).await.unwrap();
        for (row, n) in rows.into_iter().zip(0..) {
            assert_eq!(row.unwrap().unwrap().version.incarnation, n * 999 + round);
        }
        let rows = store.due(&realm, None, 3).await.unwrap();
        let next = store.due(&realm, Some(&rows[2].cursor), 3).await.unwrap();
        let due: Vec<_> = rows.into_iter().chain(next).map(|row| row.key.unwrap()).collect();
        let longest = [7, 1_007, 2_007, 3_007, 4_007, 5_007];
        assert_eq!(due, longest.map(|n| key(&format!("user {}", n + 1_000 * round))));
        let version = Version { incarnation: 7 + 1_000 * round, revision: 1 };
        let claimed = store.claim(&due[0], claim(1, Some(version))).await.unwrap();
        assert!(claimed.granted);
        store.release(&due[0], version, 1, Release::default()).await.unwrap();
        assert!(rewrite(store, &due[0], version, ["x", SECRET]).await.unwrap());
        let later = || StoredToken { due_in: LEASE, ..token() };
        assert!(
            store
                .save(
                    &due[0],
                    Save {
                        over: version,
                        version: Version { revision: 2, ..version },
                        token: later()
                    }
                )
                .await
                .unwrap()
        );
        let page = store.scan(&realm, Some(&due[0]), 1_000).await.unwrap();
        assert_eq!(page.len(), 1_000);
        let cold = key(&format!("cold {round}"));
        let made = store.claim(&cold, claim(1, None)).await.unwrap().row.unwrap().version;
        let at = Version { incarnation: 7, revision: 1 };
        assert!(store.save(&cold, Save { over: made, version: at, token: later() }).await.unwrap());
        assert!(!store.claim(&cold, claim(1, Some(at.next()))).await.unwrap().granted);
        let login = Version { incarnation: 8, revision: 1 };
        assert!(
            store.save(&cold, Save { over: at, version: login, token: later() }).await.unwrap()
        );
        let at = login;
        assert!(store.forget(&cold, Some(at)).await.unwrap());
    }
}

#[tokio::test]
async fn sqlite_serves_a_million_users() {
    let folder = memory_folder();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let mut file = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let rows = AssertSqlSafe(a_million_rows("hurdlr_tokens", "X'78'"));
    sqlx::raw_sql(rows).execute(&mut file).await.unwrap();
    use_a_million(&store).await;
}

/// How many rows were looked at is counted by the server.
#[tokio::test]
async fn postgres_finds_user_of_million_by_index() {
    let server = Server::shared();
    let store = postgres_in(server, "million").await;
    // One connection, so that those who use the table are the store's.
    let pool = PgPoolOptions::new().max_connections(1).connect(&server.url()).await.unwrap();
    run(&pool, a_million_rows("million.hurdlr_tokens", "'x'::bytea")).await;
    run(&pool, "ANALYZE million.hurdlr_tokens").await;
    let looked_at = async || {
        // So that other sessions' counts are there: they are when those have ended.
        let others = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%\"million\".%' \
                      AND pid <> pg_backend_pid()";
        while sqlx::query_scalar::<_, i64>(others).fetch_one(&pool).await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
        let rows = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables \
                    WHERE schemaname = 'million' AND relname = 'hurdlr_tokens'";
        sqlx::query_scalar::<_, i64>(rows).fetch_one(&pool).await.unwrap()
    };
    store.close().await;
    let before = looked_at().await;
    let store = PostgresStore::at(server.url()).schema("million").open_plaintext().await.unwrap();
    use_a_million(&store).await;
    store.close().await;
    let rows = looked_at().await - before;
    // Eight rounds read 1,000 rows and walk over as many. What is due again and again piles up old
    // versions of itself.
    assert!((16_000..32_000).contains(&rows), "{rows} rows were looked at");
}
