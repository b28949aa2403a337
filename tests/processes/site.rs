//! What processes are tested at: a provider, a real database, and themselves.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{Realm, Row, StoreKey, TokenStore};
use hurdlr_oauth2::testing::{FakeHurdlr, Outcome, Rotation};
use hurdlr_oauth2::{Hurdlr, Token, TokenManager, UserId};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::postgres::Server;
use crate::worker::{Order, Place, Point, Said, Seen, Setup, Who};

/// How long anything is waited for before the test fails. Nothing is expected to take so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The life of the provider's tokens.
pub(crate) const HOUR: u64 = 3_600;

/// Started by the first test that needs it. What is static is never dropped, so `main` stops it.
static SERVER: Mutex<Option<Server>> = Mutex::new(None);

pub(crate) fn stop_server() {
    drop(SERVER.lock().unwrap().take());
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Database {
    Postgres,
    Sqlite,
}

/// A provider with one-hour tokens that kills a family whose old refresh token is used, and a
/// store.
pub(crate) struct Site {
    pub(crate) fake: FakeHurdlr,
    pub(crate) store: Arc<dyn TokenStore>,
    place: Place,
    _folder: TempDir,
}

impl Site {
    /// The store's tables are of their own for each `name`.
    pub(crate) async fn new(database: Database, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = match database {
            Database::Postgres => {
                let url = SERVER.lock().unwrap().get_or_insert_with(Server::start).url();
                Place::Postgres { url, schema: name.to_owned() }
            }
            Database::Sqlite => {
                let path = folder.path().join("tokens.db");
                Place::Sqlite { url: format!("sqlite://{}", path.display()) }
            }
        };
        let fake = FakeHurdlr::builder()
            .token_life(Duration::from_secs(HOUR))
            .rotation(Rotation::KillFamily)
            .start()
            .await
            .unwrap();
        Self { fake, store: place.open().await, place, _folder: folder }
    }

    /// What a process is started with, unless a test changes it.
    pub(crate) fn setup(&self) -> Setup {
        Setup {
            provider: self.fake.base_url().into(),
            client_id: self.fake.client_id().to_owned(),
            client_secret: self.fake.client_secret().expose_secret().to_owned(),
            store: self.place.clone(),
            lease: Duration::from_secs(60),
            deadline: Duration::from_secs(45),
            ahead: 0,
        }
    }

    /// As [`setup`](Self::setup), with a lease that a test can outwait.
    pub(crate) fn short_lease(&self) -> Setup {
        let (lease, deadline) = (Duration::from_millis(2_500), Duration::from_secs(2));
        Setup { lease, deadline, ..self.setup() }
    }

    pub(crate) async fn process(&self) -> Process {
        Process::start(&self.setup()).await
    }

    pub(crate) async fn processes(&self, count: usize) -> Vec<Process> {
        let starting: Vec<_> = (0..count)
            .map(|_| {
                let setup = self.setup();
                tokio::spawn(async move { Process::start(&setup).await })
            })
            .collect();
        let mut processes = Vec::new();
        for process in starting {
            processes.push(process.await.unwrap());
        }
        processes
    }

    fn hurdlr(&self) -> Hurdlr {
        Hurdlr::builder(self.fake.client_id(), self.fake.client_secret())
            .environment(self.fake.base_url())
            .authorize_url(self.fake.authorize_url())
            .redirect_uri("https://app.example.com/callback")
            .build()
            .unwrap()
    }

    /// A token of a person who has just logged in.
    pub(crate) async fn login(&self, user: &str) -> Token {
        let hurdlr = self.hurdlr();
        let (url, pending) = hurdlr.begin_login().unwrap();
        let callback = self.fake.consent(&url, user).await.unwrap();
        let token = hurdlr.complete_login(pending, &callback).await.unwrap();
        self.fake.clear_requests();
        token
    }

    /// Puts the token of a person who has just logged in into the store.
    pub(crate) async fn logged_in(&self, user: &str) -> Who {
        let token = self.login(user).await;
        let manager = TokenManager::builder(self.hurdlr(), Arc::clone(&self.store));
        let manager = manager.build().unwrap();
        manager.adopt(&UserId::new(user).unwrap(), token).await.unwrap();
        assert!(manager.shutdown().await.is_empty());
        Who::Login(user.to_owned())
    }

    /// So many seconds pass, for the provider and these processes.
    pub(crate) async fn advance<'a>(
        &self,
        seconds: u64,
        processes: impl IntoIterator<Item = &'a mut Process>,
    ) {
        self.fake.advance_clock(Duration::from_secs(seconds));
        for process in processes {
            process.tell(Order::Turn(seconds)).await;
        }
    }

    pub(crate) async fn row(&self, who: &Who) -> Option<Row> {
        let hurdlr = self.hurdlr();
        let provider = self.fake.base_url();
        let realm = Realm::new(hurdlr.api_version(), provider.as_str(), hurdlr.client_id());
        let key = StoreKey::new(Arc::new(realm), who.kind(), who.id());
        self.store.read(&[key]).await.unwrap().remove(0).unwrap()
    }

    /// Whether the refresh token that the store holds is one that the provider takes.
    pub(crate) async fn stored_refresh_token_lives(&self, who: &Who) -> bool {
        let payload = self.row(who).await.unwrap().token.unwrap().payload;
        let object: serde_json::Value = serde_json::from_slice(payload.expose_secret()).unwrap();
        self.fake.refresh_is_alive(object["refresh_token"].as_str().unwrap())
    }

    /// Waits until a lease is granted again: none lives, and no pause is kept.
    pub(crate) async fn claimable(&self, who: &Who) {
        until("the end of a lease", async || {
            let row = self.row(who).await.unwrap();
            row.leased_for.or(row.not_before).is_none().then_some(())
        })
        .await;
    }

    /// Waits until the provider has answered so many requests with tokens, or tried to.
    pub(crate) async fn issued(&self, count: u64) {
        until("tokens", async || (self.issues() == count).then_some(())).await;
    }

    pub(crate) fn issues(&self) -> u64 {
        self.fake.count().outcome(Outcome::Issued)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.fake.count().total()
    }
}

/// Looks until there is something.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Another process of this test. It is killed when this is dropped, stopped or not.
pub(crate) struct Process {
    child: Child,
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    /// What it said that nobody has asked for yet.
    unheard: VecDeque<Said>,
}

impl Process {
    pub(crate) async fn start(setup: &Setup) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(crate::WORKER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Self { child, orders, said, unheard: VecDeque::new() };
        process.write(&serde_json::to_string(setup).unwrap()).await;
        process.hear("that it is ready", |said| matches!(said, Said::Ready)).await;
        process
    }

    async fn write(&mut self, line: &str) {
        self.orders.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    pub(crate) async fn tell(&mut self, order: Order) {
        self.write(&serde_json::to_string(&order).unwrap()).await;
    }

    /// Waits until it says this.
    async fn hear(&mut self, what: &str, is_it: impl Fn(&Said) -> bool) -> Said {
        if let Some(place) = self.unheard.iter().position(&is_it) {
            return self.unheard.remove(place).unwrap();
        }
        let listening = async {
            loop {
                let line = self.said.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("it ended before it said {what}"));
                let said = serde_json::from_str(&line).unwrap();
                if is_it(&said) {
                    return said;
                }
                self.unheard.push_back(said);
            }
        };
        let heard = tokio::time::timeout(PATIENCE, listening).await;
        heard.unwrap_or_else(|_| panic!("waited in vain to hear {what}: {:?}", self.unheard))
    }

    pub(crate) async fn done(&mut self) {
        self.hear("that it is done", |said| matches!(said, Said::Done)).await;
    }

    /// From now on only claims count that come.
    pub(crate) fn forget_claims(&mut self) {
        self.unheard.retain(|said| !matches!(said, Said::ClaimAnswered));
    }

    /// Waits until the store has answered it a claim.
    pub(crate) async fn has_claimed(&mut self) {
        self.hear("of a claim", |said| matches!(said, Said::ClaimAnswered)).await;
    }

    /// What comes next that changes about a user who is watched.
    pub(crate) async fn change(&mut self) -> String {
        match self.hear("of a change", |said| matches!(said, Said::Changed(_))).await {
            Said::Changed(change) => change,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn stands_at(&mut self, point: Point) {
        let stands = |said: &Said| matches!(said, Said::StandsAt(there) if *there == point);
        self.hear("where it stands", stands).await;
    }

    pub(crate) async fn imported(&mut self) -> Vec<bool> {
        match self.hear("what it imported", |said| matches!(said, Said::Imported(_))).await {
            Said::Imported(imported) => imported,
            other => panic!("{other:?}"),
        }
    }

    /// What the callers got who were told of first.
    pub(crate) async fn outcomes(&mut self) -> Vec<Result<Seen, String>> {
        match self.hear("what was read", |said| matches!(said, Said::Read(_))).await {
            Said::Read(outcomes) => outcomes,
            other => panic!("{other:?}"),
        }
    }

    /// What one caller got.
    pub(crate) async fn outcome(&mut self) -> Result<Seen, String> {
        self.outcomes().await.remove(0)
    }

    /// Reads a user's token.
    pub(crate) async fn read(&mut self, who: &Who) -> Result<Seen, String> {
        self.tell(Order::Read(who.clone(), 1)).await;
        self.outcome().await
    }

    /// Waits until it serves another token than `last` of a user who is watched.
    pub(crate) async fn renewed(&mut self, who: &Who, last: &str) -> Seen {
        loop {
            self.change().await;
            let seen = self.read(who).await.unwrap();
            if seen.access_token != last {
                return seen;
            }
        }
    }

    fn pid(&self) -> Pid {
        let id = self.child.id().unwrap();
        Pid::from_raw(id.try_into().unwrap()).unwrap()
    }

    /// SIGKILL, until it is gone.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGSTOP, until it stands.
    pub(crate) fn stop(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    /// SIGCONT.
    pub(crate) fn wake(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }
}
