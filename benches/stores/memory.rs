//! The memory that a cached user takes, with the system's allocator.

use std::fs;

use hurdlr_oauth2::store::PostgresStore;
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
use sqlx::postgres::PgPool;
use tokio::task::JoinSet;

use crate::harness::Outcome;
use crate::postgres::Server;
use crate::warm_start::{copies, log_in};
use crate::{Size, count};

/// How many callers read at once.
const AT_ONCE: usize = 64;

/// Measures the growth of this process while users are read from PostgreSQL for the first time. It
/// has to be the first measure of a process: what an earlier one freed would be used again.
pub(crate) async fn of_a_user(server: &Server, size: Size) -> Outcome {
    let hurdlr = Hurdlr::builder("client-id", "client-secret".into()).build()?;
    let store = PostgresStore::at(server.url()).schema("memory").open_plaintext().await?;
    store.migrate().await?;
    log_in(&hurdlr, store.clone(), 1).await?;
    let warm_up = size.cold_reads / 10;
    let pool = PgPool::connect(&server.url()).await?;
    let users = copies("memory.hurdlr_tokens", warm_up + size.cold_reads);
    sqlx::query(users).execute(&pool).await?;
    pool.close().await;

    let manager = TokenManager::builder(hurdlr, store).build()?;
    read(&manager, 0, warm_up).await?;
    let before = resident_bytes()?;
    read(&manager, warm_up, size.cold_reads).await?;
    let grown = resident_bytes()? - before;
    if manager.users_in_memory() != warm_up + size.cold_reads {
        return Err("not all users are in memory".into());
    }
    size.figure("stores.rss_per_user", grown / count(size.cold_reads), "bytes");
    manager.shutdown().await;
    Ok(())
}

async fn read(manager: &TokenManager, skipped: usize, users: usize) -> Outcome {
    let mut readers = JoinSet::new();
    for reader in 0..AT_ONCE {
        let manager = manager.clone();
        readers.spawn(async move {
            for n in (skipped + reader..skipped + users).step_by(AT_ONCE) {
                manager.user(&UserId::new(format!("other-{}", n + 1))?).token().await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(reader) = readers.join_next().await {
        reader??;
    }
    Ok(())
}

/// The memory that this process holds.
fn resident_bytes() -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB"));
    let kibibytes: f64 = kibibytes.ok_or("the system does not tell")?.trim().parse()?;
    Ok(kibibytes * 1024.0)
}
