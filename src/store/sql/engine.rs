//! The interface to a database, and the decoding of its rows.

use std::time::Duration;

use secrecy::SecretBox;
use sqlx::{ColumnIndex, Decode, Type};

use super::{Dialect, Situation, SqlText};
use crate::store::{Row, StoreKey, StoredToken, Version};

/// An argument of a statement.
#[derive(Clone, Copy)]
pub(in crate::store) enum Arg<'a> {
    Text(&'a str),
    Number(i64),
    Bytes(&'a [u8]),
    Flag(bool),
    /// The keys to read, as [`Dialect::wanted`] takes them.
    Keys(&'a [StoreKey]),
}

/// A database.
pub(in crate::store) trait Engine: Send + Sync + 'static {
    type Row: Columns + Send;

    const DIALECT: Dialect;

    /// Prefixes of the error codes whose text may quote a value.
    const QUOTES: &'static [&'static str];

    /// Runs a statement that writes, and returns how many rows it changed.
    fn execute(
        &self,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Runs a statement that writes, and returns the rows it changed, after all of it has taken
    /// effect.
    fn change(
        &self,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send {
        self.fetch(sql, args)
    }

    /// Runs a statement that only reads.
    fn fetch(
        &self,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// Fetches the schema's version; no row where there are no tables yet.
    fn schema_version(
        &self,
        sql: &SqlText,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// Makes the next version of the schema.
    fn apply(&self, steps: &[SqlText]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn situation(error: &sqlx::Error) -> Situation;

    /// Explains an error code to an operator; `None` where the database's own text says enough.
    fn meaning(code: &str) -> Option<&'static str>;
}

/// A row of a result, by its columns' names.
pub(in crate::store) trait Columns {
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

pub(super) fn decoded(row: &impl Columns) -> Result<Row, sqlx::Error> {
    let token = match row.bytes("payload")? {
        Some(payload) => Some(StoredToken {
            payload: SecretBox::new(Box::new(payload)),
            age: elapsed(row.number("age")?.ok_or_else(|| damaged("age"))?),
            due_in: elapsed(row.number("due_in")?.ok_or_else(|| damaged("due_in"))?),
        }),
        None => None,
    };
    Ok(Row {
        version: Version {
            incarnation: unsigned(row, "incarnation")?,
            revision: unsigned(row, "revision")?,
        },
        token,
        leased_for: row.number("leased_for")?.and_then(left),
        not_before: row.number("not_before_in")?.and_then(left),
        refused: row.flag("refused")?,
        in_flight: row.flag("in_flight")?,
    })
}

pub(super) fn unsigned(row: &impl Columns, column: &'static str) -> Result<u64, sqlx::Error> {
    let number = row.number(column)?.and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| damaged(column))
}

pub(super) fn damaged(column: &'static str) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.into(), source: "the value is out of range".into() }
}

/// A span of milliseconds. It is negative only if the clock was put back.
fn elapsed(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn left(millis: i64) -> Option<Duration> {
    Some(elapsed(millis)).filter(|left| !left.is_zero())
}
