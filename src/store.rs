//! Token stores: the trait, its rows, and the stores of this crate.
//!
//! The guide says [which store fits](crate::guide::stores), how to run [many
//! processes](crate::guide::many_processes) and how to set up [databases](crate::guide::databases).

mod key;
pub use key::{RowKind, StoreKey};
mod memory;
pub use memory::MemoryStore;
mod row;
pub use row::{
    Claim, Claimed, DueCursor, DueRow, ReadRow, Release, Rewrite, Row, Save, StoredToken, Version,
};
#[cfg(feature = "sealed")]
mod sealed;
#[cfg(feature = "sealed")]
pub use sealed::{
    Bound, KeyId, KeyRing, OpenError, Reseal, ResealOutcome, Resealed, Sealed, SealingKey,
    UserHashKey,
};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "postgres")]
pub use sql::PostgresStore;
#[cfg(feature = "sqlite")]
pub use sql::SqliteStore;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use sql::{SqlStore, SqlStoreBuilder};

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
pub use crate::wire::realm::Realm;

/// The future that a store's methods return.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Keeps tokens, for all processes that look after the same users.
///
/// A store keeps one [`Row`] per [`StoreKey`]. Each method is one atomic step by the store's own
/// clock. Only spans are handed in and out, so that no two machines' clocks are ever compared.
/// A span is never longer when it is read than when it was handed in, and a token never younger,
/// even if that clock is set back. Nothing is held open between two calls: a claim is a lease,
/// which ends by itself.
///
/// A failure is an error of kind [`Store`](crate::ErrorKind::Store), made by [`Error::store`]. Any
/// call may have taken effect although it failed. An error about a row that cannot be read is
/// [`not_temporary`](Error::not_temporary). A manager waits for an answer for as long as it takes,
/// so a store bounds its calls.
///
/// Tokens are passed by value, so stores need not copy secrets. An [`Arc`] of a store is a store.
#[auto_impl::auto_impl(Arc)]
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

    /// Replaces the token if the row is still at the version `save.over`, whoever holds the lease,
    /// and says whether it was. The row is then at `save.version`; lease, `not_before`, `refused`
    /// and `in_flight` are cleared.
    ///
    /// A refresh goes on to the [next](Version::next) revision, a login to another incarnation.
    ///
    /// It must not ask for the lease: a process that was paused after the provider rotated holds
    /// the only refresh token that lives.
    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool>;

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

    /// Puts `new` in the place of the payload `old` of each row that is still at `version` and
    /// whose payload is `old`, byte for byte, and changes nothing else. Says of each row, in their
    /// order, whether it was. No key may repeat.
    ///
    /// The revision stays, and so do lease, times and marks: a refresh in flight saves as if
    /// nothing had been. The rows need not change in one step.
    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>>;
}
