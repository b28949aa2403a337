//! The interface to a database.

use std::time::Duration;

use sqlx::SqlStr;

use super::decode::Found;
use super::fault::{Fault, FaultCodes};
use crate::error::Error;

/// A database that [`SqlStore`](super::SqlStore) works on: sqlx's `Sqlite` or `Postgres`.
pub trait Backend: sqlx::Database<Row: Found> + FaultCodes {
    /// The time at which the statement began, in milliseconds since 1970.
    const NOW: &'static str;

    /// The function that returns the largest of its arguments.
    const GREATEST: &'static str;

    /// A table of the items of the JSON array `$1`, each in the column `value`.
    const JSON: &'static str;

    /// Returns a row if the tables were made.
    const HAS_TABLES: &'static str;

    /// Returns a row if the schema exists, and creates one; where there are schemas.
    const SCHEMA: Option<[&'static str; 2]>;

    /// The types of numbers, bytes and flags.
    const TYPES: [&'static str; 3];

    /// Options of a table.
    const TABLE_OPTIONS: &'static str;

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
    fn check(connection: &mut Self::Connection) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Runs a statement, and returns its rows after all of it has taken effect.
    fn fetch(
        connection: &mut Self::Connection,
        sql: SqlStr,
        args: &[Arg<'_>],
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;
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
}
