//! One cell: a user of a manager, a fault at the provider, and what becomes of the user.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hurdlr_oauth2::manager::{RefreshPolicy, UserHandle};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{Row, RowKind, StoreKey, TokenStore};
use hurdlr_oauth2::testing::{FakeHurdlr, Gate};
use hurdlr_oauth2::url::Url;
use hurdlr_oauth2::{
    Error, ErrorKind, Hurdlr, PendingLogin, RetryPolicy, Token, TokenManager, UserId,
};
use tokio::sync::Notify;

use super::clock::StandingClock;
use super::model::{Attempt, End, Model};
use super::places::{CellStore, Databases, Place};
use super::table::{
    Effect, Grant, MAX_ATTEMPTS, Moment, PAUSE, PAUSE_BY_DATE, Provider, Sends, Way, kills_access,
};
use super::{Coordinates, Had, Meets};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Of an access token, and what is left of it when callers wait for its successor.
const LIFE: Duration = seconds(6_000);
const BUFFER: Duration = seconds(600);

/// Ages at which a token is due and at which it is over, and how long after the first one callers
/// wait for its successor.
const DUE: Duration = seconds(5_100);
const DUE_TO_ENDING: Duration = seconds(400);
const OVER: Duration = seconds(6_001);

/// The manager's longest first pause. It is drawn between half of this and all of it.
const FIRST_PAUSE: Duration = seconds(60);

/// Longer than any pause within a cell.
const PAST_ANY_PAUSE: Duration = seconds(600);

/// How much real time a cell may take between two moments at which a database looks at its clock.
const SLACK: Duration = seconds(15);

/// How long a client waits for an answer that does not come. One that comes is there at once.
const PATIENCE: Duration = Duration::from_millis(20);

/// What is not as the table says.
pub(crate) type Problems = Arc<Mutex<Vec<String>>>;

pub(crate) async fn run(number: usize, at: Coordinates, databases: &Databases, problems: Problems) {
    let mut cell = Cell::open(number, at, databases, problems).await;
    match at.grant {
        Grant::AuthorizationCode => cell.log_in_with_the_fault().await,
        Grant::ClientCredentials | Grant::RefreshToken => cell.renew_with_the_fault().await,
    }
    cell.fake.clear_faults();
    let unfinished = cell.manager.shutdown().await;
    cell.expect("work is left", &Vec::new(), &unfinished);
}

struct Cell<'a> {
    at: Coordinates,
    fake: FakeHurdlr,
    clock: StandingClock,
    store: CellStore<'a>,
    manager: TokenManager,
    client_id: String,
    traffic: Arc<Mutex<Traffic>>,
    /// How many requests the provider had received when those about the user were last taken.
    taken_at: u64,
    problems: Problems,
}

/// The requests about the user, and which of them meet the fault.
#[derive(Default)]
struct Traffic {
    meets: Option<Meets>,
    gate: Option<Gate>,
    requests: Vec<Request>,
}

#[derive(Clone)]
struct Request {
    has_bearer: bool,
    /// The refresh token or the code.
    secret: Option<String>,
}

/// What a caller gets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Got {
    OldToken,
    NewToken,
    Nothing(ErrorKind),
}

/// What a row says besides its token.
#[derive(Debug, PartialEq, Eq)]
struct Marks {
    is_same_login: bool,
    revision: u64,
    says: Vec<&'static str>,
}

impl<'a> Cell<'a> {
    async fn open(
        number: usize,
        at: Coordinates,
        databases: &'a Databases,
        problems: Problems,
    ) -> Self {
        // A realm of its own in the databases.
        let client_id = format!("cell-{number}");
        let builder = FakeHurdlr::builder()
            .client(&client_id, "fake-secret".into())
            .rotation(at.rotation)
            .error_style(at.style)
            .token_life(LIFE);
        let fake = match at.case.way {
            Way::Memory => builder.in_memory(),
            Way::Socket => builder.start().await.unwrap(),
        };
        let clock = StandingClock::at(fake.now());
        let store = databases.store(at.place, &clock);
        let mut builder = Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .api_version(at.version)
            .authorize_url(fake.authorize_url())
            .redirect_uri("https://app.example.com/callback")
            .retry(
                RetryPolicy::default()
                    .max_attempts(MAX_ATTEMPTS)
                    .initial_backoff(Duration::ZERO)
                    .total_timeout(10 * PAUSE),
            )
            .clock(clock.clone());
        if at.case.way == Way::Memory {
            builder = builder.http_client(fake.http_client());
        } else {
            // Plain http, for which the system's certificates need not be read.
            builder = builder.reqwest(|client| client.tls_certs_only([]));
        }
        if at.case.times_out {
            builder = builder.request_timeout(PATIENCE);
        }
        let manager = manager(builder.build().unwrap(), Arc::clone(&store.store));
        let (traffic, taken_at) = (Arc::default(), 0);
        let cell = Self { at, fake, clock, store, manager, client_id, traffic, taken_at, problems };
        cell.plan();
        cell
    }

    /// Watches the requests about the user, and has the fault meet them where it is to.
    fn plan(&self) {
        let (fake, case) = (self.fake.clone(), self.at.case);
        let traffic = Arc::clone(&self.traffic);
        self.fake.fault_plan(move |request| {
            if request.user() != Some("ann") {
                return None;
            }
            let mut traffic = traffic.lock().unwrap();
            traffic.requests.push(Request {
                has_bearer: request
                    .headers()
                    .get("authorization")
                    .is_some_and(|value| value.as_bytes().starts_with(b"Bearer ")),
                secret: request.field("refresh_token").or_else(|| request.field("code")),
            });
            let meets = traffic.meets?;
            if meets == Meets::First {
                traffic.meets = None;
            }
            let gate = traffic.gate.get_or_insert_with(Gate::closed).clone();
            Some((case.fault)(&Moment { now: fake.now(), gate }))
        });
    }

    fn arm(&self, meets: Option<Meets>) {
        self.traffic.lock().unwrap().meets = meets;
    }

    /// The requests about the user since the last call.
    fn requests(&mut self) -> Vec<Request> {
        self.taken_at = self.fake.count().total();
        std::mem::take(&mut self.traffic.lock().unwrap().requests)
    }

    fn ann(&self) -> UserHandle {
        self.user(&self.manager)
    }

    fn user(&self, manager: &TokenManager) -> UserHandle {
        match self.at.grant {
            Grant::ClientCredentials => manager.enterprise_user(&id("ann")),
            Grant::RefreshToken | Grant::AuthorizationCode => manager.user(&id("ann")),
        }
    }

    /// A manager of another process.
    fn elsewhere(&self) -> TokenManager {
        manager(self.manager.hurdlr().clone(), Arc::clone(&self.store.store))
    }

    /// Time passes, for the app, its store and the provider. Nothing may be under way in the store.
    async fn pass(&self, time: Duration) {
        self.store.age(&self.client_id, time).await;
        self.turn(time);
    }

    /// Turns the clocks of the app and of the provider, without a step in between.
    fn turn(&self, time: Duration) {
        self.clock.turn(time);
        self.fake.advance_clock(time);
    }

    /// By the app's clock.
    fn now(&self) -> Duration {
        self.clock.passed()
    }

    /// `Some` for a row with a token.
    async fn row(&self) -> Option<Row> {
        let kind = match self.at.grant {
            Grant::ClientCredentials => RowKind::Enterprise,
            Grant::RefreshToken | Grant::AuthorizationCode => RowKind::Login,
        };
        let key = StoreKey::new(Arc::new(self.manager.hurdlr().realm()), kind, id("ann"));
        let row = self.store.store.read(&[key]).await.unwrap().remove(0).unwrap();
        row.filter(|row| row.token.is_some())
    }

    fn note(&mut self, problem: String) {
        self.problems.lock().unwrap().push(problem);
    }

    fn expect<T: PartialEq + Debug + ?Sized>(&mut self, what: &str, expected: &T, found: &T) {
        if expected != found {
            self.note(format!("{what}: expected {expected:?}, found {found:?}"));
        }
    }

    /// Two users besides whom nothing is wrong with: one has a token, the other gets one.
    async fn others_are_served(&mut self, when: &str) {
        let bob = polled_once(self.manager.enterprise_user(&id("bob")).token());
        let bob = bob.map(|outcome| outcome.map_err(|error| error.kind()).map(|_| ()));
        self.expect(&format!("a user with a token, {when}"), &Some(Ok(())), &bob);
        let carl = self.manager.enterprise_user(&id("carl")).token().await;
        let carl = carl.map_err(|error| error.kind()).map(|_| ());
        self.expect(&format!("a user who gets one, {when}"), &Ok(()), &carl);
    }

    /// Runs work that meets the fault, while others are served. A gate opens once they have been.
    /// `served` is told when they have been.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>, served: &Notify) -> T {
        let (fake, before) = (self.fake.clone(), self.taken_at);
        let is_armed = self.traffic.lock().unwrap().meets.is_some();
        let traffic = Arc::clone(&self.traffic);
        let arrives = self.at.case.effect == Effect::Arrives;
        let others = async {
            if arrives && is_armed {
                fake.arrived(before + 1).await;
            }
            self.others_are_served("meanwhile").await;
            served.notify_one();
            if arrives {
                let mut traffic = traffic.lock().unwrap();
                traffic.gate.get_or_insert_with(Gate::closed).open();
            }
        };
        tokio::join!(work, others).0
    }

    async fn log_in(&mut self) -> Result<bool, Error> {
        let (pending, callback) = self.begin_login().await;
        self.manager.complete_login(&id("ann"), pending, &callback).await
    }

    async fn begin_login(&self) -> (PendingLogin, Url) {
        let (url, pending) = self.manager.hurdlr().begin_login().unwrap();
        (pending, self.fake.consent(&url, "ann").await.unwrap())
    }

    // --- Client credentials and refresh tokens ----------------------------------------------

    async fn renew_with_the_fault(&mut self) {
        let had_living = self.at.had == Had::LivingToken;
        let user = self.ann();
        if self.at.grant == Grant::RefreshToken {
            let completed = self.log_in().await.map_err(|error| error.kind());
            self.expect("the login before", &Ok(true), &completed);
        }
        let old = access(&user.token().await.unwrap());
        self.pass(if had_living { DUE } else { OVER }).await;
        self.manager.enterprise_user(&id("bob")).token().await.unwrap();
        let first = self.row().await.unwrap();
        let mut renewal = Renewal {
            model: Model::new(self.at),
            user,
            old,
            old_ends_at: LIFE,
            is_refused: false,
            is_paused: false,
            incarnation: first.version.incarnation,
            revision: first.version.revision,
            refresh_token: refresh_token(Some(first)),
        };
        self.requests();
        self.arm(Some(self.at.meets));
        if had_living {
            // Due: served at once, and refreshed in the background. The refresh has not begun yet
            // when the clocks are turned to where callers wait for it, those of the rows before.
            self.store.age(&self.client_id, DUE_TO_ENDING).await;
            let got = polled_once(renewal.user.token());
            let got = got.map(|outcome| renewal.got(&outcome));
            self.expect("the caller while the token is due", &Some(Got::OldToken), &got);
            self.turn(DUE_TO_ENDING);
        }
        renewal.attempt(self, "the first attempt", Some(self.at.meets)).await;
        renewal.pause(self).await;
        if self.at.meets == Meets::All {
            for name in ["the second attempt", "the third attempt"] {
                if renewal.is_over(self) {
                    break;
                }
                self.pass(PAST_ANY_PAUSE).await;
                renewal.attempt(self, name, Some(Meets::All)).await;
            }
        }
        self.arm(None);
        if !renewal.has_new_token() {
            self.pass(PAST_ANY_PAUSE).await;
        }
        renewal.attempt(self, "the attempt after the fault", None).await;
        if let Some(kind) = renewal.model.over {
            self.log_in_after_the_end(kind).await;
        }
    }

    /// A login that is over is healed by another one, and by nothing else.
    async fn log_in_after_the_end(&mut self, kind: ErrorKind) {
        let row = self.row().await.unwrap();
        let completed = self.log_in().await.map_err(|error| error.kind());
        self.expect(&format!("the login after {kind:?}"), &Ok(true), &completed);
        let served = self.ann().token().await.map(|token| self.fake.is_alive(&access(&token)));
        let served = served.map_err(|error| error.kind());
        self.expect("a living token after that login", &Ok(true), &served);
        let marks = self.marks(row.version.incarnation).await;
        let clean = Marks { is_same_login: false, ..Marks::clean(1) };
        self.expect("the row after that login", &Some(clean), &marks);
    }

    async fn marks(&self, incarnation: u64) -> Option<Marks> {
        let row = self.row().await?;
        let is_same_login = row.version.incarnation == incarnation;
        let marks =
            [row.refused, row.in_flight, row.not_before.is_some(), row.leased_for.is_some()];
        Some(Marks { is_same_login, ..Marks::of(row.version.revision, marks) })
    }

    // --- Authorization codes ----------------------------------------------------------------

    async fn log_in_with_the_fault(&mut self) {
        let mut old = None;
        if self.at.had == Had::LivingToken {
            self.log_in().await.unwrap();
            old = Some(access(&self.ann().token().await.unwrap()));
        }
        self.manager.enterprise_user(&id("bob")).token().await.unwrap();
        let incarnation = self.row().await.map(|row| row.version.incarnation);
        let mut model = Model::new(self.at);
        let rounds: &[_] = match self.at.meets {
            Meets::First => &["the login"],
            Meets::All => &["the login", "the login after it"],
        };
        self.requests();
        self.arm(Some(self.at.meets));
        for name in rounds {
            let expected = model.attempt(Some(self.at.meets), Duration::ZERO);
            self.complete(name, expected, &mut old, incarnation).await;
        }
        self.arm(None);
        let expected = model.attempt(None, Duration::ZERO);
        self.complete("the login after the fault", expected, &mut old, incarnation).await;
    }

    async fn complete(
        &mut self,
        name: &str,
        expected: Attempt,
        old: &mut Option<String>,
        incarnation: Option<u64>,
    ) {
        let (pending, callback) = self.begin_login().await;
        let again = PendingLogin::from_secret(&pending.to_secret()).unwrap();
        let (manager, clock) = (self.manager.clone(), self.clock.clone());
        let (fake, ann) = (self.fake.clone(), id("ann"));
        let is_paused = self.at.case.effect.names_a_pause()
            && self.at.case.effect.rule(self.at.grant).sends == Sends::AtItsTime;
        let waits = clock.count(PAUSE_BY_DATE);
        // It waits for the time that the provider names, to the end of it.
        let (traffic, gaps) = (Arc::clone(&self.traffic), expected.bearers.len() - 1);
        let mut early = Vec::new();
        let others = Notify::new();
        let work = async {
            let login = manager.complete_login(&ann, pending, &callback);
            let turning = async {
                // Nothing else may be under way when the clock is turned.
                others.notified().await;
                for gap in 0..if is_paused { gaps } else { 0 } {
                    let wait = clock.asked(waits + gap, PAUSE_BY_DATE).await;
                    early.push(traffic.lock().unwrap().requests.len() == gap + 1);
                    clock.turn(wait);
                    fake.advance_clock(wait);
                }
            };
            tokio::join!(login, turning).0
        };
        // A login that ends early leaves nobody to turn the clock for.
        let outcome = tokio::time::timeout(SLACK, self.meanwhile(work, &others)).await;
        self.expect(
            &format!("{name}: no request before its time"),
            &true,
            &early.iter().all(|it| *it),
        );
        let Ok(outcome) = outcome else {
            self.note(format!("{name}: does not end, or waits for less than {PAUSE:?}"));
            return;
        };
        let requests = self.requests();
        let bearers: Vec<_> = requests.iter().map(|it| it.has_bearer).collect();
        self.expect(&format!("{name}: requests"), &expected.bearers, &bearers);
        if let (Err(error), End::Failure { kind, is_unanswered }) = (&outcome, expected.end) {
            let is_temporary =
                !is_unanswered && matches!(kind, ErrorKind::RateLimited | ErrorKind::Unavailable);
            let found = (error.kind(), error.is_unanswered(), error.is_temporary());
            self.expect(&format!("{name}: error"), &(kind, is_unanswered, is_temporary), &found);
        }
        let is_token = expected.end == End::Token;
        self.expect(&format!("{name}: succeeds"), &is_token, &outcome.is_ok());
        // A callback that is loaded again sends nothing.
        let repeated = self.manager.complete_login(&id("ann"), again, &callback).await;
        let repeated = repeated.map_err(|error| error.kind());
        self.expect(&format!("{name}: the same callback again"), &Ok(false), &repeated);
        // Who had a login has it still, and who had none has none.
        let served = self.ann().token().await.map(|token| access(&token));
        if let Ok(token) = &served {
            self.expect(&format!("{name}: a living token"), &true, &self.fake.is_alive(token));
        }
        let served = served.map_err(|error| error.kind());
        match (is_token, &*old) {
            (true, _) => {
                let is_new = served.is_ok() && served.as_ref().ok() != old.as_ref();
                self.expect(&format!("{name}: a new token is served"), &true, &is_new);
                let row = self.row().await;
                let is_same = row.as_ref().map(|row| Some(row.version.incarnation) == incarnation);
                self.expect(
                    &format!("{name}: the row is of another login"),
                    &Some(false),
                    &is_same,
                );
                let marks = self.marks(row.map_or(0, |row| row.version.incarnation)).await;
                self.expect(&format!("{name}: the row"), &Some(Marks::clean(1)), &marks);
                let elsewhere = self.elsewhere();
                let there = elsewhere.user(&id("ann")).token().await.map(|token| access(&token));
                let there = there.map_err(|error| error.kind());
                self.expect(&format!("{name}: another process"), &served, &there);
                *old = served.ok();
            }
            (false, Some(old)) => {
                let expected = Ok(old.clone());
                self.expect(&format!("{name}: the earlier login is served"), &expected, &served);
                let marks = self.marks(incarnation.unwrap()).await;
                self.expect(&format!("{name}: the row"), &Some(Marks::clean(1)), &marks);
            }
            (false, None) => {
                let expected = Err(ErrorKind::LoginRequired);
                self.expect(&format!("{name}: nobody is logged in"), &expected, &served);
                let marks = self.marks(0).await;
                self.expect(&format!("{name}: the row"), &None, &marks);
            }
        }
        let after = self.requests().len();
        self.expect(&format!("{name}: requests afterwards"), &0, &after);
    }
}

/// The renewal of one user's token, as it is expected and as it is.
struct Renewal {
    model: Model,
    user: UserHandle,
    old: String,
    old_ends_at: Duration,
    /// Whether the API has refused the old token.
    is_refused: bool,
    /// Whether the last attempt left a pause.
    is_paused: bool,
    incarnation: u64,
    revision: u64,
    /// The one that the row holds.
    refresh_token: Option<String>,
}

impl Renewal {
    fn got<T: std::ops::Deref<Target = Token>>(&self, outcome: &Result<T, Error>) -> Got {
        match outcome {
            Ok(token) if access(token) == self.old => Got::OldToken,
            Ok(_) => Got::NewToken,
            Err(error) => Got::Nothing(error.kind()),
        }
    }

    fn has_new_token(&self) -> bool {
        self.model.over.is_none() && !self.is_paused
    }

    fn is_over(&self, cell: &Cell<'_>) -> bool {
        self.has_new_token() || (self.model.over.is_some() && cell.now() >= self.old_ends_at)
    }

    /// What a caller has to get after an attempt with this end. The old token is served for as
    /// long as it lives, unless the API refused it.
    fn expected(&self, end: End, is_refused: bool, now: Duration) -> Got {
        match end {
            End::Token => Got::NewToken,
            End::Failure { .. } if now < self.old_ends_at && !is_refused => Got::OldToken,
            End::Failure { kind, .. } => Got::Nothing(self.model.told(kind, now)),
        }
    }

    /// Asks for a token, and compares what comes of it.
    async fn attempt(&mut self, cell: &mut Cell<'_>, name: &str, meets: Option<Meets>) {
        let attempt = if self.has_new_token() && self.model.saved > 0 {
            Attempt { bearers: vec![], end: End::Token } // a fresh token is served, and no more
        } else {
            self.model.attempt(meets, cell.now())
        };
        let user = self.user.clone();
        let outcome = cell.meanwhile(user.token(), &Notify::new()).await;
        let (expected, got) =
            (self.expected(attempt.end, self.is_refused, cell.now()), self.got(&outcome));
        cell.expect(&format!("{name}: the caller"), &expected, &got);
        if let (Err(error), End::Failure { is_unanswered, .. }) = (&outcome, attempt.end) {
            if self.model.over.is_none() {
                let found = error.is_unanswered();
                cell.expect(&format!("{name}: an unanswered error"), &is_unanswered, &found);
            }
            if meets.is_some() && cell.at.case.effect.names_a_pause() {
                let names_it = error.retry_after().is_some_and(|it| it >= PAUSE_BY_DATE);
                cell.expect(&format!("{name}: the error names the pause"), &true, &names_it);
            }
        }
        let requests = cell.requests();
        let bearers: Vec<_> = requests.iter().map(|request| request.has_bearer).collect();
        cell.expect(&format!("{name}: requests"), &attempt.bearers, &bearers);
        let secrets = requests.iter().map(|request| request.secret.clone());
        let is_rows = secrets.clone().all(|secret| secret == self.refresh_token);
        cell.expect(&format!("{name}: sends what the row holds"), &true, &is_rows);

        self.is_paused = matches!(attempt.end, End::Failure { .. }) && self.model.over.is_none();
        self.compare_row(cell, name).await;
        if let Ok(token) = outcome {
            self.is_it_dead(cell, name, &token);
        }
        // The same again at once: told at once, and nothing is sent.
        let expected = self.expected(attempt.end, self.is_refused, cell.now());
        let again = polled_once(self.user.token()).map(|outcome| self.got(&outcome));
        cell.expect(&format!("{name}: the next caller"), &Some(expected), &again);
        let sent = cell.requests().len();
        cell.expect(&format!("{name}: requests for the next caller"), &0, &sent);
    }

    /// A token that the provider honours no more is served only where nobody can know it, and not
    /// once the API has refused it.
    fn is_it_dead(&mut self, cell: &mut Cell<'_>, name: &str, token: &Token) {
        if cell.fake.is_alive(&access(token)) {
            return;
        }
        let is_known = self.is_refused
            || access(token) != self.old
            || cell.at.grant != Grant::RefreshToken
            || cell.at.case.provider != Provider::Acts
            || !kills_access(cell.at.rotation);
        cell.expect(&format!("{name}: a dead token is served knowingly"), &false, &is_known);
        self.user.report_unauthorized(token);
        self.is_refused = true;
    }

    async fn compare_row(&mut self, cell: &mut Cell<'_>, name: &str) {
        let marks = [self.model.over.is_some(), self.model.in_flight, self.is_paused, false];
        let expected = Marks::of(self.revision + self.model.saved, marks);
        let marks = cell.marks(self.incarnation).await;
        cell.expect(&format!("{name}: the row"), &Some(expected), &marks);
        self.refresh_token = refresh_token(cell.row().await);
        if cell.at.grant == Grant::ClientCredentials {
            cell.expect(&format!("{name}: a refresh token is kept"), &None, &self.refresh_token);
            return;
        }
        // No login is lost: what the provider takes as current is what the row holds.
        let is_alive = self.refresh_token.as_ref().is_some_and(|it| cell.fake.refresh_is_alive(it));
        let is_current = self.model.is_current();
        cell.expect(&format!("{name}: the row's refresh token lives"), &is_current, &is_alive);
    }

    /// Until shortly before the end of the pause no process sends anything.
    async fn pause(&mut self, cell: &mut Cell<'_>) {
        let named = cell.at.case.effect.names_a_pause();
        if self.is_paused {
            let shortest = if named { PAUSE } else { FIRST_PAUSE / 2 };
            let is_memory = matches!(cell.at.place, Place::Memory | Place::SealedMemory);
            let slack = if is_memory { seconds(2) } else { SLACK };
            cell.pass(shortest.saturating_sub(slack)).await;
        }
        let elsewhere = cell.elsewhere();
        let there = cell.user(&elsewhere).token().await;
        let expected = match (self.model.over, self.has_new_token()) {
            (None, true) => Got::NewToken,
            _ if cell.now() < self.old_ends_at => Got::OldToken,
            (Some(kind), _) => Got::Nothing(kind),
            (None, false) => Got::Nothing(ErrorKind::Unavailable),
        };
        cell.expect("another process", &expected, &self.got(&there));
        if self.is_paused {
            let here = polled_once(self.user.token()).map(|outcome| self.got(&outcome));
            let is_told = here.as_ref().is_some_and(|got| *got != Got::NewToken);
            cell.expect("a caller during the pause is told at once", &true, &is_told);
        }
        let sent = cell.requests().len();
        cell.expect("requests during the pause", &0, &sent);
        let unfinished = elsewhere.shutdown().await;
        cell.expect("work is left elsewhere", &true, &unfinished.is_empty());
    }
}

impl Marks {
    fn of(revision: u64, marks: [bool; 4]) -> Self {
        let says = ["refused", "in_flight", "not_before", "leased_until"].into_iter().zip(marks);
        let says = says.filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect();
        Self { is_same_login: true, revision, says }
    }

    fn clean(revision: u64) -> Self {
        Self::of(revision, [false; 4])
    }
}

fn manager(hurdlr: Hurdlr, store: Arc<dyn TokenStore>) -> TokenManager {
    let policy = RefreshPolicy::default()
        .expiry_buffer(BUFFER)
        .initial_backoff(FIRST_PAUSE)
        .max_backoff(5 * FIRST_PAUSE);
    TokenManager::builder(hurdlr, store)
        .refresh_policy(policy)
        // No look at the store in the background, in which time would pass.
        .revalidate_after(seconds(86_400))
        .build()
        .unwrap()
}

fn id(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn access(token: &Token) -> String {
    token.access_token().expose_secret().to_owned()
}

/// The refresh token of a row.
fn refresh_token(row: Option<Row>) -> Option<String> {
    let payload = row?.token?.payload;
    let object: serde_json::Value = serde_json::from_slice(payload.expose_secret()).unwrap();
    Some(object["refresh_token"].as_str()?.to_owned())
}

/// Polls once.
fn polled_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let waker = std::task::Waker::noop();
    match future.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}
