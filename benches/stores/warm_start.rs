//! How soon a process that was restarted serves users again.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hurdlr_oauth2::store::{PostgresStore, SqliteStore, TokenStore};
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;
use sqlx::sqlite::SqlitePool;
use tokio::task::JoinSet;

use crate::harness::Outcome;
use crate::postgres::Server;
use crate::seal::keys;
use crate::{Size, median};

/// How many callers read at once.
const AT_ONCE: usize = 64;

/// From opening the store until its first users were served, on each database. What is read is
/// sealed; the rest of the table is copies of one row.
pub(crate) async fn time(server: &Server, size: Size) -> Outcome {
    // Nobody answers, so that a request could not go unnoticed.
    let provider = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    provider.set_nonblocking(true)?;
    let hurdlr = Hurdlr::builder("client-id", "client-secret".into())
        .environment(format!("http://{}/", provider.local_addr()?))
        .build()?;

    let open = async || {
        let store = PostgresStore::at(server.url()).schema("warm").open_sealed(keys()?).await?;
        Outcome::Ok(store)
    };
    let store = open().await?;
    store.migrate().await?;
    log_in(&hurdlr, store, size.served).await?;
    let pool = PgPool::connect(&server.url()).await?;
    sqlx::query(copies("warm.hurdlr_tokens", size.stored - size.served)).execute(&pool).await?;
    sqlx::query("ANALYZE warm.hurdlr_tokens").execute(&pool).await?;
    let mut times = Vec::new();
    for _ in 0..size.starts {
        times.push(start(&hurdlr, &open, size).await?);
    }
    size.figure("stores.warm_start_ms_per_100k", median(times), "ms");

    let folder = tempfile::tempdir()?;
    let url = url_of(&folder.path().join("tokens.db"));
    let open = async || Outcome::Ok(SqliteStore::at(&*url).open_sealed(keys()?).await?);
    let store = open().await?;
    store.migrate().await?;
    log_in(&hurdlr, store, size.served).await?;
    let pool = SqlitePool::connect(&url).await?;
    sqlx::query(copies("hurdlr_tokens", size.stored - size.served)).execute(&pool).await?;
    let mut times = Vec::new();
    for _ in 0..size.starts {
        times.push(start(&hurdlr, &open, size).await?);
    }
    size.figure("stores.warm_start_ms_per_100k_sqlite", median(times), "ms");

    match provider.accept() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        _ => Err("the provider was asked for something".into()),
    }
}

fn url_of(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

/// The users who will be served.
fn user(n: usize) -> Outcome<UserId> {
    Ok(UserId::new(format!("user-{n}"))?)
}

/// Logs in `user-0`, `user-1` and so on.
pub(crate) async fn log_in(hurdlr: &Hurdlr, store: impl TokenStore, users: usize) -> Outcome {
    let manager = TokenManager::builder(hurdlr.clone(), store).build()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for n in 0..users {
        let token = hurdlr.import(format!(
            r#"{{"access_token": "{n:064x}.{n:032x}", "refresh_token": "{n:064x}.{n:032x}",
                "expires_in": 7776000, "created_at": {now}, "scope": "token"}}"#
        ))?;
        manager.adopt(&user(n)?, token).await?;
    }
    Ok(())
}

/// Makes rows `other-1`, `other-2` and so on, each like that of `user-0`.
pub(crate) fn copies(table: &str, others: usize) -> AssertSqlSafe<String> {
    const COPIED: &str = "incarnation, revision, payload, stamped_at, obtained_at, due_at, \
                          holder, leased_until, not_before, refused, in_flight";
    AssertSqlSafe(format!(
        "WITH RECURSIVE numbers (n) AS \
         (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {others}) \
         INSERT INTO {table} (api_version, environment, client_id, kind, subject, {COPIED}) \
         SELECT api_version, environment, client_id, kind, 'other-' || n, {COPIED} \
         FROM {table}, numbers WHERE subject = 'user-0'"
    ))
}

/// Milliseconds.
async fn start<S: TokenStore>(
    hurdlr: &Hurdlr,
    open: &impl AsyncFn() -> Outcome<S>,
    size: Size,
) -> Outcome<f64> {
    let begun = Instant::now();
    let manager = TokenManager::builder(hurdlr.clone(), open().await?).build()?;
    let mut readers = JoinSet::new();
    for reader in 0..AT_ONCE {
        let manager = manager.clone();
        readers.spawn(async move {
            for n in (reader..size.served).step_by(AT_ONCE) {
                manager.user(&user(n)?).token().await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(reader) = readers.join_next().await {
        reader??;
    }
    let time: Duration = begun.elapsed();
    if manager.users_in_memory() != size.served {
        return Err("not all users were served".into());
    }
    manager.shutdown().await;
    Ok(time.as_secs_f64() * 1e3)
}
