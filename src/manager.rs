//! `TokenManager`: every user's token alive, refreshed once, never lost.
//!
//! A token is *fresh* for most of its life, then *due*: still served, and refreshed in the
//! background. Only when it is *expired*, shortly before its end, do callers wait, all of them for
//! the same refresh. A living token is served, whatever fails meanwhile.
//!
//! There are two kinds of user, and the [partner](TokenManager::partner) itself:
//!
//! | | [`user`](TokenManager::user) | [`enterprise_user`](TokenManager::enterprise_user) |
//! |---|---|---|
//! | is | a person who logs in | registered by your company, by `userId` |
//! | begins with | [`adopt`](TokenManager::adopt) after the login, or an import | the first read |
//! | is renewed by | a refresh token; yours may be the only copy | the same grant again |
//! | if that fails for good | `LoginRequired`, never a silent grant | an error; a retry can work |
//!
//! The kind is part of the key: the same id under both kinds is two users with a token each.
//!
//! The guide says [what happens on each failure](crate::guide::failures), and lists
//! [all settings](crate::guide::settings).

// # Implementation
//
// `docs/design.md` has the laws, the refresh as numbered steps and the table of the row's states.
//
// *Users in memory.* `users` finds a `UserEntry`: an `ArcSwap` of the `CachedToken` that is
// served, and a lock over everything else. The entry's state is boxed and exists only while there
// is something to keep, so that a quiet user costs one pointer.
//
// *A read* (`fast_path`, `read`) loads the `ArcSwap` and compares one second. The slow path
// serves, starts a refresh in the background, or waits for one.
//
// *Single flight* (`single_flight`): the state holds the refresh in flight. It is registered under
// the entry's lock and runs in a tracked task of its own. Nobody can cancel it. A task that panics,
// or ends with its runtime, fails its refresh for all waiters.
//
// *A refresh* (`refresh`) is claim, send, save. Between processes the store decides: a claim is
// a lease on the row, and a save is a compare-and-set over the version that was consumed. What is
// sent is what the claimed row holds. `permits` bound how many run at once; a permit is never
// held while waiting for another process, and a request that hangs gives it back.
//
// *Epochs*: a login or a removal raises the entry's epoch. A refresh or a look at the store of an
// earlier epoch changes nothing in memory any more; in the store its version is gone.
//
// *Writers* (refresh, adopt, import, forget, disconnect, late saves) run in tracked tasks. Those
// that change a user by a login or a removal hold the user's write lock, so that the last change
// of the store is the last one of memory.
//
// *Other processes*: `revalidate` compares users who are read with the store, many in one query.
// `keep_alive` walks the due users whom nobody reads. `revocation` keeps records of tokens
// that are to be revoked, so that any process can finish them.
//
// *Outages of the store* (`availability`, `outage`): once it answers again, users who changed
// lately are compared with it before any refresh is sent.

mod availability;
mod cached_token;
use cached_token::CachedToken;
mod entry;
pub use entry::TokenEvent;
use entry::{Context, MAX_ROUNDS, Unsaved, UserEntry, row_changes};
mod fast_path;
pub use fast_path::{SharedToken, TokenFuture, TokenGuard};
mod flight;
use flight::cut_off;
mod handle;
pub use handle::{TokenEvents, UserHandle, UserStatus};
mod keep_alive;
pub use keep_alive::KeepAlive;
mod outage;
mod permits;
use permits::Permits;
mod policy;
use policy::Phases;
pub use policy::RefreshPolicy;
mod read;
mod refresh;
mod removal;
pub use removal::Disconnected;
mod revalidate;
mod revocation;
mod save;
mod single_flight;
mod store_calls;
use store_calls::StoreCalls;
mod users;
use users::Users;
mod warm;
pub use warm::{Warm, Warmed};

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::client::Hurdlr;
use crate::client::login::{Callback, LOGIN_LIFETIME, PendingLogin};
use crate::error::Error;
#[cfg(feature = "metrics")]
use crate::metrics;
use crate::store::{RowKind, Save, TokenStore, Version};
use crate::token::Token;
use crate::wire::user::UserId;

/// Keeps the tokens of many users alive: cached, refreshed once, and saved before they are used.
///
/// Cloning is cheap. There is one refresh per user at a time across all tasks, and across all
/// processes that share the store. It runs in a task of its own, so a caller who goes away cancels
/// nothing. Call [`shutdown`](Self::shutdown) before the runtime ends: a token that the store has
/// not taken by then is lost.
///
/// ```
/// use hurdlr_oauth2::store::MemoryStore;
/// use hurdlr_oauth2::testing::FakeHurdlr;
/// use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fake = FakeHurdlr::start().await?;
/// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
///     .environment(fake.base_url())
///     .build()?;
/// let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
///
/// let user = manager.enterprise_user(&UserId::new("customer-4711")?);
/// let token = user.token().await?; // granted once, then served from memory
/// assert!(token.authorization_header().is_sensitive());
///
/// let unfinished = manager.shutdown().await;
/// assert!(unfinished.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TokenManager {
    users: Arc<Users>,
    context: Arc<Context>,
}

/// Settings of a [`TokenManager`], validated by [`build`](Self::build).
#[must_use = "a builder does nothing until it is built"]
#[derive(Debug)]
pub struct TokenManagerBuilder {
    hurdlr: Hurdlr,
    store: Arc<dyn TokenStore>,
    policy: RefreshPolicy,
    cache_capacity: usize,
    max_concurrent_refreshes: usize,
    revalidate_after: Duration,
    shutdown_within: Duration,
}

impl TokenManagerBuilder {
    /// How many users are kept in memory; 100,000 by default. A user who was evicted comes back
    /// from the store. Users whom a handle or a task holds stay in memory beside those.
    pub fn cache_capacity(mut self, users: usize) -> Self {
        self.cache_capacity = users;
        self
    }

    /// When tokens are refreshed, and how long that may take.
    pub fn refresh_policy(mut self, policy: RefreshPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// How many users this manager refreshes at once, warming included; 64 by default. Users with
    /// waiting callers go before those who are refreshed in the background. A request that the
    /// provider leaves unanswered for half a second makes room for the next; up to four times as
    /// many of those can be open beside the others.
    pub fn max_concurrent_refreshes(mut self, refreshes: usize) -> Self {
        self.max_concurrent_refreshes = refreshes;
        self
    }

    /// Maximum staleness: a login, refresh or removal by another process is visible here within
    /// this time. Defaults to 60 s.
    ///
    /// A user who is read is compared with the store in the background, many users in one query,
    /// once half of this has passed since the last look. Nobody waits for it: a user whom nobody
    /// had read for longer is served once more as last seen. While the store fails, living tokens
    /// are served on.
    pub fn revalidate_after(mut self, span: Duration) -> Self {
        self.revalidate_after = span;
        self
    }

    /// How long [`TokenManager::shutdown`] lasts at most; 20 s by default. Platforms often kill a
    /// process 30 s after they asked it to end.
    pub fn shutdown_within(mut self, span: Duration) -> Self {
        self.shutdown_within = span;
        self
    }

    /// Validates the settings. Background tasks run on the Tokio runtime this is called from: a
    /// runtime that nobody drives, such as a `current_thread` runtime outside of `block_on`,
    /// refreshes nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) names the setting that cannot be used, or
    /// says that there is no runtime.
    pub fn build(self) -> Result<TokenManager, Error> {
        let runtime = Handle::try_current().map_err(|source| {
            Error::config("a token manager has to be built on a tokio runtime").caused_by(source)
        })?;
        let problems = [
            (self.cache_capacity == 0, "cache_capacity is 0: no user could be served"),
            (
                self.max_concurrent_refreshes == 0,
                "max_concurrent_refreshes is 0: no token could be refreshed",
            ),
            (
                self.revalidate_after < Duration::from_millis(1),
                "revalidate_after is less than a millisecond: every read would ask the store",
            ),
            (self.shutdown_within.is_zero(), "shutdown_within is 0: nothing could be saved"),
        ];
        if let Some((_, problem)) = problems.into_iter().find(|(is_wrong, _)| *is_wrong) {
            return Err(Error::config(problem));
        }
        let policy = self.policy.validated()?;
        #[cfg(feature = "metrics")]
        metrics::describe();
        let (clock, rng) = (self.hurdlr.clock().clone(), self.hurdlr.rng().clone());
        let (revalidation, queue) = mpsc::channel(revalidate::MAX_QUEUED);
        let placeholder = CachedToken::new(Token::placeholder(&clock), None, Phases::default());
        let context = Arc::new(Context {
            realm: Arc::new(self.hurdlr.realm()),
            store: StoreCalls::new(self.store, clock.clone()),
            policy,
            holder: (rng.next_u64() >> 1).max(1),
            revalidate_after: self.revalidate_after / 2,
            placeholder: Arc::new(placeholder),
            permits: Permits::new(self.max_concurrent_refreshes),
            pins: entry::Pins::default(),
            revalidation,
            tasks: TaskTracker::new(),
            closing: watch::Sender::new(None),
            shutdown_within: self.shutdown_within,
            runtime,
            clock,
            rng,
            hurdlr: self.hurdlr,
        });
        let users = Arc::new(Users::new(self.cache_capacity, Arc::clone(&context)));
        context.runtime.spawn(revalidate::run(queue));
        outage::watch(&users, &context);
        let manager = TokenManager { users, context };
        #[cfg(feature = "metrics")]
        manager.spawn_expiry_gauge();
        Ok(manager)
    }
}

/// Work that [`TokenManager::shutdown`] could not finish in time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// The user.
    pub user: UserId,
    /// The work.
    pub work: UnfinishedWork,
}

/// The kind of [`Unfinished`] work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnfinishedWork {
    /// A login is still being completed. Its code may be spent: the person has to log in again if
    /// the process ends.
    Login,
    /// A refresh is still running. If its answer comes after the end of the process, a rotated
    /// refresh token is lost.
    Refresh,
    /// The store has not taken the user's newest token. It ends with the process.
    Save,
    /// A token is not revoked yet. Where the store took its record, another process finishes it.
    Revocation,
}

impl TokenManager {
    /// A manager of the tokens that `hurdlr` gets, kept in `store`. It goes by the clock of
    /// `hurdlr`, since tokens do.
    pub fn builder(hurdlr: Hurdlr, store: impl TokenStore) -> TokenManagerBuilder {
        TokenManagerBuilder {
            hurdlr,
            store: Arc::new(store),
            policy: RefreshPolicy::default(),
            cache_capacity: 100_000,
            max_concurrent_refreshes: 64,
            revalidate_after: Duration::from_secs(60),
            shutdown_within: Duration::from_secs(20),
        }
    }

    /// The client that tokens are obtained by.
    #[must_use]
    pub fn hurdlr(&self) -> &Hurdlr {
        &self.context.hurdlr
    }

    /// How many users are in memory, with those who were looked up and never had a token.
    #[must_use]
    pub fn users_in_memory(&self) -> usize {
        self.users.shards().map(|shard| shard.len()).sum()
    }

    /// Asks the store whether it answers, for a readiness check.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Store`](crate::ErrorKind::Store) where it does not.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    pub async fn check(&self) -> Result<(), Error> {
        self.context.check_store().await
    }

    /// A user who logged in, or was imported. They are never granted a token silently: without a
    /// living refresh token they are [`ErrorKind::LoginRequired`](crate::ErrorKind::LoginRequired).
    #[must_use]
    #[inline]
    pub fn user(&self, id: &UserId) -> UserHandle {
        UserHandle::new(self.users.entry(RowKind::Login, id))
    }

    /// Whether `user` is a handle of this manager, or of a clone of it.
    #[cfg(any(feature = "middleware", feature = "tower"))]
    pub(crate) fn has_made(&self, user: &UserHandle) -> bool {
        Arc::ptr_eq(&user.entry.context, &self.context)
    }

    /// A user whose token is granted by client credentials, whenever that is needed. Nothing is
    /// sent until somebody reads.
    #[must_use]
    #[inline]
    pub fn enterprise_user(&self, id: &UserId) -> UserHandle {
        UserHandle::new(self.users.entry(RowKind::Enterprise, id))
    }

    /// The partner itself, whose token no user stands behind. It is granted by client credentials
    /// without a `userId`, and kept as an enterprise user's is.
    ///
    /// Reading it is [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) on v4 and v5, which
    /// have no such tokens. The handle's [`id`](UserHandle::id) is no user's.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/prelude.rs"));
    /// # fn main() -> Outcome { example(async |_fake, manager| { // of v6
    /// let token = manager.partner().token().await?;
    /// assert!(!token.is_expired());
    /// # Ok(()) }) }
    /// ```
    #[must_use]
    pub fn partner(&self) -> UserHandle {
        UserHandle::new(self.users.entry(RowKind::Partner, &UserId::internal("partner")))
    }

    /// Completes a login, once across all processes that share the store: redeems its state,
    /// exchanges the code of its callback, and [takes over](Self::adopt) the token. `false` says
    /// that the state was redeemed before, and that nothing was sent: a callback that is loaded
    /// twice sends its code once, and a provider that revokes everything when a code comes twice
    /// has no cause to.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/prelude.rs"));
    /// # fn main() -> Outcome { example(async |fake, manager| {
    /// # let ann = UserId::new("ann")?;
    /// let (url, pending) = manager.hurdlr().begin_login()?;
    /// let callback = fake.consent(&url, "ann").await?; // she logs in, and is sent back
    ///
    /// assert!(manager.complete_login(&ann, pending, &callback).await?);
    /// assert!(manager.user(&ann).token().await.is_ok());
    /// # Ok(()) }) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Hurdlr::complete_login`] and [`adopt`](Self::adopt);
    /// [`ErrorKind::Store`](crate::ErrorKind::Store) where nobody can tell whether the state was
    /// redeemed before, and [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) once the
    /// shutdown has begun: nothing is sent then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: once it was polled, the login is completed, and [`shutdown`](Self::shutdown)
    /// waits for it.
    pub async fn complete_login(
        &self,
        id: &UserId,
        login: PendingLogin,
        callback: impl Into<Callback>,
    ) -> Result<bool, Error> {
        let (manager, id, callback) = (self.clone(), id.clone(), callback.into());
        let task = self.context.try_track().ok_or_else(refresh::shutting_down)?;
        let completed = self.context.spawn(async move {
            let _task = task;
            let entry = manager.users.entry(RowKind::Login, &id);
            // Has a shutdown name a login that outlasts it.
            entry.with(|state| state.logins += 1);
            scopeguard::defer!(entry.with(|state| state.logins -= 1));
            // A login that began on a machine whose clock is ahead may last as long again.
            let keep = 2 * LOGIN_LIFETIME;
            if !manager.context.store.redeem(&login.state_digest(), keep).await? {
                return Ok(false);
            }
            let token = manager.hurdlr().complete_login(login, callback).await?;
            manager.adopt_uncancellable(&id, token)?.await;
            Ok(true)
        });
        completed.await.map_err(|source| cut_off().caused_by(source))?
    }

    /// Takes over the token of a person who has just logged in.
    ///
    /// It always wins, even over a refresh in flight, and is served at once. Should the store fail,
    /// it is kept in memory and saved in the background as soon as possible: `Ok` says that the
    /// token is served, not that it is saved. [`shutdown`](Self::shutdown) names users whose token
    /// is unsaved at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) where the token has no refresh token: it
    /// could not be kept alive. [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) where the
    /// manager's runtime is gone.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: once it was polled, the login is taken over.
    pub async fn adopt(&self, id: &UserId, token: Token) -> Result<(), Error> {
        let adopted = self.context.spawn(self.adopt_uncancellable(id, token)?);
        adopted.await.map_err(|source| cut_off().caused_by(source))
    }

    /// The work of [`adopt`](Self::adopt), for a caller who runs it to its end.
    pub(crate) fn adopt_uncancellable(
        &self,
        id: &UserId,
        token: Token,
    ) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
        let task = self.context.tasks.token();
        let incarnation = self.context.random_id();
        let (entry, cached) = self.new_login(id, token, incarnation)?;
        Ok(async move {
            let _writing = entry.lock_writes().await;
            let mut login = Unsaved { cached: Arc::clone(&cached), over: None };
            match save::save(&entry, entry.epoch(), &mut login).await {
                Ok(()) => entry.install_login(&cached, None),
                Err(error) => {
                    tracing::warn!(user = ?entry.subject(), %error, "could not save a login; it is served from memory and saved later");
                    entry.install_login(&cached, Some(login.clone()));
                    save::spawn_save_retry(&entry, entry.epoch(), login, false);
                }
            }
            tracing::info!(user = ?entry.subject(), by = "login", "connected");
            drop(task);
        })
    }

    /// Takes over a token from elsewhere, unless the user has one already; says whether it did.
    ///
    /// Many replicas can import the same old table at the same time: nothing is replaced. Where an
    /// import failed, the same one can be made again: it says whether this token is the user's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) where the token has no refresh token,
    /// [`ErrorKind::Store`](crate::ErrorKind::Store) where the store failed: import it again then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: once it was polled, the import goes on.
    pub async fn import_if_absent(&self, id: &UserId, token: Token) -> Result<bool, Error> {
        // The same each time that this manager imports the token, so that a repetition finds what
        // an import put that seemed to fail.
        let incarnation = import_incarnation(self.context.holder, &token);
        let (entry, cached) = self.new_login(id, token, incarnation)?;
        let imported = self.context.spawn(import(entry, cached));
        imported.await.map_err(|source| cut_off().caused_by(source))?
    }

    /// Gets tokens for many enterprise users, and tells their outcomes in the order they come.
    ///
    /// Only so many run at once as
    /// [`max_concurrent_refreshes`](TokenManagerBuilder::max_concurrent_refreshes) allows. Users
    /// whose token lives cost no request, so a list that was broken off can simply be begun again.
    /// Dropping it ends the list, and not the refreshes under way.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/prelude.rs"));
    /// # fn main() -> Outcome { example(async |_fake, manager| {
    /// let users = [UserId::new("ann")?, UserId::new("bob")?];
    /// let mut warm = manager.warm(users);
    /// while let Some(warmed) = warm.next().await {
    ///     warmed.outcome?; // they have a living token now
    /// }
    /// # Ok(()) }) }
    /// ```
    pub fn warm<I>(&self, users: I) -> Warm
    where
        I: IntoIterator<Item = UserId>,
        I::IntoIter: Send + 'static,
    {
        Warm::new(self.clone(), users.into_iter())
    }

    /// Refreshes idle users, so that people need not log in again: walks the store's due users
    /// every `interval`, until the returned handle is stopped or dropped. A minute to an hour is
    /// good; it is at least the policy's [`initial_backoff`](RefreshPolicy::initial_backoff), and
    /// up to a second of jitter is added.
    ///
    /// One of the processes that share the store walks at a time. It visits each due user once, and
    /// finishes revocations that another process did not come to [finish](UserHandle::disconnect).
    #[must_use = "dropping it stops the walk"]
    pub fn keep_alive(&self, interval: Duration) -> KeepAlive {
        KeepAlive::start(Arc::clone(&self.users), Arc::clone(&self.context), interval)
    }

    /// Ends the manager's work within [`shutdown_within`](TokenManagerBuilder::shutdown_within). No
    /// refresh starts any more, not even one that is queued. Those that are running finish and are
    /// saved, and failed saves are tried again.
    ///
    /// Returns the work that could not be finished in time. A living token is served on afterwards;
    /// a user without one gets [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    ///
    /// Nothing starts any more even if this future is dropped. Called again, it waits again.
    pub async fn shutdown(&self) -> Vec<Unfinished> {
        let context = &self.context;
        let now = context.clock.now();
        context.closing.send_if_modified(|since| since.is_none() && since.replace(now).is_none());
        context.tasks.close();
        context.permits.close();
        tokio::select! {
            biased;
            () = context.tasks.wait() => {}
            () = context.clock.sleep(context.shutdown_within) => {}
        }
        let works = self.users.shards().flatten().flat_map(|entry| unfinished(&entry)).collect();
        context.pins.clear();
        works
    }

    /// Wraps a token from a login or import in a new incarnation of the user.
    fn new_login(
        &self,
        id: &UserId,
        token: Token,
        incarnation: u64,
    ) -> Result<(Arc<UserEntry>, Arc<CachedToken>), Error> {
        if token.refresh_token().is_none() {
            return Err(Error::config(
                "this token has no refresh token: a user who logged in could not be kept alive",
            ));
        }
        let entry = self.users.entry(RowKind::Login, id);
        let cached = entry.cache(token, Version { incarnation, revision: 1 });
        Ok((entry, Arc::new(cached)))
    }

    /// Sets the gauge that looks at all users, once a minute while the manager exists.
    #[cfg(feature = "metrics")]
    fn spawn_expiry_gauge(&self) {
        const MINUTE: Duration = Duration::from_secs(60);
        let (users, clock) = (Arc::downgrade(&self.users), self.context.clock.clone());
        self.context.runtime.spawn(async move {
            while let Some(users) = users.upgrade() {
                let mut expiring = 0;
                for shard in users.shards() {
                    let now = clock.now();
                    expiring +=
                        shard.iter().filter(|entry| entry.current.load().is_expiring(now)).count();
                    // A million users take longer than a runtime thread may be kept.
                    tokio::task::yield_now().await;
                }
                metrics::users_expiring(expiring);
                drop(users);
                clock.sleep(MINUTE).await;
            }
        });
    }
}

/// The work of [`TokenManager::import_if_absent`].
async fn import(entry: Arc<UserEntry>, cached: Arc<CachedToken>) -> Result<bool, Error> {
    let Some(version) = cached.version else {
        return Ok(false);
    };
    let context = &entry.context;
    save::save_unsaved(&entry).await?;
    let _writing = entry.lock_writes().await;
    for _ in 0..MAX_ROUNDS {
        let row = match context.store.read(&entry.key()).await? {
            Some(row) => row,
            None => context.make_row(&entry.key()).await?,
        };
        if let Some(there) = entry.decode(&row)? {
            let is_ours =
                there.version.is_some_and(|there| there.incarnation == version.incarnation);
            if is_ours {
                entry.install_login(&there, None); // it may have been refreshed since
            }
            return Ok(is_ours);
        }
        let save = Save { over: row.version, version, token: context.stored(&cached) };
        if context.store.save(&entry.key(), save).await? {
            entry.install_login(&cached, None);
            tracing::info!(user = ?entry.subject(), by = "import", "connected");
            return Ok(true);
        }
    }
    Err(row_changes())
}

/// The incarnation of an imported token: a digest of it and of the manager that imports it.
fn import_incarnation(holder: u64, token: &Token) -> u64 {
    let mut digest = Sha256::new_with_prefix(holder.to_be_bytes());
    let secret = token.refresh_token().unwrap_or(token.access_token());
    digest.update(secret.expose_secret());
    let number = digest.finalize().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
    (number >> 1).max(1)
}

/// The work that is still to be done for a user.
fn unfinished(entry: &UserEntry) -> Vec<Unfinished> {
    let works = entry.with(|state| {
        [
            (state.logins > 0, UnfinishedWork::Login),
            (state.flight.is_some(), UnfinishedWork::Refresh),
            (state.unsaved.is_some() || state.late_saves > 0, UnfinishedWork::Save),
            (state.unrevoked.0 > 0, UnfinishedWork::Revocation),
        ]
    });
    let left = works.into_iter().filter(|(is_left, _)| *is_left);
    left.map(|(_, work)| Unfinished { user: entry.subject().clone(), work }).collect()
}

impl fmt::Debug for TokenManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenManager")
            .field("realm", &self.context.realm)
            .field("users", &self.users_in_memory())
            .field("running", &self.context.tasks)
            .finish_non_exhaustive()
    }
}
