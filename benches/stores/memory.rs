//! The memory that a cached user takes, with the system's allocator.

use std::process::{Command, Stdio};
use std::{env, fs};

use hurdlr_oauth2::store::PostgresStore;
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
use sqlx::postgres::PgPool;
use tokio::task::JoinSet;

use crate::harness::Outcome;
use crate::postgres::Server;
use crate::warm_start::{copies, log_in};
use crate::{Size, count};

/// The argument by which the bench, started again, becomes a process whose memory is measured.
const ARGUMENT: &str = "memory-of-users";

const SCHEMA: &str = "memory";

/// How many callers read at once.
const AT_ONCE: usize = 64;

/// Measures the memory of users who are read from PostgreSQL for the first time, for connections of
/// the store's own and for a pool of the app's.
pub(crate) async fn of_a_user(server: &Server, size: Size) -> Outcome {
    let hurdlr = Hurdlr::builder("client-id", "client-secret".into()).build()?;
    let store = PostgresStore::at(server.url()).schema(SCHEMA).open_plaintext().await?;
    store.migrate().await?;
    log_in(&hurdlr, store, 1).await?;
    let pool = PgPool::connect(&server.url()).await?;
    let users = copies("memory.hurdlr_tokens", size.cold_reads / 10 + size.cold_reads);
    sqlx::query(users).execute(&pool).await?;
    pool.close().await;
    for (figure, way) in [("stores.rss_per_user", "at"), ("stores.rss_per_user_on_pool", "on")] {
        // A process of its own each, since one would use what the other has freed.
        let cold_reads = size.cold_reads.to_string();
        let process = Command::new(env::current_exe()?)
            .args([ARGUMENT, way, &server.url(), &cold_reads])
            .stderr(Stdio::inherit())
            .output()?;
        let grown: f64 = String::from_utf8(process.stdout)?.trim().parse()?;
        size.figure(figure, grown / count(size.cold_reads), "bytes");
    }
    Ok(())
}

/// Does what [`of_a_user`] started this process for, if it did.
pub(crate) async fn if_asked_for() -> Outcome<bool> {
    let mut arguments = env::args().skip_while(|argument| argument != ARGUMENT);
    let (Some(_), Some(way), Some(url), Some(cold_reads)) =
        (arguments.next(), arguments.next(), arguments.next(), arguments.next())
    else {
        return Ok(false);
    };
    let store = match &*way {
        "on" => PostgresStore::on(PgPool::connect(&url).await?),
        _ => PostgresStore::at(url),
    };
    println!("{}", grown(store.schema(SCHEMA).open_plaintext().await?, cold_reads.parse()?).await?);
    Ok(true)
}

/// The growth of this process while so many users are read.
async fn grown(store: PostgresStore, cold_reads: usize) -> Outcome<f64> {
    let hurdlr = Hurdlr::builder("client-id", "client-secret".into()).build()?;
    let manager = TokenManager::builder(hurdlr, store).build()?;
    let warm_up = cold_reads / 10;
    read(&manager, 0, warm_up).await?;
    let before = resident_bytes()?;
    read(&manager, warm_up, cold_reads).await?;
    let grown = resident_bytes()? - before;
    if manager.users_in_memory() != warm_up + cold_reads {
        return Err("not all users are in memory".into());
    }
    manager.shutdown().await;
    Ok(grown)
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
