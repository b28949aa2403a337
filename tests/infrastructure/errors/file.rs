//! Failures of SQLite and its file.

use std::fs;
use std::time::Duration;

use hurdlr_oauth2::Error;
use hurdlr_oauth2::secrecy::SecretBox;
use hurdlr_oauth2::store::{Row, Save, SqliteStore, StoredToken, TokenStore, Version};
use hurdlr_oauth2::testing::seed_row;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;

use super::key;

const AT: Version = Version { incarnation: 7, revision: 1 };

const KEEP: Duration = Duration::from_secs(60);

/// A folder for a file.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    async fn open(&self) -> Result<SqliteStore, Error> {
        let url = format!("sqlite://{}", self.path("tokens.db").display());
        SqliteStore::at(url).open_plaintext().await
    }

    /// A store with its tables and 100 users.
    async fn store(&self) -> SqliteStore {
        let store = self.open().await.unwrap();
        store.migrate().await.unwrap();
        for n in 0..100 {
            seed(&store, &format!("user {n}")).await;
        }
        seed(&store, "ann").await;
        store
    }

    /// The options of a pool as the store wants it.
    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(self.path("tokens.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
    }

    /// A connection of somebody else.
    async fn other(&self) -> SqliteConnection {
        self.options().connect().await.unwrap()
    }

    async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.other().await).await.unwrap();
    }
}

fn token(bytes: usize) -> StoredToken {
    let payload = SecretBox::new(Box::new(vec![7; bytes]));
    StoredToken { payload, age: Duration::ZERO, due_in: Duration::ZERO }
}

async fn seed(store: &SqliteStore, name: &str) {
    seed_row(store, &key(name), AT, token(500)).await;
}

async fn read(store: &SqliteStore) -> Result<Option<Row>, Error> {
    store.read(&[key("ann")]).await?.remove(0)
}

async fn redeem(store: &SqliteStore) -> Result<bool, Error> {
    store.redeem(&[7; 32], KEEP).await
}

/// The refusal of a pool of the app's.
async fn refused(options: SqliteConnectOptions) -> Error {
    let pool = SqlitePool::connect_with(options).await.unwrap();
    SqliteStore::on(pool).open_plaintext().await.unwrap_err()
}

pub(super) async fn missing_tables() -> Error {
    let place = Place::new();
    read(&place.open().await.unwrap()).await.unwrap_err()
}

pub(super) async fn locked_file() -> Error {
    let place = Place::new();
    let store = place.store().await;
    let mut other = place.other().await;
    let _held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    redeem(&store).await.unwrap_err()
}

pub(super) async fn lock_for_longer_than_a_call() -> Error {
    let place = Place::new();
    let pool = SqlitePool::connect_with(place.options().busy_timeout(KEEP)).await.unwrap();
    let store = SqliteStore::on(pool).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    let mut other = place.other().await;
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = redeem(&store).await.unwrap_err();
    held.rollback().await.unwrap();
    error
}

pub(super) async fn pool_in_use() -> Error {
    let place = Place::new();
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(1));
    let pool = pool.connect_with(place.options()).await.unwrap();
    let store = SqliteStore::on(pool.clone()).open_plaintext().await.unwrap();
    let _held = pool.acquire().await.unwrap();
    read(&store).await.unwrap_err()
}

pub(super) async fn read_only_pool() -> Error {
    let place = Place::new();
    place.store().await;
    let options = SqliteConnectOptions::new().filename(place.path("tokens.db"));
    refused(options.synchronous(SqliteSynchronous::Full).read_only(true)).await
}

/// The shared memory says that pages are in the file from which they were cut.
pub(super) async fn truncated_wal() -> Error {
    let place = Place::new();
    let _open = place.store().await;
    fs::write(place.path("tokens.db-wal"), []).unwrap();
    let store = match place.open().await {
        Ok(store) => store,
        Err(error) => return error,
    };
    read(&store).await.unwrap_err()
}

pub(super) async fn overwritten_pages() -> Error {
    let place = Place::new();
    place.store().await.close().await;
    let mut bytes = fs::read(place.path("tokens.db")).unwrap();
    bytes[4_096..].fill(0xa5);
    fs::write(place.path("tokens.db"), bytes).unwrap();
    let store = match place.open().await {
        Ok(store) => store,
        Err(error) => return error,
    };
    read(&store).await.unwrap_err()
}

/// A bound on the file's pages is to SQLite as a full disk.
pub(super) async fn full_disk() -> Error {
    let place = Place::new();
    let options = place.options().pragma("max_page_count", "16");
    let store = SqliteStore::on(SqlitePool::connect_with(options).await.unwrap());
    let store = store.open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    seed(&store, "ann").await;
    store
        .save(&key("ann"), Save { over: AT, version: AT.next(), token: token(65_536) })
        .await
        .unwrap_err()
}

pub(super) async fn folder_in_place_of_the_wal() -> Error {
    let place = Place::new();
    place.store().await.close().await;
    make_private_folder(&place.path("tokens.db-wal"));
    place.open().await.unwrap_err()
}

fn make_private_folder(path: &std::path::Path) {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path).unwrap();
}

pub(super) async fn folder_in_place_of_the_file() -> Error {
    let place = Place::new();
    make_private_folder(&place.path("tokens.db"));
    place.open().await.unwrap_err()
}

pub(super) async fn other_file() -> Error {
    use std::os::unix::fs::PermissionsExt;

    let place = Place::new();
    let path = place.path("tokens.db");
    fs::write(&path, "no database, but a text of more than a hundred bytes. ".repeat(9)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    place.open().await.unwrap_err()
}

pub(super) async fn constraint_of_an_administrator() -> Error {
    let place = Place::new();
    let store = place.store().await;
    let trigger = "CREATE TRIGGER fail BEFORE INSERT ON hurdlr_logins \
                   BEGIN SELECT RAISE(ABORT, 'it failed'); END";
    place.run(trigger).await;
    redeem(&store).await.unwrap_err()
}

pub(super) async fn pool_without_wal() -> Error {
    refused(Place::new().options().journal_mode(SqliteJournalMode::Delete)).await
}

pub(super) async fn pool_that_is_not_synchronous() -> Error {
    refused(Place::new().options().synchronous(SqliteSynchronous::Normal)).await
}

pub(super) async fn pool_without_busy_timeout() -> Error {
    refused(Place::new().options().busy_timeout(Duration::ZERO)).await
}

pub(super) async fn negative_revision() -> Error {
    let place = Place::new();
    let store = place.store().await;
    place.run("UPDATE hurdlr_tokens SET revision = -1").await;
    read(&store).await.unwrap_err()
}

pub(super) async fn empty_user_id() -> Error {
    let place = Place::new();
    let store = place.store().await;
    place.run("UPDATE hurdlr_tokens SET subject = '' WHERE subject = 'ann'").await;
    let mut due = store.due(key("ann").realm(), None, 1_000).await.unwrap();
    due.retain(|row| row.key.is_err());
    due.remove(0).key.unwrap_err()
}

pub(super) async fn later_release() -> Error {
    let place = Place::new();
    place.store().await;
    place.run("INSERT INTO hurdlr_schema VALUES (99)").await;
    place.open().await.unwrap_err()
}

pub(super) async fn closed_store() -> Error {
    let place = Place::new();
    let store = place.store().await;
    store.close().await;
    read(&store).await.unwrap_err()
}
