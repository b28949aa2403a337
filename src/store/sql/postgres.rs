//! PostgreSQL.

mod url;
use url::Target;

use std::error::Error as StdError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{ConnectOptions, Postgres, Row, SqlStr};
use tokio::time::timeout;

use super::backend::{Arg, Backend, Settings};
use super::fault::{Fault, FaultClass, FaultCodes, KnownFault};
use super::{SqlStore, SqlStoreBuilder};
use crate::error::Error;

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
/// On the wire tokens are as safe as `sslmode` makes them: with sqlx's default, `prefer`, somebody
/// in between can turn TLS off, so write `verify-full`.
///
/// [`at`](Self::at) takes a URL such as `postgres://user:password@host:5432/database`, with the
/// parameters of [`PgConnectOptions`](sqlx::postgres::PgConnectOptions) and of libpq, and opens up
/// to 10 connections. [Databases](crate::guide::databases) says what bounds they have, what a
/// restart or a failover costs (less than 5 s: no call), by which clock leases end, what
/// parameters, poolers, roles, replication and distributed engines need, and has a table of all
/// errors.
pub type PostgresStore = SqlStore<Postgres>;

impl SqlStoreBuilder<Postgres> {
    /// The schema of the tables: a-z, 0-9 and `_`. The first of the connection's `search_path` if
    /// nothing is said.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.settings.schema = Some(schema.into());
        self
    }

    /// The most connections that a store [`at`](SqlStore::at) a URL opens; 10 if nothing is said.
    /// All processes together must stay below the server's `max_connections`. A pool of the app's
    /// has its own.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.settings.max_connections = usize::try_from(connections).unwrap_or(usize::MAX);
        self
    }
}

impl Backend for Postgres {
    // This is when the transaction began, which is the statement.
    const NOW: &'static str = "CAST(EXTRACT(EPOCH FROM now()) * 1000 AS BIGINT)";
    const GREATEST: &'static str = "GREATEST";
    const JSON: &'static str = "jsonb_array_elements(CAST($1 AS JSONB)) AS item (value)";
    const HAS_TABLES: &'static str = "SELECT 1 WHERE to_regclass('{schema}') IS NOT NULL";
    const SCHEMA: Option<[&'static str; 2]> = Some([
        "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = '{schema_name}'",
        "CREATE SCHEMA IF NOT EXISTS \"{schema_name}\"",
    ]);
    const TYPES: [&'static str; 3] = ["BIGINT", "BYTEA", "BOOLEAN"];
    const TABLE_OPTIONS: &'static str = "";
    const ONE_WRITER: bool = false;
    const CONNECTIONS: usize = 10;
    const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
    const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

    type Target = Target;

    fn target(url: &str, _: &Settings) -> Result<Target, Error> {
        Target::parse(url)
    }

    async fn connect(target: &Target) -> Result<PgConnection, Fault> {
        let connecting = async {
            // Relaxed: whoever has not seen the flag yet is refused once more, and sets it too.
            if !target.is_pooled.load(Ordering::Relaxed) {
                match target.options.connect().await {
                    // A pooler refuses options that it would have to pass on.
                    Err(error)
                        if error.as_database_error().is_some_and(|refusal| {
                            matches!(&*Self::code(refusal), "08P01" | "0A000")
                        }) =>
                    {
                        target.is_pooled.store(true, Ordering::Relaxed);
                    }
                    connected => return connected,
                }
            }
            target.plain_options.connect().await
        };
        let Ok(connected) = timeout(target.connect_timeout, connecting).await else {
            return Err(Fault::known::<Self>("connect", ""));
        };
        let mut connection = connected.map_err(|error| Fault::of_connecting::<Self>(&error))?;
        Self::check(&mut connection).await?;
        Ok(connection)
    }

    /// A standby, or a primary that is being replaced, takes part in nothing.
    async fn check(connection: &mut PgConnection) -> Result<(), Fault> {
        // Unprepared, so that a pooler has nothing to mix up.
        let row = sqlx::raw_sql("SHOW transaction_read_only").fetch_one(connection).await;
        let setting = row.and_then(|row| row.try_get::<String, _>(0));
        match setting.map_err(|error| Fault::of::<Self>(&error))?.as_str() {
            "off" => Ok(()),
            _ => Err(Fault::known::<Self>("25006", "")),
        }
    }

    async fn fetch(
        connection: &mut PgConnection,
        sql: SqlStr,
        args: &[Arg<'_>],
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut query = sqlx::query(sql);
        for arg in args {
            query = match *arg {
                Arg::Text(text) => query.bind(text),
                Arg::Number(number) => query.bind(number),
                Arg::Bytes(bytes) => query.bind(bytes),
                Arg::Flag(flag) => query.bind(flag),
            };
        }
        query.fetch_all(connection).await
    }
}

impl FaultCodes for Postgres {
    const FAULTS: &'static [KnownFault] = FAULTS;

    fn tls_fault(source: &(dyn StdError + Send + Sync + 'static)) -> Option<&'static str> {
        use rustls::CertificateError as C;
        Some(match source.downcast_ref::<rustls::Error>()? {
            // A CA of the same name with another key ends in a bad signature.
            rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => "tls issuer",
            rustls::Error::InvalidCertificate(
                C::NotValidForName | C::NotValidForNameContext { .. },
            ) => "tls name",
            _ => "tls",
        })
    }
}

/// `docs/databases.md` has the same table for operators.
#[rustfmt::skip]
const FAULTS: &[KnownFault] = {
    use FaultClass::{Lost, Permanent, Refused, RolledBack, Temporary};
    &[
        ("08P01", Lost, "the pooler lost its connection to the server, or got none: its log says \
            why"),
        ("0A000", Permanent, "the server does not have what the store needs"),
        ("23505, 42710, 42P06, 42P07", RolledBack, "others made the same object at the same time"),
        ("25006", Refused, "the server is read-only: the URL has to lead to the primary, on which \
            default_transaction_read_only is off"),
        ("26000, 42P05", Permanent, "the pooler mixed up prepared statements: it needs session \
            mode, or PgBouncer 1.21 with max_prepared_statements above 0"),
        ("28000, 28P01", Permanent, "the server did not accept the user or the password"),
        ("3D000", Permanent, "there is no database of this name: create it, or correct the URL"),
        ("3F000", Permanent, "there is no schema to make the tables in: create the first one of \
            search_path, or name one by schema()"),
        ("40001, 40P01", RolledBack, "the database kept undoing the statement for the sake of others"),
        ("40003", Lost, "the database cannot say whether the statement was executed"),
        ("42501", Permanent, "the user lacks a right: migrate() needs CREATE on the schema; all else \
            USAGE on it, and SELECT, INSERT, UPDATE, DELETE on the tables"),
        ("42P01", Permanent, "the tables are missing: migrate() was never called"),
        ("42703, 42804, 42883", Permanent, "the tables are not as this crate makes them"),
        ("53100", Temporary, "the server's disk is full"),
        ("53300", Refused, "the server has no connection left: max_connections of all processes \
            together must stay below the server's"),
        ("55P03", Temporary, "a lock was not had within lock_timeout: something locks the tables"),
        ("57014", Temporary, "the server ended the statement after its statement_timeout"),
        ("57P01", Refused, "the server is stopping, or an administrator ended the connection"),
        ("57P02", Lost, "the server crashed"),
        ("57P03", Refused, "the server is starting or stopping"),
        ("57P05", Refused, "the server ended the connection after its idle_session_timeout"),
        // "Tuple concurrently updated", among others.
        ("XX000", Lost, "the server had an internal error"),
        ("XX001, XX002", Permanent, "the table or its index is damaged: REINDEX, or restore it"),
        ("closed", Lost, "the connection was closed by the server or a proxy on the way, or what \
            answers is not PostgreSQL"),
        ("connect", Refused, "connecting took longer than the URL's connect_timeout"),
        ("driver", Temporary, "the database driver failed"),
        ("io", Lost, "the connection failed"),
        ("no connection", Temporary, "no connection could be had in time: the server does not \
            answer, or all are in use and max_connections is too small"),
        ("pool closed", Permanent, "the store or its pool is closed"),
        ("row", Permanent, "a row is not as this crate writes it"),
        ("settings", Permanent, "the connection's settings cannot be used: sslcert and sslkey are \
            PEM files, and go together"),
        ("silent", Temporary, "the server did not answer within 10 s"),
        ("startup", Permanent, "the pooler refused the connection for a setting, the user or the \
            database: its log says which"),
        ("table", Permanent, "a table is not as this crate makes it"),
        ("tls", Permanent, "TLS failed: the server does not offer it, or its certificate is not \
            valid"),
        ("tls issuer", Permanent, "no CA that is trusted signed the server's certificate: \
            sslrootcert has to name the PEM file of the CA that did"),
        ("tls name", Permanent, "the server's certificate is for another host name: use one of its \
            names in the URL, or sslmode=verify-ca"),
        ("unsent", Refused, "the connection was closed before the statement was sent"),
    ]
};
