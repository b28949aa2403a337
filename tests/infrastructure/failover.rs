//! A primary with a standby behind HAProxy: crashes, switchovers and restarts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::store::{PostgresStore, TokenStore};
use tokio::task::JoinSet;

use crate::balancer::Balancer;
use crate::cluster::{Cluster, until};
use crate::load::{LIFE, Load};
use crate::site::{Site, assert_names, first_failure, migrated, user};

const USERS: usize = 40;

/// How long a failover tool takes to be sure that the primary is gone. All tokens end meanwhile.
const OUTAGE: Duration = Duration::from_secs(10);

const SCHEMA: &str = "public";

/// Two servers, the balancer that leads to the primary, and two managers whose users are read.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    balancer: Balancer,
    load: Load,
}

impl Pair {
    async fn start(synchronous: bool) -> Self {
        let primary = Cluster::start(&[]);
        let standby = primary.standby();
        let state = if synchronous {
            // Not before there is one, or every commit waits; and only here, or the standby would
            // wait for one of its own after its promotion.
            primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'");
            primary.run("SELECT pg_reload_conf()");
            "sync"
        } else {
            "async"
        };
        let follows = format!("SELECT 1 FROM pg_stat_replication WHERE sync_state = '{state}'");
        until("the standby", async || (primary.run(&follows) == "1").then_some(())).await;
        let balancer = Balancer::start(primary.address(), standby.address()).await;
        let site = Arc::new(Site::with_token_life(LIFE));
        let mut managers = Vec::new();
        for _ in 0..2 {
            managers.push(site.manager(migrated(&balancer.url(), SCHEMA).await));
        }
        let load = Load::start(site, managers, USERS).await;
        load.refreshed(&primary, SCHEMA, 1).await;
        Self { primary, standby, balancer, load }
    }

    /// Makes the standby the primary, and leads the clients to it.
    async fn promote(&self) {
        assert_eq!(self.standby.run("SELECT pg_promote()"), "t");
        self.balancer.switch().await;
    }

    /// A store on the server that took over, which no failure comes between.
    async fn store(&self) -> PostgresStore {
        migrated(&self.standby.url(), SCHEMA).await
    }
}

/// What a client was told to be saved is on the standby too, so a crash loses none of it.
pub(crate) async fn sync_crash_loses_no_login() {
    let mut pair = Pair::start(true).await;
    pair.load.log_in_more();
    pair.load.refreshed(&pair.primary, SCHEMA, 1).await;
    pair.primary.kill();
    tokio::time::sleep(OUTAGE).await;
    pair.promote().await;
    let promoted = Instant::now();
    pair.load.refreshed_once(&pair.standby, SCHEMA).await;
    let first = promoted.elapsed();
    pair.load.refreshed(&pair.standby, SCHEMA, 1).await;
    let all = promoted.elapsed();
    let figure = |name, span: Duration| {
        println!("figure: infrastructure.{name} = {:.1} s", span.as_secs_f64());
    };
    figure("sync_failover_seconds", first);
    figure("sync_failover_all_users_seconds", all);
    let over = pair.load.settled(&pair.store().await).await;
    println!("figure: infrastructure.sync_failover_logins_lost = {} users", over.len());
    let store = pair.store().await;
    pair.load.lost_nobody(&store).await;
    assert!(over.is_empty(), "{over:?}");
}

/// While the synchronous standby hangs, nothing is acknowledged; afterwards all is as it was.
pub(crate) async fn frozen_standby_loses_no_login() {
    let pair = Pair::start(true).await;
    let frozen = pair.standby.freeze();
    tokio::time::sleep(OUTAGE).await;
    let connections = pair.primary.backends();
    println!("figure: infrastructure.frozen_standby_connections = {connections} connections");
    drop(frozen);
    pair.load.refreshed(&pair.primary, SCHEMA, 1).await;
    let store = migrated(&pair.primary.url(), SCHEMA).await;
    pair.load.lost_nobody(&store).await;
}

pub(crate) async fn planned_switchover_loses_no_login() {
    let mut pair = Pair::start(false).await;
    pair.load.log_in_more();
    pair.load.refreshed(&pair.primary, SCHEMA, 1).await;
    // The server sends all it has to its standby before it ends.
    pair.primary.stop();
    pair.promote().await;
    pair.load.refreshed(&pair.standby, SCHEMA, 1).await;
    let store = pair.store().await;
    pair.load.lost_nobody(&store).await;
}

/// What the standby did not have yet is gone, and with it the refresh tokens that replaced those it
/// has. Who is affected is told, unless a living process writes the newer token back.
pub(crate) async fn async_crash_tells_what_was_lost() {
    let mut pair = Pair::start(false).await;
    pair.standby.run("ALTER SYSTEM SET primary_conninfo = ''");
    pair.standby.run("SELECT pg_reload_conf()");
    let received = "SELECT count(*) FROM pg_stat_wal_receiver";
    until("replication to stop", async || (pair.standby.number(received) == 0).then_some(())).await;
    pair.load.log_in_more();
    pair.load.refreshed(&pair.primary, SCHEMA, 2).await;
    pair.primary.kill();
    tokio::time::sleep(OUTAGE).await;
    pair.promote().await;
    let store = pair.store().await;
    let lost = pair.load.settled(&store).await;
    println!("figure: infrastructure.async_failover_logins_lost = {} users", lost.len());
    println!("figure: infrastructure.async_failover_users = {} users", pair.load.users().len());
    let (new, known): (Vec<_>, Vec<_>) =
        lost.iter().partition(|user| user.as_str().starts_with("new"));
    println!(
        "lost: {} who logged in before, {} logins of the last seconds",
        known.len(),
        new.len()
    );
    pair.load.stop().await;
}

/// All connections of the pool are dead after a restart, and no statement has to find out, also
/// none that must not be repeated.
pub(crate) async fn restarted_server_costs_no_login() {
    const LOGINS: u8 = 10;
    let mut server = Cluster::start(&[]);
    let store = migrated(&server.url(), SCHEMA).await;
    let fill = async || {
        let mut tasks = JoinSet::new();
        for n in 0..2 * LOGINS {
            let store = store.clone();
            let keys = [Site::new().key(&user(&format!("user {n}")))];
            tasks.spawn(async move { store.read(&keys).await.map(drop) });
        }
        tasks.join_all().await.into_iter().for_each(Result::unwrap);
    };
    fill().await;
    server.stop();
    server.start_again();
    let site = Site::new();
    let manager = site.manager(store.clone());
    let mut failures = Vec::new();
    for n in 0..LOGINS {
        failures.extend(site.log_in(&manager, &user(&format!("user {n}"))).await.err());
    }
    assert!(failures.is_empty(), "{} of {LOGINS} failed: {:?}", failures.len(), failures[0]);
    assert!(manager.shutdown().await.is_empty());
    store.close().await;
}

/// HAProxy closes each connection at once where it knows no living server.
pub(crate) async fn balancer_without_server_is_named() {
    let server = Cluster::shared();
    let balancer = Balancer::start(server.address(), server.address()).await;
    let schema = "balanced";
    let store = migrated(&balancer.url(), schema).await;
    balancer.leave_first().await;
    let begun = Instant::now();
    let key = Site::new().key(&user("ann"));
    let error = store.forget(&key, None).await.unwrap_err();
    assert_names(&error, &[&["connection"], &["closed", "ended", "reset", "refused"]]);
    assert!(error.is_temporary(), "another server may take over: {error:?}");
    let opened = first_failure(&balancer.url(), schema).await.unwrap();
    assert_names(&opened, &[&["connection"], &["closed", "ended", "reset", "refused"]]);
    assert!(opened.is_temporary(), "another server may take over: {opened:?}");
    assert!(begun.elapsed().as_secs() < 30, "neither hangs");
    balancer.switch().await;
    Site::new().exercise(&store).await;
    store.close().await;
}

pub(crate) async fn standby_is_refused_by_name() {
    let primary = Cluster::start(&[]);
    migrated(&primary.url(), SCHEMA).await.close().await;
    let standby = primary.standby();
    let there = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'hurdlr%'";
    until("the tables", async || (standby.number(there) == 3).then_some(())).await;
    let error =
        first_failure(&standby.url(), SCHEMA).await.expect("a standby cannot be written to");
    assert_names(&error, &[&["read-only", "standby"]]);
}
