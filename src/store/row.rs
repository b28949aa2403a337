//! Rows, and the arguments and answers of [`TokenStore`]'s methods.

use std::time::Duration;

use secrecy::SecretBox;

#[cfg(doc)]
use super::TokenStore;
use super::{RowKind, StoreKey};
use crate::error::Error;
use crate::wire::user::UserId;

/// One item of [`TokenStore::read`]: the row, `None` where there is none, or why it cannot be read.
pub type ReadRow = Result<Option<Row>, Error>;

/// The version of a row's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Drawn at random at each login, import and first grant, so that nothing left of an earlier
    /// one can be taken for the present one. Less than 2⁶³.
    pub incarnation: u64,
    /// Higher with every save; 0 before the first. Less than 2⁶³.
    pub revision: u64,
}

impl Version {
    /// The version of the token that a refresh of this one brings.
    #[must_use]
    pub fn next(self) -> Self {
        Self { revision: self.revision + 1, ..self }
    }

    /// Whether both are of one incarnation, and this one came later.
    pub(crate) fn is_newer_than(self, other: Self) -> bool {
        self.incarnation == other.incarnation && self.revision > other.revision
    }
}

/// A token on its way into a store or out of it.
#[derive(Debug)]
pub struct StoredToken {
    /// The token, as opaque bytes. They hold its secrets.
    pub payload: SecretBox<Vec<u8>>,
    /// How old the token is when it is handed over. A store stamps it with its own clock, adding
    /// what it had to wait before that, and hands out the age the token has by then.
    pub age: Duration,
    /// In how long the token is due for renewal; zero where it is. For [`TokenStore::due`].
    pub due_in: Duration,
}

/// A user as a store keeps them.
#[derive(Debug)]
pub struct Row {
    /// The token's version.
    pub version: Version,
    /// The token; `None` before the first grant has been saved.
    pub token: Option<StoredToken>,
    /// How long the present lease lasts; `None` where no lease lives.
    pub leased_for: Option<Duration>,
    /// For how long no lease is granted; `None` where nothing forbids one.
    pub not_before: Option<Duration>,
    /// Whether the provider refused this revision's refresh token for good.
    pub refused: bool,
    /// Whether an earlier attempt on this revision went unanswered: its refresh token may have been
    /// used, and the answer lost.
    pub in_flight: bool,
}

/// Arguments of [`TokenStore::claim`].
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The holder of the lease: drawn at random by each manager. Less than 2⁶³.
    pub holder: u64,
    /// How long the lease lasts if nobody ends it.
    pub lease: Duration,
    /// The version to be refreshed; `None` for a user without a token.
    pub known: Option<Version>,
    /// The incarnation of a row to be made where there is none. `None` makes no row.
    pub create: Option<u64>,
}

/// Answer of [`TokenStore::claim`].
#[derive(Debug)]
pub struct Claimed {
    /// Whether the lease was granted.
    pub granted: bool,
    /// The row as it is now; `None` where there is none.
    pub row: Option<Row>,
}

/// Arguments of [`TokenStore::save`].
#[derive(Debug)]
pub struct Save {
    /// The version at which the row has to be.
    pub over: Version,
    /// The version at which it is then.
    pub version: Version,
    /// The token.
    pub token: StoredToken,
}

/// The notes that [`TokenStore::release`] leaves for the next holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// How long nobody is to try again.
    pub not_before: Duration,
    /// Whether the provider refused the refresh token for good.
    pub refused: bool,
    /// Whether a request went unanswered: the refresh token may have been used.
    pub in_flight: bool,
}

/// One row of [`TokenStore::rewrite`].
#[derive(Debug)]
pub struct Rewrite {
    /// The row.
    pub key: StoreKey,
    /// The version at which it has to be.
    pub version: Version,
    /// The payload that it has to have.
    pub old: SecretBox<Vec<u8>>,
    /// The payload that it gets.
    pub new: SecretBox<Vec<u8>>,
}

/// The place of a row in the order of [`TokenStore::due`]: by due time, kind and subject.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DueCursor {
    /// When the row became due, in a unit of the store's own.
    pub due_at: u64,
    /// The row's kind.
    pub kind: RowKind,
    /// The subject by which the table has the row. Personal data.
    pub subject: UserId,
}

/// One item of [`TokenStore::due`].
#[derive(Debug)]
pub struct DueRow {
    /// The place of the row, from which the next call goes on.
    pub cursor: DueCursor,
    /// The key of the row; an error where the store cannot tell whose it is.
    pub key: Result<StoreKey, Error>,
}
