//! An explorer of all interleavings of the refresh protocol, on the real code.
//!
//! One user, a few processes (each a `TokenManager`), one store, one provider that rotates refresh
//! tokens. Every call stops at a gate before it takes effect and at another one before its answer
//! is delivered, and the explorer tries every order in which the gates can open, with failures and
//! other events in between. The laws of docs/design.md are checked at every step.
//!
//! `EXPLORE=full` takes up to two hours. `EXPLORE_KEEP_GOING=1` goes on after a violation.
//! `EXPLORE_TRACE='p0.claim1;time' cargo test --test explore NAME` replays one run, in words.

#![allow(clippy::expect_used, reason = "a failed expectation is the failure of the test")]
#![allow(clippy::print_stdout, reason = "the figures are read from there")]

mod choice;
mod laws;
mod provider;
mod run;
mod scenarios;
mod search;
mod store;
mod world;

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

use scenarios::{Scenario, scenarios};

/// The time that all scenarios share, and their figures.
struct Totals {
    end: Instant,
    threads: u32,
    scenarios_left: AtomicU32,
    runs: AtomicU64,
    broken: AtomicU64,
}

impl Totals {
    /// A fair share of the time that is left, for one of the scenarios that are left.
    fn share(&self) -> Duration {
        let left = self.end.saturating_duration_since(Instant::now());
        let scenarios = self.scenarios_left.fetch_sub(1, Ordering::Relaxed);
        left * self.threads.min(scenarios) / scenarios.max(1)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let is_full = std::env::var("EXPLORE").is_ok_and(|mode| mode == "full");
    let seconds = std::env::var("EXPLORE_SECONDS").ok().and_then(|text| text.parse().ok());
    // A build that is not optimised only shows that the explorer works.
    let usual = if cfg!(debug_assertions) { 10 } else { 120 };
    let seconds = seconds.unwrap_or(if is_full { 6_600 } else { usual });
    let is_wanted = |scenario: &Scenario| {
        let name = arguments.filter.as_deref().unwrap_or("");
        let is_named =
            if arguments.exact { scenario.name == name } else { scenario.name.contains(name) };
        (is_full || !scenario.is_large) && is_named
    };
    let wanted: Vec<_> = scenarios().into_iter().filter(is_wanted).collect();
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let totals = Arc::new(Totals {
        end: Instant::now() + Duration::from_secs(seconds),
        threads: arguments.test_threads.unwrap_or(cores).try_into().unwrap_or(1),
        scenarios_left: AtomicU32::new(wanted.len().try_into().unwrap_or(1)),
        runs: AtomicU64::new(0),
        broken: AtomicU64::new(0),
    });
    let trials = wanted.into_iter().map(|scenario| {
        let totals = Arc::clone(&totals);
        Trial::test(scenario.name, move || check(&scenario, &totals))
    });
    // It takes minutes in a build that is not optimised.
    let pruning = (!cfg!(debug_assertions))
        .then(|| Trial::test("pruning_loses_no_history", move || pruning(is_full)));
    let conclusion = libtest_mimic::run(&arguments, pruning.into_iter().chain(trials).collect());
    if cfg!(debug_assertions) {
        println!("not optimised, so little was explored: call it by tests/run");
        return conclusion.exit_code();
    }
    println!("figure: explore.executions = {} runs", totals.runs.load(Ordering::Relaxed));
    println!("figure: explore.violations = {} runs", totals.broken.load(Ordering::Relaxed));
    conclusion.exit_code()
}

/// The runs that are left out show no process anything that it does not see in another one.
fn pruning(is_full: bool) -> Result<(), Failed> {
    for scenario in scenarios::small().into_iter().filter(|it| is_full || !it.is_large) {
        let (runs, pruned) = search::histories(&scenario, false);
        let (all, thorough) = search::histories(&scenario, true);
        println!("{}: {runs} of {all} runs, {} histories", scenario.name, thorough.len());
        if pruned != thorough {
            let lost = thorough.difference(&pruned).next().map(|lost| lost.join("\n--\n"));
            let extra = pruned.difference(&thorough).count();
            let count = thorough.difference(&pruned).count();
            return Err(format!("{count} histories lost, {extra} extra, as {lost:?}").into());
        }
    }
    Ok(())
}

fn check(scenario: &Scenario, totals: &Totals) -> Result<(), Failed> {
    if let Ok(trace) = std::env::var("EXPLORE_TRACE") {
        let trace: Vec<_> = trace.split(';').map(str::to_owned).collect();
        let (outcome, applies) = search::replay(scenario, &trace);
        println!("{}\n{:?}", outcome.story.join("\n"), outcome.broken);
        if !applies {
            println!("the trace no longer applies: the code makes other calls");
        }
        return outcome.broken.map_or(Ok(()), |(_, words)| Err(words.into()));
    }
    let keep_going = std::env::var_os("EXPLORE_KEEP_GOING").is_some();
    let start = Instant::now();
    let found = search::explore(scenario, totals.share(), keep_going);
    let runs = found.runs + found.random_runs;
    totals.runs.fetch_add(runs, Ordering::Relaxed);
    totals.broken.fetch_add(found.broken_runs, Ordering::Relaxed);
    let reached = if found.is_complete {
        format!("complete after {} runs", found.runs)
    } else {
        format!("cut after {} runs, then {} at random", found.runs, found.random_runs)
    };
    println!("{}: {reached}, {:.1} s", scenario.name, start.elapsed().as_secs_f64());
    if found.violations.is_empty() {
        return Ok(());
    }
    let report: Vec<_> = found.violations.iter().map(search::Violation::to_string).collect();
    Err(report.concat().into())
}
