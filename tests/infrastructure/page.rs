//! Follows `docs/databases.md`: its commands and configurations, with other addresses and folders.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::store::SqliteStore;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::balancer::Balancer;
use crate::cluster::{Cluster, free_port, until};
use crate::load::{LIFE, Load};
use crate::pooler::{Pooler, tracks_prepared_statements};
use crate::site::{Site, migrated};

const PAGE: &str = include_str!("../../docs/databases.md");

const USERS: usize = 10;

// Each block is named by something in it.
const ROLES: &str = "CREATE ROLE app ";
const SCHEMA: &str = "CREATE SCHEMA auth";
const LISTEN: &str = "listen_addresses";
const ACCESS: &str = "host  app  app";
const RIGHTS: &str = "GRANT";
const TIMEOUTS: &str = "statement_timeout";
const REPLICATOR: &str = "CREATE ROLE replicator";
const REPLICATOR_ACCESS: &str = "host  replication";
const COPY: &str = "pg_basebackup";
const SYNCHRONOUS: &str = "pg_stat_replication";
const PROMOTE: &str = "SELECT pg_promote";
const BALANCER: &str = "haproxy.cfg";
const CHECK: &str = "CREATE ROLE haproxy_check";
const CHECK_ACCESS: &str = "host  postgres  haproxy_check";
const POOLER: &str = "pgbouncer.ini";
const POOLER_USERS: &str = "; /etc/pgbouncer/userlist.txt";
const VACUUM: &str = "autovacuum_vacuum_scale_factor";
const BACKUP: &str = "VACUUM INTO";

const BLOCKS: [&str; 18] = [
    ROLES,
    SCHEMA,
    LISTEN,
    ACCESS,
    RIGHTS,
    TIMEOUTS,
    REPLICATOR,
    REPLICATOR_ACCESS,
    COPY,
    SYNCHRONOUS,
    PROMOTE,
    BALANCER,
    CHECK,
    CHECK_ACCESS,
    POOLER,
    POOLER_USERS,
    VACUUM,
    BACKUP,
];

/// The page's blocks of code, but for URLs.
fn blocks() -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(fence) = lines.find(|line| line.trim_start().starts_with("```")) {
        let indent = fence.len() - fence.trim_start().len();
        let mut block = String::new();
        for line in lines.by_ref().take_while(|line| !line.trim_start().starts_with("```")) {
            block += line.get(indent..).unwrap_or_default();
            block += "\n";
        }
        blocks.push(block);
    }
    blocks
}

/// The block that is named so, with replacements of what occurs in it.
fn block(name: &str, replacements: &[(&str, &str)]) -> String {
    let mut named: Vec<_> = blocks().into_iter().filter(|block| block.contains(name)).collect();
    assert_eq!(named.len(), 1, "blocks with {name:?}");
    replaced(&named.remove(0), replacements)
}

fn replaced(text: &str, replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (old, new)| {
        assert!(text.contains(old), "no {old:?} in {text:?}");
        text.replace(old, new)
    })
}

/// A URL of the page, with the port of a server.
fn url(text: &str, place: &str, port: u16) -> String {
    assert!(PAGE.contains(&format!("`{text}`")), "the page has no {text}");
    replaced(text, &[(place, &format!("127.0.0.1:{port}"))])
}

#[allow(clippy::unused_async, reason = "a test is asynchronous")]
pub(crate) async fn every_block_is_followed() {
    for block in blocks() {
        let names: Vec<_> = BLOCKS.into_iter().filter(|name| block.contains(name)).collect();
        assert_eq!(names.len(), 1, "{names:?} name {block}");
    }
    assert_eq!(blocks().len(), BLOCKS.len());
}

/// From an empty server to a pair behind HAProxy and PgBouncer, and through its failover.
pub(crate) async fn page_leads_through_a_failover() {
    let everywhere = [("10.0.0.0/24", "127.0.0.1/32")];
    // Debian lets the administrator in, by the socket.
    let mut primary = Cluster::start_with_access(&["password_encryption=scram-sha-256"], "");
    primary.configure("postgresql.conf", &block(LISTEN, &[]));
    // Read from above: HAProxy's line stands before others.
    primary.configure("pg_hba.conf", &block(CHECK_ACCESS, &[("10.0.0.5/32", "127.0.0.1/32")]));
    primary.configure("pg_hba.conf", &block(ACCESS, &everywhere));
    primary.configure("pg_hba.conf", &block(REPLICATOR_ACCESS, &everywhere));

    for statement in statements(ROLES) {
        primary.run(&statement);
    }
    primary.enter("app");
    primary.run(&block(SCHEMA, &[]));
    let owner = "postgres://auth_owner:owner-secret@db.example.com/app";
    migrated(&url(owner, "db.example.com", primary.port()), "auth").await.close().await;
    primary.run(&block(RIGHTS, &[]));
    primary.run(&block(TIMEOUTS, &[]));
    primary.run(&block(VACUUM, &[]));
    let app = "postgres://app:app-secret@db.example.com/app";
    let direct = url(app, "db.example.com", primary.port());
    let mut session = PgConnection::connect(&direct).await.unwrap();
    for (setting, value) in [("statement_timeout", "9500ms"), ("lock_timeout", "9s")] {
        let sql = "SELECT current_setting($1)";
        let set: String =
            sqlx::query_scalar(sql).bind(setting).fetch_one(&mut session).await.unwrap();
        assert_eq!(set, value, "{setting}");
    }

    primary.run(&block(REPLICATOR, &[]));
    let source = format!("host=127.0.0.1 port={}", primary.port());
    let standby = primary.made_by(|data| {
        let data = data.display().to_string();
        block(COPY, &[("host=db1.example.com", &source), ("/var/lib/postgresql/15/main", &data)])
    });
    let [look, wait, reload] = <[_; 3]>::try_from(statements(SYNCHRONOUS)).unwrap();
    let follows = async || (primary.run(&look) == "db2|streaming|async").then_some(());
    until("the standby", follows).await;
    primary.run(&wait);
    primary.run(&reload);
    let waits = async || (primary.run(&look) == "db2|streaming|quorum").then_some(());
    until("synchronous replication", waits).await;

    primary.run(&block(CHECK, &[]));
    let port = free_port();
    let [listen, one, two] =
        [port, primary.port(), standby.port()].map(|p| format!("127.0.0.1:{p}"));
    let config = block(
        BALANCER,
        &[
            ("127.0.0.1:5000", &listen),
            ("db1.example.com:5432", &one),
            ("db2.example.com:5432", &two),
        ],
    );
    let _balancer = Balancer::start_by(&config, port).await;
    let balanced = url("postgres://app:app-secret@127.0.0.1:5000/app", "127.0.0.1:5000", port);
    let pgbouncer = pooler(port).await;
    let pooled =
        url("postgres://app:app-secret@127.0.0.1:6432/app", "127.0.0.1:6432", pgbouncer.port());

    let mut managers = Vec::new();
    let site = Arc::new(Site::with_token_life(LIFE));
    for url in [balanced, pooled] {
        managers.push(site.manager(migrated(&url, "auth").await));
    }
    let load = Load::start(site, managers, USERS).await;
    load.refreshed(&primary, "auth", 1).await;
    primary.kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    standby.run(&block(PROMOTE, &[]));
    load.refreshed(&standby, "auth", 1).await;
    let store = migrated(&direct.replace(&one, &two), "auth").await;
    load.lost_nobody(&store).await;
}

/// The statements of a block of SQL, which cannot be run in one transaction.
fn statements(name: &str) -> Vec<String> {
    block(name, &[]).split_inclusive(";\n").map(ToOwned::to_owned).collect()
}

/// The page's PgBouncer, before HAProxy.
async fn pooler(balancer: u16) -> Pooler {
    let port = free_port();
    let (server, listen) =
        (format!("host=127.0.0.1 port={balancer}"), format!("listen_port = {port}"));
    let mut config = block(
        POOLER,
        &[
            ("host=db.example.com port=5432", &server),
            ("listen_port = 6432", &listen),
            ("/etc/pgbouncer/userlist.txt", "users"),
        ],
    );
    if !tracks_prepared_statements() {
        println!(
            "LEFT OUT: PgBouncer before 1.21 has no max_prepared_statements, so the page's \
             configuration was used in session mode and not in transaction mode"
        );
        config = replaced(
            &config,
            &[("max_prepared_statements = 100\n", ""), ("= transaction", "= session")],
        );
    }
    // Debian's package names a folder that is not there without it.
    config.push_str("unix_socket_dir =\n");
    Pooler::start_by(&config, &block(POOLER_USERS, &[]), port).await
}

/// A backup of a file in use holds what was saved last, and is one that the store opens.
pub(crate) async fn page_backs_a_file_up() {
    let folder = tempfile::tempdir().unwrap();
    let [file, copy] = ["tokens.db", "copy.db"].map(|name| folder.path().join(name));
    let open = async |path: &std::path::Path| {
        let store = SqliteStore::at(format!("sqlite://{}", path.display()));
        store.open_plaintext().await.unwrap()
    };
    let store = open(&file).await;
    store.migrate().await.unwrap();
    let site = Site::new();
    let manager = site.manager(store.clone());
    let ann = crate::site::user("ann");
    site.log_in(&manager, &ann).await.unwrap();
    let paths = [file.display().to_string(), copy.display().to_string()];
    let command = block(
        BACKUP,
        &[("/var/lib/app/tokens.db", &paths[0]), ("/var/backups/tokens.db", &paths[1])],
    );
    let backed_up = Command::new("sh").args(["-c", &command]).output();
    let backed_up = backed_up.expect("sqlite3: install it by tests/install");
    assert!(backed_up.status.success(), "{}", String::from_utf8_lossy(&backed_up.stderr));
    assert!(site.login_lives(&open(&copy).await, &ann).await);
    manager.shutdown().await;
}
