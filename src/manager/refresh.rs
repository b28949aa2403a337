//! One refresh, from the claim to the saved token.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::entry::{Backoff, Entry, Held};
use super::meters::{self, Gauged, Source};
use super::running::{Counted, Lander};
use super::{Inner, TokenEvent};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::store::{Claim, Put, Release, Row, RowKind, StoreKey, StoredToken, Version};
use crate::token::Token;

/// What an attempt ends with if not with a token.
struct Failure {
    error: Error,
    /// How long to leave the user alone; none for the policy's own backoff.
    pause: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, pause: None }
    }
}

/// Whose token is kept after a refresh.
enum Kept {
    Ours,
    /// A peer's, or nobody's.
    Theirs,
}

/// One attempt to get a user a living token.
pub(super) struct Attempt {
    entry: Arc<Entry>,
    key: StoreKey,
    started: Timestamp,
    lease_id: u64,
}

/// A refresh that is to be done, whoever still waits for it. Dropped before its end, it is
/// abandoned.
pub(super) struct Refresh {
    pub(super) entry: Arc<Entry>,
    pub(super) lander: Lander,
    pub(super) counted: Counted,
}

impl Inner {
    /// Does a refresh. One that panics ends by itself alone.
    pub(super) async fn refresh(&self, refresh: Refresh) {
        let Refresh { entry, lander, counted } = refresh;
        let mut attempt = pin!(self.attempt(&entry));
        let attempted = poll_fn(|context| {
            let polled = catch_unwind(AssertUnwindSafe(|| attempt.as_mut().poll(context)));
            polled.unwrap_or_else(|_| Poll::Ready(Err(unavailable("the refresh panicked"))))
        });
        let outcome = attempted.await;
        entry.with(|troubles| troubles.flight = None);
        lander.land(outcome);
        drop(counted);
    }

    async fn attempt(&self, entry: &Arc<Entry>) -> Result<(), Error> {
        let begun = entry.with(|troubles| {
            if troubles.is_overtaken() {
                return None;
            }
            // A series of unanswered attempts goes on under its lease; and one that may be ours
            // need not end first.
            let doubtful = troubles.doubtful_lease.take();
            let lease_id = troubles.unanswered.map(|(id, _)| id).or(doubtful);
            let unsaved_login = troubles.unsaved_login.as_ref();
            Some((lease_id, unsaved_login.map(|login| Arc::clone(&login.held))))
        });
        let Some((lease_id, unsaved_login)) = begun else {
            return Ok(());
        };
        let attempt = Attempt {
            key: entry.key(),
            started: self.clock.now(),
            lease_id: lease_id.unwrap_or_else(|| self.random_id()),
            entry: Arc::clone(entry),
        };
        let ended = attempt.run(unsaved_login).await;
        let outcome = ended.as_ref().map(|source| *source).map_err(|failure| failure.error.kind());
        meters::ended(entry.kind(), outcome, || self.clock.now().since(attempt.started));
        match ended {
            Ok(_) => {
                attempt.recover();
                Ok(())
            }
            // What went wrong concerned a token that is no longer the user's: the callers who wait
            // look again.
            Err(_) if entry.is_overtaken() => Ok(()),
            Err(failure) => {
                attempt.back_off(&failure);
                Err(failure.error)
            }
        }
    }
}

impl Attempt {
    async fn run(&self, unsaved_login: Option<Arc<Held>>) -> Result<Source, Failure> {
        if let Some(login) = unsaved_login {
            // Till then the row is that of an earlier stay, or there is none.
            self.entry.inner.save_login(&self.entry, &login).await?;
        }
        let mut held = self.entry.current.load_full();
        if held.is_fresh(self.started) {
            // Another refresh was over between the caller's look and the start of this one.
            return Ok(Source::Adopted);
        }
        if held.version.is_none() && self.entry.kind() == RowKind::Login {
            let row = self.read().await?.filter(|row| row.token.is_some());
            let row = row.ok_or_else(|| login_required("nobody has logged in as this user"))?;
            held = self.adopt_from_store(row)?;
            if held.is_served(self.entry.inner.clock.now()) {
                return Ok(Source::Adopted);
            }
        }
        let Some(row) = self.claim(&mut held).await? else {
            return Ok(Source::Adopted);
        };
        match self.send(&held, &row).await {
            Ok(token) => {
                self.keep(token, row.version).await?;
                tracing::debug!(user = ?self.entry.subject(), "refresh finished");
                Ok(Source::Refreshed)
            }
            Err(error) => Err(self.settle(error, &held, &row).await),
        }
    }

    fn left(&self, now: Timestamp) -> Option<Duration> {
        let (_, deadline) = self.entry.inner.policy.lease_and_deadline();
        deadline.checked_sub(now.since(self.started)).filter(|left| !left.is_zero())
    }

    async fn read(&self) -> Result<Option<Row>, Error> {
        self.entry.inner.read(&self.key).await
    }

    /// Waits until the lease is ours. None where a peer's token makes it needless.
    async fn claim(&self, held: &mut Arc<Held>) -> Result<Option<Row>, Failure> {
        let (lease, _) = self.entry.inner.policy.lease_and_deadline();
        loop {
            let asked = self.entry.inner.clock.now();
            let Some(left) = self.left(asked) else {
                return Err(
                    unavailable("another process is refreshing this user, and slowly").into()
                );
            };
            let claim = Claim {
                lease_id: self.lease_id,
                lease,
                expected: held.version,
                incarnation: self.entry.inner.random_id(),
            };
            // A row that is made here would bring a forgotten user back, and a token that has just
            // come in is not to be spent by a refresh of the one before.
            if self.entry.is_overtaken() {
                return Ok(None);
            }
            let claimed = self.entry.inner.store.claim(&self.key, claim).await;
            let claimed = claimed.inspect_err(|_| self.doubt_lease())?;
            let row = self.entry.inner.aged(claimed.row, asked);
            // A row of another stay, for which nobody has a token yet, says as much as none.
            let row =
                row.filter(|row| row.token.is_some() || !held.is_of_another_stay(row.version));
            let Some(row) = row else {
                self.entry.clear(held.version, &self.entry.inner.vacant);
                if self.entry.kind() == RowKind::Login {
                    return Err(login_required("this user was forgotten").into());
                }
                *held = Arc::clone(&self.entry.inner.vacant);
                continue;
            };
            if claimed.granted {
                self.entry.begin_sending();
                return Ok(Some(row));
            }
            if held.is_newer_than(row.version) {
                // Ours was not saved yet, or the store was put back to an earlier day.
                let inner = &self.entry.inner;
                let written = inner.write_back(&self.entry, held, row.version).await?;
                if let Some(written) = written {
                    *held = written;
                }
                continue;
            }
            if row.token.is_some() && held.version != Some(row.version) {
                *held = self.adopt_from_store(row)?;
                tracing::debug!(user = ?self.entry.subject(), "adopted a peer's token");
                if held.is_served(self.entry.inner.clock.now()) {
                    return Ok(None);
                }
                continue;
            }
            if row.refused {
                return Err(over(row.in_flight).into());
            }
            if let Some(pause) = row.not_before {
                let error = unavailable("another process has just failed to refresh this user");
                return Err(Failure { error, pause: Some(pause) });
            }
            let look_again = Duration::from_millis(50 + self.entry.inner.random.next_u64() % 950);
            let lease_ends = row.leased_for.unwrap_or(look_again);
            self.entry.inner.clock.sleep(look_again.min(lease_ends).min(left)).await;
        }
    }

    async fn send(&self, held: &Held, row: &Row) -> Result<Token, Error> {
        let Some(left) = self.left(self.entry.inner.clock.now()) else {
            return Err(unavailable("the time for this refresh was over before it was sent"));
        };
        tracing::debug!(user = ?self.entry.subject(), revision = row.version.revision, "refresh started");
        let hurdlr = &self.entry.inner.hurdlr;
        match self.entry.kind() {
            RowKind::Enterprise => hurdlr
                .grant_within(Some(self.entry.subject()), left)
                .await
                .map(Token::without_refresh_token),
            RowKind::Partner => {
                hurdlr.grant_within(None, left).await.map(Token::without_refresh_token)
            }
            _ => hurdlr.refresh_within(&held.token, left).await,
        }
    }

    /// Saves a token that has come, and only then hands it out.
    async fn keep(&self, token: Token, consumed: Version) -> Result<(), Failure> {
        let inner = &self.entry.inner;
        let held = inner.hold(&self.entry, token, consumed.next());
        let stored = inner.stored(&held);
        let saved = match inner.store.save(&self.key, consumed, stored).await {
            Ok(false) => self.yield_to_store(&held, consumed).await,
            saved => saved.map(|_| Kept::Ours),
        };
        match saved {
            Ok(Kept::Ours) => self.entry.serve(&held),
            Ok(Kept::Theirs) => return Ok(()),
            Err(error) => {
                tracing::warn!(user = ?self.entry.subject(), %error, "a new token is not saved yet");
                self.entry.serve(&held);
                inner.keep_saving(&self.entry, &held, Unsaved::Save(consumed));
            }
        }
        if held.is_alive(inner.clock.now()) {
            return Ok(());
        }
        let message = "the provider's token has no life left";
        Err(Error::new(ErrorKind::InvalidResponse, message).into())
    }

    fn recover(&self) {
        let inner = &self.entry.inner;
        let pause = inner.policy.shortest_pause();
        let short_lived = self.entry.current.load().is_short_lived(pause);
        self.entry.with(|troubles| {
            troubles.backoff = Backoff::default();
            if short_lived {
                troubles.backoff.since = Some((inner.clock.now(), pause));
            }
        });
    }

    /// The row has moved on: a peer won, or the user was forgotten or came in anew, and then nobody
    /// is to have our token. An error where that is not known, or where the store was put back to an
    /// earlier day: then our token is the newest.
    async fn yield_to_store(&self, ours: &Arc<Held>, consumed: Version) -> Result<Kept, Error> {
        let inner = &self.entry.inner;
        let theirs = match self.read().await? {
            Some(row) if ours.is_newer_than(row.version) => {
                return Err(Error::store("the store holds an earlier token"));
            }
            Some(row) if row.token.is_some() => {
                tracing::debug!(user = ?self.entry.subject(), "another's token was there first");
                Some(self.adopt_from_store(row)?)
            }
            _ => {
                tracing::debug!(user = ?self.entry.subject(), "the user was forgotten meanwhile");
                self.entry.clear(Some(consumed), &inner.vacant);
                None
            }
        };
        // Boxed, since it happens so rarely and revokes: refreshes need not have room for it.
        Box::pin(inner.drop_token(&self.entry, ours, theirs.as_deref())).await;
        Ok(Kept::Theirs)
    }

    /// Does what a failure asks for, in the store and in memory.
    async fn settle(&self, error: Error, held: &Held, row: &Row) -> Failure {
        let login = self.entry.kind() == RowKind::Login;
        if let Some(refresh_token) = error.rescued_refresh_token().filter(|_| login) {
            let rescued = held.token.with_refresh_token(refresh_token);
            return self.keep(rescued, row.version).await.err().unwrap_or_else(|| error.into());
        }
        let earlier = self.entry.with(|troubles| troubles.unanswered);
        let fell_silent =
            row.in_flight || earlier.is_some_and(|(_, version)| version == row.version);
        if login && error.needs_login() {
            let release = Release { refused: true, ..Release::default() };
            self.release(row.version, release).await;
            let lost = fell_silent || error.kind() == ErrorKind::RotationLost;
            self.entry.with(|troubles| troubles.unanswered = None);
            let kind = if lost { ErrorKind::RotationLost } else { ErrorKind::LoginRequired };
            return error.remade(kind).into();
        }
        let pause = error.retry_after().unwrap_or_default().max(self.next_backoff());
        if login && error.is_unanswered() {
            // The lease stays: it tells the others that this refresh token may be in flight.
            let series = Some((self.lease_id, row.version));
            self.entry.with(|troubles| troubles.unanswered = series);
        } else {
            self.release(row.version, Release { not_before: pause, refused: false }).await;
        }
        Failure { error, pause: Some(pause) }
    }

    async fn release(&self, version: Version, release: Release) {
        let released =
            self.entry.inner.store.release(&self.key, version, self.lease_id, release).await;
        if let Err(error) = released {
            // The lease ends by itself; till then the others wait.
            tracing::warn!(user = ?self.entry.subject(), %error, "a lease is not released");
            if !release.refused {
                // A dead refresh token is not to be sent again any sooner.
                self.doubt_lease();
            }
        }
    }

    fn doubt_lease(&self) {
        self.entry.with(|troubles| troubles.doubtful_lease = Some(self.lease_id));
    }

    fn next_backoff(&self) -> Duration {
        let failures = self.entry.with(|troubles| troubles.backoff.failures) + 1;
        self.entry.inner.policy.backoff(failures, self.entry.inner.random.next_u64())
    }

    fn back_off(&self, failure: &Failure) {
        let inner = &self.entry.inner;
        let now = inner.clock.now();
        let over = failure.error.needs_login();
        let pause = if over && self.entry.current.load().is_served(now) {
            inner.policy.longest_pause()
        } else if over {
            // Somebody may log in elsewhere at any moment; looking costs the provider nothing.
            inner.policy.shortest_pause()
        } else {
            failure.pause.unwrap_or_else(|| self.next_backoff())
        };
        tracing::info!(
            user = ?self.entry.subject(),
            kind = ?failure.error.kind(),
            error = %failure.error.for_log(),
            next_try_ms = pause.as_millis(),
            "refresh failed"
        );
        self.entry.with(|troubles| {
            if troubles.is_overtaken() {
                return;
            }
            troubles.backoff.failures = troubles.backoff.failures.saturating_add(1);
            troubles.backoff.since = Some((now, pause));
            troubles.backoff.error = Some(failure.error.clone());
            match failure.error.kind() {
                ErrorKind::LoginRequired => troubles.tell(TokenEvent::LoginRequired),
                ErrorKind::RotationLost => troubles.tell(TokenEvent::RotationLost),
                _ => {}
            }
        });
    }

    /// Serves what the store holds.
    fn adopt_from_store(&self, row: Row) -> Result<Arc<Held>, Error> {
        let inner = &self.entry.inner;
        let stored = row.token.ok_or_else(|| Error::store("the store lost a token"))?;
        let token = Token::from_payload(&stored.payload, stored.age, &inner.clock)?;
        let held = inner.hold(&self.entry, token, row.version);
        self.entry.serve(&held);
        Ok(held)
    }
}

fn login_required(message: &'static str) -> Error {
    Error::new(ErrorKind::LoginRequired, message)
}

fn over(in_flight: bool) -> Error {
    if in_flight {
        let message = "the refresh token is dead, and the answer with its successor was lost";
        Error::new(ErrorKind::RotationLost, message)
    } else {
        login_required("the refresh token is dead")
    }
}

fn unavailable(message: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}

impl Inner {
    pub(super) fn hold(&self, entry: &Entry, token: Token, version: Version) -> Arc<Held> {
        Arc::new(Held::new(token, version, &self.policy, entry.kind(), entry.subject()))
    }

    pub(super) async fn read(&self, key: &StoreKey) -> Result<Option<Row>, Error> {
        let asked = self.clock.now();
        let rows = self.store.read(std::slice::from_ref(key)).await?;
        Ok(self.aged(rows.into_iter().next().flatten(), asked))
    }

    /// Adds what has passed since the store was asked: the machine may have been suspended while
    /// the answer was on its way.
    pub(super) fn aged(&self, row: Option<Row>, asked: Timestamp) -> Option<Row> {
        let mut row = row?;
        if let Some(token) = &mut row.token {
            token.age += self.clock.now().since(asked);
        }
        Some(row)
    }

    /// Puts a token over the row of an earlier one. None where the row has moved meanwhile.
    pub(super) async fn write_back(
        &self,
        entry: &Entry,
        held: &Held,
        theirs: Version,
    ) -> Result<Option<Arc<Held>>, Error> {
        let stored = self.stored(held);
        let token = Token::from_payload(&stored.payload, stored.age, &self.clock)?;
        tracing::warn!(user = ?entry.subject(), revision = theirs.revision, "written back");
        if !self.store.save(&entry.key(), theirs, stored).await? {
            return Ok(None);
        }
        let held = self.hold(entry, token, theirs.next());
        entry.serve(&held);
        Ok(Some(held))
    }

    pub(super) fn stored(&self, held: &Held) -> StoredToken {
        let now = self.clock.now();
        StoredToken {
            payload: held.token.payload(),
            age: held.token.age_at(now),
            due_in: held.due_in(now),
        }
    }

    /// Saves a token again and again that the store would not take: until it does, until the user
    /// has moved on, or until the manager's end.
    pub(super) fn keep_saving(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        held: &Arc<Held>,
        unsaved: Unsaved,
    ) {
        let (inner, entry, held) = (Arc::clone(self), Arc::clone(entry), Arc::clone(held));
        let gauged = Gauged::unsaved_token();
        self.spawn(async move {
            let mut failures = 0;
            loop {
                failures += 1;
                // What became of a login is looked at before somebody else comes in.
                if failures > 1 || !matches!(unsaved, Unsaved::Login) {
                    let pause = inner.policy.backoff(failures, inner.random.next_u64());
                    inner.sleep_unless_closing(pause).await;
                }
                match inner.save_late(&entry, &held, unsaved).await {
                    Ok(()) => break,
                    Err(_) if inner.is_past_closing() => {
                        inner.gave_up_on(
                            entry.subject(),
                            "a new token could not be saved before the end",
                        );
                        break;
                    }
                    Err(error) => {
                        tracing::warn!(user = ?entry.subject(), %error, "still not saved");
                    }
                }
            }
            drop(gauged);
        });
    }

    async fn save_late(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        held: &Arc<Held>,
        unsaved: Unsaved,
    ) -> Result<(), Error> {
        let saved = match unsaved {
            Unsaved::Save(consumed) => {
                self.store.save(&entry.key(), consumed, self.stored(held)).await?
            }
            Unsaved::Login => return self.save_login(entry, held).await,
        };
        if saved {
            tracing::debug!(user = ?entry.subject(), "a new token is saved at last");
            return Ok(());
        }
        // An earlier call that seemed to fail did save it, or the user has moved on.
        let row = self.read(&entry.key()).await?;
        let theirs = row.as_ref().and_then(|row| row.token.as_ref());
        if theirs.is_some_and(|theirs| is_same(&self.stored(held), theirs)) {
            return Ok(());
        }
        if let Some(row) = row.as_ref().filter(|row| held.is_newer_than(row.version)) {
            // The store was put back to an earlier day.
            if self.store.save(&entry.key(), row.version, self.stored(held)).await? {
                return Ok(());
            }
            return Err(Error::store("the row moves"));
        }
        self.give_way(entry, held, row).await
    }

    /// Serves what the store has instead of a token that it will not have.
    async fn give_way(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        gone: &Arc<Held>,
        row: Option<Row>,
    ) -> Result<(), Error> {
        let theirs = match row.and_then(|row| Some((row.version, row.token?))) {
            Some((version, stored)) => {
                let token = Token::from_payload(&stored.payload, stored.age, &self.clock)?;
                Some(self.hold(entry, token, version))
            }
            None => None,
        };
        entry.clear(gone.version, theirs.as_ref().unwrap_or(&self.vacant));
        Box::pin(self.drop_token(entry, gone, theirs.as_deref())).await;
        Ok(())
    }

    /// Puts a login into the store that would not take it before, unless the user has left or come
    /// in anew since, here or elsewhere.
    async fn save_login(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        login: &Arc<Held>,
    ) -> Result<(), Error> {
        let _turn = entry.turn().await;
        let over = entry.with(|troubles| troubles.unsaved(login).map(|unsaved| unsaved.over));
        let (Some(over), Some(version)) = (over, login.version) else {
            return Ok(());
        };
        let row = self.read(&entry.key()).await?.filter(|row| row.token.is_some());
        let there = row.as_ref().map_or(0, |row| row.version.incarnation);
        let over = over.unwrap_or(there);
        if there == version.incarnation {
            tracing::debug!(user = ?entry.subject(), "a login was saved though it seemed not to be");
        } else if there == over {
            entry.with(|troubles| {
                if let Some(unsaved) = troubles.unsaved(login) {
                    unsaved.over = Some(over);
                }
            });
            let stored = self.stored(login);
            self.store.put(&entry.key(), version.incarnation, stored, Put::Replace).await?;
            tracing::debug!(user = ?entry.subject(), "a login is saved at last");
        } else {
            self.give_way(entry, login, row).await?;
        }
        entry.with(|troubles| {
            if troubles.unsaved(login).is_some() {
                troubles.unsaved_login = None;
            }
        });
        Ok(())
    }
}

/// What is still to be done for a token to be kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unsaved {
    /// A refreshed one, over the version it consumed.
    Save(Version),
    /// One that came in by a login.
    Login,
}

fn is_same(ours: &StoredToken, theirs: &StoredToken) -> bool {
    ours.payload.expose_secret() == theirs.payload.expose_secret()
}
