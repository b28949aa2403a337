//! The keys of rows.

use std::sync::Arc;

use crate::wire::realm::Realm;
use crate::wire::user::UserId;

/// How a row's token was obtained, which is how it is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RowKind {
    /// By an authorization code, or imported. Renewed by the refresh token, the only copy of
    /// which may be the one that is kept.
    Login,
    /// By client credentials with `userId`. Renewed by the same grant again.
    Enterprise,
    /// The row by which processes agree which of them walks the due users. It never has a token.
    KeepAliveLock,
    /// By client credentials without a user: the partner itself. Renewed by the same grant again.
    Partner,
    /// A token that is to be revoked, under a name of its own. It is not renewed, and due once the
    /// process that put it there has had its time.
    PendingRevocation,
}

impl RowKind {
    /// The kinds whose rows may have a token.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) const WITH_TOKENS: [Self; 4] =
        [Self::Login, Self::Enterprise, Self::Partner, Self::PendingRevocation];

    /// The name in a store's table, which never changes.
    #[cfg(any(feature = "postgres", feature = "sealed", feature = "sqlite"))]
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Enterprise => "enterprise",
            Self::KeepAliveLock => "keep_alive_lock",
            Self::Partner => "partner",
            Self::PendingRevocation => "pending_revocation",
        }
    }
}

/// The key of a row. Keys are ordered by realm, kind and subject.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreKey {
    pub(super) realm: Arc<Realm>,
    pub(super) kind: RowKind,
    pub(super) subject: UserId,
}

impl StoreKey {
    /// The key of `subject` as a user of this kind in `realm`.
    #[must_use]
    pub fn new(realm: Arc<Realm>, kind: RowKind, subject: UserId) -> Self {
        Self { realm, kind, subject }
    }

    /// The key's parts, as a table has them.
    #[cfg(any(feature = "postgres", feature = "sealed", feature = "sqlite"))]
    pub(super) fn texts(&self) -> [&str; 5] {
        let [version, environment, client_id] = self.realm.texts();
        [version, environment, client_id, self.kind.name(), self.subject.as_str()]
    }

    /// Version, environment and client id.
    #[must_use]
    pub fn realm(&self) -> &Arc<Realm> {
        &self.realm
    }

    /// How the user's token is renewed.
    #[must_use]
    pub fn kind(&self) -> RowKind {
        self.kind
    }

    /// The user. Personal data.
    #[must_use]
    pub fn subject(&self) -> &UserId {
        &self.subject
    }
}
