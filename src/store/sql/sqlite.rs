//! SQLite.

mod file;

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, SqlStr, Sqlite};

use super::backend::{Arg, Backend, Settings};
use super::fault::{Fault, FaultClass, FaultCodes, KnownFault};
use super::{SqlStore, SqlStoreBuilder};
use crate::error::Error;

/// Longest wait of a statement for another process's, which may wait for a slow disk.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps tokens in a SQLite file that several processes of one machine share.
///
/// A crash of a process or of the machine loses nothing that was saved: the file is in WAL mode
/// with `synchronous=FULL`. It must be on a local disk, since SQLite's locks and shared memory do
/// not work over a network.
///
/// ```
/// use hurdlr_oauth2::secrecy::SecretString;
/// use hurdlr_oauth2::store::{KeyRing, SealingKey, SqliteStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("tokens.db");
/// # let url = format!("sqlite://{}", path.display());
/// # let secret = SecretString::from("b2YgMzIgYnl0ZXMsIGFzIG1hbnkgYXMgdGhlcmUgYXI=");
/// let keys = KeyRing::new(SealingKey::from_base64(&secret)?); // from where your secrets are
/// // The URL is such as "sqlite:///var/lib/app/tokens.db".
/// let store = SqliteStore::at(url).open_sealed(keys).await?; // or `open_plaintext`
/// store.migrate().await?; // makes the tables, or brings them up to this release
/// # Ok(())
/// # }
/// ```
///
/// The URL is `sqlite:///var/lib/app/tokens.db`, or `sqlite:` and a path. The only parameter that
/// can be used is `mode`, of which `rwc` is the default and `rw` creates nothing.
///
/// The file is made with mode 0600, in a directory that is made, where it is missing, with 0700.
/// One that others than its owner may open is refused (see
/// [`allow_group_access`](SqlStoreBuilder::allow_group_access)), and so is a directory in which
/// everybody may put another file in its place. [Databases](crate::guide::databases) tells how to
/// back a file up, by which clock leases end, and what the pool of an app's own has to be.
pub type SqliteStore = SqlStore<Sqlite>;

impl SqlStoreBuilder<Sqlite> {
    /// Allows files that their group may read and write, as Kubernetes makes them by `fsGroup`.
    /// The store then makes its file with mode 0660, and its directory with 0770.
    pub fn allow_group_access(mut self) -> Self {
        self.settings.group_access = true;
        self
    }
}

impl Backend for Sqlite {
    const NOW: &'static str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";
    const GREATEST: &'static str = "MAX";
    const JSON: &'static str = "json_each($1)";
    const HAS_TABLES: &'static str =
        "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '{prefix}schema'";
    const SCHEMA: Option<[&'static str; 2]> = None;
    const TYPES: [&'static str; 3] = ["INTEGER", "BLOB", "INTEGER"];
    const TABLE_OPTIONS: &'static str = "STRICT";
    /// Each connection keeps the pages that it wrote, and would have to read again what another has
    /// written. SQLite's busy handler polls, so a writer could starve under load.
    const ONE_WRITER: bool = true;

    const CONNECTIONS: usize = 3;
    const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);
    const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

    type Target = SqliteConnectOptions;

    fn target(url: &str, settings: &Settings) -> Result<SqliteConnectOptions, Error> {
        let options = file::prepare(url, settings.group_access)?;
        Ok(options
            .create_if_missing(false)
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // Values that are forgotten or replaced do not stay in the file's free space.
            .pragma("secure_delete", "ON"))
    }

    async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, Fault> {
        loop {
            match options.connect().await.map_err(|error| Fault::of::<Self>(&error)) {
                // Another process turns WAL on, for which SQLite does not wait. The pool's bound
                // ends this.
                Err(fault) if fault.text == BUSY => {}
                connected => return connected,
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(20..=100))).await;
        }
    }

    async fn check(connection: &mut SqliteConnection) -> Result<(), Fault> {
        let failed = |error| Fault::of::<Self>(&error);
        let sql = "SELECT journal_mode, synchronous, timeout \
                   FROM pragma_journal_mode, pragma_synchronous, pragma_busy_timeout";
        let (journal, synchronous, busy): (String, i64, i64) =
            sqlx::query_as(sql).fetch_one(&mut *connection).await.map_err(failed)?;
        if !journal.eq_ignore_ascii_case("wal") {
            return Err(Fault::known::<Self>("journal", format!("journal_mode is {journal}")));
        }
        if synchronous < 2 {
            return Err(Fault::known::<Self>("synchronous", ""));
        }
        if busy <= 0 {
            return Err(Fault::known::<Self>("busy_timeout", ""));
        }
        // A write that is taken back, for a file that is read-only can be locked all the same.
        let mut probe = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let write = sqlx::raw_sql("CREATE TABLE hurdlr_oauth2_probe (probe INTEGER)");
        write.execute(&mut *probe).await.map_err(failed)?;
        probe.rollback().await.map_err(failed)
    }

    async fn fetch(
        connection: &mut SqliteConnection,
        sql: SqlStr,
        args: &[Arg<'_>],
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let mut query = sqlx::query(sql);
        for arg in args {
            query = match *arg {
                Arg::Text(text) => query.bind(text),
                Arg::Number(number) => query.bind(number),
                Arg::Bytes(bytes) => query.bind(bytes),
                Arg::Flag(flag) => query.bind(flag),
            };
        }
        // All rows: stopping at the first row of a writing statement hides a failed commit.
        query.fetch_all(connection).await
    }
}

impl FaultCodes for Sqlite {
    const FAULTS: &'static [KnownFault] = FAULTS;

    /// The result code without what extends it (<https://sqlite.org/rescode.html>).
    fn code(error: &dyn DatabaseError) -> String {
        let code = error.code().and_then(|code| code.parse::<i32>().ok());
        (code.unwrap_or(0) & 0xff).to_string()
    }
}

const BUSY: &str = "another process keeps the file locked";

/// `docs/databases.md` has the same table for operators.
#[rustfmt::skip]
const FAULTS: &[KnownFault] = {
    use FaultClass::{Lost, Permanent, Temporary};
    &[
        ("1", Permanent, "the tables are not as this crate makes them, or migrate() was never \
            called"),
        ("5, 6", Temporary, BUSY),
        ("8", Temporary, "the file is read-only"),
        ("10", Temporary, "the disk failed"),
        ("11", Permanent, "the file is damaged: restore a backup"),
        ("13", Temporary, "the disk is full"),
        ("14", Permanent, "the file cannot be opened"),
        ("26", Permanent, "the file is not a SQLite database"),
        ("busy_timeout", Permanent, "the pool's connections have no busy_timeout: whenever two \
            processes write, one of them would fail"),
        ("closed", Lost, "the connection's thread ended"),
        ("driver", Temporary, "the database driver failed"),
        ("io", Temporary, "the file could not be read or written"),
        ("journal", Permanent, "the file's journal mode is not WAL, without which processes \
            cannot share it: this file system may not allow it, or the pool's options do not ask \
            for it"),
        ("no connection", Temporary, "no connection could be had in time: the pool is too small, \
            or the disk too slow"),
        ("pool closed", Permanent, "the store or its pool is closed"),
        ("row", Permanent, "a row is not as this crate writes it"),
        ("settings", Permanent, "the connection's settings cannot be used"),
        ("silent", Temporary, "the disk did not answer within 20 s"),
        ("synchronous", Permanent, "the pool's connections are not synchronous=FULL: a token \
            could be lost when the machine crashes, after its predecessor died"),
        ("table", Permanent, "a table is not as this crate makes it"),
    ]
};
