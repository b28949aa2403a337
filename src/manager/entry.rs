//! One user in memory: the token that is served, and what is known beside it.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
#[cfg(any(feature = "middleware", feature = "tower"))]
use http::HeaderValue;
#[cfg(any(feature = "middleware", feature = "tower"))]
use once_cell::race::OnceBox;
use secrecy::ExposeSecret;
use tokio::sync::{OwnedMutexGuard, watch};

use super::policy::{RefreshPolicy, Windows};
use super::workers::Ticket;
use super::{Inner, Landing, TokenEvent};
use crate::clock::{SharedClock, Timestamp};
use crate::error::Error;
use crate::store::{RowKind, StoreKey, Version};
use crate::token::Token;
use crate::user::UserId;

/// No second: nobody has looked at the token yet.
const NOT_SEEN: i64 = i64::MIN;

/// No second: the API refused the token.
const REJECTED: i64 = i64::MAX;

/// A token with all that reading it needs.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) token: Token,
    /// None for the place holder that stands for no token.
    pub(super) version: Option<Version>,
    windows: Windows,
    /// The second of the day's time in which glances do; [`REJECTED`] for good once the API
    /// refused it.
    glances_in: AtomicI64,
    /// How long it had been held, in milliseconds, when the store was last known to have it.
    seen_after: AtomicU64,
    #[cfg(any(feature = "middleware", feature = "tower"))]
    authorization: OnceBox<HeaderValue>,
}

impl Held {
    pub(super) fn new(
        token: Token,
        version: Version,
        policy: &RefreshPolicy,
        kind: RowKind,
        subject: &UserId,
    ) -> Self {
        let windows = policy.windows(&token, kind, subject);
        Self::of(token, Some(version), windows)
    }

    pub(super) fn vacant(token: Token) -> Self {
        Self::of(token, None, Windows { due: 0, expired: 0, over: 0 })
    }

    fn of(token: Token, version: Option<Version>, windows: Windows) -> Self {
        Self {
            token,
            version,
            windows,
            glances_in: AtomicI64::new(NOT_SEEN),
            seen_after: AtomicU64::new(0),
            #[cfg(any(feature = "middleware", feature = "tower"))]
            authorization: OnceBox::new(),
        }
    }

    /// The header that calls share for as long as they are made with this token.
    #[cfg(any(feature = "middleware", feature = "tower"))]
    pub(super) fn authorization(&self) -> HeaderValue {
        self.authorization.get_or_init(|| Box::new(self.token.authorization_header())).clone()
    }

    pub(super) fn is_newer_than(&self, version: Version) -> bool {
        self.version.is_some_and(|ours| ours.is_newer_than(version))
    }

    /// Whether it is of the same stay of the user as `other`, and came at the same time or later.
    pub(super) fn is_no_older_than(&self, other: &Self) -> bool {
        self.version == other.version
            || other.version.is_some_and(|theirs| self.is_newer_than(theirs))
    }

    /// Whether there is a token to be revoked.
    pub(super) fn has_token(&self) -> bool {
        self.version.is_some() && !self.token.is_gone()
    }

    /// Whether it is what became of `earlier`: of the same stay, or with the same secrets.
    pub(super) fn carries_on(&self, earlier: &Self) -> bool {
        let same_stay = self.version.is_some_and(|version| !earlier.is_of_another_stay(version));
        (same_stay && self.has_token()) || self.token.shares_secrets_with(&earlier.token)
    }

    /// Whether it is of an earlier or later stay of the user than this version.
    pub(super) fn is_of_another_stay(&self, version: Version) -> bool {
        self.version.is_some_and(|ours| ours.incarnation != version.incarnation)
    }

    #[inline]
    fn held_for(&self, now: Timestamp) -> u64 {
        now.millis_since(self.token.arrival().0)
    }

    /// Served, and nothing to be done.
    pub(super) fn is_fresh(&self, now: Timestamp) -> bool {
        self.held_for(now) < self.windows.due && !self.is_rejected()
    }

    /// How long the store has not been looked at.
    pub(super) fn unseen_for(&self, now: Timestamp) -> Duration {
        let seen_after = self.seen_after.load(Ordering::Relaxed);
        Duration::from_millis(self.held_for(now).saturating_sub(seen_after))
    }

    /// Lets glances do for the rest of this second, if there is nothing to be done for longer: it is
    /// not due, nor is it time to look at the store, `look_after` the last time.
    pub(super) fn allow_glances(&self, now: Timestamp, look_after: Duration) {
        let no_look_for = look_after.saturating_sub(self.unseen_for(now));
        if self.due_in(now).min(no_look_for) > Duration::from_secs(1) {
            let second = now.unix_seconds();
            let _ = self.glances_in.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
                (at != REJECTED).then_some(second)
            });
        }
    }

    /// Whether it was fresh a moment ago and so still is, by the clock that goes on while a machine
    /// is suspended.
    #[inline]
    pub(super) fn is_fresh_at_a_glance(&self, second: i64) -> bool {
        self.glances_in.load(Ordering::Relaxed) == second
    }

    /// Served, whether or not it is time to renew it.
    pub(super) fn is_served(&self, now: Timestamp) -> bool {
        self.held_for(now) < self.windows.expired && !self.is_rejected()
    }

    /// Good for a caller who could get nothing better.
    pub(super) fn is_alive(&self, now: Timestamp) -> bool {
        self.held_for(now) < self.windows.over && !self.is_rejected()
    }

    /// What is left of its life.
    pub(super) fn alive_for(&self, now: Timestamp) -> Duration {
        Duration::from_millis(self.windows.over.saturating_sub(self.held_for(now)))
    }

    #[cfg(feature = "metrics")]
    pub(super) fn ends_within(&self, span: Duration, now: Timestamp) -> bool {
        let left = self.windows.over.saturating_sub(self.held_for(now));
        (1..=u64::try_from(span.as_millis()).unwrap_or(u64::MAX)).contains(&left)
    }

    pub(super) fn due_in(&self, now: Timestamp) -> Duration {
        Duration::from_millis(self.windows.due.saturating_sub(self.held_for(now)))
    }

    /// Whether it is due so soon after its arrival that renewing it needs a pause.
    pub(super) fn is_short_lived(&self, pause: Duration) -> bool {
        Duration::from_millis(self.windows.due) < pause
    }

    #[inline]
    fn is_rejected(&self) -> bool {
        self.glances_in.load(Ordering::Relaxed) == REJECTED
    }

    fn has_same_access_token(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.token.access_token(), other.token.access_token());
        ours.expose_secret() == theirs.expose_secret()
    }

    /// Serves it no more; says whether it was served till now.
    pub(super) fn reject(&self) -> bool {
        self.glances_in.swap(REJECTED, Ordering::Relaxed) != REJECTED
    }
}

/// A user's place in the cache. It is pinned there while anybody holds it.
pub(super) struct Entry {
    pub(super) inner: Arc<Inner>,
    kind: RowKind,
    subject: UserId,
    pub(super) current: ArcSwap<Held>,
    /// Most users have nothing here most of the time.
    troubles: Mutex<Option<Box<Troubles>>>,
}

/// What is known of a user beside the token.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// The refresh that is under way.
    pub(super) flight: Option<Flight>,
    pub(super) backoff: Backoff,
    /// The lease of a series of attempts whose requests went unanswered, and what they consumed.
    pub(super) unanswered: Option<(u64, Version)>,
    /// A lease that may be held by us, since the store's answer about it was lost.
    pub(super) doubtful_lease: Option<u64>,
    /// How many tokens are still to be revoked, and why the last try failed.
    pub(super) unrevoked: (usize, Option<Error>),
    /// How often in a row the API refused a token that was young.
    pub(super) refusals: u32,
    /// A login that the store has not taken yet. None again once the user left or came in anew.
    pub(super) unsaved_login: Option<UnsavedLogin>,
    /// Whose turn it is to put a login into the store or to remove the user.
    turns: Option<Arc<tokio::sync::Mutex<()>>>,
    pub(super) changes: Option<watch::Sender<(u64, TokenEvent)>>,
    /// What was served when the look at the store began that is under way; none again once the
    /// user left or came in anew.
    look: Option<Arc<Held>>,
}

#[derive(Clone, Debug)]
pub(super) struct UnsavedLogin {
    pub(super) held: Arc<Held>,
    /// The incarnation that the store had when it first answered after the login, the one to be
    /// replaced: 0, which none is, where there was none.
    pub(super) over: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) landing: Landing,
    /// Its place in the queue for a worker, while nobody waits for it.
    pub(super) ticket: Option<Ticket>,
    /// Somebody waits for it.
    pub(super) urgent: bool,
    /// The lease is its own: its request may have been sent.
    pub(super) sends: bool,
    /// The user came in anew or was forgotten meanwhile: what comes of it is not taken.
    pub(super) overtaken: bool,
}

impl Flight {
    pub(super) fn new(landing: Landing, urgent: bool) -> Self {
        Self { landing, ticket: None, urgent, sends: false, overtaken: false }
    }
}

/// When the next attempt may begin, and what callers are told until then.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    pub(super) failures: u32,
    pub(super) since: Option<(Timestamp, Duration)>,
    /// None where there is nothing wrong, and an attempt only has to wait a moment.
    pub(super) error: Option<Error>,
    /// When the store was looked at last, if that was after the failure.
    seen: Option<Timestamp>,
}

impl Backoff {
    pub(super) fn left(&self, clock: &SharedClock) -> Duration {
        let left = |(from, pause): (_, Duration)| pause.saturating_sub(clock.now().since(from));
        self.since.map_or(Duration::ZERO, left)
    }

    /// How long the store has not been looked at: not at all, where the next attempt will.
    fn unseen_for(&self, now: Timestamp) -> Duration {
        let seen = self.seen.or(self.since.map(|(from, _)| from));
        seen.map_or(Duration::ZERO, |seen| now.since(seen))
    }
}

impl Troubles {
    fn is_idle(&self) -> bool {
        self.flight.is_none()
            && self.backoff.since.is_none()
            && self.unanswered.is_none()
            && self.doubtful_lease.is_none()
            && self.unrevoked.0 == 0
            && self.refusals == 0
            && self.unsaved_login.is_none()
            && self.look.is_none()
            && self.turns.as_ref().is_none_or(|turns| Arc::strong_count(turns) == 1)
            && self.changes.as_ref().is_none_or(watch::Sender::is_closed)
    }

    /// The login that is not saved yet, if it is this one.
    pub(super) fn unsaved(&mut self, login: &Arc<Held>) -> Option<&mut UnsavedLogin> {
        let unsaved = self.unsaved_login.as_mut();
        unsaved.filter(|unsaved| Arc::ptr_eq(&unsaved.held, login))
    }

    pub(super) fn is_overtaken(&self) -> bool {
        let flight = self.flight.as_ref();
        flight.is_some_and(|flight| flight.overtaken)
    }

    fn overtake(&mut self) {
        self.backoff = Backoff::default();
        self.unanswered = None;
        self.doubtful_lease = None;
        self.unsaved_login = None;
        self.look = None;
        if let Some(flight) = &mut self.flight {
            flight.overtaken = true;
        }
    }

    pub(super) fn tell(&self, change: TokenEvent) {
        if let Some(changes) = &self.changes {
            changes.send_modify(|(count, last)| {
                *count += 1;
                *last = change;
            });
        }
    }
}

/// The turn of one who changes what the store knows of a user, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    entry: &'a Entry,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        // Nobody may be left to take a turn, and then there is nothing to keep it in.
        self.entry.with(|_| ());
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("kind", &self.kind())
            .field("user", self.subject())
            .finish_non_exhaustive()
    }
}

impl Entry {
    pub(super) fn new(inner: &Arc<Inner>, kind: RowKind, subject: &UserId) -> Self {
        let current = ArcSwap::new(Arc::clone(&inner.vacant));
        let (inner, subject) = (Arc::clone(inner), subject.clone());
        Self { inner, kind, subject, current, troubles: Mutex::new(None) }
    }

    pub(super) fn kind(&self) -> RowKind {
        self.kind
    }

    pub(super) fn subject(&self) -> &UserId {
        &self.subject
    }

    /// Where the user stands in the store. Made anew each time: entries are kept small.
    pub(super) fn key(&self) -> StoreKey {
        self.inner.key(self.kind, &self.subject)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Troubles>>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at or changes what is known of the user, all at once. What is idle afterwards takes
    /// no memory.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Troubles) -> T) -> T {
        let mut place = self.lock();
        let mut troubles = place.take().unwrap_or_default();
        let outcome = act(&mut troubles);
        *place = Some(troubles).filter(|troubles| !troubles.is_idle());
        outcome
    }

    /// Whether the user came in anew or was forgotten since the refresh under way began.
    pub(super) fn is_overtaken(&self) -> bool {
        self.with(|troubles| troubles.is_overtaken())
    }

    /// Serves a refreshed token, unless the user came in anew or was forgotten meanwhile.
    pub(super) fn serve(&self, held: &Arc<Held>) {
        self.with(|troubles| {
            if troubles.is_overtaken() {
                return;
            }
            self.replace(troubles, held);
        });
    }

    /// Waits for the turn to put a login into the store or to remove the user from it, so that
    /// what the store saw last is what memory holds.
    pub(super) async fn turn(&self) -> Turn<'_> {
        let turns = self.with(|troubles| Arc::clone(troubles.turns.get_or_insert_default()));
        Turn { entry: self, guard: Some(turns.lock_owned().await) }
    }

    /// Serves a token that came in anew; what a refresh under way brings is not taken any more.
    pub(super) fn take_over(&self, held: &Arc<Held>, is_saved: bool) {
        self.with(|troubles| self.begin_anew(troubles, held, is_saved));
    }

    /// As [`take_over`](Self::take_over), where nothing is served.
    pub(super) fn take_over_if_vacant(&self, held: &Arc<Held>) {
        self.with(|troubles| {
            if self.current.load().version.is_none() {
                self.begin_anew(troubles, held, true);
            }
        });
    }

    fn begin_anew(&self, troubles: &mut Troubles, held: &Arc<Held>, is_saved: bool) {
        troubles.overtake();
        troubles.refusals = 0;
        troubles.unsaved_login =
            (!is_saved).then(|| UnsavedLogin { held: Arc::clone(held), over: None });
        self.current.store(Arc::clone(held));
        troubles.tell(TokenEvent::NewToken);
    }

    /// Serves nothing for this user any more, nor what a refresh under way brings. Returns what was
    /// served.
    pub(super) fn leave(&self) -> Arc<Held> {
        self.with(|troubles| {
            troubles.overtake();
            let last = self.current.swap(Arc::clone(&self.inner.vacant));
            if last.version.is_some() {
                troubles.tell(TokenEvent::Forgotten);
            }
            last
        })
    }

    /// The refresh under way will send its request, if it has not yet.
    pub(super) fn begin_sending(&self) {
        self.with(|troubles| {
            if let Some(flight) = &mut troubles.flight {
                flight.sends = true;
            }
        });
    }

    /// The end of the refresh under way, if its request may have been sent.
    pub(super) fn refresh_that_sends(&self) -> Option<Landing> {
        self.with(|troubles| {
            let flight = troubles.flight.as_ref().filter(|flight| flight.sends);
            flight.map(|flight| flight.landing.clone())
        })
    }

    /// How long the store has not been looked at for this user.
    pub(super) fn unseen_for(&self, now: Timestamp) -> Duration {
        let held = self.current.load();
        if held.version.is_some() {
            held.unseen_for(now)
        } else {
            self.lock().as_ref().map_or(Duration::ZERO, |troubles| troubles.backoff.unseen_for(now))
        }
    }

    /// A look at the store begins.
    pub(super) fn begin_look(&self) {
        self.with(|troubles| troubles.look = Some(self.current.load_full()));
    }

    /// A look at the store came to nothing.
    pub(super) fn give_up_look(&self) {
        self.with(|troubles| troubles.look = None);
    }

    /// What the store's answer is to be compared with, and when it was asked for. None where that
    /// says nothing any more: the user left or came in anew since, and the store may not know yet.
    pub(super) fn seen(&self, asked: Timestamp) -> Option<Arc<Held>> {
        self.with(|troubles| {
            let held = troubles.look.clone().filter(|_| troubles.unsaved_login.is_none())?;
            held.seen_after.store(held.held_for(asked), Ordering::Relaxed);
            if held.version.is_none() && troubles.backoff.since.is_some() {
                troubles.backoff.seen = Some(asked);
            }
            Some(held)
        })
    }

    /// Ends a look at the store: serves `instead` of what was served when it began, if there is
    /// something and that still is. Says whether it was so.
    pub(super) fn end_look(&self, instead: Option<Arc<Held>>) -> bool {
        self.with(|troubles| {
            let seen = troubles.look.take();
            let Some((seen, instead)) = seen.zip(instead) else {
                return false;
            };
            if !Arc::ptr_eq(&seen, &self.current.load()) {
                return false;
            }
            self.replace(troubles, &instead);
            troubles.backoff = Backoff::default();
            true
        })
    }

    /// Serves `instead` of what the store no longer has, unless another token has come in.
    pub(super) fn clear(&self, gone: Option<Version>, instead: &Arc<Held>) {
        self.with(|troubles| {
            if self.current.load().version == gone {
                self.replace(troubles, instead);
            }
        });
    }

    fn replace(&self, troubles: &mut Troubles, instead: &Arc<Held>) {
        troubles.unanswered = None;
        let last = self.current.swap(Arc::clone(instead));
        if last.is_rejected() && last.has_same_access_token(instead) {
            instead.reject();
        }
        match (last.version, instead.version) {
            (None, None) => {}
            (Some(_), None) => troubles.tell(TokenEvent::Forgotten),
            (_, Some(_)) => troubles.tell(TokenEvent::NewToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, pending};
    use std::pin::Pin;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::clock::{Clock, SharedClock};

    const LONG: Duration = Duration::MAX;
    const START: Duration = Duration::from_secs(1_700_000_000);

    #[derive(Debug)]
    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Timestamp {
            after(Duration::ZERO)
        }

        fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(pending())
        }
    }

    /// So long after the token came, on both clocks.
    fn after(span: Duration) -> Timestamp {
        Timestamp::new(START + span, UNIX_EPOCH + START + span)
    }

    fn after_ms(millis: u64) -> Timestamp {
        after(Duration::from_millis(millis))
    }

    /// A token that is due ten seconds after it came.
    fn held() -> Held {
        let mut held = Held::vacant(Token::vacant(&SharedClock::new(Stopped)));
        held.windows = Windows { due: 10_000, expired: 20_000, over: 30_000 };
        held
    }

    #[test]
    fn glances_do_until_the_second_is_over() {
        let held = held();
        assert!(!held.is_fresh_at_a_glance(after_ms(0).unix_seconds()), "nobody has looked yet");
        held.allow_glances(after_ms(5_200), LONG);
        assert!(held.is_fresh_at_a_glance(after_ms(5_999).unix_seconds()));
        assert!(!held.is_fresh_at_a_glance(after_ms(6_000).unix_seconds()));
    }

    #[test]
    fn a_clock_that_was_set_back_is_not_believed_at_a_glance() {
        let held = held();
        held.allow_glances(after_ms(5_000), LONG);
        assert!(!held.is_fresh_at_a_glance(after_ms(4_999).unix_seconds()));
        assert!(!held.is_fresh_at_a_glance(0));
    }

    #[test]
    fn a_token_due_within_a_second_is_looked_at_every_time() {
        let held = held();
        held.allow_glances(after_ms(9_000), LONG);
        assert!(!held.is_fresh_at_a_glance(after_ms(9_000).unix_seconds()));
    }

    #[test]
    fn a_token_that_the_api_refused_is_not_fresh_at_a_glance() {
        let held = held();
        held.allow_glances(after_ms(1_000), LONG);
        assert!(held.reject());
        assert!(!held.is_fresh_at_a_glance(after_ms(1_000).unix_seconds()));
        // By a reader who had seen it fresh just before.
        held.allow_glances(after_ms(1_000), LONG);
        assert!(!held.is_fresh_at_a_glance(after_ms(1_000).unix_seconds()));
        assert!(!held.is_served(after_ms(1_000)));
    }
}
