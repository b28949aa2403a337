//! Failures of PostgreSQL, and of what stands between it and the store.

use std::mem::swap;
use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::Error;
use hurdlr_oauth2::secrecy::SecretBox;
use hurdlr_oauth2::store::{PostgresStore, Release, Row, StoredToken, TokenStore, Version};
use hurdlr_oauth2::testing::seed_row;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection};

use super::key;
use crate::balancer::Balancer;
use crate::cluster::{Cluster, free_port, until};
use crate::connections::{Secured, url_with_password, with_password};
use crate::limits::{put, token};
use crate::network::Lock;
use crate::pooler::{IGNORED, Pooler, tracks_prepared_statements};
use crate::postgres::Server;
use crate::proxy::{Proxy, Weather};
use crate::site::{first_failure, migrated};
use crate::wire::Wire;

const AT: Version = Version { incarnation: 7, revision: 1 };

const KEEP: Duration = Duration::from_secs(60);

/// A store on the shared server, with tables in a schema of its own.
async fn tables(schema: &str) -> (Arc<Cluster>, PostgresStore) {
    tables_by(schema, "").await
}

/// With parameters in its URL.
async fn tables_by(schema: &str, parameters: &str) -> (Arc<Cluster>, PostgresStore) {
    let server = Cluster::shared();
    let store = migrated(&format!("{}?{parameters}", server.url()), schema).await;
    (server, store)
}

async fn open(url: &str) -> Result<PostgresStore, Error> {
    PostgresStore::at(url).open_plaintext().await
}

async fn read(store: &PostgresStore) -> Result<Option<Row>, Error> {
    store.read(&[key("ann")]).await?.remove(0)
}

async fn redeem(store: &PostgresStore) -> Result<bool, Error> {
    store.redeem(&[7; 32], KEEP).await
}

async fn release(store: &PostgresStore) -> Result<(), Error> {
    store.release(&key("ann"), AT, 1, Release::default()).await
}

async fn seed(store: &PostgresStore) {
    let payload = SecretBox::new(Box::new(b"one".to_vec()));
    let (age, due_in) = (Duration::ZERO, Duration::ZERO);
    seed_row(store, &key("ann"), AT, StoredToken { payload, age, due_in }).await;
}

async fn connect(server: &Cluster) -> PgConnection {
    PgConnection::connect(&server.url()).await.unwrap()
}

async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(connection).await.unwrap();
}

// --- Statements that the server refuses -----------------------------------------------------

pub(super) async fn table_with_a_rule() -> Error {
    let (server, store) = tables("with_rule").await;
    server.run("CREATE RULE told AS ON INSERT TO with_rule.hurdlr_logins DO ALSO NOTIFY redeemed");
    redeem(&store).await.unwrap_err()
}

pub(super) async fn administrators_unique_index() -> Error {
    let (server, store) = tables("unique_index").await;
    server.run("CREATE UNIQUE INDEX ON unique_index.hurdlr_logins ((true))");
    assert!(redeem(&store).await.unwrap());
    store.redeem(&[8; 32], KEEP).await.unwrap_err()
}

pub(super) async fn type_of_the_same_name() -> Error {
    let server = Cluster::shared();
    server.run("CREATE SCHEMA same_name; CREATE TYPE same_name.hurdlr_tokens AS ENUM ()");
    first_failure(&server.url(), "same_name").await.unwrap()
}

/// The moment in which others can come between two looks of the server is too short to be met, so
/// that a trigger says the code.
async fn raised_by_command(code: &str, command: &str) -> Error {
    let server = Cluster::shared();
    let database = format!("raises_{}", code.to_lowercase());
    server.run(&format!("CREATE DATABASE {database}"));
    let url = server.url().replace("/postgres", &format!("/{database}"));
    let mut administrator = PgConnection::connect(&url).await.unwrap();
    let trigger = format!(
        "CREATE FUNCTION fail() RETURNS event_trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE 'it exists' USING ERRCODE = '{code}'; END $$; \
         CREATE EVENT TRIGGER fail ON ddl_command_start WHEN TAG IN ('{command}') \
         EXECUTE FUNCTION fail()"
    );
    run(&mut administrator, trigger).await;
    first_failure(&url, "raced").await.unwrap()
}

pub(super) async fn schema_made_by_others() -> Error {
    raised_by_command("42P06", "CREATE SCHEMA").await
}

pub(super) async fn table_made_by_others() -> Error {
    raised_by_command("42P07", "CREATE TABLE").await
}

/// PostgreSQL does not fail so, or not in an error, so that a trigger says the code.
async fn raised_by_redeem(code: &str) -> Error {
    let schema = format!("raises_{}", code.to_lowercase());
    let (server, store) = tables(&schema).await;
    server.run(&format!(
        "CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE 'it failed' USING ERRCODE = '{code}'; END $$; \
         CREATE TRIGGER fail BEFORE INSERT ON {schema}.hurdlr_logins \
         EXECUTE FUNCTION {schema}.fail()"
    ));
    redeem(&store).await.unwrap_err()
}

/// Distributed engines do not know the outcome of a statement whose node was lost.
pub(super) async fn unknown_outcome() -> Error {
    raised_by_redeem("40003").await
}

/// PostgreSQL says it in a warning before it closes the connection, which poolers may not pass on.
pub(super) async fn crashed_server() -> Error {
    raised_by_redeem("57P02").await
}

pub(super) async fn search_path_without_schema() -> Error {
    let url = format!("{}?options[search_path]=nowhere", Cluster::shared().url());
    open(&url).await.unwrap().migrate().await.unwrap_err()
}

pub(super) async fn missing_right() -> Error {
    let (server, _) = tables("rights").await;
    server.run("CREATE ROLE rightless LOGIN; GRANT USAGE ON SCHEMA rights TO rightless");
    first_failure(&server.url().replace("test@", "rightless@"), "rights").await.unwrap()
}

pub(super) async fn renamed_column() -> Error {
    let (server, store) = tables("renamed").await;
    server.run("ALTER TABLE renamed.hurdlr_tokens RENAME payload TO token");
    read(&store).await.unwrap_err()
}

pub(super) async fn column_of_another_type() -> Error {
    let (server, store) = tables("other_type").await;
    server.run("DROP INDEX other_type.hurdlr_tokens_due");
    server.run("ALTER TABLE other_type.hurdlr_tokens ALTER refused TYPE TEXT");
    store.due(key("ann").realm(), None, 1).await.unwrap_err()
}

pub(super) async fn column_without_the_operator() -> Error {
    let (server, store) = tables("other_operator").await;
    server.run("ALTER TABLE other_operator.hurdlr_tokens ALTER incarnation TYPE TEXT");
    release(&store).await.unwrap_err()
}

pub(super) async fn missing_tables() -> Error {
    let store = PostgresStore::at(Cluster::shared().url()).schema("nothing");
    read(&store.open_plaintext().await.unwrap()).await.unwrap_err()
}

pub(super) async fn administrators_constraint() -> Error {
    let (server, store) = tables("constrained").await;
    server.run("ALTER TABLE constrained.hurdlr_logins ADD CHECK (keep_until < 0)");
    redeem(&store).await.unwrap_err()
}

pub(super) async fn later_release() -> Error {
    let (server, _) = tables("later").await;
    server.run("INSERT INTO later.hurdlr_schema VALUES (99)");
    let store = PostgresStore::at(server.url()).schema("later");
    store.open_plaintext().await.unwrap_err()
}

pub(super) async fn negative_revision() -> Error {
    let (server, store) = tables("negative").await;
    seed(&store).await;
    server.run("UPDATE negative.hurdlr_tokens SET revision = -1");
    read(&store).await.unwrap_err()
}

pub(super) async fn empty_user_id() -> Error {
    let (server, store) = tables("nobody").await;
    seed(&store).await;
    server.run("UPDATE nobody.hurdlr_tokens SET subject = ''");
    let mut due = store.due(key("ann").realm(), None, 1).await.unwrap();
    due.remove(0).key.unwrap_err()
}

pub(super) async fn closed_store() -> Error {
    let (_server, store) = tables("closed").await;
    store.close().await;
    read(&store).await.unwrap_err()
}

// --- Locks and conflicts --------------------------------------------------------------------

pub(super) async fn locked_table() -> Error {
    let (server, store) = tables_by("brief_lock", "options[lock_timeout]=100").await;
    let lock = Lock::take(&server, "brief_lock.hurdlr_tokens").await;
    let error = read(&store).await.unwrap_err();
    lock.release().await;
    error
}

pub(super) async fn statement_timeout() -> Error {
    let (server, store) = tables_by("brief_statement", "options[statement_timeout]=100").await;
    let lock = Lock::take(&server, "brief_statement.hurdlr_tokens").await;
    let error = read(&store).await.unwrap_err();
    lock.release().await;
    error
}

/// Two sessions take turns to lock the table and to change the row, and each comes to its turn
/// while the store waits for the other.
pub(super) async fn concurrent_updates() -> Error {
    let isolation = "options[default_transaction_isolation]=serializable";
    let (server, store) = tables_by("updated", isolation).await;
    seed(&store).await;
    // The statement is prepared, and each later try one transaction.
    release(&store).await.unwrap();
    let lock = "BEGIN; LOCK TABLE updated.hurdlr_tokens";
    let change = "UPDATE updated.hurdlr_tokens SET stamped_at = stamped_at; COMMIT";
    let waiting = "SELECT count(*) FROM pg_locks \
                   WHERE relation = 'updated.hurdlr_tokens'::regclass AND NOT granted";
    let (mut holder, mut next) = (connect(&server).await, connect(&server).await);
    let mut observer = connect(&server).await;
    run(&mut holder, lock).await;
    let call = tokio::spawn(async move { release(&store).await });
    let mut wait_for = async |sessions: i64| {
        while !call.is_finished() {
            let count = sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut observer).await;
            if count.unwrap() == sessions {
                return true;
            }
        }
        false
    };
    while wait_for(1).await {
        let behind = async {
            wait_for(2).await;
            run(&mut holder, change).await;
        };
        tokio::join!(run(&mut next, lock), behind);
        swap(&mut holder, &mut next);
    }
    call.await.unwrap().unwrap_err()
}

/// A session has the row, for which the store waits, and wants the table, which the store has.
pub(super) async fn deadlocks() -> Error {
    // The store's session is the one to look for deadlocks.
    let parameters = "application_name=deadlocked&options[deadlock_timeout]=500";
    let (server, store) = tables_by("deadlocked", parameters).await;
    seed(&store).await;
    let (mut other, mut observer) = (connect(&server).await, connect(&server).await);
    let row = "SET deadlock_timeout = '1h'; BEGIN; \
               UPDATE deadlocked.hurdlr_tokens SET stamped_at = stamped_at; SAVEPOINT row";
    run(&mut other, row).await;
    let call = tokio::spawn(async move { release(&store).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE application_name = 'deadlocked' AND wait_event = 'transactionid'";
    while !call.is_finished() {
        let count = sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut observer).await.unwrap();
        if count > 0 {
            let table = "LOCK TABLE deadlocked.hurdlr_tokens IN SHARE MODE; ROLLBACK TO row";
            run(&mut other, table).await;
        }
    }
    call.await.unwrap().unwrap_err()
}

// --- Sessions that the server ends or refuses -----------------------------------------------

pub(super) async fn unknown_user() -> Error {
    open(&Cluster::shared().url().replace("test@", "nobody@")).await.unwrap_err()
}

pub(super) async fn wrong_password() -> Error {
    open(&url_with_password(&with_password(), "wrong")).await.unwrap_err()
}

pub(super) async fn unknown_database() -> Error {
    open(&format!("{}?dbname=none", Cluster::shared().url())).await.unwrap_err()
}

pub(super) async fn role_with_one_connection() -> Error {
    let server = Cluster::shared();
    server.run("CREATE ROLE few LOGIN CONNECTION LIMIT 1");
    let url = server.url().replace("test@", "few@");
    let _held = PgConnection::connect(&url).await.unwrap();
    open(&url).await.unwrap_err()
}

pub(super) async fn standby() -> Error {
    let primary = Cluster::start(&[]);
    let standby = primary.standby();
    open(&standby.url()).await.unwrap_err()
}

/// Somebody ends each session of the store as soon as it waits for a lock.
pub(super) async fn terminated_sessions() -> Error {
    let (server, store) = tables_by("terminated", "application_name=terminated").await;
    let lock = Lock::take(&server, "terminated.hurdlr_tokens").await;
    let call = tokio::spawn(async move { read(&store).await });
    let mut administrator = connect(&server).await;
    while !call.is_finished() {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE application_name = 'terminated' AND wait_event_type = 'Lock'";
        run(&mut administrator, end).await;
    }
    lock.release().await;
    call.await.unwrap().unwrap_err()
}

/// The server ends each session while its first statement is on its way.
pub(super) async fn idle_session_timeout() -> Error {
    let proxy = Proxy::to(Cluster::shared().address()).await;
    proxy.set(Weather::Delay(Duration::from_millis(50)));
    open(&format!("{}?options[idle_session_timeout]=20", proxy.url())).await.unwrap_err()
}

pub(super) async fn stopping_server() -> Error {
    let server = Cluster::start(&[]);
    let _open = connect(&server).await;
    server.begin_to_stop();
    open(&server.url()).await.unwrap_err()
}

pub(super) async fn connection_in_use() -> Error {
    let (server, _) = tables("in_use").await;
    let store = PostgresStore::at(server.url()).schema("in_use").max_connections(1);
    let store = store.open_plaintext().await.unwrap();
    let lock = Lock::take(&server, "in_use.hurdlr_tokens").await;
    let other = tokio::spawn({
        let store = store.clone();
        async move { read(&store).await }
    });
    let waiting = "SELECT count(*) FROM pg_locks \
                   WHERE relation = 'in_use.hurdlr_tokens'::regclass AND NOT granted";
    until("the other call", async || (server.number(waiting) == 1).then_some(())).await;
    let error = read(&store).await.unwrap_err();
    lock.release().await;
    other.await.unwrap().unwrap();
    error
}

// --- The server's files ---------------------------------------------------------------------

pub(super) async fn full_disk() -> Error {
    // No multiple of a page: at the end a page is written in part, as on a disk that is full.
    let server = Cluster::start_with_file_limit(8_000_000);
    let store = migrated(&server.url(), "crowded").await;
    loop {
        if let Err(error) = put(&store, &key("ann"), token(500_000)).await {
            return error;
        }
    }
}

async fn damaged(relation: &str, damage: impl FnOnce(&mut Vec<u8>)) -> Error {
    let mut server = Cluster::start(&[]);
    seed(&migrated(&server.url(), "damaged").await).await;
    server.damage(relation, damage);
    // A table of one row is read without its index otherwise.
    let plan = "options[enable_seqscan]=off&options[enable_bitmapscan]=off";
    let store = migrated(&format!("{}?{plan}", server.url()), "damaged").await;
    read(&store).await.unwrap_err()
}

pub(super) async fn overwritten_table() -> Error {
    damaged("damaged.hurdlr_tokens", |bytes| bytes.fill(0xa5)).await
}

/// All but the index's first page, which says what it is.
pub(super) async fn overwritten_index() -> Error {
    damaged("damaged.hurdlr_tokens_pkey", |bytes| bytes[8_192..].fill(0)).await
}

pub(super) async fn damaged_catalog() -> Error {
    let (server, store) = tables("damaged_catalog").await;
    let columns = |change: &str| {
        let table = "'damaged_catalog.hurdlr_tokens'::regclass";
        server.run(&format!("UPDATE pg_class SET relnatts = relnatts {change} WHERE oid = {table}"))
    };
    columns("+ 1");
    let error = read(&store).await.unwrap_err();
    columns("- 1");
    error
}

// --- The network ----------------------------------------------------------------------------

/// One that does not answer a statement.
pub(super) async fn frozen_server() -> Error {
    let server = Cluster::start(&[]);
    let store = migrated(&server.url(), "frozen").await;
    let _frozen = server.freeze();
    read(&store).await.unwrap_err()
}

pub(super) async fn frozen_server_and_connect_timeout() -> Error {
    let server = Cluster::start(&[]);
    let _frozen = server.freeze();
    open(&format!("{}?connect_timeout=1", server.url())).await.unwrap_err()
}

pub(super) async fn balancer_without_server() -> Error {
    let server = Cluster::shared();
    let balancer = Balancer::start(server.address(), server.address()).await;
    balancer.leave_first().await;
    open(&balancer.url()).await.unwrap_err()
}

pub(super) async fn port_without_listener() -> Error {
    open(&format!("postgres://test@127.0.0.1:{}/postgres", free_port())).await.unwrap_err()
}

/// A store that reaches its server through a relay, on one connection.
async fn relayed() -> (Server, Wire, PostgresStore) {
    let server = Server::start();
    let wire = Wire::before(server.url().split_once("host=").unwrap().1);
    let store = PostgresStore::at(wire.url()).max_connections(1).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    (server, wire, store)
}

/// Each connection can be opened and proven, and then takes no statement.
pub(super) async fn proxy_that_closes_early() -> Error {
    let (_server, wire, store) = relayed().await;
    wire.close_after(2);
    wire.lose_next_answer();
    read(&store).await.unwrap_err()
}

pub(super) async fn lost_answer_to_a_removal() -> Error {
    let (_server, wire, store) = relayed().await;
    seed(&store).await;
    // The statement is prepared.
    assert!(!store.forget(&key("ann"), Some(AT.next())).await.unwrap());
    wire.lose_next_answer();
    store.forget(&key("ann"), Some(AT)).await.unwrap_err()
}

// --- TLS ------------------------------------------------------------------------------------

pub(super) async fn certificate_of_another_ca() -> Error {
    let server = Secured::start("localhost");
    let root = server.other_root.display();
    open(&server.url(&format!("sslmode=verify-full&sslrootcert={root}"))).await.unwrap_err()
}

pub(super) async fn certificate_of_another_name() -> Error {
    let server = Secured::start("db.example.com");
    let root = server.root.display();
    open(&server.url(&format!("sslmode=verify-full&sslrootcert={root}"))).await.unwrap_err()
}

pub(super) async fn server_without_tls() -> Error {
    open(&format!("{}?sslmode=require", Cluster::shared().url())).await.unwrap_err()
}

pub(super) async fn missing_root_file() -> Error {
    open(&format!("{}?sslrootcert=/nowhere/ca.pem", Cluster::shared().url())).await.unwrap_err()
}

pub(super) async fn certificate_without_key() -> Error {
    let server = Secured::start("localhost");
    let certificate = server.root.display();
    open(&server.url(&format!("sslmode=require&sslcert={certificate}"))).await.unwrap_err()
}

// --- PgBouncer ------------------------------------------------------------------------------

pub(super) async fn pooler_that_refuses_a_setting() -> Error {
    let pooler = Pooler::start(&Cluster::shared(), "session", "").await;
    let pool = PgPool::connect_lazy(&pooler.url()).unwrap();
    PostgresStore::on(pool).open_plaintext().await.unwrap_err()
}

pub(super) async fn pooler_without_server() -> Error {
    let mut server = Cluster::start(&[]);
    let pooler = Pooler::start(&server, "session", IGNORED).await;
    let store = migrated(&pooler.url(), "public").await;
    server.stop();
    // The pooler learns from the first that its server is gone.
    read(&store).await.unwrap_err();
    let error = read(&store).await.unwrap_err();
    let new = PostgresStore::at(pooler.url()).open_plaintext().await.unwrap_err();
    assert!(new.is_temporary(), "{new:?}");
    error
}

/// A pooler that mixes up prepared statements, with one connection to its server.
async fn mixing_pooler() -> Pooler {
    let setting = if tracks_prepared_statements() { "max_prepared_statements = 0" } else { "" };
    let settings = format!("{IGNORED}\ndefault_pool_size = 1\n{setting}");
    Pooler::start(&Cluster::shared(), "transaction", &settings).await
}

pub(super) async fn pooler_with_two_clients() -> Error {
    let (_server, _) = tables("two_clients").await;
    let pooler = mixing_pooler().await;
    let open = || PostgresStore::at(pooler.url()).schema("two_clients").open_plaintext();
    let _first = open().await.unwrap();
    open().await.unwrap_err()
}

pub(super) async fn pooler_with_a_new_connection() -> Error {
    let (server, _) = tables("new_connection").await;
    let pooler = mixing_pooler().await;
    let url = format!("{}?application_name=new_connection", pooler.url());
    let store = PostgresStore::at(url).schema("new_connection").open_plaintext().await.unwrap();
    read(&store).await.unwrap();
    let sessions = "FROM pg_stat_activity WHERE application_name = 'new_connection'";
    server.run(&format!("SELECT pg_terminate_backend(pid) {sessions}"));
    let left = format!("SELECT count(*) {sessions}");
    until("the session's end", async || (server.number(&left) == 0).then_some(())).await;
    read(&store).await.unwrap_err()
}
