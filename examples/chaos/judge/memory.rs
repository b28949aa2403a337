//! Law 7: the memory of a process that serves the same users does not grow without end.

use super::{Broken, Evidence, Invariant};
use crate::record::{Micros, SECOND};

/// How many bytes a process may grow by in the second half of its time. An allocator takes memory in
/// pieces, and keeps some in pieces that are too small.
const ALLOWED: u64 = 16 * 1024 * 1024;
/// Less than this says nothing about growth.
const MIN_TIME: Micros = 20 * SECOND;

/// By how many bytes the most that was used in the last quarter of the time exceeds the most that
/// was used in the quarter before. By the first half all users have been read, and refreshed once.
pub(crate) fn growth(memory: &[(Micros, u64)]) -> u64 {
    let Some(((first, _), (last, _))) = memory.first().zip(memory.last()) else { return 0 };
    let from = |quarter: u64| first + (last - first) / 4 * quarter;
    let most = |begin, end| {
        let within = memory.iter().filter(|(at, _)| (begin..=end).contains(at));
        within.map(|(_, bytes)| *bytes).max().unwrap_or(0)
    };
    most(from(3), *last).saturating_sub(most(from(2), from(3)))
}

pub(super) fn judge(evidence: &Evidence) -> Option<Broken> {
    let memory = &evidence.memory;
    let ((first, _), (last, _)) = memory.first().zip(memory.last())?;
    let grown = growth(memory);
    (grown > ALLOWED && last - first >= MIN_TIME).then(|| Broken {
        invariant: Invariant::NoGrowth,
        user: None,
        at: *last,
        words: format!("the process that was never killed grew by {grown} bytes at the end"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::made_up::*;
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn growth_after_warm_up_is_seen() {
        let mut evidence = evidence();
        evidence.memory =
            (0..60).map(|second| (second * SECOND, 30 * MIB + second * MIB)).collect();
        assert_eq!(growth(&evidence.memory), 15 * MIB);
        assert_eq!(broken(&evidence), []);
        evidence.memory = (0..60).map(|second| (second * SECOND, second * 2 * MIB)).collect();
        assert_eq!(broken(&evidence), [Invariant::NoGrowth]);
    }

    /// A process that was filled early, and has given some back, does not grow.
    #[test]
    fn growth_of_warm_up_is_none() {
        let mut evidence = evidence();
        let size = |second| if second < 20 { second * 4 * MIB } else { 80 * MIB - second };
        evidence.memory = (0..60).map(|second| (second * SECOND, size(second))).collect();
        assert_eq!(growth(&evidence.memory), 0);
        assert_eq!(broken(&evidence), []);
    }
}
