//! What came of it, as tables.

use std::collections::BTreeMap;

use crate::worker::News;

/// What one process did, whichever of its lives did it.
#[derive(Clone, Default)]
pub(crate) struct Line {
    pub(crate) killed: u64,
    pub(crate) sent: u64,
    /// Sent, answered with a token, and the answer was not held back.
    pub(crate) answered: u64,
    /// New tokens that were served, whoever had got them.
    pub(crate) tokens: u64,
    pub(crate) served: u64,
    pub(crate) failed: BTreeMap<String, u64>,
}

impl Line {
    pub(crate) fn note(&mut self, news: &News) {
        match news {
            News::Served(callers) => self.served += callers,
            News::Failed(kind) => *self.failed.entry(kind.clone()).or_default() += 1,
            News::Token => self.tokens += 1,
            News::Ready | News::Lost { .. } => {}
        }
    }

    /// Each new token was either got here or adopted.
    fn adopted(&self) -> u64 {
        self.tokens.saturating_sub(self.answered)
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    fn add(&mut self, other: &Self) {
        self.killed += other.killed;
        self.sent += other.sent;
        self.answered += other.answered;
        self.tokens += other.tokens;
        self.served += other.served;
        for (kind, failed) in &other.failed {
            *self.failed.entry(kind.clone()).or_default() += failed;
        }
    }

    fn show(&self, name: &str) {
        println!(
            "  {name:>7} {:>9} {:>16} {:>20} {:>16} {:>16}",
            self.killed,
            self.sent,
            self.adopted(),
            self.served,
            self.failures()
        );
    }
}

/// Shows a line for each process, and returns their sum.
pub(crate) fn table(lines: &[Line]) -> Line {
    println!(
        "\n  process    killed   refreshes sent   adopted from peers   callers served   callers failed"
    );
    let mut sum = Line::default();
    for (number, line) in (1..).zip(lines) {
        line.show(&format!("{number}"));
        sum.add(line);
    }
    sum.show("all");
    println!();
    for (kind, failed) in &sum.failed {
        println!("  {failed} callers were told: {kind}");
    }
    sum
}
