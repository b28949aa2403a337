//! Tables: made, changed, and not there.

use std::path::Path;

use hurdlr_oauth2::ErrorKind;
use hurdlr_oauth2::store::{PostgresStore, SqliteStore, TokenStore};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::{
    LEASE, assert_says, errors_of_all_calls, key, pool_of, postgres_in, put, read, run, sqlite_at,
    url_of,
};
use crate::postgres::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_can_migrate_at_once_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let url = url_of(&folder.path().join("tokens.db"));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let url = url.clone();
        tasks.spawn(async move {
            let store = SqliteStore::at(url).open_plaintext().await.unwrap();
            store.migrate().await.unwrap();
            store.migrate().await.unwrap();
            store.due(key("ann").realm(), None, 1).await.unwrap();
        });
        tasks.spawn(async move {
            let store = PostgresStore::at(Server::shared().url()).schema("at_once");
            let store = store.open_plaintext().await.unwrap();
            store.migrate().await.unwrap();
            store.migrate().await.unwrap();
            store.due(key("ann").realm(), None, 1).await.unwrap();
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

/// They are part of the statements, unquoted and uncut in every database.
#[tokio::test]
async fn only_plain_names_make_tables() {
    let folder = tempfile::tempdir().unwrap();
    let place = Path::new("/nowhere/at/all");
    let (longest, too_long) = ("a".repeat(40), "a".repeat(41));
    for name in ["a", "_", "z9_", "_0", &longest] {
        let store = SqliteStore::at(url_of(&folder.path().join(name))).table_prefix(name);
        let store = store.open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        put(&store, &key("ann")).await;
        assert!(format!("{store:?}").contains(&format!("table_prefix: {name:?}")));
    }
    for name in ["", "9", "0a", "A", "aA", "a b", "a\"", "a-b", "ä", "aä", &too_long] {
        let errors = [
            SqliteStore::at(url_of(place)).table_prefix(name).open_plaintext().await.unwrap_err(),
            PostgresStore::at("postgres://nowhere")
                .schema(name)
                .open_plaintext()
                .await
                .unwrap_err(),
        ];
        for (error, setting) in errors.iter().zip(["table_prefix", "schema"]) {
            assert_eq!(error.kind(), ErrorKind::Config, "{name:?}: {error:?}");
            assert!(error.to_string().starts_with(&format!("{setting} is {name:?}")), "{error}");
        }
    }
}

#[tokio::test]
async fn tables_of_a_later_release_are_refused() {
    let later = "of a later release";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let mut file = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let newer = "INSERT INTO hurdlr_schema (version) VALUES (1000)";
    sqlx::query(newer).execute(&mut file).await.unwrap();
    assert_says(&store.migrate().await.unwrap_err(), later);
    let opened = SqliteStore::at(url_of(&path)).open_plaintext().await;
    assert_says(&opened.unwrap_err(), later);

    let server = Server::shared();
    let store = postgres_in(server, "later").await;
    let pool = pool_of(server).await;
    let newer = "INSERT INTO later.hurdlr_schema (version) VALUES (1000)";
    run(&pool, newer).await;
    assert_says(&store.migrate().await.unwrap_err(), later);
    let opened = PostgresStore::on(pool).schema("later").open_plaintext().await;
    assert_says(&opened.unwrap_err(), later);
}

#[tokio::test]
async fn stores_of_two_schemas_never_meet() {
    async fn judge(one: impl TokenStore, other: impl TokenStore) {
        let ann = key("ann");
        put(&one, &ann).await;
        assert!(read(&other, &ann).await.is_none());
        for store in [&one as &dyn TokenStore, &other] {
            assert!(store.redeem(&[7; 32], LEASE).await.unwrap());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let one = sqlite_at(&path).await;
    let other = SqliteStore::at(url_of(&path)).table_prefix("other_");
    let other = other.open_plaintext().await.unwrap();
    other.migrate().await.unwrap();
    judge(one, other).await;

    let server = Server::shared();
    let one = postgres_in(server, "one").await;
    judge(one.clone(), postgres_in(server, "another").await).await;
    let other = PostgresStore::at(server.url()).schema("one").table_prefix("other_");
    let other = other.open_plaintext().await.unwrap();
    other.migrate().await.unwrap();
    one.forget(&key("ann"), None).await.unwrap();
    put(&other, &key("ann")).await;
    assert!(read(&one, &key("ann")).await.is_none());
}

/// Who may use the tables and create none can migrate where there is nothing to do.
#[tokio::test]
async fn app_without_create_right_uses_existing_tables() {
    let server = Server::shared();
    postgres_in(server, "granted").await;
    run(
        &pool_of(server).await,
        "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA granted TO app; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA granted TO app",
    )
    .await;
    let url = server.url().replace("test@", "app@");
    let store = PostgresStore::at(&url).schema("granted");
    let store = store.open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    assert!(errors_of_all_calls(&store).await.is_empty());

    let store = PostgresStore::at(&url).schema("forbidden");
    let store = store.open_plaintext().await.unwrap();
    assert_says(&store.migrate().await.unwrap_err(), "the user lacks a right");
}

#[tokio::test]
async fn store_never_migrated_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let url = url_of(&folder.path().join("tokens.db"));
    let sqlite = SqliteStore::at(url).open_plaintext().await.unwrap();
    let postgres = PostgresStore::at(Server::shared().url()).schema("nothing");
    let postgres = postgres.open_plaintext().await.unwrap();
    for errors in [errors_of_all_calls(&sqlite).await, errors_of_all_calls(&postgres).await] {
        assert_eq!(errors.len(), 11, "{errors:?}");
        for (_, error) in &errors {
            assert_says(error, "migrate()");
        }
    }
}
