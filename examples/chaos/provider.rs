//! The provider, which writes down every request and every token that it issues.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hurdlr_oauth2::testing::{FakeHurdlr, Fault, RecordedRequest};
use tokio::task;

use crate::Outcome;
use crate::plan::{Effect, Plan, Planned};
use crate::record::{
    Digest, Micros, Process, TOKEN_LIFE, User, digest, now, process_of, user_number,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    Login,
    Refresh,
    Enterprise,
}

/// A token request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Micros,
    pub(crate) user: User,
    /// `None` for the logins that were there before the fleet.
    pub(crate) process: Option<Process>,
    pub(crate) grant: Grant,
    /// The refresh token that was sent.
    pub(crate) refresh: Option<Digest>,
    pub(crate) is_faulty: bool,
    pub(crate) effect: Effect,
    pub(crate) issued: Option<Issued>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Issued {
    pub(crate) at: Micros,
    pub(crate) access: Digest,
    pub(crate) refresh: Option<Digest>,
}

pub(crate) struct Provider {
    pub(crate) fake: FakeHurdlr,
    log: Arc<Log>,
}

/// What the faults of a request depend on, and what became of it.
struct Log {
    plan: Plan,
    faults_in_1000: AtomicU64,
    /// Whether those fail whose requests always do.
    is_cursing: AtomicBool,
    arrivals: Mutex<Arrivals>,
}

#[derive(Default)]
struct Arrivals {
    all: Vec<Arrival>,
    per_user: HashMap<User, u64>,
    calls_per_user: HashMap<User, u64>,
    /// The request that each task of the server is about. A connection is a task, and has one
    /// request at a time.
    of_task: HashMap<task::Id, usize>,
    refused_calls: u64,
}

impl Provider {
    pub(crate) async fn start(plan: &Plan) -> Outcome<Self> {
        let life = Duration::from_secs(TOKEN_LIFE);
        let fake = FakeHurdlr::builder().token_life(life).record(false).start().await?;
        let log = Arc::new(Log {
            plan: plan.clone(),
            faults_in_1000: AtomicU64::new(0),
            is_cursing: AtomicBool::new(false),
            arrivals: Mutex::default(),
        });
        let arrived = Arc::clone(&log);
        fake.fault_plan(move |request| arrived.arrive(request));
        let issued = Arc::clone(&log);
        fake.reshape(move |token| {
            let secret = |name: &str| token.get(name).and_then(|it| it.as_str()).map(digest);
            issued.issue(secret("access_token").unwrap_or(0), secret("refresh_token"));
        });
        let called = Arc::clone(&log);
        fake.api().fault_plan(move |call| called.call(call));
        Ok(Self { fake, log })
    }

    pub(crate) fn set_faults(&self, in_1000: u64) {
        self.log.faults_in_1000.store(in_1000, Ordering::SeqCst);
    }

    pub(crate) fn set_cursing(&self, is_cursing: bool) {
        self.log.is_cursing.store(is_cursing, Ordering::SeqCst);
    }

    /// All requests so far, in the order they came, and how many calls to the API were refused
    /// although their token was alive.
    pub(crate) fn arrivals(&self) -> (Vec<Arrival>, u64) {
        let arrivals = self.log.lock();
        (arrivals.all.clone(), arrivals.refused_calls)
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(&self, request: &RecordedRequest) -> Option<Fault> {
        let user = user_number(request.user()?)?;
        let agent = request.headers().get("user-agent").and_then(|it| it.to_str().ok());
        let grant = match request.grant() {
            Some("authorization_code") => Some(Grant::Login),
            Some("refresh_token") => Some(Grant::Refresh),
            Some(_) => Some(Grant::Enterprise),
            None => None, // a revocation
        };
        let mut arrivals = self.lock();
        let before = arrivals.per_user.entry(user).or_default();
        let nth = *before;
        *before += 1;
        let is_cursed = self.is_cursing.load(Ordering::SeqCst)
            && grant != Some(Grant::Login)
            && self.plan.is_cursed(user);
        let planned = if is_cursed {
            Some(self.plan.curse(user))
        } else {
            self.plan.fault(user, nth, self.faults_in_1000.load(Ordering::SeqCst))
        };
        if let Some(grant) = grant {
            let arrival = Arrival {
                at: now(),
                user,
                process: agent.and_then(process_of),
                grant,
                refresh: request.field("refresh_token").as_deref().map(digest),
                is_faulty: planned.is_some(),
                effect: planned.as_ref().map_or(Effect::None, |planned| planned.effect),
                issued: None,
            };
            arrivals.all.push(arrival);
            if let Some(task) = task::try_id() {
                let index = arrivals.all.len() - 1;
                arrivals.of_task.insert(task, index);
            }
        }
        planned.map(|Planned { fault, .. }| fault)
    }

    /// Runs in the task of the request that is answered.
    fn issue(&self, access: Digest, refresh: Option<Digest>) {
        let mut arrivals = self.lock();
        let request = task::try_id().and_then(|task| arrivals.of_task.remove(&task));
        if let Some(request) = request {
            arrivals.all[request].issued = Some(Issued { at: now(), access, refresh });
        }
    }

    fn call(&self, call: &RecordedRequest) -> Option<Fault> {
        let user = user_number(call.user()?)?;
        let mut arrivals = self.lock();
        let before = arrivals.calls_per_user.entry(user).or_default();
        let is_refused =
            self.faults_in_1000.load(Ordering::SeqCst) > 0 && self.plan.refuses(user, *before);
        *before += 1;
        arrivals.refused_calls += u64::from(is_refused);
        is_refused.then_some(Fault::Unauthorized)
    }
}
