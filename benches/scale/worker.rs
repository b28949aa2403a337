//! A process of an app: it reads tokens, and walks over the due users.

use std::io::{self, BufRead, BufReader, Write};
use std::ops::{Add, Sub};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{env, thread};

use hurdlr_oauth2::TokenManager;
use hurdlr_oauth2::store::PostgresStore;
use tokio::time::MissedTickBehavior;

use crate::harness::Outcome;
use crate::rows::{keys, user};
use crate::{Options, provider};

/// The first argument of the bench that makes it one of these.
pub(crate) const ROLE: &str = "work";

/// The time between two walks.
const INTERVAL: Duration = Duration::from_secs(5);

/// How many times a second reads are made.
const TICKS: u32 = 100;

/// One in so many users is active in a process.
const ACTIVE: usize = 50;

/// One read in so many is of anybody, the others of an active user.
const ANYBODY: usize = 100;

/// One in a process of its own.
pub(crate) struct Worker {
    process: Child,
    /// The process ends when this closes, however this one ends.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// How many reads a process has made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reads {
    pub(crate) all: u64,
    /// Of users who were not in memory.
    pub(crate) cold: u64,
    pub(crate) failed: u64,
}

impl Add for Reads {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            all: self.all + more.all,
            cold: self.cold + more.cold,
            failed: self.failed + more.failed,
        }
    }
}

impl Sub for Reads {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            all: self.all - earlier.all,
            cold: self.cold - earlier.cold,
            failed: self.failed - earlier.failed,
        }
    }
}

impl Worker {
    /// Starts it, and waits until it could begin.
    pub(crate) fn start(
        options: &Options,
        number: usize,
        users: usize,
        [database, provider]: [&str; 2],
    ) -> Outcome<Self> {
        let mut process = Command::new(env::current_exe()?)
            .args([ROLE, "--database", database, "--url", provider])
            .args(["--users", &users.to_string(), "--number", &number.to_string()])
            .args(["--refreshes", &options.refreshes.to_string()])
            .args(["--reads", &options.reads.to_string(), "--seed", &options.seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().ok_or("no stdout")?);
        let mut worker = Self { process, orders, answers };
        match worker.answer()?.as_str() {
            "ready" => Ok(worker),
            other => Err(format!("a process began with {other:?}").into()),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    fn answer(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn order(&mut self, order: &str) -> Outcome<String> {
        let orders = self.orders.as_mut().ok_or("the process was stopped")?;
        writeln!(orders, "{order}")?;
        self.answer()
    }

    pub(crate) fn go(&mut self) -> Outcome {
        self.order("go").map(drop)
    }

    pub(crate) fn reads(&mut self) -> Outcome<Reads> {
        let answer = self.order("reads")?;
        let numbers: Vec<u64> = answer.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        match *numbers {
            [all, cold, failed] => Ok(Reads { all, cold, failed }),
            _ => Err(format!("a process answered {answer:?}").into()),
        }
    }

    /// Has it finish its refreshes.
    pub(crate) fn stop(mut self) -> Outcome {
        drop(self.orders.take());
        if self.process.wait()?.success() { Ok(()) } else { Err("a process failed".into()) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has ended already, unless something failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Does what it is told by lines of standard input, until that ends.
pub(crate) fn run(options: &Options) -> Outcome {
    crate::runtime()?.block_on(async {
        let store =
            PostgresStore::at(&*options.database).schema("scale").open_sealed(keys()?).await?;
        let manager = TokenManager::builder(provider::client(&options.url)?, store)
            .max_concurrent_refreshes(options.refreshes)
            .build()?;
        manager.check().await?;
        say("ready")?;
        let (orders, mut order) = tokio::sync::mpsc::unbounded_channel();
        thread::spawn(move || {
            let lines = io::stdin().lock().lines();
            lines.map_while(Result::ok).try_for_each(|line| orders.send(line))
        });
        let counts = Arc::new(Counts::default());
        let mut walk = None;
        while let Some(order) = order.recv().await {
            if order == "go" {
                walk = Some(manager.keep_alive(INTERVAL));
                tokio::spawn(read(manager.clone(), options.clone(), Arc::clone(&counts)));
                say("going")?;
            } else {
                say(&counts.to_string())?;
            }
        }
        drop(walk);
        let unfinished = manager.shutdown().await;
        if unfinished.is_empty() { Ok(()) } else { Err("refreshes were not finished".into()) }
    })
}

fn say(line: &str) -> Outcome {
    println!("{line}");
    Ok(io::stdout().flush()?)
}

#[derive(Default)]
struct Counts {
    all: AtomicU64,
    cold: AtomicU64,
    failed: AtomicU64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [all, cold, failed] =
            [&self.all, &self.cold, &self.failed].map(|count| count.load(Ordering::Relaxed));
        write!(f, "{all} {cold} {failed}")
    }
}

/// Reads tokens at an even rate, for ever.
async fn read(manager: TokenManager, options: Options, counts: Arc<Counts>) -> Outcome {
    let users = options.users.ok_or("no users")?;
    let active = (users / ACTIVE).max(1);
    let mut random = fastrand::Rng::with_seed(options.seed ^ options.number as u64);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / TICKS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        for _ in 0..options.reads / TICKS as usize {
            let n = match random.usize(..ANYBODY) {
                0 => random.usize(..users),
                _ => (options.number * active + random.usize(..active)) % users,
            };
            let handle = manager.user(&user(n)?);
            let is_cold = handle.due_in().is_none();
            counts.all.fetch_add(1, Ordering::Relaxed);
            counts.cold.fetch_add(is_cold.into(), Ordering::Relaxed);
            let counts = Arc::clone(&counts);
            tokio::spawn(async move {
                if handle.token().await.is_err() {
                    counts.failed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
}
