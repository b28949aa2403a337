//! The stores, and how time passes in them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::secrecy::SecretSlice;
use hurdlr_oauth2::store::{
    KeyRing, MemoryStore, PostgresStore, Sealed, SealingKey, SqliteStore, TokenStore,
};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use tempfile::TempDir;

use super::clock::StandingClock;
use crate::postgres::Server;

pub(crate) type AnyStore = Arc<dyn TokenStore>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Memory,
    SealedMemory,
    Sqlite,
    SealedSqlite,
    SealedPostgres,
}

/// PostgreSQL is sealed, as a plain SQLite runs the same statements.
pub(crate) const PLACES: [Place; 5] =
    [Place::Memory, Place::SealedMemory, Place::Sqlite, Place::SealedSqlite, Place::SealedPostgres];

/// The databases of one thread, and a hand in each of them that is not the store's.
pub(crate) struct Databases {
    sqlite: AnyStore,
    sealed_sqlite: AnyStore,
    postgres: AnyStore,
    hands: [SqlitePool; 2],
    postgres_hand: PgPool,
    schema: String,
    _folder: TempDir,
}

/// A store as one cell has it.
pub(crate) struct CellStore<'a> {
    pub(crate) store: AnyStore,
    databases: &'a Databases,
    place: Place,
}

impl Databases {
    /// Has a PostgreSQL schema and SQLite files of its own. Those are in memory where the system
    /// has a place for that, since no cell is about the disk.
    pub(crate) async fn open(thread: usize) -> Self {
        let shared_memory = Path::new("/dev/shm");
        let folder = if shared_memory.is_dir() {
            tempfile::tempdir_in(shared_memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let file = |name: &str| folder.path().join(name);
        let url = |name: &str| format!("sqlite://{}", file(name).display());
        let sqlite = SqliteStore::at(url("plain.db")).open_plaintext().await.unwrap();
        sqlite.migrate().await.unwrap();
        let sealed_sqlite = SqliteStore::at(url("sealed.db")).open_sealed(keys()).await.unwrap();
        sealed_sqlite.migrate().await.unwrap();
        let hand = |name: &str| {
            let options = SqliteConnectOptions::new().filename(file(name));
            SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options)
        };
        let hands = [hand("plain.db"), hand("sealed.db")];

        let schema = format!("faults_{thread}");
        let server = Server::shared().url();
        let postgres =
            PostgresStore::at(&server).schema(&schema).open_sealed(keys()).await.unwrap();
        postgres.migrate().await.unwrap();
        let postgres_hand = PgPoolOptions::new().max_connections(4).connect_lazy(&server).unwrap();
        Self {
            sqlite: Arc::new(sqlite),
            sealed_sqlite: Arc::new(sealed_sqlite),
            postgres: Arc::new(postgres),
            hands,
            postgres_hand,
            schema,
            _folder: folder,
        }
    }

    pub(crate) fn store(&self, place: Place, clock: &StandingClock) -> CellStore<'_> {
        let store: AnyStore = match place {
            Place::Memory => Arc::new(MemoryStore::with_clock(clock.clone())),
            Place::SealedMemory => {
                Arc::new(Sealed::new(MemoryStore::with_clock(clock.clone()), keys()))
            }
            Place::Sqlite => Arc::clone(&self.sqlite),
            Place::SealedSqlite => Arc::clone(&self.sealed_sqlite),
            Place::SealedPostgres => Arc::clone(&self.postgres),
        };
        CellStore { store, databases: self, place }
    }
}

impl CellStore<'_> {
    /// Lets time pass for the rows of one client. The clock of a database cannot be turned, so
    /// their times are put back.
    pub(crate) async fn age(&self, client_id: &str, by: Duration) {
        let table = match self.place {
            Place::Memory | Place::SealedMemory => return, // by the cell's clock
            Place::Sqlite | Place::SealedSqlite => "hurdlr_tokens".to_owned(),
            Place::SealedPostgres => format!("{}.hurdlr_tokens", self.databases.schema),
        };
        let columns = ["stamped_at", "obtained_at", "due_at", "leased_until", "not_before"];
        let set = columns.map(|column| format!("{column} = {column} - {}", by.as_millis()));
        let sql = format!("UPDATE {table} SET {} WHERE client_id = $1", set.join(", "));
        let (sql, id) = (AssertSqlSafe(sql), client_id.to_owned());
        let [plain, sealed] = &self.databases.hands;
        match self.place {
            Place::Sqlite => drop(sqlx::query(sql).bind(id).execute(plain).await.unwrap()),
            Place::SealedSqlite => drop(sqlx::query(sql).bind(id).execute(sealed).await.unwrap()),
            _ => drop(
                sqlx::query(sql).bind(id).execute(&self.databases.postgres_hand).await.unwrap(),
            ),
        }
    }
}

fn keys() -> KeyRing {
    KeyRing::new(SealingKey::from_bytes(&SecretSlice::from(vec![1; 32])).unwrap())
}
