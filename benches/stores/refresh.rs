//! Refreshes through the manager, over the same statements and the same request by a bare loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::manager::{TokenEvent, TokenEvents, UserHandle};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{PostgresStore, RowKind, SqliteStore, StoreKey, TokenStore};
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::{Token, TokenManager, UserId};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::task::JoinSet;

use crate::bare::{self, Answer, BareUser, Loop, Pool};
use crate::harness::{Outcome, Provider};
use crate::network::Network;
use crate::postgres::Server;
use crate::statements::overheard;
use crate::{Size, count, median};

/// How many refreshes are under way at once: the manager's own bound.
const AT_ONCE: usize = 64;

/// The number of connections that [`PostgresStore::at`] opens.
const CONNECTIONS: u32 = 10;

pub(crate) async fn beside_bare(server: &Server, size: Size) -> Outcome {
    let provider = Provider::start()?;

    let store = PostgresStore::at(server.url()).schema("refresh").open_plaintext().await?;
    store.migrate().await?;
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .test_before_acquire(false)
        .connect(&server.url())
        .await?;
    let rates = measured(&provider, store, Pool::Postgres(pool), size).await?;
    rates.tell(size, "postgres");
    let statements = statements_sent(server, &provider, size).await?;
    size.figure("stores.postgres_statements", statements, "per refresh");
    over_a_network(server, &provider, size).await?;

    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tokens.db");
    let store = SqliteStore::at(format!("sqlite://{}", path.display())).open_plaintext().await?;
    store.migrate().await?;
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(10))
        .pragma("secure_delete", "ON");
    // One, for that is the fastest: SQLite has one writer, and several would wait by sleeping.
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .connect_with(options)
        .await?;
    let rates = measured(&provider, store, Pool::Sqlite(pool), size).await?;
    rates.tell(size, "sqlite");
    Ok(())
}

/// Refreshes per second.
struct Rates {
    ours: Vec<f64>,
    bare: Vec<f64>,
}

impl Rates {
    fn tell(self, size: Size, store: &str) {
        let ratios = self.ours.iter().zip(&self.bare).map(|(ours, bare)| ours / bare).collect();
        size.figure(&format!("stores.{store}_refresh_vs_bare"), median(ratios), "x");
        size.figure(&format!("stores.{store}_refreshes"), median(self.ours), "per s");
        size.figure(&format!("stores.{store}_refreshes_bare"), median(self.bare), "per s");
    }
}

async fn measured(
    provider: &Provider,
    store: impl TokenStore + Clone,
    pool: Pool,
    size: Size,
) -> Outcome<Rates> {
    // The bare loop executes the statements of a refresh.
    let mut one = ManagedFleet::new(provider, store.clone(), "overheard", 1).await?;
    one.refresh().await?;
    let refreshing = async { one.refresh().await.map(drop) };
    let [claim, save] = <[_; 2]>::try_from(overheard(refreshing).await?)
        .map_err(|other| format!("a refresh is two statements, and these are: {other:?}"))?;
    let hurdlr = provider.hurdlr()?;
    let shared = Arc::new(Loop {
        pool,
        claim,
        save,
        http: bare::http()?,
        token_url: hurdlr.token_url().clone(),
        client_id: provider.client_id.clone(),
        client_secret: provider.client_secret.clone(),
    });
    let mut bare = Vec::new();
    for n in 0..size.users {
        let user = UserId::new(format!("bare-{n}"))?;
        let token = hurdlr.client_credentials(&user).await?;
        bare.push(bare_user(&shared, &one.manager, &store, &user, token).await?);
    }

    let mut ours = ManagedFleet::new(provider, store, "managed", size.users).await?;
    let mut bare = Fleet::of(bare);
    let mut rates = Rates { ours: Vec::new(), bare: Vec::new() };
    for round in 0..=size.rounds {
        let (our_time, bare_time) = if round % 2 == 0 {
            (ours.refresh().await?, bare.refresh().await?)
        } else {
            let bare_time = bare.refresh().await?;
            (ours.refresh().await?, bare_time)
        };
        // The first round is warming up.
        if round > 0 {
            rates.ours.push(per_second(size.users, our_time));
            rates.bare.push(per_second(size.users, bare_time));
        }
    }
    Ok(rates)
}

/// How many statements a refresh of a user in the cache is, as the server logs them.
async fn statements_sent(server: &Server, provider: &Provider, size: Size) -> Outcome<f64> {
    let url = format!("{}&options[log_statement]=all", server.url());
    let store = PostgresStore::at(url).schema("refresh").open_plaintext().await?;
    let mut users = ManagedFleet::new(provider, store, "counted", size.users).await?;
    // Opens all connections, each of which asks whether it can write.
    users.refresh().await?;
    let logged = || {
        let log = server.log();
        let is_one =
            |line: &&str| line.contains("LOG:  execute ") || line.contains("LOG:  statement: ");
        log.lines().filter(is_one).count()
    };
    let before = logged();
    if before < size.users {
        return Err("the server does not log what it executes".into());
    }
    users.refresh().await?;
    Ok(count(logged() - before) / count(size.users))
}

/// Round trips of a refresh, as a proxy on the way to the server counts them, and how many
/// refreshes a network with 20 ms each way allows.
async fn over_a_network(server: &Server, provider: &Provider, size: Size) -> Outcome {
    let network = Network::to(server.socket()).await?;
    let store = PostgresStore::at(network.url()).schema("refresh").open_plaintext().await?;
    let mut users = ManagedFleet::new(provider, store, "far", size.users).await?;
    // Each connection prepares its statements.
    users.refresh().await?;
    let before = network.round_trips();
    users.refresh().await?;
    let round_trips = count(network.round_trips() - before) / count(size.users);
    size.figure("stores.postgres_round_trips", round_trips, "per refresh");

    network.set_delay(Duration::from_millis(20));
    let mut rates = Vec::new();
    for _ in 0..size.far_rounds {
        rates.push(per_second(size.users, users.refresh().await?));
    }
    // Two round trips of 40 ms on each of ten connections.
    let allowed = f64::from(CONNECTIONS) / 0.08;
    size.figure("stores.postgres_at_20ms_share", median(rates) / allowed, "x");
    Ok(())
}

fn per_second(users: usize, time: Duration) -> f64 {
    count(users) / time.as_secs_f64()
}

/// The managed side: a fleet whose tokens are due whenever it is refreshed.
pub(crate) struct ManagedFleet {
    pub(crate) manager: TokenManager,
    clock: ManualClock,
    users: Fleet<Managed>,
}

impl ManagedFleet {
    /// Logs `users` in, whose names begin with `name`.
    pub(crate) async fn new(
        provider: &Provider,
        store: impl TokenStore,
        name: &str,
        users: usize,
    ) -> Outcome<Self> {
        let clock = ManualClock::new();
        let hurdlr = provider.builder().clock(clock.clone()).build()?;
        let manager = TokenManager::builder(hurdlr.clone(), store)
            .max_concurrent_refreshes(AT_ONCE)
            // Otherwise users would be compared with the store too, since so much time passes.
            .revalidate_after(Duration::MAX)
            .build()?;
        let mut fleet = Vec::new();
        for n in 0..users {
            let user = UserId::new(format!("{name}-{n}"))?;
            let token = hurdlr.client_credentials(&user).await?;
            fleet.push(Managed::new(&manager, &user, token).await?);
        }
        Ok(Self { manager, clock, users: Fleet::of(fleet) })
    }

    /// Refreshes each user once, in the background.
    pub(crate) async fn refresh(&mut self) -> Outcome<Duration> {
        // By then a token of 90 days is due, and serves for another two weeks.
        self.clock.advance(Duration::from_hours(76 * 24));
        self.users.refresh().await
    }
}

trait Refresh: Send + 'static {
    fn refresh(&mut self) -> impl Future<Output = Outcome> + Send;
}

/// Users in [`AT_ONCE`] queues, each refreshed one after the other.
struct Fleet<U>(Vec<Vec<U>>);

impl<U: Refresh> Fleet<U> {
    fn of(users: Vec<U>) -> Self {
        let mut queues: Vec<Vec<U>> = (0..AT_ONCE).map(|_| Vec::new()).collect();
        for (n, user) in users.into_iter().enumerate() {
            queues[n % AT_ONCE].push(user);
        }
        Self(queues)
    }

    /// Refreshes each once.
    async fn refresh(&mut self) -> Outcome<Duration> {
        let start = Instant::now();
        let mut running = JoinSet::new();
        for mut queue in self.0.drain(..) {
            running.spawn(async move {
                for user in &mut queue {
                    user.refresh().await?;
                }
                Outcome::Ok(queue)
            });
        }
        let all = async {
            while let Some(queue) = running.join_next().await {
                self.0.push(queue??);
            }
            Outcome::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(60), all)
            .await
            .map_err(|_| "a refresh failed")??;
        Ok(start.elapsed())
    }
}

struct Managed {
    handle: UserHandle,
    changes: TokenEvents,
}

impl Managed {
    async fn new(manager: &TokenManager, user: &UserId, token: Token) -> Outcome<Self> {
        manager.adopt(user, token).await?;
        let handle = manager.user(user);
        let changes = handle.subscribe();
        Ok(Self { handle, changes })
    }
}

impl Refresh for Managed {
    async fn refresh(&mut self) -> Outcome {
        self.handle.token().await?;
        match self.changes.next().await {
            TokenEvent::NewToken => Ok(()),
            other => Err(format!("a refresh ended with {other:?}").into()),
        }
    }
}

impl Refresh for BareUser {
    async fn refresh(&mut self) -> Outcome {
        BareUser::refresh(self).await
    }
}

/// One whose row is there already, as the manager's are.
async fn bare_user(
    shared: &Arc<Loop>,
    manager: &TokenManager,
    store: &impl TokenStore,
    user: &UserId,
    token: Token,
) -> Outcome<BareUser> {
    let refresh_token = token.refresh_token().ok_or("no refresh token")?;
    let (access, refresh) = (token.access_token().expose_secret(), refresh_token.expose_secret());
    let answer = Answer::new(access, refresh);
    manager.adopt(user, token).await?;
    let realm = Arc::new(manager.hurdlr().realm());
    let key = [
        realm.api_version().to_string(),
        realm.environment().to_owned(),
        realm.client_id().to_owned(),
        "login".to_owned(),
        user.as_str().to_owned(),
    ];
    let row = StoreKey::new(realm, RowKind::Login, user.clone());
    let row = store.read(&[row]).await?.pop().ok_or("no answer")??.ok_or("no row")?;
    Ok(BareUser { shared: Arc::clone(shared), key, version: row.version, token: answer })
}
