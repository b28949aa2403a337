//! Connections: a pool of the store's own, or the app's.
//!
//! sqlx's pool pings the server whenever a connection is given back, in a task that it spawns. The
//! store's own pool ([`deadpool`]) does no I/O: a connection whose statement ended is idle at once,
//! and is pinged only before a statement that finds it idle for long. With either pool, a
//! connection goes back only once the answer to its statement has arrived. One that timed out,
//! failed or was dropped half way is closed.

use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, PoolError, RecycleResult};
use scopeguard::ScopeGuard;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection, SqlSafeStr};
use tokio::time::{Instant, timeout};

use super::backend::{Arg, Backend};
use super::fault::{Fault, FaultClass};
use crate::error::Error;

/// A connection that was idle for longer is pinged before it is used: firewalls and load balancers
/// forget idle connections after minutes.
const PING_AFTER: Duration = Duration::from_secs(30);

const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest pause between two attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_millis(500);

type Connections<DB> = deadpool::managed::Pool<Connector<DB>>;

pub(super) struct Pool<DB: Backend> {
    reads: Connections<DB>,
    /// Where there is one writer, a single connection that is taken in FIFO order.
    writes: Connections<DB>,
}

impl<DB: Backend> Pool<DB> {
    /// A pool of so many connections. Those to an app's pool are given back to it at once.
    pub(super) fn new(source: Source<DB>, size: usize) -> Result<Self, Error> {
        let source = Arc::new(source);
        let connections = |size| {
            let pool = deadpool::managed::Pool::builder(Connector(Arc::clone(&source)));
            // The one used last, so that the others become old enough to be pinged.
            let pool = pool.max_size(size).queue_mode(deadpool::managed::QueueMode::Lifo);
            pool.build().map_err(|_| Error::config("the pool cannot be built"))
        };
        let reads = connections(size)?;
        let writes = if DB::ONE_WRITER { connections(1)? } else { reads.clone() };
        Ok(Self { reads, writes })
    }

    /// Runs a statement on a connection, a new or proven one if `fresh`.
    ///
    /// # Cancel safety
    ///
    /// The statement may have been executed. Its connection is closed.
    pub(super) async fn run(
        &self,
        sql: Arc<str>,
        args: &[Arg<'_>],
        fresh: bool,
    ) -> Result<Vec<DB::Row>, Fault> {
        let mut connection = self.acquire(!sql.starts_with("SELECT"), fresh).await?;
        // By its text sqlx finds the statement that it has prepared.
        let sql = AssertSqlSafe(sql).into_sql_str();
        // Should this future be dropped at the `await`, the guard closes the connection.
        let answer = DB::fetch(connection.get(), sql, args);
        let Ok(answer) = timeout(DB::STATEMENT_TIMEOUT, answer).await else {
            return Err(Fault::known::<DB>("silent", ""));
        };
        let answer = answer.map_err(|error| Fault::of::<DB>(&error));
        if !answer.as_ref().is_err_and(Fault::is_of_connection) {
            give_back(connection);
        }
        answer
    }

    /// Refuses a database that could not keep what this crate promises.
    pub(super) async fn check(&self) -> Result<(), Fault> {
        let mut connection = self.acquire(true, true).await?;
        let checking = timeout(DB::STATEMENT_TIMEOUT, DB::check(connection.get()));
        checking.await.map_err(|_| Fault::known::<DB>("silent", ""))??;
        give_back(connection);
        Ok(())
    }

    /// Waits for a connection, and tries to connect again while that may help: the server is
    /// starting, or a standby is about to take over.
    async fn acquire(&self, writes: bool, fresh: bool) -> Result<Checkout<DB>, Fault> {
        let connections = if writes { &self.writes } else { &self.reads };
        if fresh {
            connections.retain(|_, _| false);
        }
        let mut last = None;
        let acquiring = async {
            let mut backoff = Duration::from_millis(10);
            loop {
                match proven(connections, fresh).await {
                    Err(fault) if fault.is_of_connection() => last = Some(fault),
                    connection => return connection,
                }
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        };
        timeout(DB::ACQUIRE_TIMEOUT, acquiring).await.unwrap_or_else(|_| {
            let fault = last.unwrap_or_else(|| Fault::known::<DB>("no connection", ""));
            Err(Fault { class: FaultClass::Temporary, ..fault })
        })
    }

    pub(super) async fn close(&self) {
        for connections in [&self.reads, &self.writes] {
            for idle in connections.retain(|_, _| false).removed {
                if let Held::Own(connection) = idle.held {
                    let _ = timeout(DB::STATEMENT_TIMEOUT, connection.close()).await;
                }
            }
            connections.close();
            if let Source::App(pool) = &*connections.manager().0 {
                pool.close().await;
            }
        }
    }
}

/// Takes a connection, one that has answered just now if `fresh`.
async fn proven<DB: Backend>(
    connections: &Connections<DB>,
    fresh: bool,
) -> Result<Checkout<DB>, Fault> {
    loop {
        let pooled = connections.get().await.map_err(|error| match error {
            PoolError::Backend(fault) => fault,
            _ => Fault::known::<DB>("pool closed", ""),
        })?;
        // An own one is new where a proven one is wanted: the idle ones were closed.
        let is_own = matches!(pooled.held, Held::Own(_));
        let is_proven = (is_own || !fresh) && pooled.used.elapsed() <= PING_AFTER;
        let mut connection = scopeguard::guard(pooled, close as fn(_));
        let is_alive =
            is_proven || matches!(timeout(PING_TIMEOUT, connection.get().ping()).await, Ok(Ok(())));
        if is_alive {
            return Ok(connection);
        }
        // Those that were idle for as long have most likely met the same end.
        connections.retain(|pooled, _| pooled.used.elapsed() <= PING_AFTER);
    }
}

/// A connection in use. Dropped, it is closed.
type Checkout<DB> = ScopeGuard<Object<Connector<DB>>, fn(Object<Connector<DB>>)>;

fn close<DB: Backend>(pooled: Object<Connector<DB>>) {
    match Object::take(pooled).held {
        Held::Own(connection) => drop(connection),
        Held::App(connection) => drop(connection.detach()),
    }
}

fn give_back<DB: Backend>(connection: Checkout<DB>) {
    let mut pooled = ScopeGuard::into_inner(connection);
    pooled.used = Instant::now();
    if let Held::App(_) = pooled.held {
        // Idle connections of the app's are in its own pool.
        drop(Object::take(pooled));
    }
}

struct Pooled<DB: Backend> {
    held: Held<DB>,
    /// The end of its last statement.
    used: Instant,
}

enum Held<DB: Backend> {
    Own(DB::Connection),
    App(PoolConnection<DB>),
}

impl<DB: Backend> Pooled<DB> {
    fn get(&mut self) -> &mut DB::Connection {
        match &mut self.held {
            Held::Own(connection) => connection,
            Held::App(connection) => connection,
        }
    }
}

struct Connector<DB: Backend>(Arc<Source<DB>>);

pub(super) enum Source<DB: Backend> {
    Own(DB::Target),
    App(sqlx::Pool<DB>),
}

impl<DB: Backend> Manager for Connector<DB> {
    type Type = Pooled<DB>;
    type Error = Fault;

    async fn create(&self) -> Result<Pooled<DB>, Fault> {
        let held = match &*self.0 {
            Source::Own(target) => Held::Own(DB::connect(target).await?),
            Source::App(pool) => {
                let acquired = pool.acquire().await;
                Held::App(acquired.map_err(|error| Fault::of_connecting::<DB>(&error))?)
            }
        };
        Ok(Pooled { held, used: Instant::now() })
    }

    /// Does nothing, since [`proven`] has to know how many pings fail.
    async fn recycle(&self, _: &mut Pooled<DB>, _: &Metrics) -> RecycleResult<Fault> {
        Ok(())
    }
}
