//! Where tokens are kept: the trait that every store implements, and what it is asked.

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

use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretBox;

use crate::endpoint::ApiVersion;
use crate::error::Error;
use crate::user::UserId;

/// What a store's methods return.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Where tokens are kept, shared by all processes that look after the same users.
///
/// A store keeps one [`Row`] per [`StoreKey`] and does six things atomically: [`claim`], [`save`],
/// [`put`], [`release`], [`redeem`] and [`rewrite`]. All of them go by the store's own clock, and only spans are
/// handed in and out, so that no two machines' clocks are ever compared. Whatever that clock does, no
/// span is told longer than it was handed in, and no token younger. Nothing is held open in between: a
/// claim is a lease, which ends by itself.
///
/// A failure is an error of kind [`Store`](crate::ErrorKind::Store), made by [`Error::store`];
/// a manager goes on with the tokens it has in memory then. Any call may have taken effect although
/// it failed. One about a row that cannot be read is [`not_temporary`](Error::not_temporary), so that it
/// hides no others. A manager waits for an answer for as long as it takes, so a store bounds its calls.
///
/// What a store is to keep is handed over to it, and not lent: nobody has to copy a secret then.
///
/// [`claim`]: Self::claim
/// [`save`]: Self::save
/// [`put`]: Self::put
/// [`release`]: Self::release
/// [`redeem`]: Self::redeem
/// [`rewrite`]: Self::rewrite
pub trait TokenStore: fmt::Debug + Send + Sync + 'static {
    /// Looks the rows of `keys` up: one item per key, in their order. There may be none, and they
    /// may repeat.
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<Option<Row>>>;

    /// Takes the lease on a row, in one atomic step, and returns the row as it then is.
    ///
    /// Where there is no row and `claim.expected` is none, a row without a token is made: its
    /// incarnation is `claim.incarnation`, its revision 0, and the lease is granted. Where there is
    /// none and one was expected, nothing is done.
    ///
    /// Where there is a row, the lease is granted if all of this holds:
    /// * the row's version is the one expected, or none is expected and the row has no token;
    /// * the row is not [`refused`](Row::refused);
    /// * its [`not_before`](Row::not_before) has passed;
    /// * no other lease lives: none was ever taken, or it was released, or it ran out, or it is
    ///   `claim.lease_id` itself.
    ///
    /// A lease of another that ran out without being released leaves
    /// [`in_flight`](Row::in_flight) set: its holder may have sent the refresh token. A claim by
    /// the lease's own id starts it anew and changes nothing else.
    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed>;

    /// Replaces the token if the row is still at the version `consumed`, whoever holds the lease,
    /// and says whether it was. The revision becomes the next one; lease, `not_before`, `refused`
    /// and `in_flight` are cleared.
    ///
    /// It must not ask for the lease: a process that was paused after the provider rotated holds
    /// the only refresh token that lives.
    fn save<'a>(
        &'a self,
        key: &'a StoreKey,
        consumed: Version,
        token: StoredToken,
    ) -> StoreFuture<'a, bool>;

    /// Puts a token that came by another way than a refresh, under `incarnation` and revision 1,
    /// with nothing of an earlier row left, and says whether it is there.
    ///
    /// A row of this incarnation that has a token is left alone, and counts as put: a call that
    /// seemed to fail can be repeated, whatever happened to the row since. With [`Put::IfAbsent`]
    /// a row of any other incarnation that has a token is left alone, and does not.
    fn put<'a>(
        &'a self,
        key: &'a StoreKey,
        incarnation: u64,
        token: StoredToken,
        put: Put,
    ) -> StoreFuture<'a, bool>;

    /// Ends an attempt that saved nothing, if the row is still at `version`: marks it refused if
    /// `release.refused`, whoever holds the lease; and, where the lease is still `lease_id`, ends that and allows no other
    /// before `release.not_before` has passed.
    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        lease_id: u64,
        release: Release,
    ) -> StoreFuture<'a, ()>;

    /// Removes the row, whoever holds its lease, and says whether there was one.
    fn forget<'a>(&'a self, key: &'a StoreKey) -> StoreFuture<'a, bool>;

    /// Says whether this digest of a login's state is seen for the first time, and remembers it
    /// for `keep`. Seen again, it is not remembered for longer.
    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool>;

    /// Finds up to `limit` rows of `realm` that hold a token and are due, the longest due first:
    /// not refused, without a living lease, past their `not_before`. Never one of
    /// [`RowKind::KeepAliveLock`].
    fn due<'a>(&'a self, realm: &'a Arc<Realm>, limit: usize) -> StoreFuture<'a, Vec<StoreKey>>;

    /// Walks the rows of `realm` that hold a token, in an order of the store's own that stays: up
    /// to `limit` of those that come after `after`, which may be gone by now, or the first of all.
    /// Fewer than `limit` are the last.
    ///
    /// Whoever is there all the while is met once; who comes or goes meanwhile may be met or not.
    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Row)>>;

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

/// API version, environment and client id: the part of a key that all users of one client share.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Realm {
    version: ApiVersion,
    environment: Box<str>,
    client_id: Box<str>,
}

impl Realm {
    /// The tokens that `client_id` gets at `environment`, a base URL.
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

/// Whose token: by how it was obtained, since that is how it is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RowKind {
    /// By an authorization code, or imported. Renewed by the refresh token, the only copy of
    /// which may be the one that is kept.
    Login,
    /// By client credentials with `userId`. Renewed by the same grant again.
    Enterprise,
    /// Nobody's: the row by which processes agree who walks the due users. It never has a token.
    KeepAliveLock,
    /// By client credentials without a user: the partner itself. Renewed by the same grant again.
    Partner,
    /// Nobody's: a token that is to be revoked, under a name of its own. Not renewed by anybody, and
    /// due once the process that put it there has had its time.
    PendingRevocation,
}

impl RowKind {
    /// Those whose rows may have a token.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    const WITH_TOKENS: [Self; 4] =
        [Self::Login, Self::Enterprise, Self::Partner, Self::PendingRevocation];

    /// What a store writes down, and reads as the same for ever.
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

/// The key of a row.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreKey {
    realm: Arc<Realm>,
    kind: RowKind,
    subject: UserId,
}

impl Hash for StoreKey {
    /// Without the realm: nearly all keys that meet share theirs.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
        self.subject.hash(state);
    }
}

impl StoreKey {
    /// The key of `subject` as a user of this kind in `realm`.
    #[must_use]
    pub fn new(realm: Arc<Realm>, kind: RowKind, subject: UserId) -> Self {
        Self { realm, kind, subject }
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

/// Which token a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Drawn at random each time a user comes in, so that what is left of an earlier stay can not
    /// be taken for the present one. Less than 2⁶³.
    pub incarnation: u64,
    /// One more with every save; 0 before the first. Less than 2⁶³.
    pub revision: u64,
}

impl Version {
    /// The version that a save over this one makes.
    #[must_use]
    pub fn next(self) -> Self {
        Self { revision: self.revision + 1, ..self }
    }

    /// Whether both are of one stay of the user, and this one came later.
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

/// What a store knows of a user.
#[derive(Debug)]
pub struct Row {
    /// Which token this is.
    pub version: Version,
    /// The token; none before the first grant has been saved.
    pub token: Option<StoredToken>,
    /// For how long the present lease goes on; none where no lease lives.
    pub leased_for: Option<Duration>,
    /// For how long no lease is granted; none where nothing forbids one.
    pub not_before: Option<Duration>,
    /// Whether the provider refused this revision's refresh token for good.
    pub refused: bool,
    /// Whether an earlier holder fell silent over this revision: its refresh token may have been
    /// used, and the answer lost.
    pub in_flight: bool,
}

/// What [`TokenStore::claim`] is asked.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Who asks: drawn at random for each series of attempts. Less than 2⁶³.
    pub lease_id: u64,
    /// How long the lease lasts if nobody ends it.
    pub lease: Duration,
    /// The version to be refreshed; none for a user without a token.
    pub expected: Option<Version>,
    /// The incarnation of a row that has to be made.
    pub incarnation: u64,
}

/// What [`TokenStore::claim`] answers.
#[derive(Debug)]
pub struct Claimed {
    /// Whether the lease is ours.
    pub granted: bool,
    /// The row as it is now; none where there is none and one was expected.
    pub row: Option<Row>,
}

/// What [`TokenStore::release`] leaves behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Release {
    /// How long nobody is to try again.
    pub not_before: Duration,
    /// Whether the provider refused the refresh token for good.
    pub refused: bool,
}

/// Whether [`TokenStore::put`] replaces what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Whatever is there is replaced, and a refresh in flight finds its version gone.
    Replace,
    /// A token that is there stays.
    IfAbsent,
}

impl<S: TokenStore + ?Sized> TokenStore for Arc<S> {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<Option<Row>>> {
        (**self).read(keys)
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        (**self).claim(key, claim)
    }

    fn save<'a>(
        &'a self,
        key: &'a StoreKey,
        consumed: Version,
        token: StoredToken,
    ) -> StoreFuture<'a, bool> {
        (**self).save(key, consumed, token)
    }

    fn put<'a>(
        &'a self,
        key: &'a StoreKey,
        incarnation: u64,
        token: StoredToken,
        put: Put,
    ) -> StoreFuture<'a, bool> {
        (**self).put(key, incarnation, token, put)
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        lease_id: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        (**self).release(key, version, lease_id, release)
    }

    fn forget<'a>(&'a self, key: &'a StoreKey) -> StoreFuture<'a, bool> {
        (**self).forget(key)
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        (**self).redeem(state, keep)
    }

    fn due<'a>(&'a self, realm: &'a Arc<Realm>, limit: usize) -> StoreFuture<'a, Vec<StoreKey>> {
        (**self).due(realm, limit)
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Row)>> {
        (**self).scan(realm, after, limit)
    }

    fn rewrite<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        old: &'a SecretBox<Vec<u8>>,
        new: SecretBox<Vec<u8>>,
    ) -> StoreFuture<'a, bool> {
        (**self).rewrite(key, version, old, new)
    }
}
