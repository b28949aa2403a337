//! The database's clock, put back.

use std::time::Duration;

use hurdlr_oauth2::store::{Claim, Release, Row, Save, StoredToken, TokenStore, Version};
use hurdlr_oauth2::testing::seed_row;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::{LEASE, claim, due, key, pool_of, postgres_in, put, read, run, sqlite_at, token};
use crate::postgres::Server;

/// Moves all times of all rows by so many milliseconds.
fn moved(table: &str, by: i64) -> String {
    format!(
        "UPDATE {table} SET stamped_at = stamped_at + {by}, obtained_at = obtained_at + {by}, \
         due_at = due_at + {by}, leased_until = leased_until + {by}, not_before = not_before + {by}"
    )
}

/// To a row that was stamped an hour from now, the clock was put back by an hour; or it was stamped
/// by another machine of a distributed engine.
async fn judge_a_clock_put_back(store: &impl TokenStore, put_back: impl AsyncFn()) {
    let ann = &key("ann");
    let at = Version { incarnation: 7, revision: 1 };
    let (age, due_in) = (Duration::from_secs(100), LEASE);
    let aged = StoredToken { age, due_in, ..token() };
    seed_row(store, ann, Version { incarnation: 7, revision: 1 }, aged).await;
    assert!(store.claim(ann, claim(1, Some(at))).await.unwrap().granted);
    put_back().await;
    let judge = |row: Option<Row>| {
        let row = row.unwrap();
        for left in [row.leased_for, row.not_before].into_iter().flatten() {
            assert!(left <= LEASE && left > LEASE / 2, "{left:?} of {LEASE:?} is left");
        }
        let token = row.token.unwrap();
        assert!(token.age >= age && token.age < 2 * age, "{:?} old", token.age);
        assert!(token.due_in <= due_in && token.due_in > due_in / 2, "{:?}", token.due_in);
        (row.leased_for.is_some(), row.not_before.is_some())
    };
    assert_eq!(judge(read(store, ann).await), (true, false));
    let other = store.claim(ann, claim(2, Some(at))).await.unwrap();
    assert!(!other.granted, "the lease lives");
    assert_eq!(judge(other.row), (true, false));
    let again = store.claim(ann, claim(1, Some(at))).await.unwrap();
    assert!(again.granted, "its holder can claim again");
    assert_eq!(judge(again.row), (true, false));
    let release = Release { not_before: LEASE, ..Release::default() };
    store.release(ann, at, 1, release).await.unwrap();
    assert_eq!(judge(read(store, ann).await), (false, true));
    let other = store.claim(ann, claim(2, Some(at))).await.unwrap();
    assert!(!other.granted, "the pause goes on");
    assert_eq!(judge(other.row), (false, true));

    // A new token goes by the clock as it is now.
    let due = StoredToken { age, due_in: Duration::ZERO, ..token() };
    assert!(
        store
            .save(ann, Save { over: at, version: Version { revision: 2, ..at }, token: due })
            .await
            .unwrap()
    );
    assert_eq!(self::due(store, ann.realm(), 2).await, std::slice::from_ref(ann));
    assert!(store.claim(ann, claim(3, Some(at.next()))).await.unwrap().granted);
    // No pause is no pause.
    store.release(ann, at.next(), 3, Release::default()).await.unwrap();
    put_back().await;
    assert!(store.claim(ann, claim(4, Some(at.next()))).await.unwrap().granted);
    store.release(ann, at.next(), 4, Release::default()).await.unwrap();
    assert!(store.claim(ann, claim(5, Some(at.next()))).await.unwrap().granted);
}

#[tokio::test]
async fn clock_put_back_lengthens_no_times() {
    const HOUR: i64 = 3_600_000;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let options = SqliteConnectOptions::new().filename(&path);
    judge_a_clock_put_back(&store, async || {
        let mut file = options.connect().await.unwrap();
        let sql = AssertSqlSafe(moved("hurdlr_tokens", HOUR));
        sqlx::query(sql).execute(&mut file).await.unwrap();
        file.close().await.unwrap();
    })
    .await;

    let server = Server::shared();
    let store = postgres_in(server, "put_back").await;
    let pool = pool_of(server).await;
    judge_a_clock_put_back(&store, async || {
        run(&pool, moved("put_back.hurdlr_tokens", HOUR)).await;
    })
    .await;
}

/// The statement of who comes second may have begun long before that of who comes first.
#[tokio::test]
async fn waiting_claimant_is_told_the_lease_only() {
    let server = Server::shared();
    let store = postgres_in(server, "waited").await;
    let pool = pool_of(server).await;
    let ann = key("ann");
    let at = Version { incarnation: 7, revision: 1 };
    put(&store, &ann).await;
    let mut first = pool.begin().await.unwrap();
    let lock = "SELECT FROM waited.hurdlr_tokens FOR UPDATE";
    sqlx::query(lock).execute(&mut *first).await.unwrap();
    let second = tokio::spawn({
        let (store, ann) = (store.clone(), ann.clone());
        async move { store.claim(&ann, claim(2, Some(at))).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                 AND query LIKE '%\"waited\".%' AND clock_timestamp() > query_start + '50 ms'";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.unwrap() == 0 {}
    let take = "UPDATE waited.hurdlr_tokens SET holder = 1, stamped_at = now.ms, \
                leased_until = now.ms + 600000 FROM (SELECT CAST(EXTRACT(EPOCH FROM \
                clock_timestamp()) * 1000 AS BIGINT) AS ms) AS now";
    sqlx::query(take).execute(&mut *first).await.unwrap();
    first.commit().await.unwrap();
    let claimed = second.await.unwrap().unwrap();
    assert!(!claimed.granted);
    let left = claimed.row.unwrap().leased_for.unwrap();
    assert!(left <= LEASE, "{left:?} of {LEASE:?}");
}

/// A save that had to wait for another process makes the token no younger than it is by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn save_that_waited_ages_token() {
    const WAIT: Duration = Duration::from_millis(1_500);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let (ann, bob) = (key("ann"), key("bob"));
    let at = Version { incarnation: 7, revision: 1 };
    put(&store, &ann).await;
    assert!(store.claim(&bob, Claim { lease: WAIT, ..claim(1, None) }).await.unwrap().granted);
    let mut other = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let saving = tokio::spawn({
        let (store, ann) = (store.clone(), ann.clone());
        let save = Save { over: at, version: at.next(), token: token() };
        async move { store.save(&ann, save).await }
    });
    while read(&store, &bob).await.unwrap().leased_for.is_some() {}
    held.rollback().await.unwrap();
    assert!(saving.await.unwrap().unwrap());
    let row = read(&store, &ann).await.unwrap();
    assert_eq!(row.version, at.next());
    let age = row.token.unwrap().age;
    assert!(age >= WAIT * 9 / 10 && age < 60 * WAIT, "{age:?}");
}
