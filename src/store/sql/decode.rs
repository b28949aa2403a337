//! Rows of the tables, decoded.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretBox;
use sqlx::{ColumnIndex, Decode, Type};

use crate::error::Error;
use crate::store::{Realm, Row, RowKind, StoreKey, StoredToken, Version};
use crate::wire::user::UserId;

/// A row of a result. It stands for bounds that sqlx wants repeated at each use.
pub trait Found {
    fn unsigned(&self, column: &'static str) -> Result<u64, sqlx::Error>;

    /// A row of the tokens.
    fn row(&self) -> Result<Row, sqlx::Error>;

    /// The key of a row, as [`StoreKey::texts`] has it.
    fn key_texts(&self) -> Result<[String; 5], sqlx::Error>;

    /// The key by which the table has a row, and an error where its subject is not valid.
    fn key_in(&self, realm: &Arc<Realm>) -> Result<(StoreKey, Result<(), Error>), sqlx::Error>;
}

impl<R: sqlx::Row> Found for R
where
    &'static str: ColumnIndex<R>,
    i64: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    String: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    bool: for<'r> Decode<'r, R::Database> + Type<R::Database>,
{
    fn unsigned(&self, column: &'static str) -> Result<u64, sqlx::Error> {
        u64::try_from(self.try_get::<i64, _>(column)?).map_err(|_| damaged(column))
    }

    fn row(&self) -> Result<Row, sqlx::Error> {
        let left = |column| -> Result<_, sqlx::Error> {
            let left = self.try_get::<Option<_>, _>(column)?.map(span);
            Ok(left.filter(|left| !left.is_zero()))
        };
        let token = match self.try_get::<Option<_>, _>("payload")? {
            Some(payload) => Some(StoredToken {
                payload: SecretBox::new(Box::new(payload)),
                age: span(self.try_get("age")?),
                due_in: span(self.try_get("due_in")?),
            }),
            None => None,
        };
        Ok(Row {
            version: Version {
                incarnation: self.unsigned("incarnation")?,
                revision: self.unsigned("revision")?,
            },
            token,
            leased_for: left("leased_for")?,
            not_before: left("not_before_in")?,
            refused: self.try_get("refused")?,
            in_flight: self.try_get("in_flight")?,
        })
    }

    fn key_texts(&self) -> Result<[String; 5], sqlx::Error> {
        let [version, environment, client_id, kind, subject] =
            ["api_version", "environment", "client_id", "kind", "subject"]
                .map(|column| self.try_get(column));
        Ok([version?, environment?, client_id?, kind?, subject?])
    }

    fn key_in(&self, realm: &Arc<Realm>) -> Result<(StoreKey, Result<(), Error>), sqlx::Error> {
        let (kind, subject): (String, String) = (self.try_get("kind")?, self.try_get("subject")?);
        let kind = RowKind::WITH_TOKENS.into_iter().find(|known| known.name() == kind);
        let kind = kind.ok_or_else(|| damaged("kind"))?;
        let named = UserId::new(subject.as_str()).map(drop).map_err(|invalid| {
            Error::store("a row has no valid user id").not_temporary().caused_by(invalid)
        });
        Ok((StoreKey::new(Arc::clone(realm), kind, UserId::internal(subject)), named))
    }
}

fn damaged(column: &'static str) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.into(), source: "the value is out of range".into() }
}

/// A span of milliseconds. It is negative only if the clock was put back.
fn span(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
