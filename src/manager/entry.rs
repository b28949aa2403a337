//! One user in memory: the token that is served and the state beside it; and the context that all
//! users share.
//!
//! `current` is read without a lock. Everything else is behind one lock, and so is every change of
//! `current`. The state takes memory only while there is something to keep.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::cached_token::{AccessTokenDigest, CachedToken};
use super::flight::Flight;
use super::permits::Permits;
use super::policy::RefreshPolicy;
use super::store_calls::StoreCalls;
use crate::backoff::Backoff;
use crate::client::Hurdlr;
use crate::clock::{SharedClock, Timestamp};
use crate::error::{Error, ErrorKind};
use crate::metrics;
use crate::rng::SharedRng;
use crate::store::{Claim, Realm, Release, Row, RowKind, StoreKey, StoredToken, Version};
use crate::token::{Notes, Token};
use crate::wire::user::UserId;

/// How often work on a row starts over because the row has changed in between.
pub(super) const MAX_ROUNDS: u32 = 5;

/// The error after as many rounds.
pub(super) fn row_changes() -> Error {
    Error::store("the user's row is changing concurrently")
}

/// State shared by all users. Every entry holds an `Arc` to it, so a handle is a single pointer.
///
/// Aligned to 128 bytes so that the `Arc` count, written for each new user, does not share a cache
/// line with fields that every read looks at.
#[repr(align(128))]
pub(super) struct Context {
    pub(super) hurdlr: Hurdlr,
    pub(super) store: StoreCalls,
    pub(super) realm: Arc<Realm>,
    pub(super) policy: RefreshPolicy,
    /// The holder of this manager's leases.
    pub(super) holder: u64,
    /// Half of the setting of this name, which keeps users who are read all the time within it.
    pub(super) revalidate_after: Duration,
    pub(super) placeholder: Arc<CachedToken>,
    pub(super) permits: Permits,
    pub(super) pins: Pins,
    /// The users to be compared with the store next.
    pub(super) revalidation: mpsc::Sender<Arc<UserEntry>>,
    pub(super) tasks: TaskTracker,
    /// Set once, when the shutdown begins.
    pub(super) closing: watch::Sender<Option<Timestamp>>,
    pub(super) shutdown_within: Duration,
    pub(super) runtime: Handle,
    pub(super) clock: SharedClock,
    pub(super) rng: SharedRng,
}

impl Context {
    pub(super) fn key(&self, kind: RowKind, subject: &UserId) -> StoreKey {
        StoreKey::new(Arc::clone(&self.realm), kind, subject.clone())
    }

    /// The key of the row by which processes agree who walks.
    pub(super) fn keep_alive_lock(&self) -> StoreKey {
        self.key(RowKind::KeepAliveLock, &UserId::internal("keep_alive"))
    }

    /// Asks the store whether it answers.
    pub(super) async fn check_store(&self) -> Result<(), Error> {
        self.store.read(&self.keep_alive_lock()).await.map(drop)
    }

    /// A number below 2⁶³, and not 0: databases know signed integers.
    pub(super) fn random_id(&self) -> u64 {
        (self.rng.next_u64() >> 1).max(1)
    }

    /// This manager's claim on a row that is at the version `known`, or is to be made without a
    /// token.
    pub(super) fn claim(&self, known: Option<Version>, creates: bool) -> Claim {
        let create = creates.then(|| self.random_id());
        Claim { holder: self.holder, lease: self.policy.lease, known, create }
    }

    /// Makes a row without a token, to save one over it. Returns the row that is there: somebody
    /// else may have been first.
    pub(super) async fn make_row(&self, key: &StoreKey) -> Result<Row, Error> {
        self.store.claim(key, self.claim(None, true)).await?.row.ok_or_else(row_changes)
    }

    pub(super) fn delay(&self, backoff: Backoff, failures: u32) -> Duration {
        backoff.delay(failures, self.rng.next_u64())
    }

    /// Spawns a task that `shutdown` waits for, even if its caller goes away.
    pub(super) fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tasks.spawn_on(work, &self.runtime)
    }

    /// Counts a task that must not begin once the shutdown has.
    pub(super) fn try_track(&self) -> Option<TaskTrackerToken> {
        // Counted first: then the shutdown waits for it, or is seen here.
        let token = self.tasks.token();
        (!self.tasks.is_closed()).then_some(token)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.borrow().is_some()
    }

    /// Whether the time of the shutdown is over.
    pub(super) fn is_past_closing(&self) -> bool {
        let closing = *self.closing.borrow();
        closing.is_some_and(|since| self.clock.now().since(since) >= self.shutdown_within)
    }

    /// Waits for the end of `work`, or until the shutdown begins.
    pub(super) async fn until_closing(&self, work: impl Future<Output = ()>) {
        let mut closing = self.closing.subscribe();
        tokio::select! {
            () = work => {}
            _ = closing.wait_for(Option::is_some) => {}
        }
    }

    /// Waits before another try. A shutdown cuts the wait short once, and later ones to the
    /// shortest backoff.
    pub(super) async fn sleep_unless_closing(&self, pause: Duration) {
        let mut closing = self.closing.subscribe();
        let is_closing = closing.borrow_and_update().is_some();
        let pause = if is_closing { pause.min(self.policy.backoff.initial) } else { pause };
        tokio::select! {
            () = self.clock.sleep(pause) => {}
            _ = closing.changed() => {}
        }
    }

    pub(super) fn stored(&self, cached: &CachedToken) -> StoredToken {
        cached.to_stored(self.clock.now())
    }
}

/// Users who stay in memory although nobody holds them, since they know what the store does not: a
/// token that the API refused, or a pause.
#[derive(Default)]
pub(super) struct Pins(Mutex<Vec<Arc<UserEntry>>>);

impl Pins {
    /// Keeps a user for as long as that is needed. The others are looked through as rarely as they
    /// double, so that a pin costs the same however many there are.
    pub(super) fn pin_if_needed(&self, entry: &Arc<UserEntry>) {
        if !entry.needs_pin() {
            return;
        }
        let mut pinned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pinned.len() == pinned.capacity() {
            pinned.retain(|entry| entry.needs_pin());
            pinned.sort_by_key(|entry| Arc::as_ptr(entry).addr());
            pinned.dedup_by(|entry, other| Arc::ptr_eq(entry, other));
            let (room, most) = (pinned.len() + 64, 2 * pinned.len() + 64);
            pinned.shrink_to(most); // after an incident fewer are needed
            pinned.reserve(room);
        }
        pinned.push(Arc::clone(entry));
    }

    /// Lets all users go. They hold what holds the pins.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// An event of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenEvent {
    /// There is another token: refreshed, from a login, or found in the store.
    NewToken,
    /// The person has to log in again. Sent once, however often the token is read.
    LoginRequired,
    /// The person has to log in again, since an answer with their new refresh token was lost.
    RotationLost,
    /// The user was removed.
    Forgotten,
}

/// A user's place in memory.
pub(super) struct UserEntry {
    pub(super) context: Arc<Context>,
    kind: RowKind,
    subject: UserId,
    pub(super) current: ArcSwap<CachedToken>,
    state: Mutex<Locked>,
}

#[derive(Default)]
struct Locked {
    /// Goes up with each login and removal here. A refresh or a look at the store that began under
    /// another epoch changes nothing any more.
    epoch: u32,
    state: Option<Box<UserState>>,
}

/// The state of a user beside the token.
#[derive(Debug, Default)]
pub(super) struct UserState {
    /// The refresh in flight.
    pub(super) flight: Option<Flight>,
    pub(super) pause: Pause,
    /// The kind of the last [`TokenEvent::LoginRequired`] or `RotationLost` that was sent.
    told: Option<ErrorKind>,
    /// Refusals by the provider that may mean the refresh token or the client, since the first.
    pub(super) doubt: Option<Refusals>,
    /// The end of an attempt that the store has not been told.
    pub(super) unreleased: Option<Unreleased>,
    /// A token that the store has not taken yet.
    pub(super) unsaved: Option<Unsaved>,
    /// How many tokens of an earlier epoch are still to be saved. They are not served.
    pub(super) late_saves: usize,
    /// The access tokens that the API refused, until the store has another one.
    refused: Vec<RefusedToken>,
    /// Refusals by the API that were believed, each of a token that had replaced a refused one, and
    /// when the last one was.
    pub(super) refusals: Option<Refusals>,
    /// How many tokens are still to be revoked, and why the last try failed.
    pub(super) unrevoked: (usize, Option<Error>),
    /// How many logins are being completed.
    pub(super) logins: usize,
    write_lock: Option<Arc<tokio::sync::Mutex<()>>>,
    events: Option<watch::Sender<TokenEvent>>,
}

/// When the next attempt may begin, and why not now.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// How many attempts in a row brought nothing better.
    pub(super) failures: u32,
    since: Option<(Timestamp, Duration)>,
    /// `None` where nothing failed: the provider returned a token that was due on arrival.
    pub(super) error: Option<Error>,
    /// When the store was looked at last, if that was during the pause.
    pub(super) looked_at: Option<Timestamp>,
}

impl Pause {
    pub(super) fn begin(&mut self, now: Timestamp, pause: Duration, error: Option<Error>) {
        let failures = self.failures.saturating_add(1);
        let since = Some((now, pause));
        *self = Self { failures, since, error, looked_at: None };
    }

    /// Time since a refresh brought a token that was due on arrival, if that is the reason for the
    /// pause.
    pub(super) fn since_renewal(&self, now: Timestamp) -> Option<Duration> {
        self.since.filter(|_| self.error.is_none()).map(|(from, _)| now.since(from))
    }

    /// Time since the store was last looked at; zero where there is no pause.
    pub(super) fn since_look(&self, now: Timestamp) -> Duration {
        let last = self.looked_at.or(self.since.map(|(from, _)| from));
        last.map_or(Duration::ZERO, |last| now.since(last))
    }

    /// Whether the provider asked for it.
    fn is_asked_for(&self) -> bool {
        self.error.as_ref().is_some_and(|error| error.retry_after().is_some())
    }

    pub(super) fn left(&self, clock: &SharedClock) -> Duration {
        let left = |(from, pause): (_, Duration)| pause.saturating_sub(clock.now().since(from));
        self.since.map_or(Duration::ZERO, left)
    }
}

/// A [`TokenStore::release`](crate::store::TokenStore::release) that has not reached the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unreleased {
    pub(super) version: Version,
    pub(super) release: Release,
    pub(super) since: Timestamp,
}

/// Refusals in a row, counted from the first or timed by the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusals {
    pub(super) count: u32,
    pub(super) at: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct RefusedToken {
    digest: AccessTokenDigest,
    since: Timestamp,
    /// The rest of its life then.
    lasts: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Unsaved {
    pub(super) cached: Arc<CachedToken>,
    /// The version of the row over which it was saved, by a call of which nobody knows whether it
    /// took effect. `None` for a login for which the store has not answered yet.
    pub(super) over: Option<Version>,
}

impl UserState {
    fn is_idle(&self) -> bool {
        self.flight.is_none()
            && self.pause.since.is_none()
            && self.doubt.is_none()
            && self.unreleased.is_none()
            && self.unsaved.is_none()
            && self.late_saves == 0
            && self.refused.is_empty()
            && self.refusals.is_none()
            && self.unrevoked.0 == 0
            && self.logins == 0
            && self.told.is_none()
            && self.write_lock.as_ref().is_none_or(|lock| Arc::strong_count(lock) == 1)
            && self.events.as_ref().is_none_or(watch::Sender::is_closed)
    }

    fn tell(&self, event: TokenEvent) {
        self.events.as_ref().map(|events| events.send_replace(event));
    }

    /// Tells that the login is over, unless that was told before. Says whether it was news.
    pub(super) fn tell_login_over(&mut self, kind: ErrorKind) -> bool {
        let event = match kind {
            ErrorKind::LoginRequired => TokenEvent::LoginRequired,
            ErrorKind::RotationLost => TokenEvent::RotationLost,
            _ => return false,
        };
        let is_news = self.told.replace(kind) != Some(kind);
        if is_news {
            self.tell(event);
        }
        is_news
    }

    /// Whether the provider refused the refresh token for good, as far as is known here.
    pub(super) fn is_login_over(&self) -> bool {
        self.pause.error.as_ref().is_some_and(Error::needs_login) && self.doubt.is_none()
    }

    /// Forgets all that concerned a user who is no more. A pause that the provider asked for goes
    /// on, whoever they are by then.
    fn reset_removed(&mut self) {
        let pause = std::mem::take(&mut self.pause);
        self.reset();
        if pause.is_asked_for() {
            self.pause = pause;
        }
    }

    /// Forgets all that concerned the token before.
    fn reset(&mut self) {
        self.pause = Pause::default();
        self.told = None;
        self.doubt = None;
        self.unreleased = None;
        self.unsaved = None;
    }

    /// The access tokens that the API refused.
    pub(super) fn refused(&self) -> Vec<AccessTokenDigest> {
        self.refused.iter().map(|refused| refused.digest).collect()
    }

    /// Takes a refusal back: the provider was asked for another token after it, and stands by this
    /// one.
    pub(super) fn take_refusal_back(&mut self, token: &Token, asked: &[AccessTokenDigest]) {
        let digest = AccessTokenDigest::of(token);
        if asked.contains(&digest) {
            self.refused.retain(|refused| refused.digest != digest);
        }
    }

    pub(super) fn is_refused(&self, token: &Token) -> bool {
        let digest = AccessTokenDigest::of(token);
        self.refused.iter().any(|refused| refused.digest == digest)
    }
}

impl fmt::Debug for UserEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserEntry")
            .field("kind", &self.kind)
            .field("user", &self.subject)
            .finish_non_exhaustive()
    }
}

impl UserEntry {
    pub(super) fn new(context: &Arc<Context>, kind: RowKind, subject: &UserId) -> Self {
        let current = ArcSwap::new(Arc::clone(&context.placeholder));
        let (context, subject) = (Arc::clone(context), subject.clone());
        Self { context, kind, subject, current, state: Mutex::default() }
    }

    #[inline]
    pub(super) fn is(&self, kind: RowKind, subject: &UserId) -> bool {
        self.kind == kind && self.subject == *subject
    }

    pub(super) fn kind(&self) -> RowKind {
        self.kind
    }

    pub(super) fn subject(&self) -> &UserId {
        &self.subject
    }

    /// The user's key in the store. Made anew each time: entries are kept small.
    pub(super) fn key(&self) -> StoreKey {
        self.context.key(self.kind, &self.subject)
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at or changes the user's state, all at once. A state that is idle afterwards is freed.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut UserState) -> T) -> T {
        self.with_epoch(|_, state| act(state))
    }

    fn with_epoch<T>(&self, act: impl FnOnce(&mut u32, &mut UserState) -> T) -> T {
        let mut locked = self.lock();
        let mut state = locked.state.take().unwrap_or_default();
        let outcome = act(&mut locked.epoch, &mut state);
        locked.state = Some(state).filter(|state| !state.is_idle());
        outcome
    }

    pub(super) fn epoch(&self) -> u32 {
        self.lock().epoch
    }

    /// The epoch and the token that belongs to it, for a look at the store. `None` where the store
    /// does not know the token yet, so that its answer would say nothing.
    pub(super) fn snapshot(&self) -> Option<(u32, Arc<CachedToken>)> {
        let locked = self.lock();
        let is_saved = locked.state.as_ref().is_none_or(|state| state.unsaved.is_none());
        is_saved.then(|| (locked.epoch, self.current.load_full()))
    }

    /// Waits for the right to put a login into the store or to remove the user, so that the last
    /// change of the store is the last one of memory.
    pub(super) async fn lock_writes(&self) -> impl Drop {
        let lock = self.with(|state| Arc::clone(state.write_lock.get_or_insert_default()));
        scopeguard::guard(lock.lock_owned().await, |locked| {
            drop(locked);
            self.with(|_| ()); // frees the state if this was the last waiter
        })
    }

    pub(super) fn cache(&self, token: Token, version: Version) -> CachedToken {
        let phases = self.context.policy.phases(&token, self.kind, &self.subject);
        CachedToken::new(token, Some(version), phases)
    }

    /// Decodes a row: the one way from a store to memory. `None` where the row has no token.
    pub(super) fn decode(&self, row: &Row) -> Result<Option<Arc<CachedToken>>, Error> {
        let Some(stored) = &row.token else {
            return Ok(None);
        };
        let token = Token::from_payload(&stored.payload, stored.age, &self.context.clock)?;
        let cached = self.cache(token, row.version);
        let superseded = match self.kind {
            RowKind::Login => Vec::new(),
            _ => Notes::of_payload(&stored.payload).superseded,
        };
        Ok(Some(Arc::new(cached.with_superseded(superseded))))
    }

    /// Serves a token that a refresh or a look at the store brought, `unsaved` where the store has
    /// not taken it; unless the user logged in or was removed since `epoch`, or a newer token is
    /// there. Says whether it is served now.
    ///
    /// A later revision of the login that is served is always taken.
    pub(super) fn install(
        &self,
        epoch: u32,
        cached: &Arc<CachedToken>,
        unsaved: Option<Unsaved>,
    ) -> bool {
        self.with_epoch(|current_epoch, state| {
            let current = self.current.load();
            let is_older = cached.version.is_some_and(|version| current.is_newer_than(version));
            // A refresh can begin with the row of a login that is not served here yet.
            let is_successor = current.version.is_some_and(|version| cached.is_newer_than(version));
            if is_older || (*current_epoch != epoch && !is_successor) {
                return false;
            }
            if !Arc::ptr_eq(&current, cached) {
                state.reset();
            } else if state.pause.error.as_ref().is_some_and(|it| it.kind() == ErrorKind::Store) {
                // It is saved now, and the store's failures paused it. Any other pause goes on.
                state.pause = Pause::default();
            }
            state.unsaved = unsaved;
            self.replace(state, cached);
            if cached.is_fresh(self.context.clock.now()) {
                state.flight.iter().for_each(Flight::abandon); // there is nothing to wait for
            }
            true
        })
    }

    /// Like [`install`](Self::install), for a token that another process put into the store. It
    /// explains why the API refused the one before.
    pub(super) fn adopt(&self, epoch: u32, theirs: &Arc<CachedToken>) {
        let was_refused = self.current.load().is_rejected();
        let failures = self.with(|state| state.pause.failures);
        if !self.install(epoch, theirs, None) {
            return;
        }
        metrics::adopted(self.kind);
        self.with(|state| {
            if was_refused {
                let others = state.refusals.filter(|refusals| refusals.count > 1);
                state.refusals =
                    others.map(|refusals| Refusals { count: refusals.count - 1, ..refusals });
            }
            if theirs.is_due_on_arrival(self.context.policy.backoff.initial) {
                state.pause.failures = failures;
            }
        });
    }

    /// Serves a token that came by a login or an import. A refresh in flight changes nothing any
    /// more. Nothing is done where a refresh or a look found the login in the store first, and
    /// serves it or its successor.
    pub(super) fn install_login(&self, cached: &Arc<CachedToken>, unsaved: Option<Unsaved>) {
        self.with_epoch(|epoch, state| {
            let incarnation = |cached: &CachedToken| cached.version.map(|it| it.incarnation);
            if incarnation(&self.current.load()) == incarnation(cached) {
                return;
            }
            *epoch = epoch.wrapping_add(1);
            state.flight.iter().for_each(Flight::abandon);
            state.reset();
            state.refusals = None;
            state.unsaved = unsaved;
            self.replace(state, cached);
        });
    }

    /// Removes the user from memory. A refresh in flight changes nothing any more. Returns the
    /// token that was served.
    pub(super) fn evict(self: &Arc<Self>) -> Arc<CachedToken> {
        let last = self.with_epoch(|epoch, state| {
            *epoch = epoch.wrapping_add(1);
            state.flight.iter().for_each(Flight::abandon);
            state.reset_removed();
            self.replace(state, &self.context.placeholder)
        });
        self.context.pins.pin_if_needed(self);
        last
    }

    /// Serves nothing any more, as the store no longer has the user, unless the user logged in or
    /// was removed since `epoch`.
    pub(super) fn clear(self: &Arc<Self>, epoch: u32) {
        self.with_epoch(|current_epoch, state| {
            if *current_epoch == epoch && self.current.load().version.is_some() {
                state.reset_removed();
                self.replace(state, &self.context.placeholder);
            }
        });
        self.context.pins.pin_if_needed(self);
    }

    /// Replaces the current token. A token that the API refused stays refused, by whatever way it
    /// comes back. Returns the token before.
    fn replace(&self, state: &mut UserState, cached: &Arc<CachedToken>) -> Arc<CachedToken> {
        if cached.version.is_some() && !state.refused.is_empty() {
            if state.is_refused(&cached.token) {
                cached.reject();
            } else if state.unsaved.is_none() {
                // Until the store has the new token, it can bring the refused one back.
                state.refused.clear();
            }
        }
        let last = self.current.swap(Arc::clone(cached));
        match (last.version, cached.version) {
            (None, None) => {}
            _ if Arc::ptr_eq(&last, cached) => {} // it is saved now
            (Some(_), None) => state.tell(TokenEvent::Forgotten),
            (_, Some(_)) => state.tell(TokenEvent::NewToken),
        }
        last
    }

    /// Remembers that the API refused this token, and serves it no more.
    pub(super) fn refuse(&self, state: &mut UserState, token: &Token) {
        let lasts = token.remaining().unwrap_or(Duration::MAX);
        let (digest, since) = (AccessTokenDigest::of(token), self.context.clock.now());
        state.refused.push(RefusedToken { digest, since, lasts });
        let current = self.current.load();
        if current.version.is_some() && state.is_refused(&current.token) {
            current.reject();
        }
    }

    /// Whether the user must stay in memory: the store would serve a refused token again, or does
    /// not know of a pause or of the end of an attempt.
    fn needs_pin(&self) -> bool {
        let now = self.context.clock.now();
        self.with(|state| {
            let is_paused = state.pause.is_asked_for();
            state.unreleased.is_some()
                || (is_paused && !state.pause.left(&self.context.clock).is_zero())
                || state.refused.iter().any(|refused| now.since(refused.since) < refused.lasts)
        })
    }

    /// Notes when the store was looked at; `None` if that failed.
    pub(super) fn looked(&self, cached: &CachedToken, asked: Option<Timestamp>) {
        match cached.version {
            Some(_) => cached.looked(asked),
            None => self.with(|state| state.pause.looked_at = asked),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<TokenEvent> {
        let make = || watch::Sender::new(TokenEvent::NewToken);
        self.with(|state| state.events.get_or_insert_with(make).subscribe())
    }
}
