//! Servers at their limits: a full disk, a locked table, no connection left, and the strictest
//! isolation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hurdlr_oauth2::Error;
use hurdlr_oauth2::secrecy::SecretBox;
use hurdlr_oauth2::store::{Claim, PostgresStore, Save, StoreKey, StoredToken, TokenStore};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, until};
use crate::load::{LIFE, Load};
use crate::network::Lock;
use crate::site::{Site, assert_names, first_failure, migrated, said, user};

/// How many connections a store opens by default.
const CONNECTIONS: u64 = 10;

/// Calls a store over and over until it is stopped, from more callers than it has connections.
struct Callers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Vec<Error>>,
}

impl Callers {
    fn start(store: &PostgresStore) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for n in 0..3 * CONNECTIONS {
            let (store, stop) = (store.clone(), Arc::clone(&stop));
            let key = Site::new().key(&user(&format!("caller {n}")));
            tasks.spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    failures.extend(put(&store, &key, token(10)).await.err());
                }
                failures
            });
        }
        Self { stop, tasks }
    }

    async fn stop(self) -> Vec<Error> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

/// Saves a token, and makes the row where there is none.
pub(crate) async fn put(
    store: &PostgresStore,
    key: &StoreKey,
    token: StoredToken,
) -> Result<(), Error> {
    let lease = Duration::from_secs(60);
    let claim = Claim { holder: 1, lease, known: None, create: Some(7) };
    match store.claim(key, claim).await?.row {
        Some(row) => store
            .save(key, Save { over: row.version, version: row.version.next(), token })
            .await
            .map(|_| ()),
        None => Ok(()),
    }
}

/// A token of so many bytes, which cannot be compressed.
pub(crate) fn token(bytes: usize) -> StoredToken {
    let mut noise = fastrand::Rng::with_seed(7);
    let payload = (0..bytes).map(|_| noise.u8(..)).collect::<Vec<_>>();
    StoredToken {
        payload: SecretBox::new(Box::new(payload)),
        age: Duration::ZERO,
        due_in: Duration::from_secs(60),
    }
}

/// The most connections that were open at once while `span` passed.
async fn most_backends(server: &Cluster, span: Duration) -> u64 {
    let begun = Instant::now();
    let mut most = 0;
    while begun.elapsed() < span {
        most = most.max(server.backends());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    most
}

/// While somebody holds a lock for longer than the store waits, statements end at the server too.
pub(crate) async fn locked_table_piles_up_no_backends() {
    let server = Cluster::start(&[]);
    let store = migrated(&server.url(), "locked").await;
    let callers = Callers::start(&store);
    let lock = Lock::take(&server, "locked.hurdlr_tokens").await;
    let most = most_backends(&server, Duration::from_secs(25)).await;
    lock.release().await;
    let failures = callers.stop().await;
    println!("locked: {most} connections at most, {} calls failed", failures.len());
    // One more is the lock's own.
    assert!(most <= 2 * CONNECTIONS + 1, "{most} connections are open to a locked table");
    for error in &failures {
        assert_names(error, &[&["lock", "no connection"]]);
    }
    let named = failures.iter().filter(|error| said(error).to_lowercase().contains("lock")).count();
    assert!(named > 0, "the lock is named: {}", said(&failures[0]));
    Site::new().exercise(&store).await;
    store.close().await;
}

/// No file of the server can grow beyond a size, which is to PostgreSQL as a full disk.
pub(crate) async fn full_disk_is_named() {
    // No multiple of a page: at the end a page is written in part, as on a disk that is full.
    const MOST_BYTES: u64 = 8_000_000;
    let server = Cluster::start_with_file_limit(MOST_BYTES);
    let store = migrated(&server.url(), "crowded").await;
    let site = Site::new();
    let [ann, bob] = ["ann", "bob"].map(|name| site.key(&user(name)));
    put(&store, &ann, token(10)).await.unwrap();
    let mut failures = Vec::new();
    for n in 0..40 {
        let key = site.key(&user(&format!("user {n}")));
        failures.extend(put(&store, &key, token(500_000)).await.err());
    }
    assert!(!failures.is_empty(), "the disk is not full");
    for error in &failures {
        assert_names(error, &[&["disk"], &["full", "space"]]);
    }
    let rows = store.read(&[ann.clone(), bob]).await.unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.into_iter().next().unwrap().unwrap().is_some(), "what was saved can be read");
    assert!(server.backends() <= CONNECTIONS);

    // Somebody makes room.
    server.run("DELETE FROM crowded.hurdlr_tokens WHERE subject LIKE 'user %'");
    server.run("VACUUM crowded.hurdlr_tokens");
    let key = site.key(&user("after"));
    put(&store, &key, token(500_000)).await.unwrap();
    store.forget(&key, None).await.unwrap();
    store.forget(&ann, None).await.unwrap();
    site.exercise(&store).await;
    store.close().await;
}

/// Also where the server forbids what one transaction after the other could not have done.
pub(crate) async fn serializable_isolation_fails_nothing() {
    let server = Cluster::start(&["default_transaction_isolation=serializable"]);
    let site = Arc::new(Site::with_token_life(LIFE));
    let mut managers = Vec::new();
    for _ in 0..2 {
        managers.push(site.manager(migrated(&server.url(), "serial").await));
    }
    let mut load = Load::start(site, managers, 20).await;
    load.log_in_more();
    load.refreshed(&server, "serial", 2).await;
    let store = migrated(&server.url(), "serial").await;
    load.lost_nobody(&store).await;
}

pub(crate) async fn too_many_connections_are_named() {
    let server = Cluster::start(&["max_connections=8", "superuser_reserved_connections=2"]);
    server.run("CREATE ROLE app LOGIN; CREATE SCHEMA app AUTHORIZATION app");
    let url = server.url().replace("test@", "app@");
    let store = migrated(&url, "app").await;
    store.close().await;
    let mut others = Vec::new();
    for _ in 0..6 {
        let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
        others.push(sqlx::ConnectOptions::connect(&options).await.unwrap());
    }
    let begun = Instant::now();
    let error = first_failure(&url, "app").await.unwrap();
    assert_names(&error, &[&["max_connections"]]);
    assert!(error.is_temporary(), "others may leave: {error:?}");
    assert!(begun.elapsed().as_secs() < 20, "it does not hang");
    drop(others);
    let none = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    until("room", async || (server.number(none) == 0).then_some(())).await;
    assert!(first_failure(&url, "app").await.is_none());
}
