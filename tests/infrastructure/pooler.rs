//! PgBouncer between a store and its server, in its three modes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hurdlr_oauth2::Error;
use hurdlr_oauth2::store::{PostgresStore, TokenStore};
use sqlx::postgres::PgPool;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, free_port, until, write_private};
use crate::postgres::{Daemon, folder};
use crate::site::{Site, assert_final, first_failure, migrated, user};

const INSTALL: &str = "PgBouncer is missing, so this test cannot run. Install it by \
                       `tests/install`, or: apt-get install --yes pgbouncer";

/// What a store needs PgBouncer to ignore.
pub(crate) const IGNORED: &str = "ignore_startup_parameters = extra_float_digits";

pub(crate) struct Pooler {
    _daemon: Daemon,
    _folder: TempDir,
    port: u16,
}

impl Pooler {
    /// In front of a server, with more settings.
    pub(crate) async fn start(server: &Cluster, mode: &str, settings: &str) -> Self {
        let port = free_port();
        let config = format!(
            "[databases]\n\
             postgres = host=127.0.0.1 port={} dbname=postgres\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = trust\n\
             auth_file = users\n\
             pool_mode = {mode}\n\
             {settings}\n",
            server.port()
        );
        Self::start_by(&config, "\"test\" \"\"\n", port).await
    }

    /// By a configuration that listens on a port, and has its users in the file `users`.
    pub(crate) async fn start_by(config: &str, users: &str, port: u16) -> Self {
        let folder = folder();
        write_private(folder.path(), "users", users);
        let config = write_private(folder.path(), "pgbouncer.ini", config);
        let daemon = Daemon::start(folder.path(), ["TERM", ":"], &program(), [config]);
        until("PgBouncer", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        Self { _daemon: daemon, _folder: folder, port }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://test@127.0.0.1:{}/postgres", self.port)
    }
}

/// PgBouncer of the system, or another version's that the variable `PGBOUNCER` names.
fn program() -> PathBuf {
    let program = std::env::var_os("PGBOUNCER").unwrap_or("/usr/sbin/pgbouncer".into());
    let program = PathBuf::from(program);
    assert!(program.exists(), "{INSTALL}");
    program
}

/// Its version, such as 1.18.0.
fn version() -> String {
    let output = Command::new(program()).arg("--version").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.split_whitespace().nth(1).unwrap().to_owned()
}

/// From 1.21 on, PgBouncer prepares a statement wherever it is executed.
pub(crate) fn tracks_prepared_statements() -> bool {
    let version = version();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap());
    (numbers.next(), numbers.next()) >= (Some(1), Some(21))
}

/// Has several callers use a store until one of them fails, so that their statements meet on the
/// server's connections.
async fn crowd(store: &PostgresStore) -> Option<Error> {
    let site = Site::new();
    let mut tasks = JoinSet::new();
    for n in 0..8 {
        let (store, keys) = (store.clone(), [site.key(&user(&format!("user {n}")))]);
        let state = [n; 32];
        tasks.spawn(async move {
            for _ in 0..20 {
                store.read(&keys).await?;
                store.forget(&keys[0], None).await?;
                store.due(keys[0].realm(), None, 3).await?;
            }
            store.redeem(&state, Duration::ZERO).await
        });
    }
    tasks.join_all().await.into_iter().find_map(Result::err)
}

/// A connection of a client is one of the server for as long as it lasts, so the pooler has to have
/// as many as all its clients together.
pub(crate) async fn session_mode_serves_a_managed_refresh() {
    let settings = format!("{IGNORED}\ndefault_pool_size = 30");
    let pooler = Pooler::start(&Cluster::shared(), "session", &settings).await;
    let store = migrated(&pooler.url(), "pooled_by_session").await;
    Site::new().exercise(&store).await;
    let failure = crowd(&store).await;
    assert!(failure.is_none(), "{failure:?}");
    store.close().await;
    println!("PgBouncer {}, mode session: works", version());
}

async fn works_or_is_refused(mode: &str, schema: &str) {
    // The tables are there, so that only the pooler can be in the way.
    let server = Cluster::shared();
    let direct = migrated(&server.url(), schema).await;
    if tracks_prepared_statements() {
        let settings = format!("{IGNORED}\nmax_prepared_statements = 100");
        let pooler = Pooler::start(&server, mode, &settings).await;
        let store = migrated(&pooler.url(), schema).await;
        Site::new().exercise(&store).await;
        let failure = crowd(&store).await;
        assert!(failure.is_none(), "{failure:?}");
        store.close().await;
        println!("PgBouncer {}, mode {mode}: works", version());
    } else {
        println!(
            "LEFT OUT: mode {mode} working, for PgBouncer {} is older than 1.21. The variable \
             PGBOUNCER can name another",
            version()
        );
    }
    // Without that, which older ones cannot help, the error says what is missing.
    let setting = if tracks_prepared_statements() { "max_prepared_statements = 0" } else { "" };
    let pooler = Pooler::start(&server, mode, &format!("{IGNORED}\n{setting}")).await;
    let store = PostgresStore::at(pooler.url()).schema(schema).open_plaintext().await;
    let failure = match store {
        Ok(store) => crowd(&store).await.expect("statements of others are in the way"),
        Err(error) => error,
    };
    assert_final(&failure, &[&["prepared"], &["pooler", "PgBouncer"]]);
    direct.close().await;
}

pub(crate) async fn transaction_mode_works_or_is_refused() {
    works_or_is_refused("transaction", "pooled_by_transaction").await;
}

pub(crate) async fn statement_mode_works_or_is_refused() {
    works_or_is_refused("statement", "pooled_by_statement").await;
}

/// The driver's own setting is named where the pooler refuses it: for a pool of the app's, and for
/// a store of its own unless that does without the setting.
pub(crate) async fn missing_startup_setting_is_named() {
    let pooler = Pooler::start(&Cluster::shared(), "session", "default_pool_size = 30").await;
    let schema = "pooled_without_setting";
    let pool = PgPool::connect_lazy(&pooler.url()).unwrap();
    let opened = PostgresStore::on(pool).schema(schema).open_plaintext().await;
    assert_final(&opened.unwrap_err(), &[&["extra_float_digits"]]);
    if let Some(error) = first_failure(&pooler.url(), schema).await {
        assert_final(&error, &[&["extra_float_digits"]]);
    } else {
        let store = migrated(&pooler.url(), schema).await;
        Site::new().exercise(&store).await;
        store.close().await;
    }
}

/// The pooler answers for a server that ended its connections, in words of its own.
pub(crate) async fn restarted_server_behind_pooler_costs_nothing() {
    const CALLS: u8 = 10;
    let mut server = Cluster::start(&[]);
    let settings = format!("{IGNORED}\ndefault_pool_size = 30\nserver_login_retry = 1");
    let pooler = Pooler::start(&server, "session", &settings).await;
    let store = migrated(&pooler.url(), "restarted").await;
    let fill = async || {
        let mut tasks = JoinSet::new();
        for n in 0..2 * CALLS {
            let store = store.clone();
            let keys = [Site::new().key(&user(&format!("user {n}")))];
            tasks.spawn(async move { store.read(&keys).await.map(drop) });
        }
        tasks.join_all().await.into_iter().find_map(Result::err)
    };
    assert!(fill().await.is_none());
    server.stop();
    server.start_again();
    for n in 0..CALLS {
        store.redeem(&[n; 32], Duration::from_secs(60)).await.unwrap();
    }
    assert!(fill().await.is_none());

    // Calls that come while the server is away wait for it.
    server.stop();
    let away = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        tokio::task::block_in_place(|| server.start_again());
    };
    let (failure, ()) = tokio::join!(fill(), away);
    assert!(failure.is_none(), "{failure:?}");
    store.close().await;
}
