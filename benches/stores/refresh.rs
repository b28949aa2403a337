//! Refreshes through the manager, over the same statements and the same request by a bare loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::manager::{RefreshPolicy, TokenEvent, TokenEvents, UserHandle};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{PostgresStore, RowKind, SqliteStore, StoreKey, TokenStore};
use hurdlr_oauth2::{Hurdlr, Token, TokenManager, UserId};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::task::JoinSet;

use crate::bare::{self, Answer, BareUser, Loop, Pool};
use crate::harness::{Outcome, Provider};
use crate::postgres::Server;
use crate::statements::overheard;
use crate::{Size, median};

/// How many refreshes are under way at once: the manager's own bound.
const AT_ONCE: usize = 64;

/// As many connections as [`PostgresStore::at`] opens.
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
    let hurdlr = provider.hurdlr()?;
    let manager = manager(&hurdlr, store.clone())?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for n in 0..size.users {
        let user = UserId::new(format!("managed-{n}"))?;
        ours.push(Managed::new(&manager, &user, hurdlr.client_credentials(&user).await?).await?);
    }

    // What a refresh says to the store is what the bare loop will say.
    let mut first = ours.pop().ok_or("nobody to refresh")?;
    first.refresh().await?;
    let statements = overheard(first.refresh()).await?;
    let [claim, save] = <[_; 2]>::try_from(statements)
        .map_err(|other| format!("a refresh is two statements, and these are: {other:?}"))?;
    ours.push(first);
    let shared = Arc::new(Loop {
        pool,
        claim,
        save,
        http: bare::http()?,
        token_url: hurdlr.token_url().clone(),
        client_id: provider.client_id.clone(),
        client_secret: provider.client_secret.clone(),
    });
    for n in 0..size.users {
        let user = UserId::new(format!("bare-{n}"))?;
        let token = hurdlr.client_credentials(&user).await?;
        bare.push(bare_user(&shared, &manager, &store, &user, token).await?);
    }

    let (mut ours, mut bare) = (Fleet::of(ours), Fleet::of(bare));
    let mut rates = Rates { ours: Vec::new(), bare: Vec::new() };
    let per_second = |time: Duration| {
        f64::from(u32::try_from(size.users).unwrap_or(u32::MAX)) / time.as_secs_f64()
    };
    for round in 0..=size.rounds {
        let (our_time, bare_time) = if round % 2 == 0 {
            (ours.refresh().await?, bare.refresh().await?)
        } else {
            let bare_time = bare.refresh().await?;
            (ours.refresh().await?, bare_time)
        };
        // The first round is warming up.
        if round > 0 {
            rates.ours.push(per_second(our_time));
            rates.bare.push(per_second(bare_time));
        }
    }
    Ok(rates)
}

/// How many statements a refresh of a user in the cache is, as the server logs them.
async fn statements_sent(server: &Server, provider: &Provider, size: Size) -> Outcome<f64> {
    let url = format!("{}&options[log_statement]=all", server.url());
    let store = PostgresStore::at(url).schema("refresh").open_plaintext().await?;
    let hurdlr = provider.hurdlr()?;
    let manager = manager(&hurdlr, store)?;
    let mut users = Vec::new();
    for n in 0..size.users {
        let user = UserId::new(format!("counted-{n}"))?;
        users.push(Managed::new(&manager, &user, hurdlr.client_credentials(&user).await?).await?);
    }
    let mut users = Fleet::of(users);
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
    let statements = u32::try_from(logged() - before)?;
    Ok(f64::from(statements) / f64::from(u32::try_from(size.users)?))
}

/// One whose users are always due: read, they are served and refreshed in the background.
fn manager(hurdlr: &Hurdlr, store: impl TokenStore) -> Outcome<TokenManager> {
    let policy = RefreshPolicy::default()
        .refresh_fraction(f64::MIN_POSITIVE)
        .refresh_jitter(0.0)
        // Otherwise so short a life would be refreshed once a second at most.
        .initial_backoff(Duration::from_millis(1));
    let manager = TokenManager::builder(hurdlr.clone(), store)
        .max_concurrent_refreshes(AT_ONCE)
        .refresh_policy(policy);
    Ok(manager.build()?)
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
