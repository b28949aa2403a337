//! What a database has to do, and how its rows are read.

use std::time::Duration;

use secrecy::SecretBox;
use sqlx::{ColumnIndex, Decode, Type};

use super::{Dialect, Situation, SqlText};
use crate::store::{Row, StoreKey, StoredToken, Version};

/// A value that goes into a statement.
#[derive(Clone, Copy)]
pub(in crate::store) enum Arg<'a> {
    Text(&'a str),
    Number(i64),
    Bytes(&'a [u8]),
    Flag(bool),
}

/// A row that comes out of one.
pub(in crate::store) struct Found {
    /// Which of the keys asked for.
    pub(in crate::store) place: usize,
    pub(in crate::store) granted: bool,
    pub(in crate::store) row: Row,
}

/// Kind and subject, as they stand there.
pub(in crate::store) type User = (String, String);

/// A database.
pub(in crate::store) trait Engine: Send + Sync + 'static {
    const DIALECT: Dialect;

    /// How the codes of errors begin whose text may quote a value.
    const QUOTES: &'static [&'static str];

    /// How many rows the statement changed.
    fn execute(
        &self,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// The rows that a statement changed, after all of it has taken effect.
    fn rows(
        &self,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> impl Future<Output = Result<Vec<Found>, sqlx::Error>> + Send;

    fn look_up(
        &self,
        sql: &SqlText,
        keys: &[StoreKey],
    ) -> impl Future<Output = Result<Vec<Found>, sqlx::Error>> + Send;

    fn due(
        &self,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> impl Future<Output = Result<Vec<User>, sqlx::Error>> + Send;

    fn scan(
        &self,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> impl Future<Output = Result<Vec<(User, Found)>, sqlx::Error>> + Send;

    /// Zero where there are no tables yet.
    fn schema_version(
        &self,
        sql: &SqlText,
    ) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;

    /// Makes the next version of the schema.
    fn apply(&self, steps: &[SqlText]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn situation(error: &sqlx::Error) -> Situation;

    /// What an error code means to who runs the database; none where its own text is all there is.
    fn meaning(code: &str) -> Option<&'static str>;
}

impl Found {
    /// Reads a row of a look-up, which has a place, or of a claim, which was granted or not.
    pub(in crate::store) fn decoded<'r, R: sqlx::Row>(row: &'r R) -> Result<Self, sqlx::Error>
    where
        &'static str: ColumnIndex<R>,
        i64: Decode<'r, R::Database> + Type<R::Database>,
        bool: Decode<'r, R::Database> + Type<R::Database>,
        Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    {
        let has = |column: &'static str| column.index(row).is_ok();
        let span = |column: &'static str| -> Result<Option<i64>, sqlx::Error> {
            row.try_get::<Option<i64>, _>(column)
        };
        let token = match row.try_get::<Option<Vec<u8>>, _>("payload")? {
            Some(payload) => Some(StoredToken {
                payload: SecretBox::new(Box::new(payload)),
                age: elapsed(row.try_get("age")?),
                due_in: elapsed(row.try_get("due_in")?),
            }),
            None => None,
        };
        Ok(Self {
            // The first place is 1; the row of a claim has none.
            place: if has("place") {
                usize::try_from(number(row, "place")?.saturating_sub(1)).unwrap_or(usize::MAX)
            } else {
                0
            },
            granted: has("granted") && row.try_get("granted")?,
            row: Row {
                version: Version {
                    incarnation: number(row, "incarnation")?,
                    revision: number(row, "revision")?,
                },
                token,
                leased_for: span("leased_for")?.and_then(left),
                not_before: span("not_before_in")?.and_then(left),
                refused: row.try_get("refused")?,
                in_flight: row.try_get("in_flight")?,
            },
        })
    }
}

pub(in crate::store) fn decoded_user<'r, R: sqlx::Row>(row: &'r R) -> Result<User, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok((row.try_get("kind")?, row.try_get("subject")?))
}

/// The largest version; zero where there is none.
pub(in crate::store) fn decoded_version<R: sqlx::Row>(rows: &[R]) -> Result<i64, sqlx::Error>
where
    usize: ColumnIndex<R>,
    i64: for<'r> Decode<'r, R::Database> + Type<R::Database>,
{
    let Some(row) = rows.first() else {
        return Ok(0);
    };
    Ok(row.try_get::<Option<i64>, _>(0)?.unwrap_or(0))
}

fn number<'r, R: sqlx::Row>(row: &'r R, column: &'static str) -> Result<u64, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(|source| sqlx::Error::ColumnDecode {
        index: column.into(),
        source: Box::new(source),
    })
}

/// A span of milliseconds; none is negative but by a clock that was put back.
fn elapsed(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn left(millis: i64) -> Option<Duration> {
    Some(elapsed(millis)).filter(|left| !left.is_zero())
}
