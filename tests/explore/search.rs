//! The search: every order of choices, depth first, by replaying from the start.
//!
//! Two choices that commute are tried in one order only. After a choice has been explored it is
//! put to sleep for its siblings, and stays asleep below them until something that does not
//! commute with it happens ("sleep sets").

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::choice::{Choice, Offer};
use crate::laws::Law;
use crate::run::{Chooser, Outcome, run};
use crate::scenarios::Scenario;

/// A place in the run at which something was chosen.
struct Node {
    options: Vec<Offer>,
    at: usize,
    asleep: Vec<Offer>,
}

/// The path that is being tried.
#[derive(Default)]
pub(crate) struct Path {
    nodes: Vec<Node>,
    depth: usize,
    /// Tries both orders even of choices that commute.
    pub(crate) is_thorough: bool,
}

impl Path {
    /// Moves on to the next path; says whether there is one.
    pub(crate) fn advance(&mut self) -> bool {
        self.depth = 0;
        while let Some(mut node) = self.nodes.pop() {
            node.asleep.push(node.options[node.at]);
            if let Some(at) = awake(&node.options, &node.asleep) {
                self.nodes.push(Node { at, ..node });
                return true;
            }
        }
        false
    }
}

fn awake(options: &[Offer], asleep: &[Offer]) -> Option<usize> {
    let sleeps = |option: &Offer| asleep.iter().any(|other| other.choice == option.choice);
    options.iter().position(|option| !sleeps(option))
}

impl Chooser for Path {
    fn choose(&mut self, options: &[Offer]) -> Option<Choice> {
        let depth = self.depth;
        self.depth += 1;
        let options = if self.is_thorough { options.to_vec() } else { Offer::first(options) };
        if let Some(node) = self.nodes.get(depth) {
            assert_eq!(node.options, options, "a replay diverged at choice {depth}");
            return Some(node.options[node.at].choice);
        }
        let asleep = self.nodes.last().map_or(Vec::new(), |parent| {
            let taken = parent.options[parent.at];
            let asleep = parent.asleep.iter().copied();
            asleep.filter(|it| !self.is_thorough && it.commutes_with(taken)).collect()
        });
        let at = awake(&options, &asleep)?;
        let choice = options[at].choice;
        self.nodes.push(Node { options, at, asleep });
        Some(choice)
    }
}

/// Draws choices at random, for what is too large to be explored as a whole.
struct Random(fastrand::Rng);

impl Chooser for Random {
    fn choose(&mut self, options: &[Offer]) -> Option<Choice> {
        // Most steps are ordinary ones, or all that may go wrong would go wrong at once.
        let ordinary = options.iter().take_while(|option| option.choice.cost().is_none()).count();
        let among = if ordinary > 0 && self.0.u8(..8) > 0 { ordinary } else { options.len() };
        Some(options[self.0.usize(..among)].choice)
    }
}

/// Takes the choices of a trace where they are offered, and the first option otherwise.
struct Trace<'a> {
    wanted: &'a [String],
    next: usize,
}

impl Chooser for Trace<'_> {
    fn choose(&mut self, options: &[Offer]) -> Option<Choice> {
        if let Some(wanted) = self.wanted.get(self.next)
            && let Some(option) = options.iter().find(|option| option.choice.to_string() == *wanted)
        {
            self.next += 1;
            return Some(option.choice);
        }
        Some(options[0].choice)
    }
}

/// A run that broke a law.
pub(crate) struct Violation {
    law: Law,
    words: String,
    /// The run that found it.
    run: u64,
    trace: Vec<String>,
    story: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:?} in run {}: {}", self.law, self.run, self.words)?;
        writeln!(f, "  {}", self.story.join("\n  "))?;
        writeln!(f, "EXPLORE_TRACE='{}'", self.trace.join(";"))
    }
}

/// The result of the search through one scenario.
pub(crate) struct Found {
    pub(crate) runs: u64,
    pub(crate) is_complete: bool,
    /// Runs whose choices were drawn at random, after the search was cut.
    pub(crate) random_runs: u64,
    pub(crate) broken_runs: u64,
    /// The first violation of each law.
    pub(crate) violations: Vec<Violation>,
}

/// All that the processes of a scenario can live through, each seen by itself.
pub(crate) fn histories(scenario: &Scenario, is_thorough: bool) -> (u64, HashSet<Vec<String>>) {
    let (mut runs, mut histories) = (0, HashSet::new());
    let mut path = Path { is_thorough, ..Path::default() };
    loop {
        let outcome = run(scenario, &mut path, true);
        runs += 1;
        // A run that was given up, as covered or broken, shows only a part.
        if outcome.is_over && outcome.broken.is_none() {
            let of = |process: usize| {
                let mark = format!("process {process}");
                let own = outcome.story.iter().filter(|line| line.contains(&mark));
                own.cloned().collect::<Vec<_>>().join("\n")
            };
            histories.insert((0..scenario.callers.len()).map(of).collect());
        }
        if !path.advance() {
            return (runs, histories);
        }
    }
}

/// Explores a scenario within a time: exhaustively for most of it, then at random.
pub(crate) fn explore(scenario: &Scenario, time: Duration, keep_going: bool) -> Found {
    let mut found = Found {
        runs: 0,
        is_complete: false,
        random_runs: 0,
        broken_runs: 0,
        violations: Vec::new(),
    };
    let start = Instant::now();
    let mut path = Path::default();
    loop {
        let outcome = run(scenario, &mut path, false);
        found.runs += 1;
        found.note(scenario, outcome);
        if found.broken_runs > 0 && !keep_going {
            return found;
        }
        if !path.advance() {
            found.is_complete = true;
            return found;
        }
        if start.elapsed() > time.mul_f64(0.7) {
            break;
        }
    }
    let mut random = Random(fastrand::Rng::with_seed(1));
    while start.elapsed() < time {
        let outcome = run(scenario, &mut random, false);
        found.random_runs += 1;
        found.note(scenario, outcome);
        if found.broken_runs > 0 && !keep_going {
            break;
        }
    }
    found
}

impl Found {
    fn note(&mut self, scenario: &Scenario, outcome: Outcome) {
        let Some((law, words)) = outcome.broken else { return };
        self.broken_runs += 1;
        if self.violations.iter().any(|known| known.law == law) {
            return;
        }
        let taken = outcome.taken.iter().map(Choice::to_string).collect();
        let trace = shrink(scenario, law, taken);
        let story = replay(scenario, &trace).0.story;
        let run = self.runs + self.random_runs;
        self.violations.push(Violation { law, words, run, trace, story });
    }
}

/// Runs a trace once, in words, and says whether every choice of it was offered.
pub(crate) fn replay(scenario: &Scenario, trace: &[String]) -> (Outcome, bool) {
    let mut chooser = Trace { wanted: trace, next: 0 };
    let outcome = run(scenario, &mut chooser, true);
    (outcome, chooser.next == trace.len())
}

/// Leaves out of a trace what the violation does not need.
fn shrink(scenario: &Scenario, law: Law, mut trace: Vec<String>) -> Vec<String> {
    let breaks = |trace: &[String]| {
        let outcome = run(scenario, &mut Trace { wanted: trace, next: 0 }, false);
        outcome.broken.is_some_and(|(broken, _)| broken == law)
    };
    let mut at = trace.len();
    while at > 0 {
        at -= 1;
        let left_out = trace.remove(at);
        if !breaks(&trace) {
            trace.insert(at, left_out);
        }
    }
    trace
}
