//! One refresh, from the claim to the saved token. `docs/design.md` has it as numbered steps.

use std::sync::Arc;
use std::time::Duration;

use super::cached_token::CachedToken;
use super::entry::{Context, Refusals, Unreleased, UserEntry, UserState};
use super::flight::Flight;
use super::permits::{Permit, SLOW_AFTER};
use super::{revocation, save};
use crate::backoff::Backoff;
use crate::clock::{Timestamp, millis};
use crate::error::{Error, ErrorKind};
use crate::metrics;
use crate::store::{Release, Row, RowKind, StoreKey, Version};
use crate::token::Token;

/// Pauses between two looks at a row whose lease another process holds.
const LOOK: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// The longest pause while the provider's refusals can mean the refresh token or the client.
const MAX_DOUBT_PAUSE: Duration = Duration::from_hours(6);

/// How many such refusals, over how long, until callers without a token are told to log in.
const DOUBTS_TO_TELL: u32 = 3;
const DOUBT_SPAN_TO_TELL: Duration = Duration::from_mins(15);

/// The next step of an attempt.
enum Step {
    Claim,
    Send(Granted),
    /// Another holder's lease lives for this long.
    Wait(Duration),
    Done,
}

/// A row whose lease was granted to this process, which had `known` in memory when it `asked`.
struct Granted {
    permit: Permit,
    row: Row,
    known: Arc<CachedToken>,
    asked: Timestamp,
}

/// The end of an attempt that brought no token.
struct Failure {
    error: Error,
    /// How long to leave the user alone; `None` for the policy's own backoff.
    pause: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, pause: None }
    }
}

/// Gets the user a living token. Runs in a task of its own that nobody can cancel.
pub(super) async fn run(entry: &Arc<UserEntry>, flight: &Flight) -> Result<(), Error> {
    let context = &entry.context;
    let attempt = Attempt {
        entry,
        context,
        flight,
        key: entry.key(),
        epoch: entry.epoch(),
        started: context.clock.now(),
    };
    let outcome = async {
        let mut step = attempt.first_step().await?;
        for looks in 1.. {
            let is_try = matches!(step, Step::Claim | Step::Send(_));
            step = match step {
                Step::Claim => attempt.claim().await?,
                Step::Send(granted) => attempt.send(granted).await?,
                Step::Wait(lease) if attempt.wait(lease, looks).await? => {
                    attempt.examine(context.store.read(&attempt.key).await?).await?
                }
                Step::Wait(_) | Step::Done => break,
            };
            // The row changed in between, or ours was written back.
            let is_lost = is_try && matches!(step, Step::Claim);
            if is_lost && !attempt.wait(Duration::MAX, looks).await? {
                break;
            }
        }
        Ok(())
    };
    match outcome.await {
        Ok(()) => Ok(()),
        // It concerned a token that is no longer the user's: the waiting callers look again.
        Err(_) if entry.epoch() != attempt.epoch => Ok(()),
        Err(failure) => Err(attempt.pause(failure)),
    }
}

struct Attempt<'a> {
    entry: &'a Arc<UserEntry>,
    context: &'a Arc<Context>,
    flight: &'a Flight,
    key: StoreKey,
    /// The epoch in which the attempt began. It changes nothing in another one.
    epoch: u32,
    started: Timestamp,
}

impl Attempt<'_> {
    /// A login that is not known here, or known to be over, is looked up before anything is
    /// claimed: that writes nothing, however often it is read.
    async fn first_step(&self) -> Result<Step, Failure> {
        // A token that was due on arrival is not replaced at once, even for a caller.
        let backoff = self.context.policy.backoff;
        let since = self.entry.with(|state| state.pause.since_renewal(self.started));
        if let Some(early) = since.and_then(|since| backoff.initial.checked_sub(since)) {
            self.context.until_closing(self.context.clock.sleep(early)).await;
        }
        // Until an unsaved token is saved, the row is that of the one before, or there is none.
        save::save_unsaved(self.entry).await?;
        let is_known = self.entry.current.load().version.is_some();
        let is_over = self.entry.with(|state| state.is_login_over());
        if self.entry.kind() == RowKind::Login && (!is_known || is_over) {
            return self.examine(self.context.store.read(&self.key).await?).await;
        }
        Ok(Step::Claim)
    }

    /// Waits for another process, without a permit: `false` where nobody needs to wait any more.
    /// The time of a caller begins when they come; without one nothing has failed when it is over.
    async fn wait(&self, lease: Duration, looks: u32) -> Result<bool, Failure> {
        let caller_came = self.flight.caller_came();
        let waited = self.context.clock.now().since(caller_came.unwrap_or(self.started));
        let left = self.context.policy.refresh_timeout.saturating_sub(waited);
        if left.is_zero() {
            let error = unavailable("another process is refreshing this user");
            return caller_came.map_or(Ok(false), |_| Err(error.into()));
        }
        let pause = self.context.delay(LOOK, looks).min(lease).min(left);
        let sleep = self.context.until_closing(self.context.clock.sleep(pause));
        tokio::select! {
            () = self.flight.abandoned() => return Ok(false),
            () = sleep => {}
        }
        if self.context.is_closing() { Err(shutting_down().into()) } else { Ok(true) }
    }

    /// Claims the row, once there is a permit and no outage of the store has just ended.
    async fn claim(&self) -> Result<Step, Failure> {
        let permit = async {
            self.context.until_closing(self.context.store.availability.settled()).await;
            self.context.permits.acquire(self.flight.promoted()).await
        };
        let permit = tokio::select! {
            biased;
            () = self.flight.abandoned() => return Ok(Step::Done),
            permit = permit => permit.ok_or_else(shutting_down)?,
        };
        let known = self.entry.current.load_full();
        let asked = self.context.clock.now();
        // A row that is made for a removed user would bring them back. And another refresh may have
        // finished while this one waited.
        if self.entry.epoch() != self.epoch || known.is_fresh(asked) {
            return Ok(Step::Done);
        }
        // The row's refresh token may be spent, and the lease on it is this process's own.
        if self.entry.with(|state| state.late_saves > 0 || state.unreleased.is_some()) {
            return Err(Error::store("the end of the last refresh is not saved yet").into());
        }
        let claim = self.context.claim(known.version, self.may_be_granted_first());
        let claimed = self.context.store.claim(&self.key, claim).await?;
        match claimed.row {
            Some(row) if claimed.granted && self.context.store.availability.is_settling() => {
                // An outage has just ended, and the row may be an older one.
                self.release(row.version, Release::default()).await?;
                Ok(Step::Claim)
            }
            Some(row) if claimed.granted => Ok(Step::Send(Granted { permit, row, known, asked })),
            row => {
                drop(permit);
                self.examine(row).await
            }
        }
    }

    /// Whether a user without a row may be granted a token: only where a caller waits for it.
    /// Background work would bring a user back who was removed meanwhile.
    fn may_be_granted_first(&self) -> bool {
        self.entry.kind() != RowKind::Login && self.flight.caller_came().is_some()
    }

    /// Decides by a row that is not claimed: adopts a newer token, restores an older one, or says
    /// why there is nothing to be had.
    async fn examine(&self, row: Option<Row>) -> Result<Step, Failure> {
        let is_login = self.entry.kind() == RowKind::Login;
        // While somebody's first login is being saved, its row has no token.
        let Some(row) = row.filter(|row| row.token.is_some() || !is_login) else {
            self.entry.clear(self.epoch);
            if is_login {
                let message = "nobody is logged in as this user";
                return Err(Error::new(ErrorKind::LoginRequired, message).into());
            }
            return Ok(if self.may_be_granted_first() { Step::Claim } else { Step::Done });
        };
        let known = self.entry.current.load_full();
        if known.is_newer_than(row.version) {
            // The last token is not saved yet, or the store was restored to an earlier day.
            save::write_back(self.entry, &known, &row).await?;
            return Ok(Step::Claim);
        }
        if known.version != Some(row.version) {
            match self.entry.decode(&row)? {
                Some(theirs) => {
                    self.entry.adopt(self.epoch, &theirs);
                    tracing::debug!(user = ?self.entry.subject(), "adopted the stored token");
                    let now = self.context.clock.now();
                    let is_enough = theirs.is_served(now) && self.flight.caller_came().is_some();
                    if is_enough || theirs.is_fresh(now) || self.entry.epoch() != self.epoch {
                        return Ok(Step::Done);
                    }
                }
                // A peer is about to get the first token.
                None => self.entry.clear(self.epoch),
            }
        }
        if row.refused {
            return Err(login_over_error(row.in_flight).into());
        }
        if let Some(pause) = row.not_before {
            let error = unavailable("another process has just failed to refresh this user");
            return Err(Failure { error, pause: Some(pause) });
        }
        Ok(row.leased_for.map_or(Step::Claim, Step::Wait))
    }

    /// Sends the request for the granted row, and saves what comes.
    async fn send(&self, granted: Granted) -> Result<Step, Failure> {
        let Granted { permit, row, known, asked } = granted;
        let held = match self.entry.decode(&row) {
            Ok(held) => held,
            // The row is damaged, and this process still has what it held.
            Err(_) if known.version == Some(row.version) => Some(Arc::clone(&known)),
            Err(error) => {
                self.release(row.version, Release::default()).await?;
                return Err(error.into());
            }
        };
        if self.entry.epoch() != self.epoch {
            self.give_up(&row).await?;
            return Ok(Step::Done);
        }
        // The row may hold another token than the one that is known by its version: the store was
        // restored, and went on from there.
        if let Some(held) = held.as_ref().filter(|held| !held.has_same_access_token(&known))
            && held.is_fresh(self.context.clock.now())
            && self.entry.install(self.epoch, held, None)
        {
            self.release(row.version, Release::default()).await?;
            return Ok(Step::Done);
        }
        let waited = self.context.clock.now().since(asked);
        let left = self.context.policy.refresh_timeout.saturating_sub(waited);
        if left.is_zero() {
            self.release(row.version, Release::default()).await?;
            return Err(unavailable("the time for this refresh was over before it was sent").into());
        }
        tracing::debug!(user = ?self.entry.subject(), revision = row.version.revision, "refresh started");
        let slow = self.context.clock.sleep(SLOW_AFTER);
        let hurdlr = &self.context.hurdlr;
        let request = async {
            if self.entry.kind() != RowKind::Login {
                let is_user = self.entry.kind() == RowKind::Enterprise;
                let grant = hurdlr.grant_operation(is_user.then(|| self.entry.subject()))?;
                return hurdlr.call(grant, Some(left)).await.map(Token::without_refresh_token);
            }
            match held.as_deref() {
                Some(held) => hurdlr.call(hurdlr.refresh_operation(&held.token)?, Some(left)).await,
                None => Err(Error::store("the row of a login has no token").not_temporary()),
            }
        };
        let refused = self.entry.with(|state| state.refused());
        let sent_at = self.context.clock.now();
        let (answer, permit) = self.context.permits.run(permit, slow, request).await;
        let outcome = answer.as_ref().map(|_| ()).map_err(Error::kind);
        metrics::refreshed(self.entry.kind(), outcome, self.context.clock.now().since(sent_at));
        let step = match answer {
            Ok(token) => {
                if !refused.is_empty() {
                    self.entry.with(|state| state.take_refusal_back(&token, &refused));
                }
                self.save(token, held.as_deref(), row.version).await.map(|()| Step::Done)
            }
            Err(error) => self.fail(error, held.as_deref(), &row).await,
        };
        drop(permit);
        step
    }

    async fn save(
        &self,
        token: Token,
        held: Option<&CachedToken>,
        consumed: Version,
    ) -> Result<(), Failure> {
        let now = self.context.clock.now();
        let superseded = match held {
            Some(held)
                if self.entry.kind() != RowKind::Login && self.context.hurdlr.can_revoke() =>
            {
                held.superseded_by(&token, now)
            }
            _ => Vec::new(),
        };
        let mut cached = self.entry.cache(token, consumed.next()).with_superseded(superseded);
        let too_many = cached.take_oldest_superseded();
        let cached = Arc::new(cached);
        let failures = self.entry.with(|state| state.pause.failures);
        save::save_and_serve(self.entry, self.epoch, Arc::clone(&cached), consumed).await;
        tracing::debug!(user = ?self.entry.subject(), "refresh finished");
        if !too_many.is_empty() {
            // Boxed, since it is rare: refreshes need no room for it.
            Box::pin(revocation::revoke_tokens(self.entry, too_many.into_iter())).await;
        }
        let backoff = self.context.policy.backoff;
        if cached.is_alive(now) && !cached.is_due_on_arrival(backoff.initial) {
            return Ok(());
        }
        // Asked again at once, the provider would return the like. Each pause is longer, here and
        // for the other processes.
        let pause = self.context.delay(backoff, failures + 1);
        self.entry.with(|state| {
            state.pause.failures = failures;
            if cached.is_alive(now) {
                state.pause.begin(now, pause, None);
            }
        });
        let release = Release { not_before: pause, ..Release::default() };
        let _ = self.release(consumed.next(), release).await;
        if cached.is_alive(now) {
            return Ok(());
        }
        let error = Error::new(ErrorKind::InvalidResponse, "the provider's token has no life left");
        Err(Failure { error, pause: Some(pause) })
    }

    /// Does what a failure asks for, in the store and in memory.
    async fn fail(
        &self,
        error: Error,
        held: Option<&CachedToken>,
        row: &Row,
    ) -> Result<Step, Failure> {
        let is_login = self.entry.kind() == RowKind::Login;
        if let Some((refresh_token, held)) = error.rescued_refresh_token().zip(held)
            && is_login
        {
            let rescued = held.token.with_refresh_token(refresh_token);
            // The old access token may be over, which is not what was wrong with the answer.
            let saved = self.save(rescued, Some(held), row.version).await;
            let asked_for = error.retry_after();
            if let Some(not_before) = asked_for {
                let release = Release { not_before, ..Release::default() };
                let _ = self.release(row.version.next(), release).await;
            }
            let pause = saved.err().and_then(|failure| failure.pause).max(asked_for);
            return Err(Failure { error, pause });
        }
        if is_login && error.needs_login() {
            let lost = row.in_flight || error.kind() == ErrorKind::RotationLost;
            return self.conclude_dead(row.version, lost).await.map_err(|failure| {
                // The provider's own words say more than the row.
                let kind = failure.error.kind();
                let is_over = failure.error.needs_login();
                if is_over { error.with_kind_cloned(kind).into() } else { failure }
            });
        }
        let pause = self.pause_after(&error).max(error.retry_after().unwrap_or_default());
        let in_flight = is_login && error.is_unanswered();
        let release = Release { not_before: pause, refused: false, in_flight };
        // Where the store does not know of the pause yet, this process keeps it all the same.
        let _ = self.release(row.version, release).await;
        Err(Failure { error, pause: Some(pause) })
    }

    /// Marks the row's refresh token as dead. Then the row is read once more before anybody is
    /// told: if it has moved on, the login lives.
    async fn conclude_dead(&self, version: Version, lost: bool) -> Result<Step, Failure> {
        let release = Release { refused: true, in_flight: lost, ..Release::default() };
        self.release(version, release).await?;
        self.examine(self.context.store.read(&self.key).await?).await
    }

    /// Leaves a row alone that was claimed for a user who has been removed or has logged in since.
    async fn give_up(&self, row: &Row) -> Result<(), Error> {
        if row.token.is_some() {
            return self.release(row.version, Release::default()).await;
        }
        self.context.store.forget(&self.key, Some(row.version)).await.map(|_| ())
    }

    /// Releases the lease, in the background where the store fails and the others have to know.
    async fn release(&self, version: Version, release: Release) -> Result<(), Error> {
        let (context, asked) = (self.context, self.context.clock.now());
        let released = context.store.release(&self.key, version, context.holder, release).await;
        if let Err(error) = &released {
            tracing::warn!(user = ?self.entry.subject(), %error, "could not release a lease; other processes wait until it ends");
            if release != Release::default() && self.entry.epoch() == self.epoch {
                let unreleased = Unreleased { version, release, since: asked };
                self.entry.with(|state| state.unreleased = Some(unreleased));
                context.pins.pin_if_needed(self.entry);
                context.spawn(release_late(Arc::clone(self.entry), asked));
            }
        }
        released
    }

    /// The pause after a failure at the provider, which is longer while it is doubtful.
    fn pause_after(&self, error: &Error) -> Duration {
        let now = self.context.clock.now();
        let backoff = self.context.policy.backoff;
        let (failures, doubts) = self.entry.with(|state| {
            if error.is_doubtful() {
                let doubt = state.doubt.get_or_insert(Refusals { count: 0, at: now });
                doubt.count = doubt.count.saturating_add(1);
            } else {
                state.doubt = None;
            }
            (state.pause.failures + 1, state.doubt.map(|doubt| doubt.count))
        });
        let pause = self.context.delay(backoff, failures);
        // Failures of another kind before it make no doubt last for longer.
        let in_doubt = Backoff::new(backoff.initial, MAX_DOUBT_PAUSE.max(backoff.max));
        doubts.map_or(pause, |doubts| pause.max(self.context.delay(in_doubt, doubts)))
    }

    /// Notes when the next attempt may begin. Returns the error for the waiting callers.
    fn pause(&self, failure: Failure) -> Error {
        let Failure { mut error, pause } = failure;
        let now = self.context.clock.now();
        let user = self.entry.subject();
        let had_token = self.entry.current.load().version.is_some();
        self.entry.with(|state| {
            // A login that is over stays over, whatever else fails, until there is another one. A
            // user who had not logged in may have done so since, in another process.
            if let Some(over) = state.pause.error.as_ref().filter(|error| error.needs_login())
                && had_token
                && !error.needs_login()
            {
                tracing::debug!(?user, %error, "could not look for a new login");
                error = over.clone();
            }
            let is_over = error.needs_login();
            let backoff = if is_over {
                // Somebody may log in elsewhere, and a look at the store costs the provider
                // nothing.
                let initial = self.context.policy.backoff.initial;
                Backoff::new(initial, self.context.revalidate_after.max(initial))
            } else {
                self.context.policy.backoff
            };
            let pause =
                pause.unwrap_or_else(|| self.context.delay(backoff, state.pause.failures + 1));
            state.pause.begin(now, pause, Some(error.clone()));
            let told = error_for_callers(self.entry, state, &error);
            let is_news = state.tell_login_over(told.kind());
            if is_over {
                // Reading a user who never logged in is no news to an operator.
                if is_news && had_token {
                    tracing::info!(?user, kind = error.kind().name(), "login required");
                }
            } else {
                tracing::info!(
                    ?user,
                    kind = error.kind().name(),
                    error = %error.for_log(),
                    next_try_ms = millis(pause),
                    "refresh failed"
                );
            }
            told
        })
    }
}

/// Tells the store how an attempt ended as soon as it answers, unless the user's token changes.
/// No other attempt begins here meanwhile, whose lease this could end.
async fn release_late(entry: Arc<UserEntry>, since: Timestamp) {
    let context = &entry.context;
    for failures in 1.. {
        context.sleep_unless_closing(context.delay(context.policy.backoff, failures)).await;
        let unreleased = entry.with(|state| state.unreleased).filter(|it| it.since == since);
        let Some(Unreleased { version, release, .. }) = unreleased else {
            return;
        };
        let passed = context.clock.now().since(since);
        let not_before = release.not_before.saturating_sub(passed);
        let release = Release { not_before, ..release };
        match context.store.release(&entry.key(), version, context.holder, release).await {
            Err(error) if !context.is_past_closing() => {
                tracing::debug!(user = ?entry.subject(), %error, "could not release a lease again");
            }
            _ => {
                entry.with(|state| state.unreleased.take_if(|it| it.since == since));
                return;
            }
        }
    }
}

/// The error for callers during a pause: `LoginRequired` where the provider has refused the refresh
/// token for so long that the login is most likely over.
pub(super) fn error_for_callers(entry: &UserEntry, state: &UserState, error: &Error) -> Error {
    let now = entry.context.clock.now();
    let is_over = state.doubt.is_some_and(|doubt| {
        doubt.count >= DOUBTS_TO_TELL && now.since(doubt.at) >= DOUBT_SPAN_TO_TELL
    });
    if is_over && !entry.current.load().is_alive(now) {
        error.with_kind_cloned(ErrorKind::LoginRequired)
    } else {
        error.clone()
    }
}

/// The error of a login whose refresh token the provider refused for good.
pub(super) fn login_over_error(in_flight: bool) -> Error {
    if in_flight {
        let message = "the refresh token is dead, and the answer with its successor was lost";
        Error::new(ErrorKind::RotationLost, message)
    } else {
        Error::new(ErrorKind::LoginRequired, "the refresh token is dead")
    }
}

pub(super) fn shutting_down() -> Error {
    unavailable("the token manager is shutting down")
}

fn unavailable(message: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}
