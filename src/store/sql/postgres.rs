//! PostgreSQL.

mod url;
use url::Target;

use std::error::Error as StdError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::error::{BoxDynError, DatabaseError};
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::{Arguments, ConnectOptions, Postgres, SqlStr};
use tokio::time::timeout;

use super::backend::{Arg, Backend, Columns, Settings};
use super::fault::{Fault, FaultClass, KnownFault};
use super::statements::Dialect;
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
/// # What is kept in clear
///
/// API version, environment, client id, kind of user and **user id**; ages and times, revision,
/// incarnation, lease and marks. The tokens themselves are in one opaque column, which a store
/// that is opened as `plaintext` does not encrypt: who can read the table, or a backup of it, has
/// the tokens. On the wire they are as safe as `sslmode` makes them: with sqlx's default, `prefer`,
/// somebody in between can turn TLS off, so write `verify-full`.
///
/// # Connections
///
/// [`at`](Self::at) takes a URL such as `postgres://user:password@host:5432/database`, with the
/// parameters of [`PgConnectOptions`](sqlx::postgres::PgConnectOptions) and of libpq. It opens up
/// to 10 connections. One that the server ended, or on which it is read-only, is replaced, and the
/// statement is repeated: a restart or a failover that takes less than 5 s costs no call. A
/// statement that is not answered within 10 s fails; the server ends it half a second earlier.
///
/// `docs/databases.md` in the repository says what parameters, poolers, roles and replication need,
/// and has a table of all errors.
///
/// # Distributed engines
///
/// Every step is one statement that commits by itself: no transaction, lock, notification or
/// setting of a session outlives it. There are no advisory locks and no `LISTEN`. A statement that
/// the database undid for the sake of others (SQLSTATE 40001 and 40P01) is done again.
///
/// # Time
///
/// Leases and ages go by the server's clock, and the machines' own do not matter. For a row it
/// never runs backwards: put back, or behind on one node of a distributed engine, it stands still
/// until it is past the row's last change.
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
    const DIALECT: Dialect = Dialect {
        // This is when the transaction began, which is the statement.
        now: "CAST(EXTRACT(EPOCH FROM now()) * 1000 AS BIGINT)",
        greatest: "GREATEST",
        keys: "SELECT place, value ->> 0 AS api_version, value ->> 1 AS environment, \
               value ->> 2 AS client_id, value ->> 3 AS kind, value ->> 4 AS subject \
               FROM jsonb_array_elements(CAST($1 AS JSONB)) WITH ORDINALITY AS key (value, place)",
        rewrites: "SELECT * FROM UNNEST($1, $2, $3, $4, $5, $6, $7, $8, $9) AS rewrite \
                   (in_version, in_environment, in_client, of_kind, of_subject, \
                   at_incarnation, at_revision, old_payload, new_payload)",
        has_tables: "SELECT 1 WHERE to_regclass('{schema}') IS NOT NULL",
        schema: Some([
            "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = '{schema_name}'",
            "CREATE SCHEMA IF NOT EXISTS \"{schema_name}\"",
        ]),
        types: ["BIGINT", "BYTEA", "BOOLEAN"],
        table_options: "",
    };

    const FAULTS: &'static [KnownFault] = FAULTS;
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
            if !target.is_pooled.load(Ordering::Relaxed) {
                match target.options.connect().await {
                    // A pooler refuses options that it would have to pass on.
                    Err(error) if matches!(&*sqlstate(&error), "08P01" | "0A000") => {
                        target.is_pooled.store(true, Ordering::Relaxed);
                    }
                    connected => return connected,
                }
            }
            target.plain_options.connect().await
        };
        let connected = match target.connect_timeout {
            Some(limit) => timeout(limit, connecting).await,
            None => Ok(connecting.await),
        };
        let Ok(connected) = connected else {
            return Err(Fault::known::<Self>("connect", ""));
        };
        let mut connection = connected.map_err(|error| Fault::of_connecting::<Self>(&error))?;
        refuse_read_only(&mut connection).await?;
        Ok(connection)
    }

    async fn check(connection: &mut PgConnection, _: &Settings) -> Result<(), Fault> {
        refuse_read_only(connection).await
    }

    fn bind(arguments: &mut PgArguments, arg: Arg<'_>) -> Result<(), BoxDynError> {
        match arg {
            Arg::Text(text) => arguments.add(text),
            Arg::Number(number) => arguments.add(number),
            Arg::Bytes(bytes) => arguments.add(bytes),
            Arg::Flag(flag) => arguments.add(flag),
            Arg::Rewrites(rewrites) => {
                let rows = || rewrites.iter();
                for part in 0..5 {
                    arguments.add(rows().map(|it| it.key.texts()[part]).collect::<Vec<_>>())?;
                }
                let versions = rows().map(|it| [it.version.incarnation, it.version.revision]);
                for part in 0..2 {
                    let numbers = versions.clone().map(|version| i64::try_from(version[part]));
                    arguments.add(numbers.collect::<Result<Vec<_>, _>>()?)?;
                }
                arguments.add(rows().map(|it| &**it.old.expose_secret()).collect::<Vec<_>>())?;
                arguments.add(rows().map(|it| &**it.new.expose_secret()).collect::<Vec<_>>())
            }
        }
    }

    async fn fetch(
        connection: &mut PgConnection,
        sql: SqlStr,
        arguments: PgArguments,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        sqlx::query_with(sql, arguments).fetch_all(connection).await
    }

    fn code(error: &dyn DatabaseError) -> String {
        error.code().unwrap_or_default().into_owned()
    }

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

    fn quotes_values(code: &str) -> bool {
        // Bad data, and violated constraints.
        code.starts_with("22") || code.starts_with("23")
    }
}

/// A standby, or a primary that is being replaced, takes part in nothing.
async fn refuse_read_only(connection: &mut PgConnection) -> Result<(), Fault> {
    // Unprepared, so that a pooler has nothing to mix up.
    let row = sqlx::raw_sql("SHOW transaction_read_only").fetch_one(connection).await;
    let setting = row.and_then(|row| Columns::text(&row, "transaction_read_only"));
    match setting.map_err(|error| Fault::of::<Postgres>(&error))?.as_str() {
        "off" => Ok(()),
        _ => Err(Fault::known::<Postgres>("25006", "")),
    }
}

/// The SQLSTATE; empty where the failure is not the server's.
fn sqlstate(error: &sqlx::Error) -> String {
    error.as_database_error().map(Postgres::code).unwrap_or_default()
}

/// `docs/databases.md` has the same table for operators.
#[rustfmt::skip]
const FAULTS: &[KnownFault] = {
    use FaultClass::{Conflict, Lost, Permanent, Refused, RolledBack, Temporary};
    &[
        ("08P01", Lost, "the pooler lost its connection to the server, or got none: its log says \
            why"),
        ("0A000", Permanent, "the server does not have what the store needs"),
        ("23505, 42710, 42P06, 42P07", Conflict, "others made the same object at the same time"),
        ("25006", Refused, "the server is read-only: the URL has to lead to the primary, on which \
            default_transaction_read_only is off"),
        ("26000, 42P05", Permanent, "the pooler mixed up prepared statements: it needs session \
            mode, or PgBouncer 1.21 with max_prepared_statements above 0"),
        ("28", Permanent, "the server did not accept the user or the password"),
        ("3D000", Permanent, "there is no database of this name: create it, or correct the URL"),
        ("3F000", Permanent, "there is no schema to make the tables in: create the first one of \
            search_path, or name one by schema()"),
        ("40001, 40P01", RolledBack, "the database kept undoing the statement for the sake of others"),
        ("40003", Lost, "the database cannot say whether the statement was executed"),
        ("42501", Permanent, "the user lacks a right: GRANT it USAGE on the schema, and SELECT, \
            INSERT, UPDATE, DELETE on the tables"),
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
        ("XX000", Conflict, "the server had an internal error"),
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
