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
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::backend::{Arg, Backend, Settings};
use super::fault::{Fault, FaultClass};
use super::statements::Statement;
use crate::error::Error;

/// A connection that was idle for longer is pinged before it is used: firewalls and load balancers
/// forget idle connections after minutes.
const PING_AFTER: Duration = Duration::from_secs(30);

const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest pause between two attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_millis(500);

pub(super) struct Pool<DB: Backend> {
    reads: Source<DB>,
    writes: Source<DB>,
    /// Taken in FIFO order by each write.
    turn: Semaphore,
}

enum Source<DB: Backend> {
    Own(deadpool::managed::Pool<Connector<DB>>),
    App(sqlx::Pool<DB>),
}

impl<DB: Backend> Pool<DB> {
    pub(super) fn connect(target: DB::Target, settings: &Settings) -> Result<Self, Error> {
        let target = Arc::new(target);
        let own = |size| {
            let pool = deadpool::managed::Pool::builder(Connector(Arc::clone(&target)));
            // The one used last, so that the others become old enough to be pinged.
            let pool = pool.max_size(size).queue_mode(deadpool::managed::QueueMode::Lifo);
            pool.build().map_err(|_| Error::config("the pool cannot be built"))
        };
        let reads = own(settings.max_connections)?;
        let writes = if DB::ONE_WRITER { own(1)? } else { reads.clone() };
        Ok(Self::new(Source::Own(reads), Source::Own(writes)))
    }

    pub(super) fn of_app(pool: sqlx::Pool<DB>) -> Self {
        Self::new(Source::App(pool.clone()), Source::App(pool))
    }

    fn new(reads: Source<DB>, writes: Source<DB>) -> Self {
        let permits = if DB::ONE_WRITER { 1 } else { Semaphore::MAX_PERMITS };
        Self { reads, writes, turn: Semaphore::new(permits) }
    }

    /// Runs a statement on a connection, a new or proven one if `fresh`.
    ///
    /// # Cancel safety
    ///
    /// The statement may have been executed. Its connection is closed.
    pub(super) async fn run(
        &self,
        statement: &Statement,
        args: &[Arg<'_>],
        fresh: bool,
    ) -> Result<Vec<DB::Row>, Fault> {
        let mut arguments = DB::Arguments::default();
        for arg in args {
            DB::bind(&mut arguments, *arg)
                .map_err(|source| Fault::of::<DB>(&sqlx::Error::Encode(source)))?;
        }
        let sql = AssertSqlSafe(Arc::clone(&statement.sql)).into_sql_str();
        let (mut connection, _turn) = self.acquire(statement.writes, fresh).await?;
        // Should this future be dropped at the `await`, the guard closes the connection.
        let answer = DB::fetch(connection.get(), sql, arguments);
        let Ok(answer) = timeout(DB::STATEMENT_TIMEOUT, answer).await else {
            return Err(Fault::known::<DB>("silent", ""));
        };
        let answer = answer.map_err(|error| Fault::of::<DB>(&error));
        if !answer.as_ref().is_err_and(Fault::is_of_connection) {
            ScopeGuard::into_inner(connection).give_back();
        }
        answer
    }

    /// Refuses a database that could not keep what this crate promises.
    pub(super) async fn check(&self, settings: &Settings) -> Result<(), Fault> {
        let (mut connection, _turn) = self.acquire(true, true).await?;
        let Ok(checked) =
            timeout(DB::STATEMENT_TIMEOUT, DB::check(connection.get(), settings)).await
        else {
            return Err(Fault::known::<DB>("silent", ""));
        };
        checked?;
        ScopeGuard::into_inner(connection).give_back();
        Ok(())
    }

    /// Waits for a connection, and tries to connect again while that may help: the server is
    /// starting, or a standby is about to take over.
    async fn acquire(
        &self,
        writes: bool,
        fresh: bool,
    ) -> Result<(Checkout<DB>, Option<SemaphorePermit<'_>>), Fault> {
        let source = if writes { &self.writes } else { &self.reads };
        if fresh {
            source.close_idle(Duration::ZERO);
        }
        let mut last = None;
        let acquiring = async {
            let closed = |_| Fault::known::<DB>("pool closed", "");
            let turn = if writes { Some(self.turn.acquire().await.map_err(closed)?) } else { None };
            let mut backoff = Duration::from_millis(10);
            loop {
                match source.acquire(fresh).await {
                    Err(fault) if fault.is_of_connection() => last = Some(fault),
                    connection => return Ok((connection?, turn)),
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
        for source in [&self.reads, &self.writes] {
            match source {
                Source::Own(pool) => {
                    for idle in pool.retain(|_, _| false).removed {
                        let _ = timeout(DB::STATEMENT_TIMEOUT, idle.connection.close()).await;
                    }
                    pool.close();
                }
                Source::App(pool) => pool.close().await,
            }
        }
    }
}

impl<DB: Backend> Source<DB> {
    async fn acquire(&self, fresh: bool) -> Result<Checkout<DB>, Fault> {
        loop {
            let (held, is_proven) = match self {
                Self::Own(pool) => {
                    let pooled = pool.get().await.map_err(|error| match error {
                        PoolError::Backend(fault) => fault,
                        _ => Fault::known::<DB>("pool closed", ""),
                    })?;
                    let is_proven = pooled.used.elapsed() <= PING_AFTER;
                    (Held::Own(pooled), is_proven)
                }
                Self::App(pool) => {
                    let acquired = pool.acquire().await;
                    (
                        Held::App(acquired.map_err(|error| Fault::of_connecting::<DB>(&error))?),
                        !fresh,
                    )
                }
            };
            let mut connection = scopeguard::guard(held, Held::close as fn(Held<DB>));
            let is_alive = is_proven
                || matches!(timeout(PING_TIMEOUT, connection.get().ping()).await, Ok(Ok(())));
            if is_alive {
                return Ok(connection);
            }
            // Those that were idle for as long have most likely met the same end.
            self.close_idle(PING_AFTER);
        }
    }

    /// Closes the own connections that have been idle for longer.
    fn close_idle(&self, longer_than: Duration) {
        if let Self::Own(pool) = self {
            pool.retain(|pooled, _| pooled.used.elapsed() <= longer_than);
        }
    }
}

/// A connection in use. Dropped, it is closed.
type Checkout<DB> = ScopeGuard<Held<DB>, fn(Held<DB>)>;

enum Held<DB: Backend> {
    Own(Object<Connector<DB>>),
    App(PoolConnection<DB>),
}

impl<DB: Backend> Held<DB> {
    fn get(&mut self) -> &mut DB::Connection {
        match self {
            Self::Own(pooled) => &mut pooled.connection,
            Self::App(connection) => connection,
        }
    }

    fn give_back(mut self) {
        if let Self::Own(pooled) = &mut self {
            pooled.used = Instant::now();
        }
    }

    fn close(self) {
        match self {
            Self::Own(pooled) => drop(Object::take(pooled)),
            Self::App(connection) => drop(connection.detach()),
        }
    }
}

struct Connector<DB: Backend>(Arc<DB::Target>);

struct Pooled<DB: Backend> {
    connection: DB::Connection,
    /// The end of its last statement.
    used: Instant,
}

impl<DB: Backend> Manager for Connector<DB> {
    type Type = Pooled<DB>;
    type Error = Fault;

    async fn create(&self) -> Result<Pooled<DB>, Fault> {
        Ok(Pooled { connection: DB::connect(&self.0).await?, used: Instant::now() })
    }

    /// Does nothing, since [`Source::acquire`] has to know how many pings fail.
    async fn recycle(&self, _: &mut Pooled<DB>, _: &Metrics) -> RecycleResult<Fault> {
        Ok(())
    }
}
