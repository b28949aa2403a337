//! Token stores: the trait, its rows, and the stores of this crate.

mod memory;
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresStore, PostgresStoreBuilder};
#[cfg(feature = "sealed")]
mod sealed;
#[cfg(feature = "sealed")]
pub use sealed::{
    Bound, KeyId, KeyRing, OpenError, Reseal, ResealOutcome, Resealed, Sealed, SealingKey,
    UserHashKey,
};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteStore, SqliteStoreBuilder};

use std::cmp::Ordering;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretBox;

use crate::endpoint::ApiVersion;
use crate::error::Error;
use crate::user::UserId;

/// The future that a store's methods return.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Where tokens are kept, shared by all processes that look after the same users.
///
/// A store keeps one [`Row`] per [`StoreKey`]. Each method is one atomic step by the store's own
/// clock. Only spans are handed in and out, so that no two machines' clocks are ever compared.
/// A span is never longer when it is read than when it was handed in, and a token never younger,
/// even if that clock is set back. Nothing is held open between two calls: a claim is a lease, which ends by
/// itself.
///
/// A failure is an error of kind [`Store`](crate::ErrorKind::Store), made by [`Error::store`]. Any
/// call may have taken effect although it failed. An error about a row that cannot be read is
/// [`not_temporary`](Error::not_temporary). A manager waits for an answer for as long as it takes,
/// so a store bounds its calls.
///
/// Tokens are passed by value, so stores need not copy secrets.
pub trait TokenStore: fmt::Debug + Send + Sync + 'static {
    /// Looks up the rows of `keys`: one item per key, in their order, `None` where there is no row.
    /// Keys may repeat, and there may be none. A row that cannot be read is an error of its own
    /// item.
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>>;

    /// Takes the lease on a row for `claim.holder`, and returns the row.
    ///
    /// Where there is no row and [`claim.create`](Claim::create) is set, a row without a token is
    /// made under that incarnation and revision 0, and the lease is granted.
    ///
    /// Where there is a row, the lease is granted if all of this holds:
    /// * the row is at the version `claim.known`, or that is `None` and the row has no token;
    /// * the row is not [`refused`](Row::refused);
    /// * its [`not_before`](Row::not_before) has passed;
    /// * no other holder's lease lives.
    ///
    /// A lease that was not released, whoever held it, leaves [`in_flight`](Row::in_flight) set:
    /// its holder may have sent the refresh token. A claim that is not granted writes nothing.
    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed>;

    /// Replaces the token if the row is still at the version `over`, whoever holds the lease, and
    /// says whether it was. The row is then at `version`; lease, `not_before`, `refused` and
    /// `in_flight` are cleared.
    ///
    /// A refresh goes on to the [next](Version::next) revision, a login to another incarnation.
    ///
    /// It must not ask for the lease: a process that was paused after the provider rotated holds
    /// the only refresh token that lives.
    fn save<'a>(
        &'a self,
        key: &'a StoreKey,
        over: Version,
        version: Version,
        token: StoredToken,
    ) -> StoreFuture<'a, bool>;

    /// Ends an attempt that saved nothing, if the row is still at `version`.
    ///
    /// `release.in_flight` is set if asked for, and `not_before` is moved on to
    /// `release.not_before` from now if that is later, whoever holds the lease. If `holder` still
    /// does, its lease ends and `release.refused` is set if asked for: another holder is about to
    /// learn for itself.
    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> StoreFuture<'a, ()>;

    /// Removes the row, whoever holds its lease, and says whether it did. With a version, only a
    /// row that is still at that version.
    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool>;

    /// Says whether this digest of a login's state is seen for the first time, and remembers it
    /// for `keep`. Seen again, it is not remembered for longer.
    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool>;

    /// Finds up to `limit` rows of `realm` that hold a token and are due: not refused, without a
    /// living lease, past their `not_before`. They come in the order of [`DueCursor`]: the longest
    /// due first. With `after`, only rows that come after that one. Fewer than `limit` are the
    /// last. Never a row of [`RowKind::KeepAliveLock`].
    fn due<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a DueCursor>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DueRow>>;

    /// Walks the rows of `realm` that hold a token, in an order of the store's own that stays: up
    /// to `limit` of those that come after `after`, which may be gone by now, or the first of all.
    /// Fewer than `limit` are the last. A row that cannot be read is an error of its own item,
    /// under the key by which the table has it.
    ///
    /// A row that is there all the while is met once; one that comes or goes meanwhile may be met
    /// or not.
    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>>;

    /// Puts `new` in the place of the payload `old` and changes nothing else, if the row is still
    /// at `version` and its payload is `old`, byte for byte; and says whether it was.
    ///
    /// The revision stays, and so do lease, times and marks: a refresh in flight saves as if
    /// nothing had been.
    fn rewrite<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        old: &'a SecretBox<Vec<u8>>,
        new: SecretBox<Vec<u8>>,
    ) -> StoreFuture<'a, bool>;
}

/// One item of [`TokenStore::read`]: the row, `None` where there is none, or why it cannot be read.
pub type ReadRow = Result<Option<Row>, Error>;

/// API version, environment and client id: the part of a key that all users of one client share.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Realm {
    version: ApiVersion,
    environment: Box<str>,
    client_id: Box<str>,
}

impl Realm {
    /// The realm of `client_id` at `environment`, a base URL.
    pub fn new(
        version: ApiVersion,
        environment: impl Into<Box<str>>,
        client_id: impl Into<Box<str>>,
    ) -> Self {
        Self { version, environment: environment.into(), client_id: client_id.into() }
    }

    /// The API version.
    #[must_use]
    pub fn api_version(&self) -> ApiVersion {
        self.version
    }

    /// The base URL of the provider's installation.
    #[must_use]
    pub fn environment(&self) -> &str {
        &self.environment
    }

    /// The client id.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.client_id
    }
}

impl fmt::Debug for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} at {}", self.client_id, self.version, self.environment)
    }
}

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
    const WITH_TOKENS: [Self; 4] =
        [Self::Login, Self::Enterprise, Self::Partner, Self::PendingRevocation];

    /// The name in a store's table, which never changes.
    #[cfg(any(feature = "postgres", feature = "sealed", feature = "sqlite"))]
    fn name(self) -> &'static str {
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
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StoreKey {
    realm: Arc<Realm>,
    kind: RowKind,
    subject: UserId,
}

impl Ord for StoreKey {
    fn cmp(&self, other: &Self) -> Ordering {
        // Nearly all keys that meet share their realm.
        let realm = if Arc::ptr_eq(&self.realm, &other.realm) {
            Ordering::Equal
        } else {
            self.realm.cmp(&other.realm)
        };
        realm
            .then_with(|| self.kind.cmp(&other.kind))
            .then_with(|| self.subject.cmp(&other.subject))
    }
}

impl PartialOrd for StoreKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl StoreKey {
    /// The key of `subject` as a user of this kind in `realm`.
    #[must_use]
    pub fn new(realm: Arc<Realm>, kind: RowKind, subject: UserId) -> Self {
        Self { realm, kind, subject }
    }

    /// The key before all others of a realm.
    fn first(realm: &Arc<Realm>) -> Self {
        Self::new(Arc::clone(realm), RowKind::Login, UserId::internal(""))
    }

    fn of_cursor(realm: &Arc<Realm>, cursor: &DueCursor) -> Self {
        Self::new(Arc::clone(realm), cursor.kind, UserId::internal(cursor.subject.clone()))
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

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} ({:?})", self.kind, self.subject, self.realm)
    }
}

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
    /// How old the token is. A store keeps when that was by its own clock, and hands out the age
    /// the token has by then.
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

/// The place of a row in the order of [`TokenStore::due`]: by due time, kind and subject.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DueCursor {
    /// When the row became due, in a unit of the store's own.
    pub due_at: u64,
    /// The row's kind.
    pub kind: RowKind,
    /// The subject by which the table has the row. Personal data.
    pub subject: Box<str>,
}

impl fmt::Debug for DueCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { due_at, kind, subject: _ } = self;
        f.debug_struct("DueCursor")
            .field("due_at", due_at)
            .field("kind", kind)
            .finish_non_exhaustive()
    }
}

/// One item of [`TokenStore::due`].
#[derive(Debug)]
pub struct DueRow {
    /// The place of the row, from which the next call goes on.
    pub cursor: DueCursor,
    /// The key of the row; an error where the store cannot tell whose it is.
    pub key: Result<StoreKey, Error>,
}

/// Implements [`TokenStore`] for a type that holds another store.
macro_rules! delegate_store {
    ([$($generics:tt)*] $store:ty, $($inner:tt)*) => {
        const _: () = {
            use $crate::store::*;

            impl<$($generics)*> TokenStore for $store {
                fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
                    self$($inner)*.read(keys)
                }

                fn claim<'a>(
                    &'a self,
                    key: &'a StoreKey,
                    claim: Claim,
                ) -> StoreFuture<'a, Claimed> {
                    self$($inner)*.claim(key, claim)
                }

                fn save<'a>(
                    &'a self,
                    key: &'a StoreKey,
                    over: Version,
                    version: Version,
                    token: StoredToken,
                ) -> StoreFuture<'a, bool> {
                    self$($inner)*.save(key, over, version, token)
                }

                fn release<'a>(
                    &'a self,
                    key: &'a StoreKey,
                    version: Version,
                    holder: u64,
                    release: Release,
                ) -> StoreFuture<'a, ()> {
                    self$($inner)*.release(key, version, holder, release)
                }

                fn forget<'a>(
                    &'a self,
                    key: &'a StoreKey,
                    version: Option<Version>,
                ) -> StoreFuture<'a, bool> {
                    self$($inner)*.forget(key, version)
                }

                fn redeem<'a>(
                    &'a self,
                    state: &'a [u8; 32],
                    keep: Duration,
                ) -> StoreFuture<'a, bool> {
                    self$($inner)*.redeem(state, keep)
                }

                fn due<'a>(
                    &'a self,
                    realm: &'a Arc<Realm>,
                    after: Option<&'a DueCursor>,
                    limit: usize,
                ) -> StoreFuture<'a, Vec<DueRow>> {
                    self$($inner)*.due(realm, after, limit)
                }

                fn scan<'a>(
                    &'a self,
                    realm: &'a Arc<Realm>,
                    after: Option<&'a StoreKey>,
                    limit: usize,
                ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>> {
                    self$($inner)*.scan(realm, after, limit)
                }

                fn rewrite<'a>(
                    &'a self,
                    key: &'a StoreKey,
                    version: Version,
                    old: &'a SecretBox<Vec<u8>>,
                    new: SecretBox<Vec<u8>>,
                ) -> StoreFuture<'a, bool> {
                    self$($inner)*.rewrite(key, version, old, new)
                }
            }
        };
    };
}
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use delegate_store;

delegate_store!([S: TokenStore + ?Sized] Arc<S>, .as_ref());
