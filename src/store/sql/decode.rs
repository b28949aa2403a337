//! Rows of the tables, decoded.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretBox;

use super::backend::Columns;
use crate::error::Error;
use crate::store::{Realm, Row, RowKind, StoreKey, StoredToken, Version};
use crate::user::UserId;

pub(super) fn row(row: &impl Columns) -> Result<Row, sqlx::Error> {
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

/// The key of a row, as [`StoreKey::texts`] has it.
pub(super) fn key_texts(row: &impl Columns) -> Result<[String; 5], sqlx::Error> {
    let [version, environment, client_id] =
        ["api_version", "environment", "client_id"].map(|column| row.text(column));
    Ok([version?, environment?, client_id?, row.text("kind")?, row.text("subject")?])
}

/// A span of milliseconds. It is negative only if the clock was put back.
fn elapsed(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn left(millis: i64) -> Option<Duration> {
    Some(elapsed(millis)).filter(|left| !left.is_zero())
}

/// The key by which the table has a row, and an error where its subject is not valid.
pub(super) fn key_of(
    realm: &Arc<Realm>,
    found: &impl Columns,
) -> Result<(StoreKey, Result<(), Error>), sqlx::Error> {
    let (kind, subject) = (found.text("kind")?, found.text("subject")?);
    let kind = RowKind::WITH_TOKENS.into_iter().find(|known| known.name() == kind);
    let kind = kind.ok_or_else(|| damaged("kind"))?;
    let named = UserId::new(subject.as_str()).map(drop).map_err(|invalid| {
        Error::store("a row has no valid user id").not_temporary().caused_by(invalid)
    });
    Ok((StoreKey::new(Arc::clone(realm), kind, UserId::internal(subject)), named))
}
