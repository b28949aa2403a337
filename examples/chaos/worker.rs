//! One process: reads everybody's token, calls the API now and then, and does what it is told by
//! lines on its input.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Write};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hurdlr_oauth2::manager::{Disconnected, SharedToken, TokenGuard, UserHandle};
use hurdlr_oauth2::reqwest::{self, redirect};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::url::Url;
use hurdlr_oauth2::{ApiVersion, Error, ErrorKind, Hurdlr, RetryPolicy, TokenManager, UserId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::clock::TurnedClock;
use crate::record::{
    Digest, Failing, MAX_ATTEMPTS, Micros, Order, READ_EVERY, REFRESH_TIMEOUT, REVALIDATE_AFTER,
    Said, Setup, User, Why, agent, digest, micros, now, policy, user_name,
};
use crate::store::{self, Witnessed};

const CALLER_TIMEOUT: Duration = Duration::from_secs(2);
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
    let mut readers = JoinSet::new();
    for user in 0..worker.setup.population.total() {
        readers.spawn(Arc::clone(&worker).read(user));
    }
    while let Some(line) = lines.recv().await {
        Arc::clone(&worker).obey(serde_json::from_str(&line)?);
    }
    readers.shutdown().await;
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
    served: Mutex<HashMap<(User, Digest), Micros>>,
    failing: Mutex<HashMap<User, Failing>>,
    /// Users of whom a refusal was reported. A second one soon after may not be believed.
    reported: Mutex<HashSet<User>>,
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
            served: Mutex::default(),
            failing: Mutex::default(),
            reported: Mutex::default(),
        }))
    }

    fn obey(self: Arc<Self>, order: Order) {
        match order {
            Order::Jump { seconds, sent } => {
                self.clock.jump(seconds);
                say(&Said::Jumped { from: sent, to: now() });
            }
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

    /// Reads one user's token again and again, and calls the API with each new one.
    async fn read(self: Arc<Self>, user: User) {
        let mut rng = fastrand::Rng::with_seed(self.setup.seed ^ u64::from(user));
        let mut accepted = None;
        let mut first_failure: Option<(bool, Micros)> = None;
        loop {
            let pause = rng.u64(micros(READ_EVERY) / 2..micros(READ_EVERY));
            tokio::time::sleep(Duration::from_micros(pause)).await;
            let begun = now();
            let Err(why) = self.serve(user, begun, &mut accepted).await else {
                first_failure = None;
                continue;
            };
            let is_over = why == Why::LoginOver;
            let goes_on = first_failure.filter(|(was_over, _)| *was_over == is_over);
            let (_, since) = *first_failure.insert(goes_on.unwrap_or((is_over, begun)));
            lock(&self.failing).insert(user, Failing { user, why, since, last: begun });
        }
    }

    /// One read. `accepted` is the last token that the API took.
    async fn serve(
        &self,
        user: User,
        begun: Micros,
        accepted: &mut Option<Digest>,
    ) -> Result<(), Why> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let token = self.token(user).await.map_err(|kind| match kind {
            ErrorKind::LoginRequired | ErrorKind::RotationLost => Why::LoginOver,
            kind => Why::Error(kind.name().to_owned()),
        })?;
        let access = digest(token.access_token().expose_secret());
        lock(&self.served).insert((user, access), begun);
        if *accepted != Some(access) {
            if !self.call(user, &token).await {
                return Err(Why::NotTaken);
            }
            *accepted = Some(access);
        }
        Ok(())
    }

    async fn token(&self, user: User) -> Result<SharedToken, ErrorKind> {
        let handle = self.user(user).map_err(|error| error.kind())?;
        let token = handle.token_timeout(CALLER_TIMEOUT).await;
        token.map(TokenGuard::into_shared).map_err(|error| error.kind())
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
        let failing = mem::take(&mut *lock(&self.failing));
        say(&Said::Failing(failing.into_values().collect()));
        say(&Said::Reads(self.reads.swap(0, Ordering::Relaxed)));
    }
}
