//! Tokens in a SQLite file.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::sync::{Mutex, MutexGuard};

use super::delegate_store;
use super::sql::{self, Arg, Dialect, Engine, Situation, Sql, Tables};
use crate::error::Error;

/// How long a statement waits for another process's, which may wait for a slow disk; far below any
/// lease.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a caller waits for a connection, and for its turn to write.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);

/// Beside the one that writes.
const READING_CONNECTIONS: u32 = 3;

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
/// # What is kept in clear
///
/// API version, environment, client id, kind of user and **user id**; ages and times, revision,
/// incarnation, lease and marks. The tokens themselves are in one opaque column, which a store
/// that is opened as `plaintext` does not encrypt: who can read the file, or a backup of it, has
/// the tokens. The file is made with mode 0600, in a directory that is made, where it is missing,
/// with 0700; SQLite gives the files beside it (`-wal`, `-shm`) the mode of the file. One that is
/// there and that others than its owner may open is refused, and so is a directory in which
/// everybody may put another in its place. The file of an app's own pool is the app's to look
/// after.
///
/// # Time
///
/// Leases and ages go by the machine's wall clock, since processes share no other. Put back, it
/// stands still for a row until it is past the row's last change: a lease lasts longer by as much,
/// and a token looks younger. Set ahead, it ends leases and makes tokens look older.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    sql: Sql<Sqlite>,
}

/// Where a [`SqliteStore`] is and what its tables are called. Made by [`SqliteStore::at`] and
/// [`SqliteStore::on`].
#[derive(Clone)]
#[must_use = "a store is there once it was opened"]
pub struct SqliteStoreBuilder {
    place: Place,
    table_prefix: String,
}

#[derive(Clone)]
enum Place {
    Url(String),
    Pool(SqlitePool),
}

impl SqliteStore {
    /// A store in the file that `url` names: `sqlite:///var/lib/app/tokens.db`, or `sqlite:` and a
    /// path. The only parameter that can be used is `mode`, of which `rwc` is the default and `rw`
    /// creates nothing.
    pub fn at(url: impl Into<String>) -> SqliteStoreBuilder {
        SqliteStoreBuilder::new(Place::Url(url.into()))
    }

    /// A store in a file that the app has open. Its connections must be in WAL mode with
    /// `synchronous=FULL` and a busy timeout, which opening checks on one of them.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use hurdlr_oauth2::store::SqliteStore;
    /// use hurdlr_oauth2::sqlx::sqlite::{
    ///     SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("app.db");
    /// let options = SqliteConnectOptions::new()
    ///     .filename(path)
    ///     .create_if_missing(true)
    ///     .journal_mode(SqliteJournalMode::Wal)
    ///     .synchronous(SqliteSynchronous::Full)
    ///     .busy_timeout(Duration::from_secs(5));
    /// let pool = SqlitePool::connect_with(options).await?;
    ///
    /// let store = SqliteStore::on(pool)
    ///     .table_prefix("oauth_")
    ///     .open_plaintext()
    ///     .await?;
    /// store.migrate().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on(pool: SqlitePool) -> SqliteStoreBuilder {
        SqliteStoreBuilder::new(Place::Pool(pool))
    }

    /// Makes the tables, or brings them up to this release. Any number of processes may call it at
    /// once, and again. It only goes forward: tables of a later release are refused.
    pub async fn migrate(&self) -> Result<(), Error> {
        self.sql.migrate().await
    }

    /// Closes the connections, which folds what is in the `-wal` file into the file itself.
    pub async fn close(&self) {
        let engine = self.sql.engine();
        engine.pool.close().await;
        engine.writer.close().await;
    }
}

impl SqliteStoreBuilder {
    fn new(place: Place) -> Self {
        Self { place, table_prefix: "hurdlr_".into() }
    }

    /// What the tables' names begin with: a-z, 0-9 and `_`. `hurdlr_` if nothing is said.
    pub fn table_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.table_prefix = prefix.into();
        self
    }

    /// Opens the store, which will not encrypt the tokens.
    ///
    /// A file in which they would not survive a crash, which several processes could not share, or
    /// which others may open, is refused with the reason, and so are tables of a later release.
    pub async fn open_plaintext(self) -> Result<SqliteStore, Error> {
        self.open().await
    }

    pub(super) async fn open(self) -> Result<SqliteStore, Error> {
        let tables = Tables::new(None, &self.table_prefix)?;
        let (pool, writer) = match self.place {
            Place::Url(url) => open(&url).await?,
            Place::Pool(pool) => (pool.clone(), pool),
        };
        let schema_table = format!("{}schema", self.table_prefix);
        let engine = Sqlite { pool, writer, schema_table, writing: Mutex::default() };
        engine.judge().await?;
        let sql = Sql::open(engine, &tables).await?;
        Ok(SqliteStore { sql })
    }
}

delegate_store!([] SqliteStore, .sql);

/// Connections to read by, and the one to write by.
async fn open(url: &str) -> Result<(SqlitePool, SqlitePool), Error> {
    let (options, creates) = options(url)?;
    let path = options.get_filename().to_owned();
    prepare(&path, creates).map_err(|source| {
        Error::store(format!("{} cannot be opened: {source}", path.display())).caused_by(source)
    })?;
    let options = options
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .synchronous(SqliteSynchronous::Full)
        // What is forgotten or replaced does not stay in the file's free space.
        .pragma("secure_delete", "ON");

    // Once, for the file remembers it, and because this is what may find the file locked.
    let with_wal = options.clone().journal_mode(SqliteJournalMode::Wal);
    let mut tries = 0;
    loop {
        match with_wal.connect().await {
            Ok(first) => {
                // Closing the last connection of all removes the -wal file: not this one's task.
                let pool = |connections| {
                    SqlitePoolOptions::new()
                        .max_connections(connections)
                        .acquire_timeout(TURN_TIMEOUT)
                        // A file does not hang up.
                        .test_before_acquire(false)
                        .connect_with(options.clone())
                };
                let pools = tokio::try_join!(pool(READING_CONNECTIONS), pool(1))
                    .map_err(|error| sql::failed::<Sqlite>("open the file", &error));
                let _ = first.close().await;
                return pools;
            }
            // Another process turns WAL on, for which SQLite does not wait.
            Err(error) if is_busy(&error) && tries < 50 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(fastrand::u64(20..=100))).await;
            }
            Err(error) => return Err(sql::failed::<Sqlite>("open the file", &error)),
        }
    }
}

/// What a URL says, and whether the file may be made.
fn options(url: &str) -> Result<(SqliteConnectOptions, bool), Error> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    if query == "mode=memory" || url.contains(":memory:") {
        return Err(Error::config(
            "the store's URL is of a database in memory, which no other process can share: use \
             MemoryStore",
        ));
    }
    // Other parameters change how the file is locked, or that it can be written.
    let creates = match query {
        "" | "mode=rwc" => Some(true),
        "mode=rw" => Some(false),
        _ => None,
    };
    SqliteConnectOptions::from_str(url)
        .ok()
        .filter(|options| url.starts_with("sqlite:") && options.get_filename() != Path::new(""))
        .zip(creates)
        .ok_or_else(|| {
            // What is not of this form may be another store's, with a password in it.
            Error::config(
                "the store's URL has the form sqlite:///var/lib/app/tokens.db, with no parameter \
                 but mode=rwc or mode=rw",
            )
        })
}

/// Makes the file and its directory for our eyes only, before SQLite would for all.
fn prepare(path: &Path, create: bool) -> io::Result<()> {
    if create {
        if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
            let mut making = fs::DirBuilder::new();
            making.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut making, 0o700);
            making.create(folder)?;
        }
        let mut making = fs::OpenOptions::new();
        making.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut making, 0o600);
        match making.open(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    refuse_open(path)?;
    refuse_network(path)
}

/// What is there already may be open to others, and a file system may keep no modes.
#[cfg(unix)]
fn refuse_open(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    const OF_OTHERS: u32 = 0o077;
    const FOR_ALL_TO_WRITE: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        let mode = match fs::metadata(&file) {
            Ok(about) => about.permissions().mode(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if mode & OF_OTHERS != 0 {
            return Err(io::Error::other(format!(
                "others than its owner may open {} (mode {:o}), which holds tokens: chmod 600, \
                 on a file system that keeps modes",
                Path::new(&file).display(),
                mode & 0o777
            )));
        }
    }
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let mode = fs::metadata(folder.unwrap_or(Path::new(".")))?.permissions().mode();
    if mode & FOR_ALL_TO_WRITE != 0 && mode & STICKY == 0 {
        return Err(io::Error::other(format!(
            "everybody may put another file in its place, since its directory has mode {:o}: \
             chmod 700",
            mode & 0o7777
        )));
    }
    Ok(())
}

#[cfg(not(unix))]
fn refuse_open(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// SQLite: "WAL does not work over a network filesystem" (<https://sqlite.org/wal.html>). It does
/// not notice, but for the database that is damaged in the end.
#[cfg(target_os = "linux")]
fn refuse_network(path: &Path) -> io::Result<()> {
    // statfs(2): NFS, CIFS, SMB 1 and SMB 2.
    const NETWORK: [u32; 4] = [0x6969, 0xFF53_4D42, 0x517B, 0xFE53_4D42];
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a 32-bit magic")]
    let kind = rustix::fs::statfs(path)?.f_type as u32;
    if NETWORK.contains(&kind) {
        return Err(io::Error::other(
            "it is on a network file system, where processes cannot share it safely: use a local \
             disk, or PostgreSQL",
        ));
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn refuse_network(_path: &Path) -> io::Result<()> {
    Ok(())
}

struct Sqlite {
    pool: SqlitePool,
    /// One connection, since each keeps the pages that it wrote and would have to read again what
    /// another has written. The app's own pool where it brought one.
    writer: SqlitePool,
    schema_table: String,
    /// Who writes, in the order they came. SQLite has a waiting writer look again now and then, so
    /// under load some would never find the file free.
    writing: Mutex<()>,
}

impl Sqlite {
    async fn turn(&self) -> Result<MutexGuard<'_, ()>, sqlx::Error> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.writing.lock()).await;
        turn.map_err(|_| sqlx::Error::PoolTimedOut)
    }

    /// Whether what is saved here is safe from a crash, and from other processes.
    async fn judge(&self) -> Result<(), Error> {
        let failed = |error| sql::failed::<Self>("open the file", &error);
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        let settings = "SELECT journal_mode, synchronous, timeout \
             FROM pragma_journal_mode, pragma_synchronous, pragma_busy_timeout";
        let settings = sqlx::query_as::<_, (String, i64, i64)>(settings);
        let (journal, synchronous, busy) =
            settings.fetch_one(&mut *connection).await.map_err(failed)?;
        if !journal.eq_ignore_ascii_case("wal") {
            return Err(Error::store(format!(
                "the file's journal mode is {journal:?} and not WAL, without which processes \
                 cannot share it: this file system may not allow it, or the pool's options do not \
                 ask for it"
            )));
        }
        if synchronous < 2 {
            return Err(Error::store(
                "the pool's connections are not synchronous=FULL: a token could be lost when the \
                 machine crashes, after its predecessor died",
            ));
        }
        if busy <= 0 {
            return Err(Error::store(
                "the pool's connections have no busy_timeout: whenever two processes write, one \
                 of them would fail",
            ));
        }
        // A write that is taken back, for a file that is read-only can be locked all the same.
        let mut probe = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let write = format!(r#"CREATE TABLE "{}_probe" (probe INTEGER)"#, self.schema_table);
        sqlx::query(AssertSqlSafe(write))
            .persistent(false)
            .execute(&mut *probe)
            .await
            .map_err(failed)?;
        probe.rollback().await.map_err(failed)
    }
}

/// The result code without what extends it (<https://sqlite.org/rescode.html>).
fn primary(code: &str) -> i32 {
    code.parse::<i32>().map_or(0, |code| code & 0xff)
}

/// Zero where the failure is not the database's.
fn code(error: &sqlx::Error) -> i32 {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .map_or(0, |code| primary(&code))
}

fn is_busy(error: &sqlx::Error) -> bool {
    matches!(code(error), 5 | 6)
}

type Query<'a> = sqlx::query::Query<'a, sqlx::Sqlite, SqliteArguments>;

fn query<'a>(sql: &sql::SqlText, args: &[Arg<'_>]) -> Query<'a> {
    let mut query = sqlx::query(AssertSqlSafe(sql.clone()));
    for arg in args {
        query = match *arg {
            Arg::Text(text) => query.bind(text.to_owned()),
            Arg::Number(number) => query.bind(number),
            Arg::Bytes(bytes) => query.bind(bytes.to_owned()),
            Arg::Flag(flag) => query.bind(flag),
            Arg::Keys(keys) => {
                let keys = keys.iter().map(|key| sql::key_texts(key).to_vec());
                query.bind(keys.collect::<serde_json::Value>().to_string())
            }
        };
    }
    query
}

impl Engine for Sqlite {
    type Row = SqliteRow;

    const DIALECT: Dialect = Dialect {
        now: "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        greatest: "MAX",
        wanted: "SELECT key + 1 AS place, value ->> 0 AS api_version, value ->> 1 AS environment, \
                 value ->> 2 AS client_id, value ->> 3 AS kind, value ->> 4 AS subject \
                 FROM json_each($1)",
        migrations: &[&[
            "CREATE TABLE IF NOT EXISTS {tokens} (
                api_version TEXT NOT NULL, environment TEXT NOT NULL, client_id TEXT NOT NULL,
                kind TEXT NOT NULL, subject TEXT NOT NULL,
                incarnation INTEGER NOT NULL, revision INTEGER NOT NULL,
                payload BLOB, stamped_at INTEGER NOT NULL, obtained_at INTEGER, due_at INTEGER,
                holder INTEGER, leased_until INTEGER, not_before INTEGER,
                refused INTEGER NOT NULL, in_flight INTEGER NOT NULL,
                PRIMARY KEY ({key})
            ) STRICT",
            "CREATE INDEX IF NOT EXISTS {tokens_due} \
             ON {tokens} (api_version, environment, client_id, due_at, kind, subject) \
             WHERE NOT refused",
            "CREATE TABLE IF NOT EXISTS {logins} (
                state BLOB PRIMARY KEY, keep_until INTEGER NOT NULL
            ) STRICT, WITHOUT ROWID",
            "CREATE INDEX IF NOT EXISTS {logins_kept} ON {logins} (keep_until)",
            "CREATE TABLE IF NOT EXISTS {schema} (version INTEGER PRIMARY KEY) STRICT",
            "INSERT INTO {schema} (version) VALUES (1) ON CONFLICT DO NOTHING",
        ]],
    };

    // Its messages name columns, never values.
    const QUOTES: &'static [&'static str] = &[];

    async fn execute(&self, sql: &sql::SqlText, args: &[Arg<'_>]) -> Result<u64, sqlx::Error> {
        let _turn = self.turn().await?;
        let done = query(sql, args).execute(&self.writer).await?;
        Ok(done.rows_affected())
    }

    // Fetches all rows: stopping at the first row of a writing statement hides a failed commit.
    async fn change(
        &self,
        sql: &sql::SqlText,
        args: &[Arg<'_>],
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let _turn = self.turn().await?;
        query(sql, args).fetch_all(&self.writer).await
    }

    async fn fetch(
        &self,
        sql: &sql::SqlText,
        args: &[Arg<'_>],
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        query(sql, args).fetch_all(&self.pool).await
    }

    async fn schema_version(&self, sql: &sql::SqlText) -> Result<Vec<SqliteRow>, sqlx::Error> {
        // Asked first, since there is no error code of its own for a table that is missing.
        let there = sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = $1")
            .bind(self.schema_table.clone())
            .fetch_all(&self.pool)
            .await?;
        if there.is_empty() {
            return Ok(there);
        }
        self.fetch(sql, &[]).await
    }

    async fn apply(&self, steps: &[sql::SqlText]) -> Result<(), sqlx::Error> {
        let _turn = self.turn().await?;
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        for step in steps {
            query(step, &[]).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    fn situation(error: &sqlx::Error) -> Situation {
        match code(error) {
            11 | 26 => Situation::Damaged,
            // Its busy timeout has passed already where others were in the way.
            _ => Situation::Final,
        }
    }

    fn meaning(code: &str) -> Option<&'static str> {
        Some(match primary(code) {
            1 => "the tables are not as this crate makes them, or migrate() was never called",
            5 | 6 => "another process keeps the file locked",
            8 => "the file is read-only",
            10 => "the disk failed",
            11 => "the file is damaged",
            13 => "the disk is full",
            14 => "the file cannot be opened",
            26 => "the file is not a SQLite database",
            _ => return None,
        })
    }
}

impl fmt::Debug for SqliteStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStoreBuilder")
            .field("table_prefix", &self.table_prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::sql::Statements;
    use super::*;

    /// How SQLite would go about a statement, on tables that nobody has analysed.
    async fn plan(store: &SqliteStore, statement: &sql::SqlText) -> String {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let pool = &store.sql.engine().pool;
        let steps = sqlx::query_as::<_, (i64, i64, i64, String)>(explain);
        let steps = steps.fetch_all(pool).await.unwrap();
        steps.into_iter().map(|step| step.3).collect::<Vec<_>>().join("; ")
    }

    #[tokio::test]
    async fn no_statement_walks_the_whole_table() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("tokens.db").display());
        let store = SqliteStore::at(url).open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        let statements = store.sql.statements();
        let Statements { read, claim_known, claim_cold, save, release, rewrite, .. } = statements;
        let Statements { forget, forget_version, scan, .. } = statements;
        let by_key =
            [read, claim_known, claim_cold, save, release, rewrite, forget, forget_version, scan];
        let by_key = by_key.map(|statement| (statement, "sqlite_autoindex_hurdlr_tokens_1"));
        let others =
            [(&statements.due, "hurdlr_tokens_due"), (&statements.clean, "hurdlr_logins_kept")];
        for (statement, index) in by_key.into_iter().chain(others) {
            let plan = plan(&store, statement).await;
            assert!(
                plan.contains(&format!("USING INDEX {index}"))
                    || plan.contains(&format!("USING COVERING INDEX {index}")),
                "{plan}"
            );
            let scans = plan.replace("SCAN json_each", "");
            assert!(!scans.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{plan}");
        }
        // Its conflict is found by the primary key, which needs no plan.
        for statement in [&statements.make, &statements.redeem] {
            assert_eq!(plan(&store, statement).await, "");
        }
    }
}
