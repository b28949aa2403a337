//! The interface to a database.

use std::time::Duration;

use sqlx::error::{BoxDynError, DatabaseError};
use sqlx::{ColumnIndex, Decode, SqlStr, Type};

use super::fault::{Fault, KnownFault};
use super::statements::Dialect;
use crate::error::Error;
use crate::store::Rewrite;

/// A database that [`SqlStore`](super::SqlStore) works on: sqlx's `Sqlite` or `Postgres`.
pub trait Backend: sqlx::Database<Row: Columns> {
    const DIALECT: Dialect;

    /// The failures of the database and its driver, in an operator's words.
    const FAULTS: &'static [KnownFault];

    /// All writes go through one connection, in the order they came.
    const ONE_WRITER: bool;

    /// Default number of connections, the writer's not counted.
    const CONNECTIONS: usize;

    /// Bounds the wait for a connection, and for the turn to write.
    const ACQUIRE_TIMEOUT: Duration;

    /// Bounds a statement; far below any lease.
    const STATEMENT_TIMEOUT: Duration;

    /// The address and the settings of connections that a URL stands for.
    type Target: Send + Sync + 'static;

    /// Parses a URL. It may hold a password, so no error quotes it.
    fn target(url: &str, settings: &Settings) -> Result<Self::Target, Error>;

    fn connect(
        target: &Self::Target,
    ) -> impl Future<Output = Result<Self::Connection, Fault>> + Send;

    /// Refuses a database that could not keep what this crate promises.
    fn check(
        connection: &mut Self::Connection,
        settings: &Settings,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    fn bind(arguments: &mut Self::Arguments, arg: Arg<'_>) -> Result<(), BoxDynError>;

    /// Runs a statement, and returns its rows after all of it has taken effect.
    fn fetch(
        connection: &mut Self::Connection,
        sql: SqlStr,
        arguments: Self::Arguments,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// The error's code as it stands in [`FAULTS`](Self::FAULTS).
    fn code(error: &dyn DatabaseError) -> String;

    /// The name in [`FAULTS`](Self::FAULTS) of what TLS found wrong.
    fn tls_fault(_: &(dyn std::error::Error + Send + Sync + 'static)) -> Option<&'static str> {
        None
    }

    /// Whether the database's message for this code may quote a value of a row.
    fn quotes_values(code: &str) -> bool;
}

/// The settings of a [`SqlStoreBuilder`](super::SqlStoreBuilder).
#[derive(Clone, Debug)]
pub struct Settings {
    pub schema: Option<String>,
    pub table_prefix: String,
    pub max_connections: usize,
    pub group_access: bool,
}

/// An argument of a statement.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    Text(&'a str),
    Number(i64),
    Bytes(&'a [u8]),
    Flag(bool),
    /// Several arguments, whose number does not depend on that of the rows.
    Rewrites(&'a [Rewrite]),
}

/// A row of a result, by its columns' names. It stands for bounds that sqlx wants repeated at each
/// use.
pub trait Columns {
    fn number(&self, column: &'static str) -> Result<Option<i64>, sqlx::Error>;
    fn text(&self, column: &'static str) -> Result<String, sqlx::Error>;
    fn bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, sqlx::Error>;
    fn flag(&self, column: &'static str) -> Result<bool, sqlx::Error>;
}

impl<R: sqlx::Row> Columns for R
where
    &'static str: ColumnIndex<R>,
    i64: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    String: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    bool: for<'r> Decode<'r, R::Database> + Type<R::Database>,
{
    fn number(&self, column: &'static str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(column)
    }

    fn text(&self, column: &'static str) -> Result<String, sqlx::Error> {
        self.try_get(column)
    }

    fn bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, sqlx::Error> {
        self.try_get(column)
    }

    fn flag(&self, column: &'static str) -> Result<bool, sqlx::Error> {
        self.try_get(column)
    }
}
