//! One process: reads everybody's token, calls the API now and then, and does what it is told by
//! lines on its input.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Write};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hurdlr_oauth2::manager::{Disconnected, SharedToken, UserHandle};
use hurdlr_oauth2::reqwest::{self, redirect};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::url::Url;
use hurdlr_oauth2::{ApiVersion, Error, ErrorKind, Hurdlr, RetryPolicy, TokenManager, UserId};
use tokio::sync::mpsc;

use crate::Outcome;
use crate::clock::TurnedClock;
use crate::record::{
    Checked, Digest, MAX_ATTEMPTS, Micros, Order, REFRESH_TIMEOUT, REVALIDATE_AFTER, SECOND, Said,
    Setup, User, agent, digest, now, policy, user_name,
};
use crate::store::{self, Witnessed};

const READERS: u64 = 24;
/// One read of so many goes on to call the API.
const CALL_EVERY: u64 = 40;
const CALLER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a caller has to be told that the login is over until it is believed, in a check.
const OVER_FOR: Micros = 10 * SECOND;
/// How long a check goes on after the last user was served.
const STARVED_AFTER: Micros = 90 * SECOND;
/// How long a user who was removed may be served as they were last seen; many times what the manager
/// promises, and longer than a token lives.
const STALE_FOR: Micros = 45 * SECOND;
const CHECKERS: usize = 256;
const LAG: Duration = Duration::from_millis(400);

/// Works until its input ends.
pub(crate) async fn work() -> Outcome {
    let mut lines = lines();
    let setup = lines.recv().await.ok_or("no setup")?;
    let worker = Worker::start(serde_json::from_str(&setup)?).await?;
    say(&Said::Ready);
    tokio::spawn(watch_cpu());
    tokio::spawn(Arc::clone(&worker).report());
    let keep_alive = worker.manager.keep_alive(Duration::from_secs(2));
    for reader in 0..READERS {
        tokio::spawn(Arc::clone(&worker).read(reader));
    }
    while let Some(line) = lines.recv().await {
        Arc::clone(&worker).obey(serde_json::from_str(&line)?);
    }
    drop(keep_alive);
    worker.manager.shutdown().await;
    worker.flush();
    Ok(())
}

fn lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Writes a line at once, so that what was said is known however the process ends.
pub(crate) fn say(what: &Said) {
    static WRITING: Mutex<()> = Mutex::new(());
    if let Ok(line) = serde_json::to_string(what) {
        let _writing = lock(&WRITING);
        // Nobody may be left to listen.
        let _ = io::stdout().write_all((line + "\n").as_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says when the machine, or a signal, left this process without a CPU.
pub(crate) async fn watch_cpu() {
    const BEAT: Duration = Duration::from_millis(50);
    loop {
        let from = now();
        tokio::time::sleep(BEAT).await;
        let to = now();
        if Duration::from_micros(to - from) > LAG {
            say(&Said::Lagged { from, to });
        }
    }
}

struct Worker {
    setup: Setup,
    clock: TurnedClock,
    manager: TokenManager,
    /// Follows no redirect, as the person's browser and as the app's client for the API.
    http: reqwest::Client,
    api: Url,
    reads: AtomicU64,
    rests: AtomicBool,
    served: Mutex<HashMap<(User, Digest), Micros>>,
    failed: Mutex<HashMap<&'static str, u64>>,
    /// Users of whom a refusal was reported. A second one soon after may not be believed.
    reported: Mutex<HashSet<User>>,
    last_served: AtomicU64,
}

impl Worker {
    async fn start(setup: Setup) -> Outcome<Arc<Self>> {
        let clock = TurnedClock::default();
        let version = if setup.is_v6 { ApiVersion::V6 } else { ApiVersion::V4 };
        let retry = RetryPolicy::default()
            .max_attempts(MAX_ATTEMPTS)
            .initial_backoff(Duration::from_millis(50))
            .max_backoff(Duration::from_millis(200));
        let process = setup.process;
        let hurdlr = Hurdlr::builder(&setup.client_id, setup.client_secret.as_str().into())
            .environment(setup.provider.as_str())
            .api_version(version)
            .authorize_url(setup.authorize_url.as_str())
            .redirect_uri("https://app.example.com/callback")
            .request_timeout(REFRESH_TIMEOUT)
            .retry(retry)
            .clock(clock.clone())
            .reqwest(move |builder| builder.user_agent(agent(process)))
            .build()?;
        let store = Witnessed(store::open(&setup.store).await?);
        let manager = TokenManager::builder(hurdlr, store)
            .refresh_policy(policy())
            .revalidate_after(REVALIDATE_AFTER)
            .max_concurrent_refreshes(16)
            .cache_capacity(setup.capacity)
            .build()?;
        let http = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()?;
        let path = if setup.is_v6 { "v6/me" } else { "rest/v4/me" };
        let api = Url::parse(&setup.provider)?.join(path)?;
        Ok(Arc::new(Self {
            setup,
            clock,
            manager,
            http,
            api,
            reads: AtomicU64::new(0),
            rests: AtomicBool::new(false),
            served: Mutex::default(),
            failed: Mutex::default(),
            reported: Mutex::default(),
            last_served: AtomicU64::new(now()),
        }))
    }

    fn obey(self: Arc<Self>, order: Order) {
        match order {
            Order::Jump { seconds, sent } => {
                self.clock.jump(seconds);
                say(&Said::Jumped { from: sent, to: now() });
            }
            Order::Rest => self.rests.store(true, Ordering::SeqCst),
            Order::LogIn(user) => {
                tokio::spawn(async move {
                    let begun = now();
                    let is_ok = self.log_in(user).await.is_ok();
                    say(&Said::Done { user, begun, at: now(), is_ok });
                });
            }
            Order::Remove(user) => {
                tokio::spawn(async move {
                    let begun = now();
                    let is_ok = self.remove(user).await.is_ok();
                    say(&Said::Done { user, begun, at: now(), is_ok });
                });
            }
            Order::Check { users, removed } => {
                tokio::spawn(self.check(users, removed));
            }
        }
    }

    fn user(&self, user: User) -> Result<UserHandle, Error> {
        let id = UserId::new(user_name(user))?;
        let is_person = self.setup.population.is_person(user);
        Ok(if is_person { self.manager.user(&id) } else { self.manager.enterprise_user(&id) })
    }

    /// Goes the way of a person's browser: to the provider, which knows them, and back.
    async fn log_in(&self, user: User) -> Outcome {
        let (mut url, pending) = self.manager.hurdlr().begin_login()?;
        url.query_pairs_mut().append_pair("consented_user", &user_name(user));
        let answer = self.http.get(url).send().await?;
        let back = answer.headers().get("location").ok_or("the provider did not redirect")?;
        let callback = Url::parse(back.to_str()?)?;
        let id = UserId::new(user_name(user))?;
        if self.manager.complete_login(&id, pending, &callback).await? {
            Ok(())
        } else {
            Err("the state was redeemed before".into())
        }
    }

    async fn remove(&self, user: User) -> Result<(), Error> {
        let handle = self.user(user)?;
        if self.setup.is_v6 {
            let _: Disconnected = handle.disconnect().await?;
            return Ok(());
        }
        handle.forget().await
    }

    async fn read(self: Arc<Self>, reader: u64) {
        let mut rng = fastrand::Rng::with_seed(self.setup.seed ^ reader);
        while !self.rests.load(Ordering::SeqCst) {
            let user = rng.u32(..self.setup.population.total());
            if let Ok(token) = self.token(user).await
                && rng.u64(..CALL_EVERY) == 0
            {
                self.call(user, &token).await;
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(2..40))).await;
        }
    }

    async fn token(&self, user: User) -> Result<SharedToken, ErrorKind> {
        let handle = self.user(user).map_err(|error| error.kind())?;
        let begun = now();
        let token = handle.token_timeout(CALLER_TIMEOUT).await;
        self.reads.fetch_add(1, Ordering::Relaxed);
        match token {
            Ok(token) => {
                let access = digest(token.access_token().expose_secret());
                let mut served = lock(&self.served);
                let last = served.entry((user, access)).or_default();
                *last = begun.max(*last);
                Ok(token.into_shared())
            }
            Err(error) => {
                *lock(&self.failed).entry(error.kind().name()).or_default() += 1;
                Err(error.kind())
            }
        }
    }

    /// Calls the API. A refusal is reported.
    async fn call(&self, user: User, token: &SharedToken) -> bool {
        let call =
            self.http.get(self.api.clone()).bearer_auth(token.access_token().expose_secret());
        let Ok(answer) = call.send().await else { return false };
        if answer.status() == 401
            && let Ok(handle) = self.user(user)
        {
            handle.report_unauthorized(token);
            if lock(&self.reported).insert(user) {
                let access = digest(token.access_token().expose_secret());
                say(&Said::Refused { user, access, at: now() });
            }
        }
        answer.status().is_success()
    }

    async fn report(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.flush();
        }
    }

    fn flush(&self) {
        let served = mem::take(&mut *lock(&self.served));
        let served = served.into_iter().map(|((user, access), begun)| (user, access, begun));
        say(&Said::Served(served.collect()));
        let failed = mem::take(&mut *lock(&self.failed));
        say(&Said::Failed(failed.into_iter().map(|(kind, n)| (kind.to_owned(), n)).collect()));
        say(&Said::Reads(self.reads.swap(0, Ordering::Relaxed)));
    }

    async fn check(self: Arc<Self>, users: Vec<User>, removed: HashSet<User>) {
        self.last_served.store(now(), Ordering::SeqCst);
        let removed = Arc::new(removed);
        let queue = Arc::new(Mutex::new(users));
        let checkers: Vec<_> = (0..CHECKERS)
            .map(|_| {
                let (worker, queue) = (Arc::clone(&self), Arc::clone(&queue));
                let removed = Arc::clone(&removed);
                tokio::spawn(async move {
                    loop {
                        let next = lock(&queue).pop();
                        let Some(user) = next else { return };
                        let outcome = worker.check_one(user, removed.contains(&user)).await;
                        say(&Said::Checked { user, outcome });
                    }
                })
            })
            .collect();
        for checker in checkers {
            let _ = checker.await;
        }
        self.flush();
        say(&Said::AllChecked);
    }

    async fn check_one(&self, user: User, was_removed: bool) -> Checked {
        let begun = now();
        let mut over_since = None;
        loop {
            let why = match self.token(user).await {
                Ok(token) => {
                    over_since = None;
                    let may_be_stale = was_removed && now() - begun < STALE_FOR;
                    if self.call(user, &token).await && !may_be_stale {
                        self.last_served.store(now(), Ordering::SeqCst);
                        return Checked::Served;
                    }
                    "the API refuses the token"
                }
                Err(ErrorKind::LoginRequired | ErrorKind::RotationLost) => {
                    let since = *over_since.get_or_insert_with(now);
                    if now() - since > OVER_FOR {
                        self.last_served.store(now(), Ordering::SeqCst);
                        return Checked::LoginOver;
                    }
                    "login over"
                }
                Err(kind) => {
                    over_since = None;
                    kind.name()
                }
            };
            if now().saturating_sub(self.last_served.load(Ordering::SeqCst)) > STARVED_AFTER {
                return Checked::Starved(why.to_owned());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}
