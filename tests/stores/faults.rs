//! The SQL stores on the wire: what a statement costs, what a lost answer costs, and what an
//! operator is told.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hurdlr_oauth2::secrecy::{ExposeSecret, SecretBox};
use hurdlr_oauth2::store::{
    Claim, PostgresStore, Realm, Release, Rewrite, RowKind, Save, SqliteStore, StoreKey,
    StoredToken, TokenStore, Version,
};
use hurdlr_oauth2::testing::seed_row;
use hurdlr_oauth2::{ApiVersion, Error, ErrorKind, UserId};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::SqlitePool;
use tracing::field::{Field, Visit};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::alone::is_alone;
use crate::postgres::Server;
use crate::support::everything_said;
use crate::wire::Wire;

const LEASE: Duration = Duration::from_secs(600);

const AT: Version = Version { incarnation: 7, revision: 1 };

fn key(subject: &str) -> StoreKey {
    let realm = Realm::new(ApiVersion::V4, "https://store.example.com", "client");
    StoreKey::new(Arc::new(realm), RowKind::Login, UserId::new(subject).unwrap())
}

fn bytes(text: &str) -> SecretBox<Vec<u8>> {
    SecretBox::new(Box::new(text.into()))
}

fn token(text: &str) -> StoredToken {
    StoredToken { payload: bytes(text), age: Duration::ZERO, due_in: Duration::ZERO }
}

fn claim(known: Version) -> Claim {
    Claim { holder: 1, lease: LEASE, known: Some(known), create: None }
}

async fn payload(store: &impl TokenStore, key: &StoreKey) -> Vec<u8> {
    let row = store.read(std::slice::from_ref(key)).await.unwrap().pop().unwrap();
    row.unwrap().unwrap().token.unwrap().payload.expose_secret().clone()
}

/// A store behind a relay, on one connection.
async fn relayed(schema: &str) -> (PostgresStore, Wire) {
    relayed_by(schema, 1).await
}

async fn relayed_by(schema: &str, connections: u32) -> (PostgresStore, Wire) {
    let server = Server::shared().url();
    let wire = Wire::before(server.split_once("host=").unwrap().1);
    let store = PostgresStore::at(wire.url()).schema(schema).max_connections(connections);
    let store = store.open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    (store, wire)
}

fn assert_says(error: &Error, temporary: bool, text: &str) {
    assert_eq!(error.kind(), ErrorKind::Store, "{error:?}");
    assert_eq!(error.is_temporary(), temporary, "{error:?}");
    let said = everything_said(error);
    assert!(said.contains(text), "no {text:?} in: {said}");
}

// --- Round trips ----------------------------------------------------------------------------

#[tokio::test]
async fn statement_is_one_round_trip() {
    let (store, wire) = relayed("one_trip").await;
    let connected = wire.connections();
    let ann = key("ann");
    seed_row(&store, &ann, AT, token("one")).await;
    let mut version = AT;
    for round in 0..3 {
        let before = wire.flights();
        assert!(store.claim(&ann, claim(version)).await.unwrap().granted);
        assert!(
            store
                .save(&ann, Save { over: version, version: version.next(), token: token("x") })
                .await
                .unwrap()
        );
        version = version.next();
        // The first time, the statements are prepared.
        assert!(round == 0 || wire.flights() == before + 2, "{}", wire.flights() - before);
    }
    assert_eq!(wire.connections(), connected);
}

/// An app's pool pings when it gets a connection back, so the store need not.
#[tokio::test]
async fn connection_of_the_app_costs_no_ping() {
    let (_, wire) = relayed("apps_pool").await;
    let options = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = options.connect(&wire.url()).await.unwrap();
    let store = PostgresStore::on(pool).schema("apps_pool").open_plaintext().await.unwrap();
    let keys = [key("ann")];
    store.read(&keys).await.unwrap();
    let before = wire.flights();
    for _ in 0..10 {
        store.read(&keys).await.unwrap();
    }
    let flights = wire.flights() - before;
    assert!(flights < 25, "{flights}: for ten statements and ten pings of the pool");
}

/// One in sixteen logins pays for the others.
#[tokio::test]
async fn redeeming_seldom_cleans_up() {
    let (store, wire) = relayed("cleaned").await;
    assert!(store.redeem(&[64; 32], LEASE).await.unwrap());
    let before = wire.flights();
    for state in 0..64 {
        assert!(store.redeem(&[state; 32], LEASE).await.unwrap());
    }
    let flights = wire.flights() - before;
    assert!((64..96).contains(&flights), "{flights}");
}

/// A load balancer may have forgotten a connection that was idle for long.
#[tokio::test]
async fn idle_connection_is_pinged() {
    let (store, wire) = relayed("idle").await;
    let connected = wire.connections();
    let keys = [key("ann")];
    store.read(&keys).await.unwrap();
    for (idle, flights) in [(29, 1), (31, 2), (0, 1)] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(idle)).await;
        tokio::time::resume();
        let before = wire.flights();
        store.read(&keys).await.unwrap();
        assert_eq!(wire.flights() - before, flights, "after {idle} s");
    }
    assert_eq!(wire.connections(), connected);

    // One that does not answer is replaced.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    wire.lose_next_answer();
    store.read(&keys).await.unwrap();
    assert_eq!(wire.connections(), connected + 1);
}

/// What broke one idle connection most likely broke those that were idle for as long.
#[tokio::test]
async fn failed_ping_closes_all_idle_connections() {
    let (store, wire) = relayed_by("idle_together", 2).await;
    let keys = [key("ann")];
    let read_two = async || {
        let rows = tokio::join!(store.read(&keys), store.read(&keys));
        assert!(rows.0.is_ok() && rows.1.is_ok());
    };
    read_two().await;
    let connected = wire.connections();
    read_two().await;
    assert_eq!(wire.connections(), connected);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    wire.lose_next_answer();
    store.read(&keys).await.unwrap();
    assert_eq!(wire.connections(), connected + 1, "the other one was not tried");
    read_two().await;
    assert_eq!(wire.connections(), connected + 2);
}

/// The answer that nobody waits for must not become that of the next statement.
#[tokio::test]
async fn cancelled_statement_closes_its_connection() {
    let (store, wire) = relayed("cancelled").await;
    let connected = wire.connections();
    let [ann, bob] = ["ann", "bob"].map(key);
    for user in [&ann, &bob] {
        let text = user.subject().as_str();
        seed_row(&store, user, AT, token(text)).await;
    }
    assert_eq!(payload(&store, &ann).await, b"ann");
    wire.withhold_answers(true);
    let keys = [ann];
    let cancelled = tokio::time::timeout(Duration::from_millis(50), store.read(&keys)).await;
    cancelled.unwrap_err();
    wire.withhold_answers(false);
    assert_eq!(payload(&store, &bob).await, b"bob");
    assert_eq!(wire.connections(), connected + 1);
}

// --- Lost answers ---------------------------------------------------------------------------

/// A statement whose answer was lost was executed. The call tells what became of it all the same,
/// but for a `forget`.
#[tokio::test]
async fn lost_answers_are_made_up_for() {
    let (store, wire) = relayed("lost").await;
    let ann = key("ann");
    seed_row(&store, &ann, AT, token("one")).await;
    // Statements are prepared on each new connection, by an answer of their own, so that they are
    // lost as they are prepared, or as they are executed.
    for prepared in [false, true] {
        let lose = async || {
            let rows = store.read(&[key("bob")]).await.unwrap();
            assert!(rows[0].as_ref().unwrap().is_none());
            wire.lose_next_answer();
        };
        let state = [u8::from(prepared); 32];
        let rewrite = |old: &str, new: &str| {
            vec![Rewrite { key: ann.clone(), version: AT, old: bytes(old), new: bytes(new) }]
        };
        if prepared {
            assert_eq!(store.rewrite(rewrite("x", "y")).await.unwrap(), [false]);
        }
        lose().await;
        store.rewrite(rewrite("one", "two")).await.unwrap();
        assert_eq!(payload(&store, &ann).await, b"two");

        if prepared {
            assert!(store.claim(&ann, claim(AT)).await.unwrap().granted);
        }
        lose().await;
        assert!(store.claim(&ann, claim(AT)).await.unwrap().granted);
        if prepared {
            assert!(
                !store
                    .save(
                        &ann,
                        Save { over: AT.next(), version: AT.next().next(), token: token("x") }
                    )
                    .await
                    .unwrap()
            );
        }
        lose().await;
        assert!(
            store
                .save(&ann, Save { over: AT, version: AT.next(), token: token("three") })
                .await
                .unwrap()
        );
        assert_eq!(payload(&store, &ann).await, b"three");
        if prepared {
            store.release(&ann, AT, 1, Release::default()).await.unwrap();
        }
        lose().await;
        store.release(&ann, AT.next(), 1, Release::default()).await.unwrap();

        if prepared {
            assert!(store.redeem(&[9; 32], LEASE).await.unwrap());
        }
        lose().await;
        assert!(store.redeem(&state, LEASE).await.unwrap(), "by this call");
        assert!(!store.redeem(&state, LEASE).await.unwrap(), "and by no other");

        if prepared {
            assert!(!store.forget(&ann, Some(AT)).await.unwrap());
        }
        lose().await;
        let forgotten = store.forget(&ann, Some(AT.next())).await;
        if prepared {
            assert_says(&forgotten.unwrap_err(), true, "could not tell who removed the row");
        } else {
            assert!(forgotten.unwrap());
        }
        seed_row(&store, &ann, AT, token("one")).await;
    }
}

/// A proxy that has no server closes connections at once.
#[tokio::test]
async fn closed_connection_is_named() {
    let (store, wire) = relayed("closed").await;
    wire.close_at_once();
    wire.lose_next_answer();
    let begun = Instant::now();
    let error = store.read(&[key("ann")]).await.unwrap_err();
    assert_says(&error, true, "the connection was closed");
    // A server that is about to return gets its time, and the caller an answer.
    let spent = begun.elapsed();
    assert!(spent > Duration::from_secs(4) && spent < Duration::from_secs(8), "{spent:?}");
}

// --- What an operator is told ---------------------------------------------------------------

/// A table that stays locked piles up no sessions at the server.
#[tokio::test]
async fn locked_table_is_left_by_the_server() {
    let server = Server::shared();
    let keys = [key("ann")];
    let open = async |options: &str| {
        let url = format!("{}&application_name=locked{options}", server.url());
        let store = PostgresStore::at(url).schema("locked").open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        // The statement is prepared, which needs a lock of its own.
        store.read(&keys).await.unwrap();
        store
    };
    let (usual, brief) = (open("").await, open("&options[lock_timeout]=100").await);
    let ended = open("&options[statement_timeout]=100").await;
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let mut lock = pool.begin().await.unwrap();
    let table = "LOCK TABLE locked.hurdlr_tokens IN ACCESS EXCLUSIVE MODE";
    sqlx::query(table).execute(&mut *lock).await.unwrap();
    // What the URL says holds.
    assert_says(&brief.read(&keys).await.unwrap_err(), true, "a lock was not had");
    assert_says(&ended.read(&keys).await.unwrap_err(), true, "statement_timeout");
    let begun = Instant::now();
    assert_says(&usual.read(&keys).await.unwrap_err(), true, "a lock was not had");
    assert!(begun.elapsed() > Duration::from_secs(8) && begun.elapsed() < Duration::from_secs(10));
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE application_name = 'locked' AND state = 'active'";
    let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&pool).await.unwrap();
    assert_eq!(waiting, 0);
    lock.rollback().await.unwrap();
    usual.read(&keys).await.unwrap();
}

/// A server that is there and refuses is not asked again, and the reason is told as it is.
#[tokio::test]
async fn missing_database_is_no_temporary_failure() {
    let url = Server::shared().url().replacen("/postgres?", "/nowhere?", 1);
    let error = PostgresStore::at(url).open_plaintext().await.unwrap_err();
    assert_says(&error, false, "no database of this name");
}

#[tokio::test]
async fn parameters_of_libpq_are_honoured_or_refused() {
    let server = Server::shared();
    for parameters in [
        "connect_timeout=3&target_session_attrs=read-write&channel_binding=prefer",
        "keepalives=1&keepalives_idle=30&keepalives_interval=5&keepalives_count=3",
        "tcp_user_timeout=5000&gssencmode=disable&target_session_attrs=primary",
        "connect_timeout=0&target_session_attrs=any",
    ] {
        let url = format!("{}&{parameters}", server.url());
        PostgresStore::at(url).open_plaintext().await.unwrap();
    }
    let with = |parameter: &str| format!("postgres://app@127.0.0.1:1/app?{parameter}");
    for (url, text) in [
        (with("target_session_attrs=standby"), "it takes any, primary, read-write"),
        (with("channel_binding=require"), "it takes disable, prefer"),
        (with("connect_timeout=soon"), "a number of seconds"),
        (with("service=app"), "none of connect_timeout"),
        (with("host=a,b"), "several hosts"),
        (with("sslrootcert=/nowhere/file.pem"), "names by sslrootcert cannot be read"),
        (with("ssl-root-cert=/nowhere/file.pem"), "names by ssl-root-cert cannot be read"),
        (with("ssl-ca=/nowhere/file.pem"), "names by ssl-ca cannot be read"),
        (with("sslcert=/nowhere/file.pem"), "names by sslcert cannot be read"),
        (with("ssl-cert=/nowhere/file.pem"), "names by ssl-cert cannot be read"),
        (with("sslkey=/nowhere/file.pem"), "names by sslkey cannot be read"),
        (with("ssl-key=/nowhere/file.pem"), "names by ssl-key cannot be read"),
        ("postgres://app:pass@a:5432,b:5432/app".into(), "several hosts"),
    ] {
        let error = PostgresStore::at(&url).open_plaintext().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{url}");
        assert!(!error.is_temporary());
        assert!(error.to_string().contains(text), "{url}: {error}");
    }
    let none = PostgresStore::at(server.url()).max_connections(0).open_plaintext().await;
    assert!(none.unwrap_err().to_string().contains("max_connections"));
}

#[cfg(unix)]
#[tokio::test]
async fn group_may_use_the_file_if_allowed() {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let at = || SqliteStore::at(format!("sqlite://{}", path.display()));
    at().allow_group_access().open_plaintext().await.unwrap().migrate().await.unwrap();
    let mode = |bits| set_permissions(&path, Permissions::from_mode(bits)).unwrap();
    mode(0o660);
    assert_says(&at().open_plaintext().await.unwrap_err(), false, "allow_group_access()");
    at().allow_group_access().open_plaintext().await.unwrap();
    mode(0o664);
    let open = at().allow_group_access().open_plaintext().await;
    assert_says(&open.unwrap_err(), false, "mode 664");
}

// --- Plans ----------------------------------------------------------------------------------

/// The statements that the driver logs.
#[derive(Clone, Default)]
struct Overheard(Arc<Mutex<BTreeSet<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Overheard {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            event.record(&mut self.clone());
        }
    }
}

impl Visit for Overheard {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "db.statement" {
            self.0.lock().unwrap().insert(value.trim().to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// On tables that nobody has analysed.
#[tokio::test]
async fn sqlite_walks_no_whole_table() {
    if !is_alone("faults::sqlite_walks_no_whole_table") {
        return;
    }
    let overheard = Overheard::default();
    tracing_subscriber::registry().with(overheard.clone()).init();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = SqliteStore::at(format!("sqlite://{}", path.display()));
    let store = store.table_prefix("planned_").open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    let ann = key("ann");
    seed_row(&store, &ann, AT, token("one")).await;
    store.claim(&ann, claim(AT)).await.unwrap();
    store.claim(&ann, Claim { known: None, create: Some(1), ..claim(AT) }).await.unwrap();
    store.save(&ann, Save { over: AT, version: AT.next(), token: token("two") }).await.unwrap();
    store.release(&ann, AT, 1, Release::default()).await.unwrap();
    store.due(ann.realm(), None, 1).await.unwrap();
    store.scan(ann.realm(), None, 1).await.unwrap();
    let rewrite = Rewrite { key: ann.clone(), version: AT, old: bytes("a"), new: bytes("b") };
    store.rewrite(vec![rewrite]).await.unwrap();
    store.forget(&ann, Some(AT)).await.unwrap();
    store.forget(&ann, None).await.unwrap();
    // Those whose time has passed are removed by one in sixteen.
    for state in 0..200 {
        store.redeem(&[state; 32], LEASE).await.unwrap();
    }

    let pool = SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    let statements = overheard.0.lock().unwrap().clone();
    let of_tables = |sql: &&String| {
        let is_of_rows = sql.contains("\"planned_tokens\"") || sql.contains("\"planned_logins\"");
        is_of_rows && !sql.starts_with("CREATE")
    };
    let mut planned = 0;
    for sql in statements.iter().filter(of_tables) {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let steps = sqlx::query_as::<_, (i64, i64, i64, String)>(explain);
        let steps = steps.fetch_all(&pool).await.unwrap();
        let plan = steps.into_iter().map(|step| step.3).collect::<Vec<_>>().join("; ");
        let scans = plan.replace("SCAN json_each", "");
        assert!(!scans.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
        // The conflict of an INSERT is found by the primary key, which needs no plan.
        assert!(plan.contains("INDEX") || sql.starts_with("INSERT"), "{sql}: {plan}");
        planned += 1;
    }
    assert_eq!(planned, 11, "{statements:#?}");
}
