//! Tokens in PostgreSQL.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use url::Url;

use super::delegate_store;
use super::sql::{self, Arg, Dialect, Engine, Situation, Sql, Tables};
use crate::error::Error;

const CONNECTIONS: u32 = 10;

/// How long a caller waits for a connection before the database counts as down.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server has for a statement, which may wait for others; far below any lease.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that was idle for longer is asked whether it lives.
const PROBE_AFTER: Duration = Duration::from_secs(30);

/// The parameters that sqlx knows. It logs others, value and all, and ignores them.
const PARAMETERS: &str = "sslmode ssl-mode sslrootcert ssl-root-cert ssl-ca sslcert ssl-cert sslkey \
     ssl-key statement-cache-capacity host hostaddr port dbname user password application_name \
     options";

/// Keeps tokens in PostgreSQL, or in a database that speaks its protocol, shared by all processes
/// that reach it.
///
/// ```no_run
/// // Not run: it needs a server.
/// use hurdlr_oauth2::store::{KeyRing, PostgresStore};
///
/// # async fn open(keys: KeyRing) -> Result<(), Box<dyn std::error::Error>> {
/// let store = PostgresStore::at("postgres://app@db.example.com/app?sslmode=verify-full")
///     .schema("auth")
///     .open_sealed(keys) // or `open_plaintext`, where the tokens may be read
///     .await?;
/// store.migrate().await?; // makes the tables, or brings them up to this release
/// # Ok(())
/// # }
/// ```
///
/// # What is kept in clear
///
/// API version, environment, client id, kind of user and **user id**; ages and times, revision,
/// incarnation, lease and marks. The tokens themselves are in one opaque column, which a store
/// that is opened as `plaintext` does not encrypt: who can read the table, or a backup of it, has
/// the tokens. On the wire they are as safe as `sslmode` makes them: with sqlx's default, `prefer`,
/// somebody in between can turn TLS off, so write `verify-full`.
///
/// # Distributed engines and poolers
///
/// Every step is one statement that commits by itself: no transaction, lock, notification or
/// setting of a session outlives it. There are no advisory locks and no `LISTEN`. A statement that
/// the database undid for the sake of others (SQLSTATE 40001 and 40P01) is done again.
///
/// Behind a pooler in transaction mode, statements prepared on one server connection are executed
/// on another. `PgBouncer` from 1.21 on takes care of that if its `max_prepared_statements` is not
/// zero, and then needs `ignore_startup_parameters = extra_float_digits`. Older poolers work in
/// session mode only; `statement-cache-capacity=0` in the URL does not help, since a statement is
/// then still prepared in one round trip and executed in another.
///
/// # Time
///
/// Leases and ages go by the server's clock, and the machines' own do not matter. For a row it
/// never runs backwards: put back, or behind on one node of a distributed engine, it stands still
/// until it is past the row's last change.
///
/// # Connections
///
/// [`at`](Self::at) opens up to 10. Each is asked whether it lives only after it was idle for 30 s,
/// since a question before every statement would double its time; what may be repeated is, where a
/// connection turns out to be dead. For a pool of your own, `test_before_acquire(false)` is worth
/// the same.
///
/// A server that has not answered within 10 s counts as down. A connection on which it fell silent,
/// or turned out to be read-only, is closed, so that the next one finds the server that took over.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    sql: Sql<Postgres>,
}

/// Where a [`PostgresStore`] is and what its tables are called. Made by [`PostgresStore::at`] and
/// [`PostgresStore::on`].
#[derive(Clone)]
#[must_use = "a store is there once it was opened"]
pub struct PostgresStoreBuilder {
    place: Place,
    schema: Option<String>,
    table_prefix: String,
}

#[derive(Clone)]
enum Place {
    Url(String),
    Pool(PgPool),
}

impl PostgresStore {
    /// A store in the database that `url` names: `postgres://user:password@host:5432/database`,
    /// with the parameters of [`PgConnectOptions`].
    pub fn at(url: impl Into<String>) -> PostgresStoreBuilder {
        PostgresStoreBuilder::new(Place::Url(url.into()))
    }

    /// A store in a database that the app has open.
    ///
    /// ```no_run
    /// // Not run: it needs a server.
    /// use hurdlr_oauth2::store::PostgresStore;
    /// use hurdlr_oauth2::sqlx::postgres::PgPool;
    ///
    /// # async fn open(pool: PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// let store = PostgresStore::on(pool)
    ///     .table_prefix("oauth_")
    ///     .open_plaintext()
    ///     .await?;
    /// store.migrate().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on(pool: PgPool) -> PostgresStoreBuilder {
        PostgresStoreBuilder::new(Place::Pool(pool))
    }

    /// Makes the schema and the tables, or brings them up to this release. Any number of processes
    /// may call it at once, and again. It only goes forward: tables of a later release are refused.
    ///
    /// It needs the right to create what is missing; the store itself needs `SELECT`, `INSERT`,
    /// `UPDATE` and `DELETE`.
    pub async fn migrate(&self) -> Result<(), Error> {
        self.sql.migrate().await
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.sql.engine().pool.close().await;
    }
}

impl PostgresStoreBuilder {
    fn new(place: Place) -> Self {
        Self { place, schema: None, table_prefix: "hurdlr_".into() }
    }

    /// The schema of the tables: a-z, 0-9 and `_`. The first of the connection's `search_path` if
    /// nothing is said.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// What the tables' names begin with: a-z, 0-9 and `_`. `hurdlr_` if nothing is said.
    pub fn table_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.table_prefix = prefix.into();
        self
    }

    /// Connects, and opens the store, which will not encrypt the tokens. Tables of a later release
    /// are refused.
    pub async fn open_plaintext(self) -> Result<PostgresStore, Error> {
        self.open().await
    }

    pub(super) async fn open(self) -> Result<PostgresStore, Error> {
        let tables = Tables::new(self.schema.as_deref(), &self.table_prefix)?;
        let pool = match self.place {
            Place::Url(url) => open(&url).await?,
            Place::Pool(pool) => pool,
        };
        let schema = self.schema;
        let sql = Sql::open(Postgres { pool, schema }, &tables).await?;
        Ok(PostgresStore { sql })
    }
}

delegate_store!([] PostgresStore, .sql);

async fn open(url: &str) -> Result<PgPool, Error> {
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, about| {
            Box::pin(async move {
                if about.idle_for > PROBE_AFTER {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_with(options(url)?)
        .await
        .map_err(|error| sql::failed::<Postgres>("connect", &error))
}

/// The URL may hold a password, so it is not part of any error, and neither is what sqlx says of
/// it.
fn options(url: &str) -> Result<PgConnectOptions, Error> {
    const FORM: &str = "it has the form postgres://user:password@host:5432/database";
    let parsed = Url::parse(url)
        .ok()
        .filter(|url| matches!(url.scheme(), "postgres" | "postgresql"))
        .ok_or_else(|| Error::config(format!("the store's URL cannot be read: {FORM}")))?;
    let is_known = |name: &str| PARAMETERS.split(' ').any(|known| known == name);
    let mut parameters = parsed.query_pairs().map(|(name, _)| name);
    if let Some(name) = parameters.find(|name| !is_known(name) && !name.starts_with("options[")) {
        return Err(Error::config(format!(
            "the store's URL has a parameter {name:?}, which the driver does not know"
        )));
    }
    PgConnectOptions::from_str(url).map_err(|_| {
        Error::config(format!("the store's URL has a part that cannot be used: {FORM}"))
    })
}

struct Postgres {
    pool: PgPool,
    schema: Option<String>,
}

type Query<'a> = sqlx::query::Query<'a, sqlx::Postgres, PgArguments>;

fn query<'a>(sql: &sql::SqlText, args: &[Arg<'_>]) -> Query<'a> {
    let mut query = sqlx::query(AssertSqlSafe(sql.clone()));
    for arg in args {
        query = match *arg {
            Arg::Text(text) => query.bind(text),
            Arg::Number(number) => query.bind(number),
            Arg::Bytes(bytes) => query.bind(bytes),
            Arg::Flag(flag) => query.bind(flag),
            Arg::Keys(keys) => {
                let texts: Vec<_> = keys.iter().map(sql::key_texts).collect();
                (0..5).fold(query, |query, column| {
                    query.bind(texts.iter().map(|texts| texts[column]).collect::<Vec<_>>())
                })
            }
        };
    }
    query
}

/// Leaves a connection to the pool if it may be of use again.
///
/// Not one that fell silent, as it does for a quarter of an hour when the network is cut; nor one
/// that is read-only, to a server that was the primary one once. The next connection finds where
/// that is now.
fn kept_if_good<T>(
    connection: PoolConnection<sqlx::Postgres>,
    answer: Result<Result<T, sqlx::Error>, Elapsed>,
) -> Result<T, sqlx::Error> {
    let answer = answer.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
    if answer.as_ref().is_err_and(|error| is_silence(error) || code(error) == "25006") {
        drop(connection.detach());
    }
    answer
}

fn is_silence(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

impl Engine for Postgres {
    type Row = PgRow;

    const DIALECT: Dialect = Dialect {
        // Of the transaction, which is the statement.
        now: "CAST(EXTRACT(EPOCH FROM now()) * 1000 AS BIGINT)",
        greatest: "GREATEST",
        wanted: "SELECT * FROM \
                 UNNEST($1::TEXT[], $2::TEXT[], $3::TEXT[], $4::TEXT[], $5::TEXT[]) \
                 WITH ORDINALITY \
                 AS key (api_version, environment, client_id, kind, subject, place)",
        migrations: &[&[
            "CREATE TABLE IF NOT EXISTS {tokens} (
                api_version TEXT NOT NULL, environment TEXT NOT NULL, client_id TEXT NOT NULL,
                kind TEXT NOT NULL, subject TEXT NOT NULL,
                incarnation BIGINT NOT NULL, revision BIGINT NOT NULL,
                payload BYTEA, stamped_at BIGINT NOT NULL, obtained_at BIGINT, due_at BIGINT,
                holder BIGINT, leased_until BIGINT, not_before BIGINT,
                refused BOOLEAN NOT NULL, in_flight BOOLEAN NOT NULL,
                PRIMARY KEY ({key})
            )",
            "CREATE INDEX IF NOT EXISTS {tokens_due} \
             ON {tokens} (api_version, environment, client_id, due_at, kind, subject) \
             WHERE NOT refused",
            "CREATE TABLE IF NOT EXISTS {logins} (
                state BYTEA PRIMARY KEY, keep_until BIGINT NOT NULL
            )",
            "CREATE INDEX IF NOT EXISTS {logins_kept} ON {logins} (keep_until)",
            "CREATE TABLE IF NOT EXISTS {schema} (version BIGINT PRIMARY KEY)",
            "INSERT INTO {schema} (version) VALUES (1) ON CONFLICT DO NOTHING",
        ]],
    };

    // Bad data, and violated constraints.
    const QUOTES: &'static [&'static str] = &["22", "23"];

    async fn execute(&self, sql: &sql::SqlText, args: &[Arg<'_>]) -> Result<u64, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let answer = timeout(ANSWER_TIMEOUT, query(sql, args).execute(&mut *connection)).await;
        kept_if_good(connection, answer).map(|done| done.rows_affected())
    }

    async fn fetch(&self, sql: &sql::SqlText, args: &[Arg<'_>]) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let answer = timeout(ANSWER_TIMEOUT, query(sql, args).fetch_all(&mut *connection)).await;
        kept_if_good(connection, answer)
    }

    async fn schema_version(&self, sql: &sql::SqlText) -> Result<Vec<PgRow>, sqlx::Error> {
        match self.fetch(sql, &[]).await {
            // No such table, no such schema.
            Err(error) if matches!(&*code(&error), "42P01" | "3F000") => Ok(Vec::new()),
            answer => answer,
        }
    }

    // Not in one transaction, which some engines do not have for definitions. Every step can be
    // repeated, so whoever finds one half done goes on from there.
    async fn apply(&self, steps: &[sql::SqlText]) -> Result<(), sqlx::Error> {
        if let Some(schema) = &self.schema {
            // Asked first, since creating needs a right even where there is nothing to create.
            let there = sqlx::query("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1")
                .bind(schema)
                .fetch_all(&self.pool)
                .await?;
            if there.is_empty() {
                let sql = format!(r#"CREATE SCHEMA IF NOT EXISTS "{schema}""#);
                query(&sql.into(), &[]).execute(&self.pool).await?;
            }
        }
        for step in steps {
            query(step, &[]).execute(&self.pool).await?;
        }
        Ok(())
    }

    fn situation(error: &sqlx::Error) -> Situation {
        match &*code(error) {
            // Serialization failure, deadlock.
            "40001" | "40P01" => Situation::Undone,
            // Unique violation of the catalogue, or of one object by another that was just made;
            // "tuple concurrently updated".
            "23505" | "42P06" | "42P07" | "42710" | "XX000" => Situation::Contended,
            // The server stops, crashed, or starts.
            "57P01" | "57P02" | "57P03" => Situation::Cut,
            // It had its time.
            "" if is_silence(error) => Situation::Final,
            "" if matches!(error, sqlx::Error::Io(_)) => Situation::Cut,
            "XX001" | "XX002" => Situation::Damaged,
            _ => Situation::Final,
        }
    }

    fn meaning(code: &str) -> Option<&'static str> {
        Some(match code {
            "42P01" | "3F000" => "the tables are missing: migrate() was never called",
            "42703" | "42804" | "42883" => "the tables are not as this crate makes them",
            "42501" => "this user may not do that",
            "25006" => "the server or the session is read-only",
            "3D000" => "there is no such database",
            "53100" => "the server's disk is full",
            "53300" => "the server has no connection left",
            "57014" => "the statement took longer than the server allows",
            "57P01" | "57P02" | "57P03" => "the server is stopping or starting",
            "XX001" | "XX002" => "the table or its index is damaged",
            _ if code.starts_with("28") => "the server did not accept the credentials",
            _ if code.starts_with("40") => "others kept being in the way",
            _ => return None,
        })
    }
}

/// The SQLSTATE; empty where the failure is not the server's.
fn code(error: &sqlx::Error) -> std::borrow::Cow<'_, str> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default()
}

impl fmt::Debug for PostgresStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL may hold a password.
        f.debug_struct("PostgresStoreBuilder")
            .field("schema", &self.schema)
            .field("table_prefix", &self.table_prefix)
            .finish_non_exhaustive()
    }
}
