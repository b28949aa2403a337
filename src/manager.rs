//! `TokenManager`: every user's token alive, refreshed once, never lost.
//!
//! A token is *fresh* for most of its life, then *due*: still served, and refreshed in the
//! background. Only when it is *expired*, shortly before its end, do callers wait, all of them for
//! the same refresh. A token that lives is served, whatever fails meanwhile.
//!
//! There are two kinds of user, and the [partner](TokenManager::partner) itself. One who [logged in](TokenManager::user) is kept by their refresh
//! token, of which there is one copy; an [enterprise user](TokenManager::enterprise_user) is
//! granted a token anew whenever that is needed. The same id as the other kind is another user.

mod cache;
use cache::Users;
mod entry;
use entry::{Entry, Flight, Held};
mod handle;
pub use handle::{SharedToken, TokenEvents, TokenFuture, TokenGuard, UserHandle};
mod keep_alive;
pub use keep_alive::KeepAlive;
mod looks;
use looks::Looks;
mod meters;
mod policy;
pub use policy::RefreshPolicy;
mod refresh;
use refresh::{Refresh, Unsaved};
mod revocation;
pub use revocation::Disconnected;
mod running;
use running::{Counter, Landing};
mod warm;
pub use warm::{Warm, Warmed};
mod workers;
use workers::{Place, Workers};

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::client::Hurdlr;
use crate::clock::{SharedClock, Timestamp};
use crate::error::{Error, ErrorKind};
use crate::login::{LOGIN_LIFETIME, PendingLogin};
use crate::store::{Put, Realm, RowKind, StoreKey, TokenStore};
use crate::token::Token;
use crate::user::UserId;

/// Keeps the tokens of many users alive: cached, refreshed once, and saved before they are used.
///
/// Cloning is cheap. There is one refresh per user at a time across all tasks, and across all
/// processes that share the store. It runs in a task of its own: a caller who goes away cancels
/// nothing. Call [`shutdown`](Self::shutdown) before the runtime goes: what the store has not taken
/// by then is lost.
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
/// let failed = manager.shutdown().await;
/// assert!(failed.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TokenManager {
    users: Arc<Users>,
    inner: Arc<Inner>,
}

/// What keeping any user's token takes. Every entry has it, so that a handle is one reference.
///
/// Aligned, so that the count of those references, which each new user changes, lies in another
/// cache line than what every thread reads all the time.
#[repr(align(128))]
struct Inner {
    hurdlr: Hurdlr,
    store: Arc<dyn TokenStore>,
    realm: Arc<Realm>,
    policy: RefreshPolicy,
    vacant: Arc<Held>,
    workers: Arc<Workers<Refresh>>,
    at_once: usize,
    looks: Looks,
    look_after: Duration,
    runtime: Handle,
    clock: SharedClock,
    random: Arc<dyn Rng>,
    /// Set once, when nothing new may start: the end of what still runs.
    closing: watch::Sender<Option<Timestamp>>,
    running: Counter,
    lost: Mutex<Vec<UserId>>,
}

/// A source of random numbers: for jitter, and for ids that only have to differ.
pub trait Rng: fmt::Debug + Send + Sync + 'static {
    /// The next number; all 64 bits are random.
    fn next_u64(&self) -> u64;
}

/// The generator of each thread, seeded by the operating system.
#[derive(Clone, Copy, Debug, Default)]
struct ThreadRng;

impl Rng for ThreadRng {
    fn next_u64(&self) -> u64 {
        fastrand::u64(..)
    }
}

/// Settings of a [`TokenManager`]. All of them are judged by [`build`](Self::build).
#[must_use = "a builder does nothing until it is built"]
#[derive(Debug)]
pub struct TokenManagerBuilder {
    hurdlr: Hurdlr,
    store: Arc<dyn TokenStore>,
    policy: RefreshPolicy,
    cache_capacity: usize,
    max_concurrent_refreshes: usize,
    revalidate_after: Duration,
    random: Arc<dyn Rng>,
}

impl TokenManagerBuilder {
    /// How many users are kept in memory; 100,000 by default. One who was evicted comes back from
    /// the store. Users whom somebody holds, or whose refresh is under way, or whose token is not
    /// saved yet, are not evicted: while there are more of those, there are more in memory.
    pub fn cache_capacity(mut self, users: usize) -> Self {
        self.cache_capacity = users;
        self
    }

    /// When tokens are renewed, and how long that may take.
    pub fn refresh_policy(mut self, policy: RefreshPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// How many users this manager refreshes at once, warming included; 64 by default. Users whose callers wait go before
    /// those who are renewed in the background.
    pub fn max_concurrent_refreshes(mut self, requests: usize) -> Self {
        self.max_concurrent_refreshes = requests;
        self
    }

    /// Within what time it is known here what another process did: a login, a refresh, a removal
    /// of a user; 60 s by default.
    ///
    /// A user who is read is compared with the store again, in the background and many users in one
    /// query, once half of this has passed since the last look. Nobody waits for it: a user whom
    /// nobody had read for longer is served once more as last seen. While the store fails, living
    /// tokens are served on.
    pub fn revalidate_after(mut self, span: Duration) -> Self {
        self.revalidate_after = span;
        self
    }

    /// Where jitter and ids come from; a generator seeded by the operating system by default.
    /// Another is for tests: ids that repeat would let one process's lease pass for another's.
    pub fn rng(mut self, random: impl Rng) -> Self {
        self.random = Arc::new(random);
        self
    }

    /// Judges the settings, and takes the tokio runtime it is called on for all that runs in the
    /// background.
    ///
    /// An [`ErrorKind::Config`] names what cannot be used, or says that there is no runtime.
    pub fn build(self) -> Result<TokenManager, Error> {
        let runtime = Handle::try_current().map_err(|source| {
            Error::config("a token manager has to be built on a tokio runtime").caused_by(source)
        })?;
        if self.cache_capacity == 0 {
            return Err(Error::config("cache_capacity is 0: no user could be served"));
        }
        if self.max_concurrent_refreshes == 0 {
            return Err(Error::config(
                "max_concurrent_refreshes is 0: no token could be refreshed",
            ));
        }
        if self.revalidate_after < Duration::from_millis(1) {
            return Err(Error::config(format!(
                "revalidate_after ({:?}) is less than a millisecond: every read would ask the store",
                self.revalidate_after
            )));
        }
        let policy = self.policy.judged()?;
        let clock = self.hurdlr.clock().clone();
        let users = Arc::new(Users::new(self.cache_capacity)?);
        let inner = Arc::new(Inner {
            realm: Arc::new(self.hurdlr.realm()),
            hurdlr: self.hurdlr,
            store: self.store,
            policy,
            vacant: Arc::new(Held::vacant(Token::vacant(&clock))),
            workers: Workers::new(self.max_concurrent_refreshes),
            at_once: self.max_concurrent_refreshes,
            looks: Looks::default(),
            look_after: self.revalidate_after / 2,
            runtime,
            clock,
            random: self.random,
            closing: watch::Sender::new(None),
            running: Counter::default(),
            lost: Mutex::default(),
        });
        let manager = TokenManager { users, inner };
        #[cfg(feature = "metrics")]
        manager.sample();
        Ok(manager)
    }
}

/// What changed about a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenEvent {
    /// There is another token: refreshed, adopted, or found in the store.
    NewToken,
    /// The person has to log in again.
    LoginRequired,
    /// The person has to log in again, since an answer with their new refresh token was lost.
    RotationLost,
    /// The user was forgotten.
    Forgotten,
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
            random: Arc::new(ThreadRng),
        }
    }

    /// The client that tokens are obtained by.
    #[must_use]
    pub fn hurdlr(&self) -> &Hurdlr {
        &self.inner.hurdlr
    }

    /// How many users are in memory, with those who were looked up and never had a token.
    #[must_use]
    pub fn users_in_memory(&self) -> usize {
        self.users.len()
    }

    /// A user who logged in, or was imported. They are never granted a token silently: without a
    /// living refresh token they are [`ErrorKind::LoginRequired`].
    #[must_use]
    #[inline]
    pub fn user(&self, id: &UserId) -> UserHandle {
        UserHandle::new(self.users.entry(&self.inner, RowKind::Login, id))
    }

    /// A user whose token is granted by client credentials, whenever that is needed. Nothing is
    /// sent until somebody reads.
    #[must_use]
    #[inline]
    pub fn enterprise_user(&self, id: &UserId) -> UserHandle {
        UserHandle::new(self.users.entry(&self.inner, RowKind::Enterprise, id))
    }

    /// The partner itself, whose token no user stands behind. It is granted by client credentials
    /// without a `userId`, and kept as an enterprise user's is.
    ///
    /// Reading it is [`ErrorKind::Unsupported`] on v4 and v5, which have no such tokens. The
    /// handle's [`id`](UserHandle::id) is no user's.
    ///
    /// ```
    /// # use hurdlr_oauth2::store::MemoryStore;
    /// # use hurdlr_oauth2::testing::FakeHurdlr;
    /// # use hurdlr_oauth2::{ApiVersion, Hurdlr, TokenManager};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let fake = FakeHurdlr::start().await?;
    /// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
    ///     .environment(fake.base_url())
    ///     .api_version(ApiVersion::V6)
    ///     .build()?;
    /// let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
    ///
    /// let token = manager.partner().token().await?;
    /// # assert!(!token.is_expired());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn partner(&self) -> UserHandle {
        let nobody = UserId::internal("partner");
        UserHandle::new(self.users.entry(&self.inner, RowKind::Partner, &nobody))
    }

    /// Redeems the state of a login: says whether this is the first time, in all processes that share
    /// the store.
    ///
    /// Ask it before [`Hurdlr::complete_login`], and go on only if it is: a callback that is loaded
    /// twice then sends its code once, and a provider that revokes everything when a code comes
    /// twice has no cause to. [`ErrorKind::Store`] where nobody can tell.
    ///
    /// ```
    /// # use hurdlr_oauth2::store::MemoryStore;
    /// # use hurdlr_oauth2::testing::FakeHurdlr;
    /// # use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let fake = FakeHurdlr::start().await?;
    /// # let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
    /// #     .environment(fake.base_url())
    /// #     .authorize_url(fake.authorize_url())
    /// #     .redirect_uri("https://app.example.com/callback")
    /// #     .build()?;
    /// # let manager = TokenManager::builder(hurdlr.clone(), MemoryStore::new()).build()?;
    /// # let ann = UserId::new("ann")?;
    /// let (url, pending) = hurdlr.begin_login()?;
    /// let callback = fake.consent(&url, "ann").await?; // she logs in, and is sent back
    ///
    /// if manager.redeem(&pending).await? {
    ///     let token = hurdlr.complete_login(pending, &callback).await?;
    ///     manager.adopt(&ann, token).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn redeem(&self, login: &PendingLogin) -> Result<bool, Error> {
        // A login that began on a machine whose clock is ahead may last as long again.
        self.inner.store.redeem(&login.state_digest(), 2 * LOGIN_LIFETIME).await
    }

    /// Takes over the token of a person who has just logged in.
    ///
    /// It always wins, even over a refresh under way, and is served at once. Should the store fail,
    /// it is kept in memory and saved again and again in the background: `Ok` says that the token
    /// is served, not that it is saved. Who is unsaved at the end, [`shutdown`](Self::shutdown)
    /// names.
    ///
    /// [`ErrorKind::Config`] where the token has no refresh token: it could not be kept alive.
    /// [`ErrorKind::Unavailable`] where the manager's runtime is gone.
    pub async fn adopt(&self, id: &UserId, token: Token) -> Result<(), Error> {
        // In a task of its own: a caller who goes away must not take the new login along.
        let adopted = self.inner.runtime.spawn(self.adopting(id, token)?);
        adopted.await.map_err(|source| abandoned().caused_by(source))
    }

    /// The work of [`adopt`](Self::adopt), for those who see to it that it comes to its end.
    pub(crate) fn adopting(
        &self,
        id: &UserId,
        token: Token,
    ) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
        let inner = Arc::clone(&self.inner);
        let counted = inner.running.count_one();
        let (entry, incarnation, held) = self.arrival(id, token)?;
        Ok(async move {
            let _turn = entry.turn().await;
            let stored = inner.stored(&held);
            let saved = inner.store.put(&entry.key(), incarnation, stored, Put::Replace).await;
            entry.take_over(&held, saved.is_ok());
            if let Err(error) = saved {
                tracing::warn!(user = ?entry.subject(), %error, "a login is not saved yet");
                inner.keep_saving(&entry, &held, Unsaved::Login);
            }
            drop(counted);
        })
    }

    /// Takes over a token from elsewhere, unless the user has one already; says whether it did.
    ///
    /// Many replicas can import the same old table at the same time: nothing is replaced.
    ///
    /// [`ErrorKind::Config`] where the token has no refresh token, [`ErrorKind::Store`] where the
    /// store failed: import it again then, nothing was kept.
    pub async fn import_if_absent(&self, id: &UserId, token: Token) -> Result<bool, Error> {
        let inner = &self.inner;
        let (entry, incarnation, held) = self.arrival(id, token)?;
        let _turn = entry.turn().await;
        if entry.with(|troubles| troubles.unsaved_login.is_some()) {
            return Ok(false); // of which the store does not know yet
        }
        let stored = inner.stored(&held);
        let put = inner.store.put(&entry.key(), incarnation, stored, Put::IfAbsent).await?;
        if put {
            entry.take_over_if_vacant(&held);
        }
        Ok(put)
    }

    /// Gets tokens for many enterprise users: a stream of outcomes, in the order they come.
    ///
    /// Only so many run at once as [`max_concurrent_refreshes`](TokenManagerBuilder::max_concurrent_refreshes)
    /// allows. Users whose token lives cost no request, so a list that was broken off can simply
    /// be begun again. Dropping it ends the list, and not the refreshes under way.
    ///
    /// ```
    /// # use hurdlr_oauth2::store::MemoryStore;
    /// # use hurdlr_oauth2::testing::FakeHurdlr;
    /// # use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let fake = FakeHurdlr::start().await?;
    /// # let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
    /// #     .environment(fake.base_url())
    /// #     .build()?;
    /// # let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
    /// let users = [UserId::new("ann")?, UserId::new("bob")?];
    /// let mut warm = manager.warm(users);
    /// while let Some(warmed) = warm.next().await {
    ///     warmed.outcome?;
    /// }
    /// assert_eq!(warm.ready(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn warm<I>(&self, users: I) -> Warm
    where
        I: IntoIterator<Item = UserId>,
        I::IntoIter: Send + 'static,
    {
        Warm::new(self.clone(), Box::new(users.into_iter()))
    }

    /// Keeps the tokens of users alive whom nobody reads, so that people need not log in again:
    /// walks the store's due users every `interval`, until what it returns is stopped or dropped.
    /// A minute to an hour is good; it is at least the policy's
    /// [`initial_backoff`](RefreshPolicy::initial_backoff), and up to a second of jitter is added.
    ///
    /// Of all processes that share the store one walks at a time. It also has the tokens revoked that
    /// another process was to have [revoked](UserHandle::disconnect), and did not come to.
    #[must_use = "dropping it stops the walk"]
    pub fn keep_alive(&self, interval: Duration) -> KeepAlive {
        KeepAlive::start(self.clone(), interval)
    }

    /// Ends the manager's work: no refresh starts any more, those under way finish and are saved,
    /// and what could not be saved or revoked is tried again until the
    /// [`deadline`](RefreshPolicy::refresh_timeout) of a refresh has passed.
    ///
    /// Returns the users whose newest token could not be saved, and those of whom a token could not
    /// be revoked. A living token is served on
    /// afterwards; a user without one gets [`ErrorKind::Unavailable`].
    pub async fn shutdown(&self) -> Vec<UserId> {
        let inner = &self.inner;
        let now = inner.clock.now();
        inner
            .closing
            .send_if_modified(|closing| closing.is_none() && closing.replace(now).is_none());
        inner.running.close();
        inner.running.none_left().await;
        let lost = inner.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.clone()
    }

    /// What a token becomes that came by another way than a refresh.
    fn arrival(&self, id: &UserId, token: Token) -> Result<(Arc<Entry>, u64, Arc<Held>), Error> {
        if token.refresh_token().is_none() {
            return Err(Error::config(
                "this token has no refresh token: a user who logged in could not be kept alive",
            ));
        }
        let entry = self.users.entry(&self.inner, RowKind::Login, id);
        let incarnation = self.inner.random_id();
        let version = crate::store::Version { incarnation, revision: 1 };
        let held = self.inner.hold(&entry, token, version);
        Ok((entry, incarnation, held))
    }

    /// Sets the gauge that takes a look at all users, once a minute for as long as the manager is
    /// there.
    #[cfg(feature = "metrics")]
    fn sample(&self) {
        const MINUTE: Duration = Duration::from_secs(60);
        const DAY: Duration = Duration::from_secs(86_400);
        let (sampled, clock) = (Arc::downgrade(&self.users), self.inner.clock.clone());
        self.inner.runtime.spawn(async move {
            while let Some(users) = sampled.upgrade() {
                meters::ending_within_a_day(users.ending_within(DAY, clock.now()));
                drop(users);
                clock.sleep(MINUTE).await;
            }
        });
    }
}

fn abandoned() -> Error {
    Error::new(ErrorKind::Unavailable, "the runtime of the token manager was shut down")
}

impl Inner {
    fn key(&self, kind: RowKind, subject: &UserId) -> StoreKey {
        StoreKey::new(Arc::clone(&self.realm), kind, subject.clone())
    }

    /// A number below 2⁶³, and not 0: databases know signed integers.
    fn random_id(&self) -> u64 {
        (self.random.next_u64() >> 1).max(1)
    }

    /// Runs what must come to an end, whoever waits for it.
    fn spawn<F>(&self, work: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let counted = self.running.count_one();
        self.runtime.spawn(async move {
            let outcome = work.await;
            drop(counted);
            outcome
        })
    }

    /// Joins the refresh under way, or starts one; an error where it is not time for one.
    fn join(self: &Arc<Self>, entry: &Arc<Entry>, urgent: bool) -> Result<Landing, Error> {
        entry.with(|troubles| {
            // One that has come and is still here was abandoned.
            let under_way = troubles.flight.as_mut().filter(|flight| !flight.landing.has_come());
            if let Some(flight) = under_way {
                flight.urgent |= urgent;
                if urgent && let Some(ticket) = flight.ticket.take() {
                    self.workers.hurry(ticket);
                }
                return Ok(flight.landing.clone());
            }
            let pause = troubles.backoff.left(&self.clock);
            if let Some(error) = troubles.backoff.error.as_ref().filter(|_| !pause.is_zero()) {
                return Err(error.clone());
            }
            let counted = self.running.count_one_unless_closed().ok_or_else(|| {
                Error::new(ErrorKind::Unavailable, "the token manager is shutting down")
            })?;
            let (lander, landing) = Landing::expected();
            let refresh = Refresh { entry: Arc::clone(entry), lander, counted };
            let flight = troubles.flight.insert(Flight::new(landing.clone(), urgent));
            if pause.is_zero() {
                self.begin(flight, refresh);
                return Ok(landing);
            }
            // A pause takes no worker from those who could use it.
            let inner = Arc::clone(self);
            self.runtime.spawn(async move {
                inner.clock.sleep(pause).await;
                let entry = Arc::clone(&refresh.entry);
                entry.with(|troubles| {
                    if let Some(flight) = &mut troubles.flight {
                        inner.begin(flight, refresh);
                    }
                });
            });
            Ok(landing)
        })
    }

    /// Has a refresh done as soon as there is a worker for it.
    fn begin(self: &Arc<Self>, flight: &mut Flight, refresh: Refresh) {
        let (mut worker, mut refresh) = match self.workers.enter(refresh, flight.urgent) {
            Place::Urgent => return,
            Place::Patient(ticket) => {
                flight.ticket = Some(ticket);
                return;
            }
            Place::New(worker, refresh) => (worker, refresh),
        };
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            loop {
                inner.refresh(refresh).await;
                match worker.next().await {
                    Some(next) => refresh = next,
                    None => break,
                }
            }
        });
    }

    /// Waits before another try; near the end not for long.
    async fn sleep_unless_closing(&self, pause: Duration) {
        let mut closing = self.closing.subscribe();
        let is_closing = closing.borrow_and_update().is_some();
        let pause = if is_closing { pause.min(self.policy.shortest_pause()) } else { pause };
        tokio::select! {
            () = self.clock.sleep(pause) => {}
            _ = closing.changed() => {}
        }
    }

    fn is_past_closing(&self) -> bool {
        let (_, deadline) = self.policy.lease_and_deadline();
        let closing = *self.closing.borrow();
        closing.is_some_and(|since| self.clock.now().since(since) >= deadline)
    }

    fn gave_up_on(&self, subject: &UserId, what: &'static str) {
        tracing::error!(user = ?subject, "{what}");
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(subject.clone());
    }
}

impl fmt::Debug for TokenManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenManager")
            .field("realm", &self.inner.realm)
            .field("users", &self.users)
            .field("running", &self.inner.running)
            .finish_non_exhaustive()
    }
}
