//! One server, many users and a few processes: in the long run, and with all users due at once.

use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use hurdlr_oauth2::store::PostgresStore;

use crate::harness::Outcome;
use crate::provider::Provider;
use crate::rows::{self, keys};
use crate::server::{KINDS, Server, Sizes};
use crate::usage::{CpuTime, resident_bytes};
use crate::worker::{Reads, Worker};
use crate::{Options, count, figure};

const USERS: usize = 1_000_000;

/// How often it is looked whether a phase is over.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) fn measure(options: &Options) -> Outcome {
    let users = options.users.unwrap_or(USERS);
    let provider = Provider::start(options, options.delay)?;
    let runtime = crate::runtime()?;
    let server = runtime.block_on(Server::start(options))?;
    let begun = Instant::now();
    runtime.block_on(async {
        let store = PostgresStore::at(server.url()).schema("scale").open_sealed(keys()?).await?;
        store.migrate().await?;
        server.shape_table(options).await?;
        rows::insert(options, users, &server.pool, &provider.url).await?;
        server.run("VACUUM ANALYZE scale.hurdlr_tokens").await?;
        server.run("CHECKPOINT").await
    })?;
    figure("scale.users", count(users), "users");
    figure("scale.processes", count(options.processes), "processes");
    figure("scale.rows_inserted", count(users) / begun.elapsed().as_secs_f64(), "per s");
    let sizes = runtime.block_on(server.sizes())?;
    figure("scale.bytes_per_user", sizes.all() / count(users), "bytes");

    let mut load = Load { options, users, provider, server, runtime };
    load.phase("steady")?;
    load.runtime.block_on(async {
        load.server.run(rows::MAKE_DUE).await?;
        load.server.run("VACUUM FULL scale.hurdlr_tokens").await?;
        load.server.run("VACUUM ANALYZE scale.hurdlr_tokens").await?;
        load.server.run("CHECKPOINT").await
    })?;
    load.phase("all_due")
}

struct Load<'a> {
    options: &'a Options,
    users: usize,
    provider: Provider,
    server: Server,
    runtime: tokio::runtime::Runtime,
}

impl Load<'_> {
    /// Measures one phase: `steady`, in which users come due one after the other, or `all_due`.
    fn phase(&mut self, name: &str) -> Outcome {
        let is_steady = name == "steady";
        let database = self.server.url();
        let start = |number| {
            Worker::start(self.options, number, self.users, [&database, &self.provider.url])
        };
        let mut workers = (0..self.options.processes).map(start).collect::<Outcome<Vec<_>>>()?;
        let go = |workers: &mut [Worker]| workers.iter_mut().try_for_each(Worker::go);
        if is_steady {
            go(&mut workers)?;
            self.settle()?;
        }
        self.runtime.block_on(self.server.reset_counts())?;
        let before = self.snapshot(&mut workers)?;
        let profile = match &self.options.perf {
            Some(path) if !is_steady => Some(self.profile(path, &workers)?),
            _ => None,
        };
        let begun = Instant::now();
        if !is_steady {
            go(&mut workers)?;
        }
        while begun.elapsed() < self.options.span() {
            thread::sleep(LOOK.min(self.options.span().saturating_sub(begun.elapsed())));
            // With few users left, it is no load any more.
            let saved = self.runtime.block_on(self.server.saved())?;
            if !is_steady && saved >= 0.95 * count(self.users) {
                break;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let after = self.snapshot(&mut workers)?;
        if let Some(mut profile) = profile {
            // It ends by itself.
            profile.wait()?;
        }
        self.tell(name, seconds, &before, &after)?;
        workers.into_iter().try_for_each(Worker::stop)
    }

    /// Waits until the users are refreshed who have become due while the rows were made.
    fn settle(&self) -> Outcome {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_mins(5) {
            if self.runtime.block_on(self.server.due_for(0))? <= count(self.users / 500) {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
        Err("refreshes do not keep up with the users who become due".into())
    }

    /// Has `perf` look at the processes, one of which walks, for half a minute at most.
    fn profile(&self, path: &str, workers: &[Worker]) -> Outcome<Child> {
        let ids: Vec<_> = workers.iter().map(|worker| worker.id().to_string()).collect();
        let seconds = self.options.span().as_secs().clamp(1, 30).to_string();
        let process = Command::new("perf")
            .args(["record", "--quiet", "--freq", "199", "--call-graph", "dwarf,65528"])
            .args(["--output", path, "--pid", &ids.join(","), "--", "sleep", &seconds])
            .spawn()?;
        Ok(process)
    }

    fn snapshot(&self, workers: &mut [Worker]) -> Outcome<Snapshot> {
        let mut snapshot = Snapshot {
            workers: CpuTime::default(),
            server: self.server.cpu()?,
            provider: CpuTime::of(self.provider.id())?,
            sizes: self.runtime.block_on(self.server.sizes())?,
            reads: Reads::default(),
            memory: 0.0,
        };
        for worker in workers {
            snapshot.workers = snapshot.workers + CpuTime::of(worker.id())?;
            snapshot.memory = snapshot.memory.max(resident_bytes(worker.id())?);
            snapshot.reads = snapshot.reads + worker.reads()?;
        }
        Ok(snapshot)
    }

    fn tell(&self, phase: &str, seconds: f64, before: &Snapshot, after: &Snapshot) -> Outcome {
        let tell = |name: &str, value, unit: &str| {
            figure(&format!("scale.{phase}.{name}"), value, unit);
        };
        let counts = self.runtime.block_on(self.server.counts())?;
        let refreshes = counts.statement("save").rows;
        tell("seconds", seconds, "s");
        tell("refreshes", refreshes / seconds, "per s");
        for (name, before, after) in [
            ("cpu_processes", before.workers, after.workers),
            ("cpu_server", before.server, after.server),
            ("cpu_provider", before.provider, after.provider),
        ] {
            let time = (after - before).as_secs_f64();
            tell(&format!("{name}_us"), time * 1e6 / refreshes, "per refresh");
            tell(&format!("{name}_busy"), time / seconds, "CPUs");
        }
        tell("wal_bytes", counts.wal_bytes / refreshes, "per refresh");
        tell("wal_full_pages", counts.full_pages / refreshes, "per refresh");
        tell("wal_syncs", counts.wal_syncs / refreshes, "per refresh");
        tell("hot_updates", counts.hot_updates / counts.updates, "of updates");
        tell("vacuums", counts.vacuums, "in all");
        let (before_sizes, sizes) = (before.sizes, after.sizes);
        tell("table_growth", sizes.table / before_sizes.table, "x");
        tell("key_index_growth", sizes.key / before_sizes.key, "x");
        tell("due_index_growth", sizes.due / before_sizes.due, "x");
        for (name, _) in KINDS {
            let statement = counts.statement(name);
            tell(&format!("statements_{name}"), statement.calls / seconds, "per s");
            if statement.calls > 0.0 {
                let calls = statement.calls;
                tell(&format!("ms_{name}"), statement.milliseconds / calls, "per statement");
                tell(&format!("rows_{name}"), statement.rows / calls, "per statement");
                tell(&format!("wal_bytes_{name}"), statement.wal_bytes / calls, "per statement");
            }
        }
        let reads = after.reads - before.reads;
        tell("reads", count(reads.all) / seconds, "per s");
        tell("reads_cold", count(reads.cold) / seconds, "per s");
        tell("reads_failed", count(reads.failed), "in all");
        tell("memory_of_a_process", after.memory / 1e6, "MB");
        let overdue = self.runtime.block_on(self.server.due_for(60))?;
        tell("overdue", overdue, "users due for a minute");
        Ok(())
    }
}

/// What was used up to a moment.
struct Snapshot {
    workers: CpuTime,
    server: CpuTime,
    provider: CpuTime,
    sizes: Sizes,
    reads: Reads,
    /// Of the largest process.
    memory: f64,
}
