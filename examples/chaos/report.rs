//! What came of a run: a table for people, and figures for machines.

use std::collections::{BTreeMap, HashMap};

use crate::judge::{Broken, Deed, Evidence, Invariant, Losses, growth};
use crate::plan::seconds;
use crate::record::{Failing, Said, Why};

/// How many broken invariants are told in full.
const STORIES: usize = 5;

/// The sums over all stores.
#[derive(Default)]
pub(crate) struct Totals {
    users: u64,
    reads: u64,
    failed: BTreeMap<String, u64>,
    requests: u64,
    refreshes: u64,
    faults: u64,
    refused_calls: u64,
    kills: u64,
    stops: u64,
    jumps: u64,
    orders: u64,
    losses: Losses,
    growth: u64,
    broken: Vec<Broken>,
    /// The first of them, told in full.
    stories: Vec<String>,
}

impl Totals {
    /// Adds a run that `command` repeats.
    pub(crate) fn add(
        &mut self,
        evidence: &Evidence,
        broken: Vec<Broken>,
        losses: Losses,
        command: &str,
    ) {
        self.users = self.users.max(evidence.population.total().into());
        for (_, said) in &evidence.lines {
            match said {
                Said::Reads(reads) => self.reads += reads,
                Said::Failing(failing) => {
                    for Failing { why, .. } in failing {
                        let kind = match why {
                            Why::LoginOver => "the login is over",
                            Why::NotTaken => "the API did not take the token",
                            Why::Error(kind) => kind,
                        };
                        *self.failed.entry(kind.to_owned()).or_default() += 1;
                    }
                }
                _ => {}
            }
        }
        for arrival in evidence.arrivals.iter().filter(|arrival| arrival.process.is_some()) {
            self.requests += 1;
            self.refreshes += u64::from(arrival.issued.is_some());
            self.faults += u64::from(arrival.is_faulty);
        }
        for deed in &evidence.deeds {
            match deed {
                Deed::Killed { .. } => self.kills += 1,
                Deed::Stopped { .. } => self.stops += 1,
                Deed::Ordered { .. } => self.orders += 1,
                _ => {}
            }
        }
        self.jumps += evidence.jumps;
        self.refused_calls += evidence.refused_calls;
        self.losses.add(losses);
        self.growth = self.growth.max(growth(&evidence.memory));
        let room = STORIES.saturating_sub(self.stories.len());
        let story = |broken: &Broken| format!("({command})\n  {}", broken.story(evidence));
        self.stories.extend(broken.iter().take(room).map(story));
        self.broken.extend(broken);
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.broken.is_empty()
    }

    fn count(&self, invariant: Invariant) -> usize {
        self.broken.iter().filter(|broken| broken.invariant == invariant).count()
    }

    /// The most requests on one user that nothing allowed.
    fn most_extra_refreshes(&self) -> usize {
        let mut counts = HashMap::new();
        for broken in self.broken.iter().filter(|it| it.invariant == Invariant::OneRefresh) {
            *counts.entry(broken.user).or_insert(0) += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }

    pub(crate) fn show(&self, seed: u64, lasted: u64) {
        let row = |count: u64, words: &str| println!("  {count:>10}  {words}");
        println!("\nIn {:.0} s, on all stores:\n", seconds(lasted));
        row(self.reads, "reads of a token");
        for (kind, count) in &self.failed {
            row(*count, &format!("  of them failed: {kind}"));
        }
        row(self.requests, "requests for a token");
        row(self.refreshes, "  of them were answered with one");
        row(self.faults, "  of them went wrong by plan");
        row(self.refused_calls, "calls that the API refused by plan");
        row(self.orders, "logins and removals");
        row(self.kills, "processes killed");
        row(self.stops, "processes stopped");
        row(self.jumps, "clocks turned");
        row(self.losses.total(), "logins ended as they may:");
        let Losses { answer_lost, killed, disturbed, family, revoked } = self.losses;
        row(answer_lost, "  the answer with the next refresh token was lost");
        row(killed, "  the process that had it was killed");
        row(disturbed, "  the process that waited for it was stopped, or its clock turned");
        row(family, "  the provider took a second use for theft");
        row(revoked, "  the provider revoked it");
        println!();
        for story in &self.stories {
            println!("BROKEN {story}\n");
        }
        if self.broken.len() > self.stories.len() {
            println!("BROKEN: and {} more\n", self.broken.len() - self.stories.len());
        }
        let figure = |name: &str, value: u64, unit: &str| {
            println!("figure: chaos.{name} = {value} {unit}");
        };
        let count = |invariant| u64::try_from(self.count(invariant)).unwrap_or(u64::MAX);
        let extra = u64::try_from(self.most_extra_refreshes()).unwrap_or(u64::MAX);
        figure("seed", seed, "seed");
        figure("users", self.users, "users");
        figure("reads", self.reads, "reads");
        figure("refreshes", self.refreshes, "refreshes");
        figure("kills", self.kills, "kills");
        figure("stops", self.stops, "stops");
        figure("clock_jumps", self.jumps, "jumps");
        figure("faults", self.faults + self.refused_calls, "faults");
        figure("logins_lost", count(Invariant::NoLoginLost), "logins");
        figure("refreshes_beyond_allowed", extra, "refreshes of one user");
        figure("dead_tokens_served", count(Invariant::NoDeadToken), "tokens");
        figure("requests_above_rate", count(Invariant::NoPauseCut), "requests");
        figure("users_starved", count(Invariant::NobodyStarves), "users");
        println!(
            "figure: chaos.memory_growth = {:.1} MiB",
            seconds(self.growth * 1_000_000 / 1_048_576)
        );
    }
}
