//! Servers that stop, and what is told of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::ErrorKind;
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretBox, SecretSlice};
use hurdlr_oauth2::store::{
    Claim, KeyRing, PostgresStore, Release, Save, SealingKey, SqliteStore, StoreKey, StoredToken,
    TokenStore, Version,
};
use hurdlr_oauth2::testing::store_contract;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};

use super::{
    LEASE, SECRET, assert_says, claim, errors_of_all_calls, key, pool_of, postgres_in, put, read,
    rewrite, run, sqlite_at, token, try_read, url_of,
};
use crate::postgres::Server;
use crate::support::everything_said;

#[tokio::test]
async fn calls_fail_and_recover_with_server() {
    let mut server = Server::start();
    let store = postgres_in(&server, "stopped").await;
    assert!(errors_of_all_calls(&store).await.is_empty());
    server.stop();
    let begun = Instant::now();
    let error = try_read(&store, &key("ann")).await.unwrap_err();
    assert_says(&error, "could not read");
    assert!(begun.elapsed() < Duration::from_secs(20), "not for ever");
    let opened = PostgresStore::at(server.url()).open_plaintext().await;
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::Store);

    let _server = server.restart();
    assert!(errors_of_all_calls(&store).await.is_empty());
}

/// Connections that the server ended cost no call, also none that cannot be repeated blindly.
#[tokio::test]
async fn connections_that_were_cut_are_replaced() {
    let server = Server::start();
    let store = postgres_in(&server, "cut").await;
    let others = "FROM pg_stat_activity \
                  WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
    // As many connections as there can be, all of them idle and then ended.
    let cut = async || {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let store = store.clone();
            tasks.spawn(async move { store.read(&[key("ann")]).await.map(drop) });
        }
        tasks.join_all().await.into_iter().for_each(Result::unwrap);
        let sql = format!("SELECT pg_terminate_backend(pid) {others}");
        assert!(server.psql("postgres", &sql));
        // Fails for as long as there are others.
        let sql = format!("SELECT 1 / (CASE count(*) WHEN 0 THEN 1 ELSE 0 END) {others}");
        while !server.psql("postgres", &sql) {}
    };
    let ann = key("ann");
    let at = Version { incarnation: 7, revision: 1 };
    cut().await;
    assert!(read(&store, &ann).await.is_none());
    cut().await;
    put(&store, &ann).await;
    cut().await;
    assert!(store.claim(&ann, claim(1, Some(at))).await.unwrap().granted);
    cut().await;
    store.release(&ann, at, 1, Release::default()).await.unwrap();
    cut().await;
    assert!(store.save(&ann, Save { over: at, version: at.next(), token: token() }).await.unwrap());
    cut().await;
    assert!(rewrite(&store, &ann, at.next(), [SECRET, "other"]).await.unwrap());
    cut().await;
    assert!(!store.forget(&ann, Some(at)).await.unwrap());
    cut().await;
    assert!(store.forget(&ann, None).await.unwrap());
    for first in [true, false] {
        cut().await;
        assert_eq!(store.redeem(&[7; 32], LEASE).await.unwrap(), first);
    }
}

/// Nothing to hold open, and one journey each: as the server sees it.
#[tokio::test]
async fn claim_and_save_are_one_statement_each() {
    let server = Server::shared();
    postgres_in(server, "counted").await;
    let options: PgConnectOptions = server.url().parse().unwrap();
    let options = options.options([("log_statement", "all")]);
    let pool = PgPool::connect_with(options).await.unwrap();
    let store = PostgresStore::on(pool).schema("counted").open_plaintext().await.unwrap();
    let sent = || -> Vec<String> {
        let log = server.log();
        // A statement, or the beginning or end of a transaction.
        let of_the_store = |line: &&str| line.contains("\"counted\".") || line.contains("BEGIN");
        log.lines().filter(of_the_store).map(Into::into).collect()
    };
    let before = sent().len();
    let ann = key("ann");
    let cold = store.claim(&ann, claim(1, None)).await.unwrap();
    assert_eq!(sent().len(), before + 1, "{:?}", &sent()[before..]);
    let made = cold.row.unwrap().version;
    assert!(
        store
            .save(
                &ann,
                Save { over: made, version: Version { revision: 1, ..made }, token: token() }
            )
            .await
            .unwrap()
    );
    assert_eq!(sent().len(), before + 2, "{:?}", &sent()[before..]);
    // Also where the row would be made if it were gone.
    let again = Claim { create: Some(8), ..claim(1, Some(made.next())) };
    assert!(store.claim(&ann, again).await.unwrap().granted);
    assert!(
        store
            .save(
                &ann,
                Save {
                    over: made.next(),
                    version: Version { revision: 2, ..made.next() },
                    token: token()
                }
            )
            .await
            .unwrap()
    );
    assert_eq!(sent().len(), before + 4, "{:?}", &sent()[before..]);
    // A claim that is not granted looks at the row by a second one.
    assert!(!store.claim(&ann, claim(2, Some(made))).await.unwrap().granted);
    assert_eq!(sent().len(), before + 6, "{:?}", &sent()[before..]);
    // A save that comes too late is told without a look at the row.
    let late = Save { over: made, version: made.next(), token: token() };
    assert!(!store.save(&ann, late).await.unwrap());
    assert_eq!(sent().len(), before + 7, "{:?}", &sent()[before..]);
}

/// As a database does that forbids what one after the other could not have done.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_serialization_failure_is_tried_again() {
    let server = Server::shared();
    let options: PgConnectOptions = server.url().parse().unwrap();
    let options = options.options([("default_transaction_isolation", "serializable")]);
    let pool = PgPoolOptions::new().max_connections(16).connect_with(options);
    let store = PostgresStore::on(pool.await.unwrap()).schema("serial");
    let store = Arc::new(store.open_plaintext().await.unwrap());
    store.migrate().await.unwrap();
    store_contract::one_of_many_creations_is_granted(&store).await;
    store_contract::one_of_many_claims_is_granted(&store).await;
    store_contract::one_of_many_saves_is_done(&store).await;
    store_contract::one_of_many_logins_is_saved(&store).await;
    store_contract::state_is_redeemed_once(&store).await;
}

/// Where each try of a statement is undone, the others are given time, and the caller an answer.
#[tokio::test]
async fn endless_contention_ends_in_an_error() {
    let server = Server::shared();
    let store = postgres_in(server, "contended").await;
    let pool = pool_of(server).await;
    let ann = key("ann");
    put(&store, &ann).await;
    // A sequence is not undone with the statement.
    run(
        &pool,
        "CREATE SEQUENCE contended.tries; \
         CREATE FUNCTION contended.fail() RETURNS TRIGGER LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM nextval('contended.tries'); \
         RAISE 'could not serialize access' USING ERRCODE = '40001'; END $$; \
         CREATE TRIGGER contention BEFORE UPDATE ON contended.hurdlr_tokens \
         EXECUTE FUNCTION contended.fail()",
    )
    .await;
    let at = Version { incarnation: 7, revision: 1 };
    let error = store.claim(&ann, claim(1, Some(at))).await.unwrap_err();
    assert_says(&error, "kept undoing the statement");
    assert!(error.is_temporary());
    let tries = "SELECT last_value FROM contended.tries";
    let tries: i64 = sqlx::query_scalar(tries).fetch_one(&pool).await.unwrap();
    assert_eq!(tries, 16);
}

/// What is closed says so, and SQLite leaves one file behind.
#[tokio::test]
async fn closed_store_answers_no_call() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let ring = || KeyRing::new(SealingKey::from_bytes(&SecretSlice::from(vec![1; 32])).unwrap());
    let sqlite = SqliteStore::at(url_of(&path)).open_sealed(ring()).await.unwrap();
    let postgres = PostgresStore::at(Server::shared().url()).schema("closed_for_good");
    let postgres = postgres.open_sealed(ring()).await.unwrap();
    sqlite.migrate().await.unwrap();
    postgres.migrate().await.unwrap();
    put(&sqlite, &key("ann")).await;
    put(&postgres, &key("ann")).await;
    sqlite.close().await;
    postgres.close().await;
    let errors = [errors_of_all_calls(&sqlite).await, errors_of_all_calls(&postgres).await];
    for (call, error) in errors.iter().flatten() {
        assert_says(error, "the store or its pool is closed");
        assert!(!error.is_temporary(), "{call}: {error:?}");
    }
    assert_eq!(errors.map(|errors| errors.len()), [11, 11]);
    let files = std::fs::read_dir(folder.path()).unwrap();
    assert_eq!(files.count(), 1, "what was in the -wal file is in the file");
}

#[tokio::test]
async fn what_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    sqlite_at(&path).await;
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .synchronous(SqliteSynchronous::Full)
        .read_only(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let opened = SqliteStore::on(pool).open_plaintext().await;
    assert_says(&opened.unwrap_err(), "read-only");

    let server = Server::shared();
    postgres_in(server, "read_only").await;
    let options: PgConnectOptions = server.url().parse().unwrap();
    let options = options.options([("default_transaction_read_only", "on")]);
    let pool = PgPool::connect_with(options).await.unwrap();
    let opened = PostgresStore::on(pool).schema("read_only").open_plaintext().await;
    assert_says(&opened.unwrap_err(), "the server is read-only");
    let url = format!("{}&options[default_transaction_read_only]=on", server.url());
    let opened = PostgresStore::at(url).schema("read_only").open_plaintext().await;
    assert_says(&opened.unwrap_err(), "the server is read-only");

    // One that turns read-only.
    let options = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = options.connect(&server.url()).await.unwrap();
    let store = PostgresStore::on(pool.clone()).schema("read_only").open_plaintext().await.unwrap();
    run(&pool, "SET default_transaction_read_only = on").await;
    assert_says(&store.migrate().await.unwrap_err(), "the server is read-only");
    // The connection is to blame, and another can write.
    put(&store, &key("ann")).await;
}

/// A claim that is not granted leaves PostgreSQL's log alone, to the byte.
#[tokio::test]
async fn ungranted_claims_write_no_wal() {
    let server = Server::start();
    let store = postgres_in(&server, "ungranted").await;
    let pool = pool_of(&server).await;
    let at = Version { incarnation: 7, revision: 1 };
    let [leased, paused, refused] = ["leased", "paused", "refused"].map(key);
    let pause = Release { not_before: LEASE, ..Release::default() };
    let refusal = Release { refused: true, ..Release::default() };
    for user in [&leased, &paused, &refused] {
        put(&store, user).await;
        assert!(store.claim(user, claim(1, Some(at))).await.unwrap().granted);
    }
    store.release(&paused, at, 1, pause).await.unwrap();
    store.release(&refused, at, 1, refusal).await.unwrap();
    let claims = [
        (&leased, Some(at)),
        (&leased, Some(at.next())),
        (&leased, None),
        (&paused, Some(at)),
        (&refused, Some(at)),
    ];
    let place = "SELECT pg_current_wal_insert_lsn()::text";
    let place = async || sqlx::query_scalar::<_, String>(place).fetch_one(&pool).await.unwrap();
    // The server writes to its log now and then, so that one quiet try is enough.
    let mut quiet = false;
    for _ in 0..20 {
        let before = place().await;
        for (user, known) in claims {
            let claim = Claim { create: Some(9), ..claim(2, known) };
            assert!(!store.claim(user, claim).await.unwrap().granted);
        }
        quiet = place().await == before;
        if quiet {
            break;
        }
    }
    assert!(quiet, "each time, claims that were not granted were written to the log");
}

/// What was saved stays, and can be read; the rest is told.
async fn judge_a_full_disk(store: &impl TokenStore, users: &[StoreKey]) {
    let at = Version { incarnation: 7, revision: 1 };
    let much = || StoredToken { payload: SecretBox::new(Box::new(vec![0; 65_536])), ..token() };
    for user in users {
        let error = store
            .save(user, Save { over: at, version: Version { revision: 2, ..at }, token: much() })
            .await
            .unwrap_err();
        assert_says(&error, "disk is full");
    }
    for row in store.read(users).await.unwrap() {
        let row = row.unwrap().unwrap();
        assert_eq!(row.version, at);
        assert_eq!(row.token.unwrap().payload.expose_secret(), SECRET.as_bytes());
    }
}

#[tokio::test]
async fn full_disk_is_error_and_loses_nothing() {
    let users = [key("ann"), key("bob")];
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("tokens.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("max_page_count", "16");
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let store = SqliteStore::on(pool).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    for user in &users {
        put(&store, user).await;
    }
    judge_a_full_disk(&store, &users).await;

    // No disk of the server's can be filled without its administrator, who says it by this code.
    let server = Server::shared();
    let store = postgres_in(server, "full").await;
    for user in &users {
        put(&store, user).await;
    }
    run(
        &pool_of(server).await,
        "CREATE FUNCTION \"full\".fail() RETURNS TRIGGER LANGUAGE plpgsql AS \
         $$ BEGIN RAISE 'could not extend file: No space left on device' \
         USING ERRCODE = 'disk_full'; END $$; \
         CREATE TRIGGER no_space BEFORE INSERT OR UPDATE ON \"full\".hurdlr_tokens \
         EXECUTE FUNCTION \"full\".fail()",
    )
    .await;
    judge_a_full_disk(&store, &users).await;
}

/// A constraint that an administrator added is broken by a row whose values the server quotes.
#[tokio::test]
async fn no_error_quotes_a_row() {
    let server = Server::shared();
    let store = postgres_in(server, "quoting").await;
    run(
        &pool_of(server).await,
        "ALTER TABLE quoting.hurdlr_tokens ADD CHECK (payload IS NULL OR length(payload) < 3); \
         ALTER TABLE quoting.hurdlr_tokens ADD CHECK (subject <> 'ann')",
    )
    .await;
    let hex = "68696464656e"; // of "hidden", as the server would quote it
    let errors = errors_of_all_calls(&store).await;
    assert!(errors.iter().any(|(call, _)| *call == "cold claim"));
    for (_, error) in errors {
        let said = everything_said(&error);
        assert!(!said.contains(SECRET) && !said.contains(hex), "{said}");
        assert!(!said.contains("ann"), "{said}");
    }
}

#[tokio::test]
async fn no_error_shows_the_urls_password() {
    for url in [
        format!("postgres://app:{SECRET}@127.0.0.1:1/app"),
        format!("postgres://app:{SECRET}@127.0.0.1:port/app"),
        format!("postgres://app:{SECRET}@127.0.0.1/app?sslmode={SECRET}"),
        format!("postgres://app@127.0.0.1/app?sslpassword={SECRET}"),
        format!("postgres://app:{SECRET}#x@127.0.0.1/app"),
        format!("mysql://app:{SECRET}@127.0.0.1/app"),
        SECRET.to_owned(),
    ] {
        let builder = PostgresStore::at(&url);
        assert!(!format!("{builder:?}").contains(SECRET));
        let error = builder.open_plaintext().await.unwrap_err();
        let said = everything_said(&error);
        assert!(!said.contains(SECRET), "{said}");
        let error = SqliteStore::at(&url).open_plaintext().await.unwrap_err();
        let said = everything_said(&error);
        assert!(!said.contains(SECRET), "{said}");
    }
}
