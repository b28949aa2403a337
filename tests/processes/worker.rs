//! A process with a token manager, that does what it is told by lines on its input.

use std::io::{BufRead, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hurdlr_oauth2::manager::{RefreshPolicy, UserHandle};
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretSlice, SecretString};
use hurdlr_oauth2::store::{
    Claim, Claimed, DueCursor, DueRow, KeyRing, PostgresStore, ReadRow, Realm, Release, Rewrite,
    Row, RowKind, Save, SealingKey, SqliteStore, StoreFuture, StoreKey, TokenStore, Version,
};
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

/// What a process has to know to begin: the first line it reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) provider: String,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    pub(crate) store: Place,
    pub(crate) lease: Duration,
    pub(crate) deadline: Duration,
    /// By how many seconds its time of day is ahead of everybody else's.
    pub(crate) ahead: i64,
}

/// Where the tokens are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Place {
    Postgres { url: String, schema: String },
    Sqlite { url: String },
}

impl Place {
    pub(crate) async fn open(&self) -> Arc<dyn TokenStore> {
        let key = SealingKey::from_bytes(&SecretSlice::from(vec![1; 32])).unwrap();
        let keys = KeyRing::new(key);
        match self {
            Self::Postgres { url, schema } => {
                let store = PostgresStore::at(url).schema(schema).open_sealed(keys).await.unwrap();
                store.migrate().await.unwrap();
                Arc::new(store)
            }
            Self::Sqlite { url } => {
                let store = SqliteStore::at(url).open_sealed(keys).await.unwrap();
                store.migrate().await.unwrap();
                Arc::new(store)
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Who {
    Login(String),
    Enterprise(String),
}

impl Who {
    pub(crate) fn kind(&self) -> RowKind {
        match self {
            Self::Login(_) => RowKind::Login,
            Self::Enterprise(_) => RowKind::Enterprise,
        }
    }

    pub(crate) fn id(&self) -> UserId {
        let (Self::Login(id) | Self::Enterprise(id)) = self;
        UserId::new(id.as_str()).unwrap()
    }
}

/// What a process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// So many seconds pass.
    Turn(u64),
    /// So many callers want the token, at once.
    Read(Who, usize),
    /// Say what changes about a user from now on.
    Watch(Who),
    /// A token has just come in by a login.
    Adopt(String, String),
    /// Tokens are in an older table: of whom, and which.
    Import(Vec<(String, String)>),
    Forget(Who),
    /// Stand still when you next come there.
    StopAt(Point),
    /// Go on.
    Go,
}

/// Where a process can be made to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Point {
    /// It has the lease, and has sent nothing.
    Claimed,
    /// It has the answer, and has not saved it.
    Answered,
    /// It has saved it, and has not handed it out.
    Saved,
}

/// What a process says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    Ready,
    Done,
    /// What each caller got: the token, or the kind of error.
    Read(Vec<Result<Seen, String>>),
    Imported(Vec<bool>),
    /// The store has answered a claim.
    ClaimAnswered,
    Changed(String),
    StandsAt(Point),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) access_token: String,
    pub(crate) age: Duration,
}

/// Until the input ends.
pub(crate) fn run() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work());
}

async fn work() {
    let mut lines = lines();
    let setup = serde_json::from_str(&lines.recv().await.unwrap()).unwrap();
    let worker = Worker::start(&setup).await;
    say(&Said::Ready);
    while let Some(line) = lines.recv().await {
        worker.obey(serde_json::from_str(&line).unwrap());
    }
}

fn lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

fn say(what: &Said) {
    let line = serde_json::to_string(what).unwrap() + "\n";
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

struct Worker {
    clock: ManualClock,
    manager: TokenManager,
    stops: Arc<Stops>,
}

impl Worker {
    async fn start(setup: &Setup) -> Self {
        let clock = ManualClock::new();
        let ahead = Duration::from_secs(setup.ahead.unsigned_abs());
        if setup.ahead < 0 {
            clock.set_wall_back(ahead);
        } else {
            clock.advance_wall(ahead);
        }
        let hurdlr = Hurdlr::builder(&setup.client_id, SecretString::from(&*setup.client_secret))
            .environment(&*setup.provider)
            .clock(clock.clone())
            .build()
            .unwrap();
        let stops = Arc::<Stops>::default();
        let store = Stopping { store: setup.store.open().await, stops: Arc::clone(&stops) };
        let policy = RefreshPolicy::default().lease(setup.lease).refresh_timeout(setup.deadline);
        let manager = TokenManager::builder(hurdlr, store).refresh_policy(policy).build().unwrap();
        Self { clock, manager, stops }
    }

    /// What takes time goes on beside what it is told next.
    fn obey(&self, order: Order) {
        let manager = self.manager.clone();
        match order {
            Order::Turn(seconds) => self.clock.advance(Duration::from_secs(seconds)),
            Order::StopAt(point) => *self.stops.next.lock().unwrap() = Some(point),
            Order::Go => self.stops.go.notify_one(),
            Order::Read(who, callers) => {
                let user = self.user(&who);
                tokio::spawn(async move { say(&Said::Read(read(&user, callers).await)) });
            }
            Order::Watch(who) => {
                let mut changes = self.user(&who).subscribe();
                tokio::spawn(async move {
                    loop {
                        say(&Said::Changed(format!("{:?}", changes.next().await)));
                    }
                });
            }
            Order::Adopt(id, token) => {
                tokio::spawn(async move {
                    let token = manager.hurdlr().import(token).unwrap();
                    manager.adopt(&UserId::new(id).unwrap(), token).await.unwrap();
                    say(&Said::Done);
                });
            }
            Order::Import(table) => {
                tokio::spawn(async move {
                    let mut imported = Vec::new();
                    for (id, token) in table {
                        let token = manager.hurdlr().import(token).unwrap();
                        let id = UserId::new(id).unwrap();
                        imported.push(manager.import_if_absent(&id, token).await.unwrap());
                    }
                    say(&Said::Imported(imported));
                });
            }
            Order::Forget(who) => {
                let user = self.user(&who);
                tokio::spawn(async move {
                    user.forget().await.unwrap();
                    say(&Said::Done);
                });
            }
        }
    }

    fn user(&self, who: &Who) -> UserHandle {
        match who {
            Who::Login(_) => self.manager.user(&who.id()),
            Who::Enterprise(_) => self.manager.enterprise_user(&who.id()),
        }
    }
}

async fn read(user: &UserHandle, callers: usize) -> Vec<Result<Seen, String>> {
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let user = user.clone();
            tokio::spawn(async move {
                let token = user.token().await.map_err(|error| format!("{:?}", error.kind()))?;
                let access_token = token.access_token().expose_secret().to_owned();
                Ok(Seen { access_token, age: token.age() })
            })
        })
        .collect();
    let mut seen = Vec::new();
    for caller in callers {
        seen.push(caller.await.unwrap());
    }
    seen
}

#[derive(Debug, Default)]
struct Stops {
    next: Mutex<Option<Point>>,
    go: Notify,
}

impl Stops {
    async fn reached(&self, point: Point) {
        let stands = self.next.lock().unwrap().take_if(|next| *next == point).is_some();
        if stands {
            say(&Said::StandsAt(point));
            self.go.notified().await;
        }
    }
}

/// A store on the way to which a process can be made to stand still.
#[derive(Debug)]
struct Stopping {
    store: Arc<dyn TokenStore>,
    stops: Arc<Stops>,
}

impl TokenStore for Stopping {
    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        Box::pin(async move {
            let claimed = self.store.claim(key, claim).await?;
            say(&Said::ClaimAnswered);
            if claimed.granted {
                self.stops.reached(Point::Claimed).await;
            }
            Ok(claimed)
        })
    }

    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.stops.reached(Point::Answered).await;
            let saved = self.store.save(key, save).await?;
            self.stops.reached(Point::Saved).await;
            Ok(saved)
        })
    }

    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        self.store.read(keys)
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        self.store.release(key, version, holder, release)
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool> {
        self.store.forget(key, version)
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
        self.store.due(realm, after, limit)
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, hurdlr_oauth2::Error>)>> {
        self.store.scan(realm, after, limit)
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        self.store.rewrite(rewrites)
    }
}
