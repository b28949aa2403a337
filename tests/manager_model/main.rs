//! A random model test of the token manager: interleavings of callers, time, faults, evictions,
//! logins, removals and restarts. The laws of `docs/design.md` are checked at every request, every
//! change of the store and every answer to a caller, and whenever everything has calmed down.
//!
//! Each run draws a fresh seed and prints it. A failing case is shrunk and printed with its seed.
//! `HURDLR_MODEL_SEED=7` repeats the run with that seed, and `PROPTEST_CASES=15000` sets the number
//! of cases, which is 1,000 by default in an optimised build.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is the failure of the test"
)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hurdlr_oauth2::manager::{
    KeepAlive, SharedToken, TokenManager, Unfinished, UnfinishedWork, UserHandle,
};
use hurdlr_oauth2::oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{
    Claim, Claimed, DueCursor, DueRow, MemoryStore, ReadRow, Realm, Release, Rewrite, Row, RowKind,
    Save, StoreFuture, StoreKey, StoredToken, TokenStore, Version,
};
use hurdlr_oauth2::testing::{
    FakeHurdlr, Fault, FaultyStore, Gate, InMemoryError, InMemoryHttpClient, ManualClock, Rng,
    Rotation, StoreCall, StoreFault,
};
use hurdlr_oauth2::{Clock, Error, ErrorKind, Hurdlr, RetryPolicy, Timestamp, Token, UserId, url};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tokio::task::JoinHandle;

const SECOND: Duration = Duration::from_secs(1);
/// The lease of the default policy.
const LEASE: Duration = Duration::from_secs(60);
/// Longer than any backoff, any lease, and any pause that a fault names.
const CALM: Duration = Duration::from_secs(700);
/// The longest pause after refusals that may mean the refresh token or the client.
const MAX_DOUBT_PAUSE: Duration = Duration::from_hours(6);
/// How many such refusals, over how long, until a caller may be told to log in.
const DOUBTS_TO_TELL: u32 = 3;
const DOUBT_SPAN_TO_TELL: Duration = Duration::from_mins(15);
/// The default bound of a shutdown.
const SHUTDOWN: Duration = Duration::from_secs(20);
/// Requests under one lease: two attempts, and once without the Bearer header.
const REQUESTS_PER_LEASE: usize = 3;
const CAPACITY: usize = 32;
/// The number of people who log in. The users after them are enterprise users.
const PEOPLE: usize = 3;
const USERS: usize = 4;
/// The user whose handle every process holds, so that they are never evicted.
const HELD: usize = 0;

// ---------------------------------------------------------------------------------------------
// The operations of a case.

#[derive(Clone, Debug)]
enum Op {
    Read { at: usize, user: usize, callers: usize, how: How },
    Sleep(u64),
    Turn(u64),
    WallForward(u64),
    WallBack(u64),
    Fault(AFault, usize),
    OpenGates,
    StoreFault(usize, StoreCall, StoreFault, usize),
    StoreDown(usize),
    StoreSlow(usize, u64),
    StoreUp(usize),
    Crowd(usize),
    Login(usize, usize),
    Import(usize, usize),
    Forget(usize, usize),
    Disconnect(usize, usize),
    Refused(usize, usize),
    KeepAlive(usize),
    Restart(usize, bool),
    Revoke(usize),
    SilentPeer(usize, bool),
    Calm,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Token,
    Within(u64),
    IfReady,
    DroppedAfter(u64),
}

#[derive(Clone, Copy, Debug)]
enum AFault {
    Refuse,
    DropBefore,
    DropAfter,
    Delay(u64),
    DelayAfter(u64),
    Hold,
    HoldAfter,
    RateLimited,
    RateLimitedFor(u64),
    UnavailableFor(u64),
    Status(u16),
    Unauthorized,
    Html(u16),
    Truncated,
    Oversized,
    Dripping(u64),
    ContentType,
    Redirect,
    Answer,
    AnswerAfter(u16),
}

#[derive(Clone, Debug)]
struct Case {
    rotation: Rotation,
    life: u64,
    managers: usize,
    seed: u64,
    ops: Vec<Op>,
}

fn cases() -> impl Strategy<Value = Case> {
    let rotation = prop_oneof![
        1 => Just(Rotation::None),
        3 => Just(Rotation::RotateAndKill),
        1 => Just(Rotation::Grace(Duration::from_secs(90))),
        2 => Just(Rotation::KillFamily)];
    let life = prop_oneof![1 => Just(90_u64), 3 => Just(1_200_u64), 3 => Just(3_600_u64)];
    // Some laws cannot be checked where the wall clock is set.
    let clocks_are_set = prop::bool::weighted(0.25);
    (rotation, life, clocks_are_set, 1..=3_usize, any::<u64>(), prop::collection::vec(ops(), 5..45))
        .prop_map(|(rotation, life, clocks_are_set, managers, seed, mut ops)| {
            ops.retain(|op| clocks_are_set || !matches!(op, Op::WallForward(_) | Op::WallBack(_)));
            Case { rotation, life, managers, seed, ops }
        })
}

fn ops() -> impl Strategy<Value = Op> {
    let at = || 0..3_usize;
    let person = || 0..PEOPLE;
    let how = prop_oneof![
        4 => Just(How::Token),
        1 => (1..40_000_u64).prop_map(How::Within),
        1 => Just(How::IfReady),
        2 => (0..2_000_u64).prop_map(How::DroppedAfter)];
    let call = prop_oneof![
        1 => Just(StoreCall::Read),
        2 => Just(StoreCall::Claim),
        4 => Just(StoreCall::Save),
        1 => Just(StoreCall::Release),
        1 => Just(StoreCall::Forget),
        1 => Just(StoreCall::Due)];
    let when = prop_oneof![Just(StoreFault::Before), Just(StoreFault::After)];
    prop_oneof![
        14 => (at(), 0..USERS, 1..4_usize, how)
            .prop_map(|(at, user, callers, how)| Op::Read { at, user, callers, how }),
        6 => (1..3_000_u64).prop_map(Op::Sleep),
        4 => (3_000..120_000_u64).prop_map(Op::Sleep),
        7 => (1..5_000_u64).prop_map(Op::Turn),
        1 => (1..100_000_u64).prop_map(Op::WallForward),
        1 => (1..100_000_u64).prop_map(Op::WallBack),
        8 => (faults(), 1..4_usize).prop_map(|(fault, times)| Op::Fault(fault, times)),
        1 => Just(Op::OpenGates),
        5 => (at(), call, when, 1..5_usize)
            .prop_map(|(at, call, when, times)| Op::StoreFault(at, call, when, times)),
        1 => at().prop_map(Op::StoreDown),
        2 => (at(), 1..800_u64).prop_map(|(at, ms)| Op::StoreSlow(at, ms)),
        3 => at().prop_map(Op::StoreUp),
        3 => at().prop_map(Op::Crowd),
        4 => (at(), person()).prop_map(|(at, user)| Op::Login(at, user)),
        1 => (at(), person()).prop_map(|(at, user)| Op::Import(at, user)),
        2 => (at(), 0..USERS).prop_map(|(at, user)| Op::Forget(at, user)),
        1 => (at(), 0..USERS).prop_map(|(at, user)| Op::Disconnect(at, user)),
        2 => (at(), 0..USERS).prop_map(|(at, user)| Op::Refused(at, user)),
        1 => at().prop_map(Op::KeepAlive),
        1 => (at(), any::<bool>()).prop_map(|(at, graceful)| Op::Restart(at, graceful)),
        1 => person().prop_map(Op::Revoke),
        1 => (person(), any::<bool>()).prop_map(|(user, sends)| Op::SilentPeer(user, sends)),
        2 => Just(Op::Calm)]
}

fn faults() -> impl Strategy<Value = AFault> {
    let ms = || 1..40_000_u64;
    prop_oneof![
        1 => Just(AFault::Refuse),
        1 => Just(AFault::DropBefore),
        2 => Just(AFault::DropAfter),
        2 => ms().prop_map(AFault::Delay),
        2 => ms().prop_map(AFault::DelayAfter),
        1 => Just(AFault::Hold),
        2 => Just(AFault::HoldAfter),
        1 => Just(AFault::RateLimited),
        1 => (1..90_u64).prop_map(AFault::RateLimitedFor),
        1 => (1..90_u64).prop_map(AFault::UnavailableFor),
        1 => prop_oneof![Just(403_u16), Just(500), Just(502)].prop_map(AFault::Status),
        1 => Just(AFault::Unauthorized),
        1 => prop_oneof![Just(200_u16), Just(502)].prop_map(AFault::Html),
        1 => Just(AFault::Truncated),
        1 => Just(AFault::Oversized),
        1 => (1..100_u64).prop_map(AFault::Dripping),
        1 => Just(AFault::ContentType),
        1 => Just(AFault::Redirect),
        1 => Just(AFault::Answer),
        1 => prop_oneof![Just(200_u16), Just(500)].prop_map(AFault::AnswerAfter)]
}

impl AFault {
    fn make(self, gates: &mut Vec<Gate>) -> Fault {
        let mut gate = || {
            gates.push(Gate::closed());
            gates[gates.len() - 1].clone()
        };
        match self {
            Self::Refuse => Fault::Refuse,
            Self::DropBefore => Fault::DropBefore,
            Self::DropAfter => Fault::DropAfter,
            Self::Delay(ms) => Fault::Delay(Duration::from_millis(ms)),
            Self::DelayAfter(ms) => Fault::DelayAfter(Duration::from_millis(ms)),
            Self::Hold => Fault::Hold(gate()),
            Self::HoldAfter => Fault::HoldAfter(gate()),
            Self::RateLimited => Fault::rate_limited(),
            Self::RateLimitedFor(s) => Fault::rate_limited_for(Duration::from_secs(s)),
            Self::UnavailableFor(s) => Fault::unavailable_for(Duration::from_secs(s)),
            Self::Status(status) => Fault::status(status),
            Self::Unauthorized => {
                Fault::answer(401, r#"{"result":"FAILURE","error":[{"type":"INVALID_TOKEN"}]}"#)
            }
            Self::Html(status) => Fault::html(status),
            Self::Truncated => Fault::Truncated,
            Self::Oversized => Fault::Oversized,
            Self::Dripping(ms) => Fault::dripping(Duration::from_millis(ms)),
            Self::ContentType => Fault::ContentType("text/html".to_owned()),
            Self::Redirect => Fault::redirect(307, "https://elsewhere.example.com/"),
            Self::Answer => Fault::answer(400, r#"{"error":"invalid_request"}"#),
            Self::AnswerAfter(status) => Fault::answer_after(status, "half an answ"),
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The reference model: the facts that the laws are checked against.

struct World {
    fake: FakeHurdlr,
    clock: ManualClock,
    rotation: Rotation,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    violations: Vec<String>,
    /// The next faults of the provider. Logins are spared.
    faults: VecDeque<Fault>,
    requests: Vec<Request>,
    /// The last lease that was granted on a version of a row, until it is released.
    leases: HashMap<(Subject, Version), Lease>,
    /// The last grant to a process on a version of a row.
    grants: HashMap<(usize, Subject, Version), u64>,
    /// The pause that a release left on a version of a row.
    pauses: HashMap<(Subject, Version), (When, Timestamp, Duration)>,
    /// The refresh token that the store held under a version.
    contents: HashMap<(Subject, Version), Option<String>>,
    /// The refresh token that the store holds.
    stored: HashMap<Subject, String>,
    /// The last change of a row, or of the marks on it.
    changed: HashMap<Subject, When>,
    /// The login that a refresh token goes back to.
    logins_by_token: HashMap<String, usize>,
    /// The refresh token that another one replaced, for answers to a process that has ended.
    predecessors: HashMap<String, String>,
    logins: Vec<Login>,
    presence: HashMap<usize, Presence>,
    /// The number of running changes of a person's presence, and whether two ran at once.
    changing: HashMap<usize, (usize, bool)>,
    /// Processes that hold a login which their store did not take.
    unsaved: HashMap<usize, HashSet<usize>>,
    /// Refresh tokens whose successor a process was given.
    received: HashSet<(usize, String)>,
    /// The end of each access token, by the provider's clock.
    ends: HashMap<String, SystemTime>,
    /// The time that the request for an access token took. The token counts as older by that.
    slack: HashMap<String, Duration>,
    /// Access tokens that came after their end, so that their dates count as implausible.
    late: HashSet<String>,
    /// Users whose tokens died before their end.
    killed: HashSet<usize>,
    /// Access tokens whose refusal a process must have believed.
    refused: HashSet<(usize, String)>,
    /// The last time that a process was removing a user. It drops the token of a refresh that began
    /// before that.
    removing: HashMap<(usize, usize), u64>,
    /// Access tokens that were reported to a process. It may have believed the report.
    reported: HashSet<(usize, String)>,
    /// The number of reports to a process about a user, and the time of the last one.
    reports: HashMap<(usize, usize), (u32, Timestamp)>,
    /// Refusals in a row of a user's refresh token that may mean the client, and the first of them.
    doubts: HashMap<(usize, String), (u32, Timestamp)>,
    wall_moved: bool,
    /// The sum of all turns of all clocks.
    turned: Duration,
    events: u64,
    /// The number of calls to the stores within one instant.
    calls: Option<(Timestamp, u32)>,
    calls_failed: HashMap<usize, u32>,
    /// Refresh tokens that a store has held.
    saved: HashSet<String>,
    /// Processes whose store failed at some time.
    unreliable: HashSet<usize>,
    /// Processes that were shut down, and when that began.
    ended: HashMap<usize, When>,
    /// Processes whose shutdown left nothing unfinished.
    idle: HashSet<usize>,
    /// Users whose login was over, by the process that knew it.
    over: HashSet<(usize, usize)>,
    /// The last failure of a process's store.
    failed_at: HashMap<usize, When>,
    /// Rows that a process marked as refused, until it reads them again.
    unread: HashSet<(usize, Subject)>,
    /// Tokens on their way into a store, with the age they had when they set out.
    setting_out: u32,
}

type Subject = (RowKind, String);

struct Lease {
    process: usize,
    holder: u64,
    since: When,
    lasts: Duration,
    /// Whether the claimed row said that an earlier request went unanswered.
    in_flight: bool,
}

struct Request {
    process: usize,
    user: String,
    refresh_token: Option<String>,
    at: Timestamp,
    event: u64,
    /// The lease that it was sent under.
    lease: Option<Term>,
    has_bearer: bool,
    in_flight: bool,
    /// Whether it may have taken effect unseen.
    unanswered: bool,
    /// The pause that the provider asked for.
    pause: Option<(Timestamp, Duration)>,
}

/// A place in the order of events, with its time by a clock that nobody sets.
#[derive(Clone, Copy, Debug, PartialEq)]
struct When {
    event: u64,
    at: tokio::time::Instant,
    /// The time without the turns, like on machines that were all suspended.
    awake: tokio::time::Instant,
}

impl When {
    fn is_before(self, later: Self) -> bool {
        self.event < later.event
    }

    fn is_long_before(self, later: Self) -> bool {
        // A refresh that began before may last that long.
        later.awake.duration_since(self.awake) > 2 * LEASE
    }
}

/// One login of a person.
struct Login {
    user: usize,
    /// The newest refresh token that a living process was given.
    newest: String,
    receiver: usize,
    at: When,
}

/// The term of a lease.
#[derive(Clone, Copy)]
struct Term {
    /// The event of the grant.
    grant: u64,
    ends: tokio::time::Instant,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Presence {
    Absent {
        by: usize,
        since: When,
    },
    Here {
        login: usize,
        since: When,
    },
    /// Two changes ran at once, or a store failed in between: either may have won.
    Unclear,
}

impl World {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn when(&self) -> When {
        self.known().when()
    }

    fn name(user: usize) -> String {
        format!("user-{user}")
    }

    fn number(name: &str) -> Option<usize> {
        name.strip_prefix("user-")?.parse().ok()
    }

    fn subject(user: usize) -> Subject {
        let kind = if user < PEOPLE { RowKind::Login } else { RowKind::Enterprise };
        (kind, Self::name(user))
    }
}

impl Known {
    fn when(&mut self) -> When {
        self.events += 1;
        When {
            event: self.events,
            at: tokio::time::Instant::now() + self.turned,
            awake: tokio::time::Instant::now(),
        }
    }

    fn violated(&mut self, law: impl Into<String>) {
        self.violations.push(law.into());
    }

    fn holds(&mut self, subject: Subject, version: Version, refresh_token: Option<String>) {
        match refresh_token.clone() {
            Some(token) => {
                self.saved.insert(token.clone());
                self.stored.insert(subject.clone(), token)
            }
            None => self.stored.remove(&subject),
        };
        self.contents.insert((subject, version), refresh_token);
    }

    fn presence(&self, user: usize) -> Presence {
        self.presence.get(&user).copied().unwrap_or(Presence::Unclear)
    }

    fn begin_change(&mut self, user: usize, by: usize) -> Presence {
        let changing = self.changing.entry(user).or_default();
        changing.0 += 1;
        changing.1 |= changing.0 > 1;
        let elsewhere = self.unsaved.get(&user);
        if elsewhere.is_some_and(|them| them.iter().any(|it| *it != by)) {
            // An unsaved login of another process may still be put over this one.
            changing.1 = true;
        }
        let alone = !changing.1;
        let before = self.presence.insert(user, Presence::Unclear);
        before.filter(|_| alone).unwrap_or(Presence::Unclear)
    }

    /// Says whether nobody else changed it meanwhile.
    fn end_change(&mut self, user: usize, presence: Presence) -> bool {
        let changing = self.changing.entry(user).or_default();
        changing.0 -= 1;
        let clear = !changing.1;
        if changing.0 == 0 {
            changing.1 = false;
        }
        if clear {
            self.presence.insert(user, presence);
        }
        clear
    }

    fn add_login(&mut self, user: usize, token: &Token, by: usize) -> usize {
        let at = self.when();
        let login = self.logins.len();
        let refresh_token = refresh(token);
        self.logins_by_token.insert(refresh_token.clone(), login);
        self.logins.push(Login { user, newest: refresh_token, receiver: by, at });
        login
    }
}

fn access(token: &Token) -> String {
    token.access_token().expose_secret().to_owned()
}

fn refresh(token: &Token) -> String {
    let token = token.refresh_token().expect("a login has one");
    token.expose_secret().to_owned()
}

fn refresh_token_of(stored: &StoredToken) -> Option<String> {
    let object: serde_json::Value =
        serde_json::from_slice(stored.payload.expose_secret()).expect("a payload is JSON");
    Some(object.get("refresh_token")?.as_str()?.to_owned())
}

// ---------------------------------------------------------------------------------------------
// The HTTP client, watched.

/// The HTTP client of one process.
struct Wire {
    process: usize,
    world: Arc<World>,
    client: InMemoryHttpClient,
}

/// Marks a request as over, even where its sender goes away.
struct InFlight<'a> {
    world: &'a World,
    index: usize,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.world.known().requests[self.index].in_flight = false;
    }
}

impl<'c> AsyncHttpClient<'c> for Wire {
    type Error = InMemoryError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, InMemoryError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let form: HashMap<String, String> =
                url::form_urlencoded::parse(request.body()).into_owned().collect();
            if form.get("grant_type").map(String::as_str) == Some("authorization_code") {
                return self.client.call(request).await;
            }
            let sent = form.get("refresh_token").cloned();
            let has_bearer = request.headers().contains_key("authorization");
            let index = self.world.begin_request(self.process, &form, has_bearer);
            let in_flight = InFlight { world: &self.world, index };
            let answer = self.client.call(request).await;
            drop(in_flight);
            match &answer {
                Ok(answer) => {
                    self.world.answered(self.process, index, sent.as_deref(), answer);
                }
                Err(error) => {
                    let was_sent = error.kind() != std::io::ErrorKind::ConnectionRefused;
                    self.world.known().requests[index].unanswered = was_sent;
                }
            }
            answer
        })
    }
}

impl World {
    fn begin_request(
        &self,
        process: usize,
        form: &HashMap<String, String>,
        has_bearer: bool,
    ) -> usize {
        let now = self.now();
        let mut known = self.known();
        let known = &mut *known;
        let when = known.when();
        let refresh_token = form.get("refresh_token").cloned();
        let (user, lease, broken) = if let Some(token) = &refresh_token {
            let login = known.logins_by_token.get(token).copied();
            let user = login.map_or(String::new(), |login| Self::name(known.logins[login].user));
            let (lease, broken) =
                known.check_refresh(process, &user, token, (now, when), self.rotation);
            (user, lease, broken)
        } else {
            let user = form.get("userId").cloned().unwrap_or_default();
            let subject = (RowKind::Enterprise, user.clone());
            let lease = known.lease(&subject, process, when, |_| true);
            let broken = (lease.is_none() && !known.wall_moved)
                .then(|| "a grant was sent without the lease".to_owned());
            (user, lease.map(|(version, lease)| lease.term(version)), broken)
        };
        if let Some(broken) = broken {
            known.violated(format!("process {process}, {user}: {broken}"));
        }
        let recent = known.requests.iter().rev();
        let recent = recent
            .take_while(|it| now.since(it.at) < LEASE)
            .filter(|it| it.user == user && it.process == process)
            .count();
        // A series of failures doubles its pause from 1 s on; a login begins a new series.
        if recent > 60 {
            known.violated(format!("process {process}, {user}: {recent} requests in a minute"));
        }
        known.requests.push(Request {
            process,
            user,
            refresh_token,
            at: now,
            event: when.event,
            lease,
            has_bearer,
            in_flight: true,
            unanswered: true,
            pause: None,
        });
        known.requests.len() - 1
    }

    fn answered(&self, process: usize, index: usize, sent: Option<&str>, answer: &HttpResponse) {
        let now = self.now();
        let mut known = self.known();
        let status = answer.status();
        let retry_after = answer.headers().get("retry-after");
        // A 503 is the provider's own only where it names a pause.
        known.requests[index].unanswered = status.is_server_error()
            && (status != 503 || retry_after.is_none())
            || status.is_success();
        if let Some(seconds) = retry_after.and_then(|it| it.to_str().ok()?.parse().ok()) {
            known.requests[index].pause = Some((now, Duration::from_secs(seconds)));
        }
        let user = known.requests[index].user.clone();
        if sent.is_some()
            && answer.status() == 400
            && self.rotation == Rotation::KillFamily
            && let Some(user) = Self::number(&user)
        {
            known.killed.insert(user);
        }
        if sent.is_some() && status == 401 && !known.requests[index].has_bearer {
            known.doubts.entry((process, user.clone())).or_insert((0, now)).0 += 1;
        }
        if !answer.status().is_success() {
            return;
        }
        let Ok(object) = serde_json::from_slice::<serde_json::Value>(answer.body()) else {
            return;
        };
        let text = |name: &str| object.get(name)?.as_str().map(str::to_owned);
        known.requests[index].unanswered = false;
        known.doubts.remove(&(process, user));
        let number = |name: &str| object.get(name)?.as_u64();
        if let (Some(access), Some(created), Some(life)) =
            (text("access_token"), number("created_at"), number("expires_in"))
        {
            let ends = UNIX_EPOCH + Duration::from_secs(created + life);
            let slack = now.since(known.requests[index].at);
            known.slack.insert(access.clone(), slack);
            if self.fake.now() + SECOND >= ends {
                known.late.insert(access.clone());
            }
            known.ends.insert(access, ends);
        }
        // A silent peer is one that died with its answer.
        if process >= SILENT {
            return;
        }
        if let (Some(sent), Some(new)) = (sent, text("refresh_token"))
            && let Some(login) = known.logins_by_token.get(sent).copied()
        {
            let user = known.logins[login].user;
            let event = known.requests[index].event;
            let is_dropped =
                known.removing.get(&(process, user)).is_some_and(|removing| event < *removing);
            if sent != new && !is_dropped {
                known.received.insert((process, sent.to_owned()));
            }
            known.logins_by_token.insert(new.clone(), login);
            if known.ended.contains_key(&process) {
                // It counts once it is saved.
                known.predecessors.insert(new, sent.to_owned());
                return;
            }
            let at = known.when();
            let login = &mut known.logins[login];
            if login.newest == sent {
                login.newest = new;
                login.receiver = process;
                login.at = at;
            }
        }
    }
}

impl Lease {
    fn ends(&self) -> tokio::time::Instant {
        self.since.at + self.lasts
    }

    fn term(&self, version: Version) -> Term {
        Term { grant: self.since.event, ends: self.ends(), version }
    }
}

impl Known {
    /// The living lease of this process on a version of the row.
    fn lease(
        &self,
        subject: &Subject,
        process: usize,
        now: When,
        version: impl Fn(Version) -> bool,
    ) -> Option<(Version, &Lease)> {
        self.leases
            .iter()
            .filter(|((of, it), _)| of == subject && version(*it))
            .map(|((_, version), lease)| (*version, lease))
            .filter(|(_, lease)| lease.process == process && now.at < lease.ends())
            .max_by_key(|(_, lease)| lease.since.event)
    }

    /// Whether a request under this process's last lease on a version may have taken effect unseen.
    /// The process gives up the tokens of a user whom it removes.
    fn give_up(&mut self, user: usize, number: usize) {
        let (logins, by_token) = (&self.logins, &self.logins_by_token);
        self.received.retain(|(process, token)| {
            let login = by_token.get(token).map(|login| &logins[*login]);
            *process != number || login.is_none_or(|login| login.user != user)
        });
    }

    fn may_be_in_flight(&self, subject: &Subject, version: Version, process: usize) -> bool {
        let Some(Some(token)) = self.contents.get(&(subject.clone(), version)) else {
            return false;
        };
        let grant = self.grants.get(&(process, subject.clone(), version));
        self.requests.iter().any(|it| {
            it.process == process
                && it.refresh_token.as_ref() == Some(token)
                && it.unanswered
                && it.lease.map(|lease| lease.grant) == grant.copied()
                && grant.is_some()
        })
    }

    /// Laws 1 and 6. Returns the term of the lease that the request is sent under.
    fn check_refresh(
        &self,
        process: usize,
        user: &str,
        token: &str,
        (now, when): (Timestamp, When),
        rotation: Rotation,
    ) -> (Option<Term>, Option<String>) {
        let subject = (RowKind::Login, user.to_owned());
        let holds = |version: Version| {
            let content = self.contents.get(&(subject.clone(), version));
            content.is_some_and(|held| held.as_deref() == Some(token))
        };
        let lease = self.lease(&subject, process, when, holds);
        let term = lease.map(|(version, lease)| lease.term(version));
        if lease.is_none() && !self.wall_moved {
            return (None, Some("a refresh token was sent without the lease on it".to_owned()));
        }
        (term, self.check_repetition(process, token, lease, (now, when), rotation))
    }

    fn check_repetition(
        &self,
        process: usize,
        token: &str,
        lease: Option<(Version, &Lease)>,
        (now, when): (Timestamp, When),
        rotation: Rotation,
    ) -> Option<String> {
        if rotation != Rotation::None && self.received.contains(&(process, token.to_owned())) {
            return Some("a refresh token was sent again by who has its successor".to_owned());
        }
        let earlier = || {
            let requests = self.requests.iter();
            requests.filter(|it| it.refresh_token.as_deref() == Some(token))
        };
        // Another process's request may still hang after its lease. A refresh token that does not
        // rotate is that of other versions too.
        let of = lease.map(|(version, _)| version);
        let is_leased = |it: &Request| {
            !self.wall_moved
                && it.lease.is_some_and(|it| when.at < it.ends && Some(it.version) == of)
        };
        if earlier().any(|it| it.in_flight && (it.process == process || is_leased(it))) {
            return Some("a refresh token is in flight twice".to_owned());
        }
        let last = earlier().rfind(|it| it.process == process);
        if let Some((since, pause)) = last.and_then(|it| it.pause)
            && now.since(since) + Duration::from_millis(2) < pause
        {
            return Some(format!("asked within a pause of {pause:?}"));
        }
        let burst = earlier().filter(|it| it.process == process);
        // Two attempts, each with a Bearer header and then without.
        let burst = burst.filter(|it| now.since(it.at) < Duration::from_millis(400));
        if burst.count() > 4 {
            return Some("a refresh token was sent in a burst".to_owned());
        }
        let (version, lease) = lease?;
        let is_of_lease = |it: &Request| it.lease.is_some_and(|it| it.grant == lease.since.event);
        let repeated = earlier().filter(|it| is_of_lease(it)).count();
        if repeated >= REQUESTS_PER_LEASE {
            return Some(format!("a refresh token was sent {repeated} times under one lease"));
        }
        let subject = self.leases.iter().find(|(_, it)| std::ptr::eq(*it, lease))?.0.0.clone();
        // A process that holds the lease already does not learn of a pause. A wall clock that is
        // set ahead ends it early in the store.
        if !self.wall_moved
            && let Some((left, since, pause)) = self.pauses.get(&(subject, version))
            && left.is_before(lease.since)
            && now.since(*since) + Duration::from_millis(2) < *pause
        {
            return Some(format!("asked within the pause of {pause:?} that a release left"));
        }
        // A refresh token that does not rotate is the next version's too.
        let is_of_version = |it: &Request| it.lease.is_some_and(|it| it.version == version);
        let mut unanswered =
            earlier().filter(|it| it.unanswered && is_of_version(it) && !is_of_lease(it));
        if !lease.in_flight && unanswered.next().is_some() {
            return Some("a lease does not tell of an unanswered request".to_owned());
        }
        None
    }
}

// ---------------------------------------------------------------------------------------------
// The store, watched: the effect of each call, whatever its caller is told.

#[derive(Clone)]
struct Spy {
    process: usize,
    world: Arc<World>,
    store: MemoryStore,
}

impl std::fmt::Debug for Spy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spy").finish_non_exhaustive()
    }
}

fn subject(key: &StoreKey) -> Subject {
    (key.kind(), key.subject().as_str().to_owned())
}

impl Spy {
    /// Counts a call. A loop that lets no time pass would hang the test: it is slowed down.
    async fn count(&self) {
        let now = self.world.now();
        let is_loop = {
            let mut known = self.world.known();
            let (at, calls) = known.calls.get_or_insert((now, 0));
            if *at != now {
                (*at, *calls) = (now, 0);
            }
            *calls += 1;
            let is_loop = *calls > 3_000;
            if is_loop {
                known.violated(format!("process {} asks the store in circles", self.process));
            }
            is_loop
        };
        if is_loop {
            tokio::time::sleep(600 * SECOND).await;
        }
    }

    /// The row, unwatched.
    async fn row(&self, key: &StoreKey) -> Option<Row> {
        let rows = self.store.read(std::slice::from_ref(key)).await.expect("memory");
        rows.into_iter().next()?.expect("memory")
    }
}

impl Known {
    /// Counts a refresh token as the newest one of its login, where the process that was given it
    /// has ended.
    fn saved_by(&mut self, process: usize, refresh_token: Option<&String>, at: When) {
        let Some(new) = refresh_token else { return };
        let Some(sent) = self.predecessors.get(new).cloned() else { return };
        let login = self.logins_by_token.get(new).copied();
        if let Some(login) = login.map(|login| &mut self.logins[login])
            && login.newest == sent
        {
            *login = Login { newest: new.clone(), receiver: process, at, ..*login };
        }
    }
}

impl TokenStore for Spy {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        Box::pin(async move {
            self.count().await;
            let rows = self.store.read(keys).await;
            let mut known = self.world.known();
            for key in keys {
                known.unread.remove(&(self.process, subject(key)));
            }
            rows
        })
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        Box::pin(async move {
            self.count().await;
            let claimed = self.store.claim(key, claim).await?;
            let since = self.world.when();
            let mut known = self.world.known();
            let process = self.process;
            known.unread.remove(&(process, subject(key)));
            // A claim that was on its way may still arrive where work was left unfinished.
            let has_ended = known.idle.contains(&process)
                || known
                    .ended
                    .get(&process)
                    .is_some_and(|it| since.awake > it.awake + SHUTDOWN + 2 * SECOND);
            if has_ended && key.kind() != RowKind::KeepAliveLock {
                known.violated(format!("process {process} begins a refresh after its shutdown"));
            }
            if let Some(row) = claimed.row.as_ref().filter(|_| claimed.granted) {
                let place = (subject(key), row.version);
                let other = known
                    .leases
                    .get(&place)
                    .is_some_and(|lease| lease.holder != claim.holder && since.at < lease.ends());
                if other && !known.wall_moved {
                    known.violated("the store granted two leases");
                }
                let lease = Lease {
                    process,
                    holder: claim.holder,
                    since,
                    lasts: claim.lease,
                    in_flight: row.in_flight,
                };
                known.grants.insert((process, place.0.clone(), place.1), since.event);
                known.leases.insert(place, lease);
            }
            Ok(claimed)
        })
    }

    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.count().await;
            let (over, version) = (save.over, save.version);
            let refresh_token = refresh_token_of(&save.token);
            let saved = self.store.save(key, save).await?;
            self.world.known().setting_out -= 1;
            if saved {
                let now = self.world.when();
                let mut known = self.world.known();
                let is_refresh = version.incarnation == over.incarnation;
                if is_refresh && version.revision <= over.revision {
                    known.violated(format!("{version:?} was saved over {over:?}"));
                }
                known.changed.insert(subject(key), now);
                if is_refresh {
                    known.saved_by(self.process, refresh_token.as_ref(), now);
                }
                known.holds(subject(key), version, refresh_token);
            }
            Ok(saved)
        })
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.count().await;
            self.store.release(key, version, holder, release).await?;
            let row = self.row(key).await;
            let (now, at) = (self.world.when(), self.world.now());
            let mut known = self.world.known();
            let process = self.process;
            if known.may_be_in_flight(&subject(key), version, process) {
                if !release.in_flight {
                    known.violated(format!(
                        "process {process}: a release does not tell of an unanswered request"
                    ));
                }
                // The release may be the repetition of one that failed.
                let is_meant = |it: &&Request| {
                    let is_of_user = it.process == process && it.user == key.subject().as_str();
                    is_of_user && it.unanswered
                };
                let sent = known.requests.iter().find(is_meant);
                let passed = sent.map_or(Duration::ZERO, |sent| at.since(sent.at));
                // Both are counted in whole milliseconds.
                let left = passed + release.not_before + Duration::from_millis(2);
                if !release.refused && left < SECOND / 2 {
                    known.violated(format!(
                        "process {process}: an unanswered request leaves no pause"
                    ));
                }
            }
            // Law 6: the other processes learn of a pause that the provider asked for.
            let grant = known.grants.get(&(process, subject(key), version)).copied();
            let asked = known.requests.iter().rfind(|it| {
                it.process == process && it.lease.is_some_and(|it| Some(it.grant) == grant)
            });
            if let Some((since, pause)) = asked.and_then(|it| it.pause)
                && at.since(since) + release.not_before + Duration::from_millis(2) < pause
            {
                known.violated(format!(
                    "process {process}: a release cuts the pause of {pause:?} short"
                ));
            }
            if release.refused {
                known.unread.insert((process, subject(key)));
            }
            let place = (subject(key), version);
            if row.is_some_and(|row| row.version == version) {
                known.changed.insert(subject(key), now);
                known.pauses.insert(place.clone(), (now, at, release.not_before));
            }
            if known.leases.get(&place).is_some_and(|it| it.holder == holder) {
                known.leases.remove(&place);
            }
            Ok(())
        })
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.count().await;
            let forgotten = self.store.forget(key, version).await?;
            let now = self.world.when();
            let mut known = self.world.known();
            known.changed.insert(subject(key), now);
            if forgotten {
                known.stored.remove(&subject(key));
                // A process that finds the row gone gives up the token that it was about to save.
                // The row can come back: where a login's save went unanswered, the login counts as
                // later than the removal.
                let Known { logins, logins_by_token, received, requests, .. } = &mut *known;
                for request in requests.iter_mut().filter(|it| it.user == key.subject().as_str()) {
                    request.unanswered = false;
                }
                received.retain(|(_, token)| {
                    let login = logins_by_token.get(token).map(|login| &logins[*login]);
                    login.is_none_or(|login| id(login.user) != *key.subject())
                });
            }
            Ok(forgotten)
        })
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        self.store.redeem(state, keep)
    }

    fn due<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a DueCursor>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DueRow>> {
        Box::pin(async move {
            self.count().await;
            self.store.due(realm, after, limit).await
        })
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>> {
        self.store.scan(realm, after, limit)
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        self.store.rewrite(rewrites)
    }
}

// ---------------------------------------------------------------------------------------------
// The processes.

/// Numbers from here on are silent peers: they claim, perhaps send, and are never heard of again.
const SILENT: usize = 1_000;

struct Process {
    number: usize,
    manager: TokenManager,
    store: FaultyStore<Spy>,
    /// The next faults of the store.
    plan: Arc<Mutex<Plan>>,
    _held: UserHandle,
    walk: Option<KeepAlive>,
    /// The token that callers were handed last, by user.
    last: Arc<Mutex<HashMap<usize, (SharedToken, When)>>>,
}

#[derive(Default)]
struct Plan {
    is_down: bool,
    faults: Vec<(StoreCall, StoreFault, usize)>,
}

impl Plan {
    fn decide(&mut self, call: StoreCall) -> Option<StoreFault> {
        if self.is_down {
            return Some(StoreFault::Before);
        }
        let at = self.faults.iter().position(|(of, ..)| *of == call)?;
        let (_, fault, times) = &mut self.faults[at];
        let fault = *fault;
        *times -= 1;
        if *times == 0 {
            self.faults.remove(at);
        }
        Some(fault)
    }
}

#[derive(Debug)]
struct Seeded(AtomicU64);

impl Rng for Seeded {
    fn next_u64(&self) -> u64 {
        // SplitMix64.
        let mut z = self
            .0
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

struct Run {
    world: Arc<World>,
    store: MemoryStore,
    processes: Vec<Process>,
    /// The stores of processes that were restarted.
    retired: Vec<(FaultyStore<Spy>, Arc<Mutex<Plan>>)>,
    started: usize,
    seed: u64,
    gates: Vec<Gate>,
    tasks: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn id(user: usize) -> UserId {
    UserId::new(World::name(user)).expect("an id")
}

fn handle(manager: &TokenManager, user: usize) -> UserHandle {
    if user < PEOPLE { manager.user(&id(user)) } else { manager.enterprise_user(&id(user)) }
}

impl Run {
    fn new(case: &Case) -> Self {
        let clock = ManualClock::new();
        let fake = FakeHurdlr::builder()
            .token_life(Duration::from_secs(case.life))
            .rotation(case.rotation)
            .in_memory();
        let store = MemoryStore::with_clock(clock.clone());
        let world =
            Arc::new(World { fake, clock, rotation: case.rotation, known: Mutex::default() });
        let now = world.when();
        for user in 0..PEOPLE {
            let absent = Presence::Absent { by: usize::MAX, since: now };
            world.known().presence.insert(user, absent);
        }
        let plan = Arc::downgrade(&world);
        world.fake.fault_plan(move |request| {
            let world = plan.upgrade()?;
            let is_login = request.grant() == Some("authorization_code");
            (!is_login).then(|| world.known().faults.pop_front())?
        });
        let mut run = Self {
            world,
            store,
            processes: Vec::new(),
            retired: Vec::new(),
            started: 0,
            seed: case.seed,
            gates: Vec::new(),
            tasks: Vec::new(),
        };
        for _ in 0..case.managers {
            let process = run.start_process();
            run.processes.push(process);
        }
        run
    }

    /// The client of a process, or one of nobody whose requests are not watched.
    fn hurdlr(&self, client: impl Into<Option<usize>>) -> Hurdlr {
        let client = client.into();
        let seed = client.map_or(0, |process| process as u64 + 1);
        let seed = self.seed ^ seed.wrapping_mul(0x1234_5678_9abc_def1);
        let fake = &self.world.fake;
        let builder = Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .authorize_url(fake.authorize_url())
            .redirect_uri("https://app.example.com/callback")
            .retry(RetryPolicy::default().max_attempts(2))
            .rng(Seeded(AtomicU64::new(seed)))
            .clock(self.world.clock.clone());
        let builder = match client {
            Some(process) => builder.http_client(Wire {
                process,
                world: Arc::clone(&self.world),
                client: fake.http_client(),
            }),
            None => builder.http_client(fake.http_client()),
        };
        builder.build().expect("settings that can be used")
    }

    fn start_process(&mut self) -> Process {
        let number = self.started;
        self.started += 1;
        let spy =
            Spy { process: number, world: Arc::clone(&self.world), store: self.store.clone() };
        let store = FaultyStore::new(spy);
        let plan = Arc::new(Mutex::new(Plan::default()));
        let (deciding, world) = (Arc::clone(&plan), Arc::downgrade(&self.world));
        store.plan(move |call| {
            let fault = lock(&deciding).decide(call);
            if fault.is_some()
                && let Some(world) = world.upgrade()
            {
                let mut known = world.known();
                let now = known.when();
                known.unreliable.insert(number);
                known.failed_at.insert(number, now);
            }
            if call == StoreCall::Save
                && fault != Some(StoreFault::Before)
                && let Some(world) = world.upgrade()
            {
                world.known().setting_out += 1;
            }
            if matches!(call, StoreCall::Read | StoreCall::Claim | StoreCall::Save)
                && fault.is_some()
                && let Some(world) = world.upgrade()
            {
                *world.known().calls_failed.entry(number).or_default() += 1;
            }
            fault
        });
        let manager = TokenManager::builder(self.hurdlr(number), store.clone())
            .cache_capacity(CAPACITY)
            .max_concurrent_refreshes(2)
            .build()
            .expect("settings that can be used");
        Process {
            number,
            _held: manager.user(&id(HELD)),
            manager,
            store,
            plan,
            walk: None,
            last: Arc::default(),
        }
    }

    fn at(&self, at: usize) -> &Process {
        &self.processes[at % self.processes.len()]
    }

    fn at_mut(&mut self, at: usize) -> &mut Process {
        let count = self.processes.len();
        &mut self.processes[at % count]
    }

    async fn log_in(&self, user: usize) -> Token {
        let hurdlr = self.hurdlr(None);
        let (url, pending) = hurdlr.begin_login().expect("an authorize URL");
        let name = World::name(user);
        let callback = self.world.fake.consent(&url, &name).await.expect("consent");
        let token = hurdlr.complete_login(pending, &callback).await.expect("a login");
        let ends = self.world.fake.now() + token.remaining().expect("a life");
        let mut known = self.world.known();
        known.ends.insert(access(&token), ends);
        token
    }

    async fn row(&self, user: usize) -> Option<Row> {
        let hurdlr = self.hurdlr(None);
        let realm = Realm::new(
            hurdlr.api_version(),
            self.world.fake.base_url().as_str(),
            hurdlr.client_id(),
        );
        let (kind, _) = World::subject(user);
        let key = StoreKey::new(Arc::new(realm), kind, id(user));
        self.store.read(&[key]).await.expect("memory").remove(0).expect("memory")
    }

    async fn perform(&mut self, op: &Op) {
        match *op {
            Op::Read { at, user, callers, how } => self.read(at, user, callers, how),
            Op::Sleep(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Op::Turn(seconds) => {
                // A token's age is handed to the store. The time on the way is not counted.
                while self.world.known().setting_out > 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                self.world.clock.advance(Duration::from_secs(seconds));
                self.world.known().turned += Duration::from_secs(seconds);
                self.world.fake.advance_clock(Duration::from_secs(seconds));
            }
            Op::WallForward(seconds) => {
                self.world.clock.advance_wall(Duration::from_secs(seconds));
                self.world.known().wall_moved = true;
            }
            Op::WallBack(seconds) => {
                // A clock that was set forward before this is set back further.
                self.world.clock.set_wall_back(Duration::from_secs(seconds));
                self.world.known().wall_moved = true;
            }
            Op::Fault(fault, times) => {
                for _ in 0..times {
                    let fault = fault.make(&mut self.gates);
                    self.world.known().faults.push_back(fault);
                }
            }
            Op::OpenGates => self.open_gates(),
            Op::StoreFault(at, call, fault, times) => {
                let process = self.at(at);
                lock(&process.plan).faults.push((call, fault, times));
            }
            Op::StoreDown(at) => lock(&self.at(at).plan).is_down = true,
            Op::StoreSlow(at, ms) => self.at(at).store.delay(Duration::from_millis(ms)),
            Op::StoreUp(at) => self.store_up(at),
            Op::Crowd(at) => {
                let process = self.at(at);
                for n in 0..200 {
                    let id = UserId::new(format!("crowd-{n}")).expect("an id");
                    // More than once, since users who were asked for once are evicted first.
                    for _ in 0..3 {
                        drop(process.manager.user(&id));
                    }
                }
            }
            Op::Login(at, user) => self.login(at, user).await,
            Op::Import(at, user) => self.import(at, user).await,
            Op::Forget(at, user) => self.remove(at, user, false),
            Op::Disconnect(at, user) => self.remove(at, user, true),
            Op::Refused(at, user) => self.refused(at, user),
            Op::KeepAlive(at) => {
                let process = self.at_mut(at);
                process.walk = match process.walk.take() {
                    Some(_stopped) => None,
                    None => Some(process.manager.keep_alive(30 * SECOND)),
                };
            }
            Op::Restart(at, graceful) => self.restart(at, graceful).await,
            Op::Revoke(user) => {
                self.world.fake.revoke_everything(&World::name(user));
                self.world.known().killed.insert(user);
            }
            Op::SilentPeer(user, sends) => self.silent_peer(user, sends).await,
            Op::Calm => self.calm().await,
        }
        self.check_bounds();
    }

    fn open_gates(&mut self) {
        for gate in self.gates.drain(..) {
            gate.open();
        }
    }

    fn store_up(&self, at: usize) {
        let process = self.at(at);
        *lock(&process.plan) = Plan::default();
        process.store.delay(Duration::ZERO);
    }

    fn read(&mut self, at: usize, user: usize, callers: usize, how: How) {
        let process = self.at(at);
        let mut tasks = Vec::new();
        for _ in 0..callers {
            let handle = handle(&process.manager, user);
            let (world, number) = (Arc::clone(&self.world), process.number);
            let last = Arc::clone(&process.last);
            let began = world.when();
            let call = async move {
                let outcome = match how {
                    How::Token | How::DroppedAfter(_) => handle.token().await,
                    How::Within(ms) => handle.token_timeout(Duration::from_millis(ms)).await,
                    How::IfReady => match handle.try_token() {
                        Some(token) => Ok(token),
                        None => return,
                    },
                };
                match outcome {
                    Ok(token) => {
                        let token = token.into_shared();
                        world.check_token(number, user, &token, began);
                        lock(&last).insert(user, (token, world.when()));
                    }
                    Err(error) => {
                        let token = lock(&last).get(&user).cloned();
                        world.check_error(number, user, &error, began, token.as_ref());
                    }
                }
            };
            let task = match how {
                How::DroppedAfter(ms) => tokio::spawn(async move {
                    let _ = tokio::time::timeout(Duration::from_millis(ms), call).await;
                }),
                _ => tokio::spawn(call),
            };
            tasks.push(task);
        }
        self.tasks.extend(tasks);
    }

    async fn login(&mut self, at: usize, user: usize) {
        let token = self.log_in(user).await;
        let process = self.at(at);
        let (world, number) = (Arc::clone(&self.world), process.number);
        let (manager, last) = (process.manager.clone(), Arc::clone(&process.last));
        let login = {
            let mut known = world.known();
            known.begin_change(user, number);
            known.killed.remove(&user);
            known.add_login(user, &token, number)
        };
        let failed_before = world.known().calls_failed.get(&number).copied();
        self.tasks.push(tokio::spawn(async move {
            manager.adopt(&id(user), token).await.expect("adopted");
            lock(&last).remove(&user);
            let since = world.when();
            let mut known = world.known();
            let failed = known.calls_failed.get(&number).copied() != failed_before;
            let unsaved = known.unsaved.entry(user).or_default();
            if failed {
                unsaved.insert(number);
            } else {
                unsaved.remove(&number);
            }
            known.end_change(user, Presence::Here { login, since });
        }));
    }

    async fn import(&mut self, at: usize, user: usize) {
        let token = self.log_in(user).await;
        let process = self.at(at);
        let (world, number) = (Arc::clone(&self.world), process.number);
        let (manager, last) = (process.manager.clone(), Arc::clone(&process.last));
        let (before, login) = {
            let mut known = world.known();
            let before = known.begin_change(user, number);
            (before, known.add_login(user, &token, number))
        };
        self.tasks.push(tokio::spawn(async move {
            let imported = manager.import_if_absent(&id(user), token).await;
            let since = world.when();
            let mut known = world.known();
            let (presence, broken) = match imported {
                Ok(true) => {
                    lock(&last).remove(&user);
                    let broken = matches!(before, Presence::Here { .. });
                    (Presence::Here { login, since }, broken)
                }
                Ok(false) => (before, matches!(before, Presence::Absent { .. })),
                Err(_) => (Presence::Unclear, false),
            };
            if known.end_change(user, presence) && broken {
                known.violated(format!("user {user} was {before:?} before an import"));
            }
        }));
    }

    fn remove(&mut self, at: usize, user: usize, disconnects: bool) {
        let process = self.at(at);
        let (world, number) = (Arc::clone(&self.world), process.number);
        let handle = handle(&process.manager, user);
        let last = Arc::clone(&process.last);
        {
            // If it fails, the row is what it was before, and an unsaved token is forgotten.
            let mut known = world.known();
            known.begin_change(user, number);
            let now = known.when();
            known.removing.insert((number, user), now.event);
            known.give_up(user, number);
        }
        self.tasks.push(tokio::spawn(async move {
            let forgotten = if disconnects {
                handle.disconnect().await.map(|_| ())
            } else {
                handle.forget().await
            };
            lock(&last).remove(&user);
            let since = world.when();
            let mut known = world.known();
            let presence = match forgotten {
                Ok(()) => Presence::Absent { by: number, since },
                Err(_) => Presence::Unclear,
            };
            known.removing.insert((number, user), since.event);
            // A token that came meanwhile is given up as well.
            known.give_up(user, number);
            if let Some(unsaved) = known.unsaved.get_mut(&user) {
                unsaved.remove(&number);
            }
            known.end_change(user, presence);
        }));
    }

    /// Has the API refuse the token that was handed out last.
    fn refused(&self, at: usize, user: usize) {
        let process = self.at(at);
        let Some((token, _)) = lock(&process.last).get(&user).cloned() else {
            return;
        };
        let place = (process.number, access(&token));
        let now = self.world.now();
        {
            let mut known = self.world.known();
            let last = known.reports.get(&(process.number, user)).copied();
            // The pauses between reports that are believed double from a minute to an hour. Fewer
            // reports than those that were made may have been believed, and earlier ones.
            let pause = |count: u32| SECOND * 60 * 2_u32.pow(count.min(7) - 1).min(60);
            if last.is_none_or(|(count, at)| now.since(at) >= pause(count)) {
                known.refused.insert(place.clone());
            }
            known.reported.insert(place);
            let count = last.map_or(0, |last| last.0) + 1;
            known.reports.insert((process.number, user), (count, now));
        }
        handle(&process.manager, user).report_unauthorized(&token);
    }

    async fn restart(&mut self, at: usize, graceful: bool) {
        if graceful {
            let process = self.at(at);
            let (manager, number) = (process.manager.clone(), process.number);
            let began = self.world.when();
            self.world.known().ended.insert(number, began);
            let ended = tokio::time::timeout(SHUTDOWN + SECOND, manager.shutdown()).await;
            let Ok(unfinished) = ended else {
                let broken = format!("the shutdown of process {number} does not end");
                self.world.known().violated(broken);
                return;
            };
            self.check_shutdown(number, &unfinished).await;
            if unfinished.is_empty() {
                self.world.known().idle.insert(number);
            }
            // A reader who comes too late begins nothing.
            for user in 0..USERS {
                self.read(at, user, 1, How::Token);
            }
        }
        let started = self.start_process();
        // Tasks of the old process that have not finished go on behind its back.
        let retired = std::mem::replace(self.at_mut(at), started);
        self.retired.push((retired.store, retired.plan));
    }

    async fn silent_peer(&mut self, user: usize, sends: bool) {
        let Some(row) = self.row(user).await.filter(|row| row.token.is_some()) else {
            return;
        };
        let process = SILENT + self.started;
        self.started += 1;
        let hurdlr = self.hurdlr(process);
        let realm = Realm::new(
            hurdlr.api_version(),
            self.world.fake.base_url().as_str(),
            hurdlr.client_id(),
        );
        let key = StoreKey::new(Arc::new(realm), RowKind::Login, id(user));
        let spy = Spy { process, world: Arc::clone(&self.world), store: self.store.clone() };
        let claim =
            Claim { holder: process as u64, lease: LEASE, known: Some(row.version), create: None };
        let claimed = spy.claim(&key, claim).await.expect("memory");
        if claimed.granted && sends {
            let token = claimed.row.and_then(|row| row.token).expect("a token");
            let json = token.payload.expose_secret().clone();
            let token = hurdlr.import(json).expect("a token");
            let _ = hurdlr.refresh(&token).await;
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The laws, seen by callers.

impl World {
    /// A token that a caller is handed lives, is saved, was not refused, and is of no user who was
    /// removed here.
    fn check_token(&self, process: usize, user: usize, token: &Token, began: When) {
        let value = access(token);
        let mut known = self.known();
        let is_dead = !self.fake.is_alive(&value)
            && !known.killed.contains(&user)
            && !known.late.contains(&value);
        // The provider tells whole seconds.
        let tolerance = Duration::from_millis(1_500);
        let ended = known.ends.get(&value).copied();
        if is_dead && ended.is_none_or(|ends| self.fake.now() > ends + tolerance) {
            let over = ended.map(|ends| self.fake.now().duration_since(ends));
            known.violated(format!(
                "process {process}, user {user}: a dead token was handed out ({over:?})"
            ));
        }
        if let Some(refresh_token) = token.refresh_token()
            && !known.saved.contains(refresh_token.expose_secret())
            && !known.unreliable.contains(&process)
        {
            known.violated(format!(
                "process {process}, user {user}: a token was handed out before it was saved"
            ));
        }
        if known.refused.contains(&(process, value)) {
            known.violated(format!(
                "process {process}, user {user}: a refused token was handed out"
            ));
        }
        if let Presence::Absent { by, since } = known.presence(user)
            && user < PEOPLE
            && by == process
            && since.is_before(began)
        {
            known.violated(format!(
                "process {process}, user {user}: a token was handed out after the user was forgotten"
            ));
        }
    }

    fn check_error(
        &self,
        process: usize,
        user: usize,
        error: &Error,
        began: When,
        last: Option<&(SharedToken, When)>,
    ) {
        let mut known = self.known();
        let known = &mut *known;
        let here = match known.presence(user) {
            Presence::Here { login, since } if since.is_before(began) => Some((login, since)),
            _ => None,
        };
        if user >= PEOPLE && error.needs_login() {
            known.violated(format!("an enterprise user is told to log in: {error}"));
        }
        if error.needs_login() && known.unread.contains(&(process, Self::subject(user))) {
            known.violated(format!(
                "process {process}, user {user}: told to log in before the row was read again"
            ));
        }
        if let Some((login, _)) = here.filter(|_| error.needs_login()) {
            let login = &known.logins[login];
            let subject = Self::subject(user);
            let changed = known.changed.get(&subject);
            let settled = changed.is_some_and(|at| at.is_long_before(began))
                && known.stored.get(&subject) == Some(&login.newest);
            let mine = login.receiver == process && login.at.is_before(began);
            let doubts = known.doubts.get(&(process, Self::name(user)));
            let is_doubted = error.kind() == ErrorKind::LoginRequired
                && doubts.is_some_and(|(count, since)| {
                    *count >= DOUBTS_TO_TELL && self.now().since(*since) >= DOUBT_SPAN_TO_TELL
                });
            // A login that is known to be over stays over while the store cannot tell of a new one.
            let stays_over = known.over.contains(&(process, user))
                && changed.is_some_and(|at| {
                    known.failed_at.get(&process).is_some_and(|failed| at.is_before(*failed))
                });
            let is_alive = self.fake.refresh_is_alive(&login.newest);
            if !is_alive && login.at.is_before(began) {
                known.over.insert((process, user));
            }
            if is_alive && (mine || settled && !stays_over) && !is_doubted {
                known.violated(format!(
                    "process {process}, user {user}: told to log in although the refresh token \
                     lives: {error:?}"
                ));
            }
        }
        // Law 3.
        let Some((token, at)) = last.filter(|_| user == HELD) else {
            return;
        };
        let Some((login, since)) = here else { return };
        let value = access(token);
        let lives = self.fake.is_alive(&value)
            && known.ends.get(&value).is_some_and(|ends| {
                let slack = known.slack.get(&value).copied().unwrap_or_default();
                self.fake.now() + 2 * SECOND + slack < *ends
            });
        let seen = !known.wall_moved;
        let is_reported = known.reported.contains(&(process, value));
        // Another login may have won in another process. A token of the one before is dropped as
        // soon as this process learns of it.
        let is_of_another_login =
            known.logins_by_token.get(&refresh(token)).is_some_and(|its_login| *its_login != login);
        if lives && seen && !is_reported && !is_of_another_login && since.is_before(*at) {
            known.violated(format!(
                "process {process}, user {user}: a living token was withheld: {error:?}"
            ));
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The laws, seen from outside.

impl Run {
    fn check_bounds(&self) {
        for process in &self.processes {
            let users = process.manager.users_in_memory();
            if users > CAPACITY + USERS {
                let broken = format!("{users} users in memory");
                self.world.known().violated(broken);
            }
        }
    }

    /// A shutdown names each user whose newest token is not saved.
    async fn check_shutdown(&self, process: usize, unfinished: &[Unfinished]) {
        for user in 0..PEOPLE {
            let row = self.row(user).await;
            let stored = row.and_then(|row| refresh_token_of(&row.token?));
            let mut known = self.world.known();
            let Presence::Here { login, .. } = known.presence(user) else {
                continue;
            };
            let login = &known.logins[login];
            let is_newest = stored.as_ref() == Some(&login.newest);
            if login.receiver != process || is_newest {
                continue;
            }
            let is_alive = self.world.fake.refresh_is_alive(&login.newest);
            let is_named = unfinished.iter().any(|it| {
                let loses = matches!(it.work, UnfinishedWork::Save | UnfinishedWork::Refresh);
                it.user == id(user) && loses
            });
            if is_alive && !is_named {
                known.violated(format!("process {process} lost user {user} and did not tell"));
            }
            known.presence.insert(user, Presence::Unclear);
        }
    }

    /// Longer than any pause that the refusals so far allow.
    fn calm_span(&self) -> Duration {
        let known = self.world.known();
        let doubts = known.doubts.values().map(|(count, _)| *count).max().unwrap_or(0);
        let pause = SECOND * 2_u32.saturating_pow(doubts.min(20));
        CALM + pause.min(MAX_DOUBT_PAUSE)
    }

    /// Everything works again, for long enough that all callers are answered and all tokens saved.
    async fn calm(&mut self) {
        self.open_gates();
        self.world.known().faults.clear();
        for at in 0..self.processes.len() {
            self.store_up(at);
        }
        for (store, plan) in &self.retired {
            *lock(plan) = Plan::default();
            store.delay(Duration::ZERO);
        }
        tokio::time::sleep(self.calm_span()).await;
        for task in self.tasks.drain(..) {
            if !task.is_finished() {
                self.world.known().violated("a caller waits for ever");
                task.abort();
            }
        }
        for user in 0..PEOPLE {
            self.check_kept(user).await;
        }
        for at in 0..self.processes.len() {
            for user in 0..USERS {
                self.check_served(at, user).await;
            }
        }
        // All tokens are saved by now.
        self.world.known().unsaved.clear();
    }

    /// Law 2: the newest refresh token that a living process was given is in the store. Nobody who
    /// was removed is.
    async fn check_kept(&self, user: usize) {
        let row = self.row(user).await;
        let mut known = self.world.known();
        match known.presence(user) {
            Presence::Here { login, .. } => {
                let newest = known.logins[login].newest.clone();
                let stored = row.and_then(|row| refresh_token_of(&row.token?));
                if self.world.fake.refresh_is_alive(&newest) && stored.as_ref() != Some(&newest) {
                    known.violated(format!("the newest refresh token of user {user} is lost"));
                }
            }
            Presence::Absent { .. } if row.is_some() => {
                known.violated(format!("user {user} was resurrected"));
            }
            _ => {}
        }
    }

    /// Everybody who can be served is, in every process. The others are told to log in.
    async fn check_served(&self, at: usize, user: usize) {
        let process = self.at(at);
        let handle = handle(&process.manager, user);
        let began = self.world.when();
        let outcome = handle.token_timeout(CALM).await;
        let mut known = self.world.known();
        let here = match known.presence(user) {
            Presence::Here { login, .. } => Some(known.logins[login].newest.clone()),
            _ => None,
        };
        let lives = here.map(|newest| self.world.fake.refresh_is_alive(&newest));
        match outcome {
            Ok(token) => {
                drop(known);
                let token = token.into_shared();
                let world = &self.world;
                world.check_token(process.number, user, &token, began);
                lock(&process.last).insert(user, (token, world.when()));
            }
            Err(error) if user >= PEOPLE || lives == Some(true) => {
                known.violated(format!(
                    "process {}, user {user}: no token though all works: {error:?}",
                    process.number
                ));
            }
            Err(error) if !error.needs_login() => known.violated(format!(
                "process {}, user {user}: not told to log in: {error:?}",
                process.number
            )),
            Err(_) => {}
        }
    }
}

async fn run(case: &Case) -> Vec<String> {
    let mut run = Run::new(case);
    for (step, op) in case.ops.iter().enumerate() {
        run.perform(op).await;
        // The tasks run to their first wait.
        tokio::task::yield_now().await;
        let mut known = run.world.known();
        if !known.violations.is_empty() {
            let violations = std::mem::take(&mut known.violations);
            return violations
                .into_iter()
                .map(|violation| format!("step {step}, {op:?}: {violation}"))
                .collect();
        }
    }
    run.calm().await;
    let mut known = run.world.known();
    std::mem::take(&mut known.violations)
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    fastrand::seed(case.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let violations = runtime.block_on(run(case));
    match violations.first() {
        None => Ok(()),
        Some(_) => Err(TestCaseError::fail(violations.join("\n"))),
    }
}

/// The laws hold in every random case.
#[test]
fn laws_hold_whatever_happens() {
    let seed: u64 = match std::env::var("HURDLR_MODEL_SEED") {
        Ok(seed) => seed.parse().expect("HURDLR_MODEL_SEED is a number below 2^64"),
        Err(_) => fastrand::u64(..),
    };
    println!("HURDLR_MODEL_SEED={seed}");
    // A debug build takes as long for a case as an optimised one for a hundred.
    let usual = if cfg!(debug_assertions) { 50 } else { 1_000 };
    let cases = std::env::var("PROPTEST_CASES")
        .map_or(usual, |cases| cases.parse().expect("PROPTEST_CASES is a number"));
    let config =
        Config { failure_persistence: None, max_shrink_iters: 20_000, ..Config::with_cases(cases) };
    let mut bytes = [0; 32];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&seed.to_le_bytes());
    }
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    if let Err(error) = runner.run(&self::cases(), |case| check(&case)) {
        panic!("HURDLR_MODEL_SEED={seed}: {error}");
    }
}

/// Checks a case that failed once.
fn assert_lawful(managers: usize, life: u64, ops: Vec<Op>) {
    let case = Case { rotation: Rotation::RotateAndKill, life, managers, seed: 0, ops };
    if let Err(error) = check(&case) {
        panic!("{error}");
    }
}

fn read(user: usize) -> Op {
    Op::Read { at: 0, user, callers: 1, how: How::Token }
}

/// The pause after a doubtful refusal grows with the doubtful refusals in a row. Other failures
/// before it do not make it any longer: a single 401 at the end of an outage was followed by a
/// pause of up to six hours.
#[test]
fn outage_does_not_lengthen_doubt() {
    let mut ops = vec![
        Op::Login(0, HELD),
        Op::Fault(AFault::Status(403), 20),
        // With the Bearer header, then without.
        Op::Fault(AFault::Unauthorized, 2),
        Op::Turn(5_000),
    ];
    for _ in 0..21 {
        ops.extend([read(HELD), Op::Sleep(301_000)]);
    }
    ops.push(Op::Calm);
    assert_lawful(1, 3_600, ops);
}

/// A refresh can begin with the row of a login whose `adopt` is not over. Its token was dropped
/// where the store did not take it, since the login counted as a later one.
#[test]
fn refresh_during_adopt_is_kept() {
    let ops = vec![
        read(HELD),
        Op::StoreSlow(0, 11),
        Op::Login(0, 1),
        Op::StoreUp(0),
        Op::Turn(80),
        Op::StoreFault(0, StoreCall::Save, StoreFault::Before, 1),
        read(1),
        read(HELD),
    ];
    assert_lawful(2, 90, ops);
}

/// A login that is under way when its user is disconnected is dropped, even where the store fails.
/// It was saved later.
#[test]
fn disconnect_drops_login_under_way() {
    let ops = vec![
        Op::StoreDown(0),
        Op::StoreSlow(0, 1),
        Op::Login(0, 1),
        Op::Disconnect(0, 1),
        Op::Restart(0, true),
        Op::Disconnect(0, 1),
    ];
    assert_lawful(1, 90, ops);
}

/// A refused token is not served again from the store, although a login came in between that the
/// store did not take.
#[test]
fn unsaved_login_leaves_refusal() {
    let ops = vec![
        Op::Login(0, HELD),
        Op::Calm,
        Op::Fault(AFault::Truncated, 1),
        Op::Refused(0, HELD),
        Op::StoreDown(0),
        Op::Login(0, HELD),
        Op::Forget(0, HELD),
    ];
    assert_lawful(1, 3_600, ops);
}

/// A user who had not logged in may have done so elsewhere. While the store fails, that failure is
/// told, and not that the login is missing.
#[test]
fn outage_says_nothing_of_logins() {
    let ops = vec![
        Op::Calm,
        Op::Login(1, 2),
        Op::StoreDown(0),
        Op::Sleep(26_555),
        Op::Sleep(93_446),
        read(2),
    ];
    assert_lawful(2, 90, ops);
}

/// A login that another process took over wins over a refresh of the login before it, whose token
/// was served from memory meanwhile.
#[test]
fn late_save_yields_to_another_login() {
    let ops = vec![
        Op::Login(0, HELD),
        Op::StoreFault(0, StoreCall::Save, StoreFault::Before, 2),
        Op::StoreFault(1, StoreCall::Save, StoreFault::Before, 1),
        Op::Login(1, HELD),
        Op::Turn(89),
        read(HELD),
        Op::Restart(0, true),
    ];
    assert_lawful(2, 90, ops);
}
