//! Figures, what they are made of, and the goals that they are held to.

use std::collections::BTreeMap;

use crate::peer::Peer;
use crate::peers::floor;
use crate::peers::hurdlr_oauth2::HurdlrOauth2;

/// The name of this crate in figures.
pub(crate) const OURS: &str = HurdlrOauth2::NAME;

#[derive(Default)]
pub(crate) struct Report {
    missed: Vec<String>,
}

impl Report {
    pub(crate) fn figure(&self, work: &str, peer: &str, value: f64, unit: &str) {
        println!("figure: peers.{work}.{peer} = {value:.3} {unit}");
    }

    /// Why a peer has no figure.
    pub(crate) fn reason(&self, work: &str, peer: &str, why: &str) {
        println!("reason: peers.{work}.{peer} = {why}");
    }

    /// Holds a figure of this crate to its goal, which is the most that it may be.
    pub(crate) fn goal(&mut self, name: &str, value: f64, goal: f64) {
        println!("figure: peers.goal.{name} = {value:.3} (goal {goal})");
        // A figure that is no number meets no goal.
        if !(value <= goal) {
            self.missed.push(format!("{name} is {value:.3}: at most {goal} is the goal"));
        }
    }

    /// Like [`goal`](Self::goal), for a figure that has to be at least so much.
    pub(crate) fn goal_at_least(&mut self, name: &str, value: f64, goal: f64) {
        println!("figure: peers.goal.{name} = {value:.3} (goal at least {goal})");
        if !(value >= goal) {
            self.missed.push(format!("{name} is {value:.3}: at least {goal} is the goal"));
        }
    }

    pub(crate) fn missed(self) -> Vec<String> {
        self.missed
    }
}

/// The time that each peer needed, round by round.
#[derive(Default)]
pub(crate) struct Rounds(BTreeMap<&'static str, Vec<f64>>);

impl Rounds {
    pub(crate) fn add(&mut self, peer: &'static str, value: f64) {
        self.0.entry(peer).or_default().push(value);
    }

    pub(crate) fn median(&self, peer: &str) -> f64 {
        self.0.get(peer).map_or(f64::NAN, |values| median(values.clone()))
    }

    pub(crate) fn max(&self, peer: &str) -> f64 {
        self.0.get(peer).map_or(f64::NAN, |values| highest(values.iter().copied()))
    }

    pub(crate) fn sum(&self, peer: &str) -> f64 {
        self.0.get(peer).map_or(f64::NAN, |values| values.iter().sum())
    }

    /// The median of the ratios of two peers, round by round.
    pub(crate) fn ratio(&self, peer: &str, to: &str) -> f64 {
        let (Some(ours), Some(theirs)) = (self.0.get(peer), self.0.get(to)) else {
            return f64::NAN;
        };
        median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect())
    }

    /// The peer with the least median, other than this crate and the floor.
    pub(crate) fn fastest_peer(&self) -> &'static str {
        let peers = self.0.keys().filter(|peer| **peer != OURS && **peer != floor::NAME);
        let by_median = |a: &&&str, b: &&&str| self.median(a).total_cmp(&self.median(b));
        peers.min_by(by_median).copied().unwrap_or_default()
    }

    /// The median of each peer, its spread (the middle half of the rounds, as a share of the
    /// median), and the share of rounds in which it needed the least.
    pub(crate) fn figures(&self, report: &Report, work: &str, unit: &str) {
        for (peer, values) in &self.0 {
            let median = self.median(peer);
            report.figure(work, peer, median, unit);
            let middle = quartile(values.clone(), 3) - quartile(values.clone(), 1);
            report.figure(&format!("{work}_spread"), peer, 100.0 * middle / median, "%");
            if *peer == floor::NAME {
                continue;
            }
            let others =
                || self.0.iter().filter(|(other, _)| ![*peer, floor::NAME].contains(other));
            let is_least = |(round, value): &(usize, &f64)| {
                others().all(|(_, others)| others.get(*round).is_none_or(|other| *value < other))
            };
            let won = values.iter().enumerate().filter(is_least).count();
            report.figure(&format!("{work}_won"), peer, share(won, values.len()), "%");
        }
    }
}

/// The highest of the values. It is no number where one of them is none.
pub(crate) fn highest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::MIN, |highest, value| {
        if value > highest || value.is_nan() { value } else { highest }
    })
}

/// A share in percent.
#[allow(clippy::cast_precision_loss, reason = "these are small numbers")]
pub(crate) fn share(part: usize, all: usize) -> f64 {
    100.0 * part as f64 / all as f64
}

#[allow(clippy::cast_precision_loss, reason = "these are small numbers")]
pub(crate) fn number(n: usize) -> f64 {
    n as f64
}

pub(crate) fn quartile(mut values: Vec<f64>, nth: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() * nth / 4).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(values: Vec<f64>) -> f64 {
    quartile(values, 2)
}
