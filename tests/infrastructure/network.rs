//! Networks that fail between a store and its server: no login is lost, no call hangs, and the
//! store has all its connections afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::store::{PostgresStore, TokenStore};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, PATIENCE, until};
use crate::load::{LIFE, Load};
use crate::proxy::{Afterwards, Proxy, Weather};
use crate::site::{Site, migrated, said};
use crate::timed::Timed;

const USERS: usize = 30;

/// How many connections a store opens by default.
const CONNECTIONS: u64 = 10;

/// How long any call of a store may take: a connection within 5 s and an answer within 10 s, and
/// something for a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// Two managers, each with a store that reaches its server through the proxy.
struct Stage {
    server: Arc<Cluster>,
    proxy: Proxy,
    schema: &'static str,
    stores: Vec<Timed<PostgresStore>>,
    bare: Vec<PostgresStore>,
    load: Load,
}

impl Stage {
    async fn start(schema: &'static str) -> Self {
        let server = Arc::new(Cluster::start(&[]));
        let proxy = Proxy::to(server.address()).await;
        let site = Arc::new(Site::with_token_life(LIFE));
        let mut bare = Vec::new();
        for _ in 0..2 {
            bare.push(migrated(&proxy.url(), schema).await);
        }
        let stores: Vec<_> = bare.iter().cloned().map(Timed::new).collect();
        let managers: Vec<_> = stores.iter().map(|store| site.manager(store.clone())).collect();
        let load = Load::start(site, managers, USERS).await;
        load.refreshed(&server, schema, 1).await;
        Self { server, proxy, schema, stores, bare, load }
    }

    /// Waits until everybody was refreshed again.
    async fn refreshed(&self) {
        self.load.refreshed(&self.server, self.schema, 1).await;
    }

    /// Expects that the network did no harm that lasts.
    async fn no_harm_was_done(self) {
        self.refreshed().await;
        for store in &self.stores {
            let calls = store.calls();
            let (call, longest) = calls.longest.unwrap();
            println!("{}: {call} took {longest:.1?} at most", self.schema);
            if let Some(error) = calls.failures.first() {
                println!("{}: {} calls failed: {}", self.schema, calls.failures.len(), said(error));
            }
            assert!(longest < BOUND, "{call} took {longest:?}");
        }
        for store in &self.bare {
            self.has_all_its_connections(store).await;
        }
        let store = migrated(&self.server.url(), self.schema).await;
        self.load.lost_nobody(&store).await;
    }

    /// Has more callers than connections wait for a lock, and counts how many reach the server.
    async fn has_all_its_connections(&self, store: &PostgresStore) {
        // Less than any statement may take, so that no caller gives up while it is counted.
        const COUNTED_FOR: Duration = Duration::from_secs(2);
        let waiting = "SELECT count(*) FROM pg_stat_activity \
                       WHERE wait_event_type = 'Lock' AND query LIKE '%hurdlr_logins%'";
        let begun = Instant::now();
        loop {
            let lock = Lock::take(&self.server, &format!("{}.hurdlr_logins", self.schema)).await;
            let mut callers = JoinSet::new();
            for n in 0..2 * CONNECTIONS {
                let store = store.clone();
                let state = [u8::try_from(n).unwrap(); 32];
                callers.spawn(async move { store.redeem(&state, Duration::ZERO).await });
            }
            let locked = Instant::now();
            let mut most = 0;
            while most < CONNECTIONS && locked.elapsed() < COUNTED_FOR {
                most = most.max(self.server.number(waiting));
            }
            lock.release().await;
            // Whoever met a dead connection has put an end to it by then.
            callers.join_all().await;
            if most == CONNECTIONS {
                return;
            }
            let said = format!("{most} of {CONNECTIONS} connections are left to the store");
            assert!(begun.elapsed() < PATIENCE / 2, "{said}");
        }
    }
}

/// A lock on a table, held by another session until this is dropped.
pub(crate) struct Lock(tokio::process::Child);

impl Lock {
    pub(crate) async fn take(server: &Cluster, table: &str) -> Self {
        let mut session = tokio::process::Command::new(crate::postgres::binaries().join("psql"))
            .args(["-X", "-q", &server.url()])
            .stdin(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let statements = format!("BEGIN; LOCK TABLE {table};\n");
        let input = session.stdin.as_mut().unwrap();
        input.write_all(statements.as_bytes()).await.unwrap();
        let held = format!(
            "SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass \
             AND mode = 'AccessExclusiveLock' AND granted"
        );
        until("the lock", async || (server.number(&held) > 0).then_some(())).await;
        Self(session)
    }

    pub(crate) async fn release(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().await.unwrap();
    }
}

pub(crate) async fn cut_connections_lose_nothing() {
    let stage = Stage::start("cut").await;
    for _ in 0..5 {
        stage.proxy.cut();
        stage.load.refreshed_once(&stage.server, stage.schema).await;
    }
    stage.no_harm_was_done().await;
}

pub(crate) async fn slow_network_loses_nothing() {
    let stage = Stage::start("slow").await;
    stage.proxy.set(Weather::Delay(Duration::from_millis(20)));
    stage.refreshed().await;
    stage.refreshed().await;
    stage.no_harm_was_done().await;
}

/// With a delay, so that connections are caught in whatever they do between two statements.
pub(crate) async fn blackhole_costs_no_login_or_connection() {
    let stage = Stage::start("blackhole").await;
    stage.proxy.set(Weather::Delay(Duration::from_millis(20)));
    stage.refreshed().await;
    stage.proxy.set(Weather::Blackhole);
    tokio::time::sleep(Duration::from_secs(12)).await;
    stage.proxy.set(Weather::Clear);
    stage.no_harm_was_done().await;
}

/// A statement takes about a second.
pub(crate) async fn throttled_network_loses_nothing() {
    let stage = Stage::start("throttled").await;
    stage.proxy.set(Weather::Throttled(2_000));
    stage.refreshed().await;
    stage.proxy.set(Weather::Clear);
    stage.no_harm_was_done().await;
}

/// The server has done what it was asked, and the store does not know.
pub(crate) async fn withheld_answers_lose_nothing() {
    let stage = Stage::start("withheld").await;
    for then in [Afterwards::Cut, Afterwards::Silence] {
        stage.proxy.withhold(20, then);
        until("20 lost answers", async || (stage.proxy.to_withhold() == 0).then_some(())).await;
        stage.refreshed().await;
    }
    stage.no_harm_was_done().await;
}
