//! Law 11: no user whose requests fail for ever starves the others, and none of them is left alone
//! once their requests succeed. Every process reads every user all the time, and says whose reads
//! fail.

use std::collections::HashSet;

use super::{Broken, Invariant, Seen, Sorted};
use crate::plan::{Effect, seconds};
use crate::record::{
    Failing, INITIAL_BACKOFF, LEASE, MAX_BACKOFF, Micros, Process, READ_EVERY, REFRESH_TIMEOUT,
    SECOND, Said, User, Why, micros,
};

/// How long a read may fail after the last trouble of its user: the lease of a process that is
/// silent ends, the pause of those who waited for it is over, somebody reads, and the refresh takes
/// its time.
pub(crate) const SERVED_WITHIN: Micros =
    micros(LEASE) + micros(MAX_BACKOFF) + micros(READ_EVERY) + micros(REFRESH_TIMEOUT);

pub(super) fn judge(sorted: &Sorted<'_>) -> Vec<Broken> {
    let mut starved = HashSet::new();
    let mut broken = Vec::new();
    let mut starve = |user: User, at: Micros, words: String| {
        if starved.insert(user) {
            broken.push(Broken {
                invariant: Invariant::NobodyStarves,
                user: Some(user),
                at,
                words,
            });
        }
    };
    let served = seconds_with_a_save(sorted);
    for (process, said) in &sorted.evidence.lines {
        let Said::Failing(all) = said else { continue };
        for failing in all {
            let Failing { user, why, last, .. } = failing;
            if *why == Why::LoginOver {
                if !sorted.evidence.population.is_person(*user) {
                    let words = format!("process {process} told an enterprise user to log in");
                    starve(*user, *last, words);
                }
                continue;
            }
            // The API may refuse a token twice: then it is served to its end.
            let refused = if *why == Why::NotTaken { sorted.evidence.token_life } else { 0 };
            let from = untroubled_since(sorted, *process, failing);
            let waited = (from / SECOND..last / SECOND)
                .filter(|second| {
                    served.contains(second) || second * SECOND >= sorted.evidence.rested
                })
                .count() as u64;
            if waited * SECOND > SERVED_WITHIN + refused {
                let words =
                    format!("process {process} has not served them for {waited} s: {why:?}");
                starve(*user, *last, words);
            }
        }
    }
    for (user, process, silent) in unread(sorted) {
        let words = format!("no read in process {process} ended for {:.0} s", seconds(silent));
        starve(user, Micros::MAX, words);
    }
    broken
}

/// The seconds in which the provider answered somebody, and the store took it.
fn seconds_with_a_save(sorted: &Sorted<'_>) -> HashSet<u64> {
    let lines = sorted.evidence.lines.iter();
    lines
        .filter(|(_, said)| matches!(said, Said::Saved { .. }))
        .map(|(_, said)| said.at() / SECOND)
        .collect()
}

/// When the last trouble was over that explains why a read failed.
fn untroubled_since(sorted: &Sorted<'_>, process: Process, failing: &Failing) -> Micros {
    let Failing { user, since, last, .. } = *failing;
    let own =
        [process, Process::MAX].into_iter().filter_map(|process| sorted.disturbed.get(&process));
    let own = own.flatten().filter(|(from, _)| *from <= last).map(|(_, to)| (*to).min(last));
    let of_user = sorted.users.get(&user).map(|seen| troubles(sorted, seen, last));
    own.chain(of_user).chain([since]).max().unwrap_or(since)
}

/// When the last trouble of a user ended that began by then: a fault of a request, with the pause
/// that it asks for, a login, a removal, a revocation, or a lease whose holder was not calm.
fn troubles(sorted: &Sorted<'_>, seen: &Seen<'_>, by: Micros) -> Micros {
    let mut doubts = 0;
    let faults = seen.arrivals.iter().filter(|arrival| arrival.is_faulty).map(|arrival| {
        doubts = if arrival.effect == Effect::Doubt { doubts + 1 } else { 0 };
        let pause = match arrival.effect {
            Effect::Pause(pause) => pause,
            Effect::Doubt => micros(INITIAL_BACKOFF) << doubts.min(20),
            _ => 0,
        };
        (arrival.at, arrival.at + pause)
    });
    let orders = seen.ordered.iter().map(|(_, _, at)| (*at, *at));
    let done = seen.lines.iter().filter_map(|(_, said)| match said {
        Said::Done { begun, at, .. } => Some((*begun, *at)),
        _ => None,
    });
    let revoked = seen.revoked.iter().map(|at| (*at, *at));
    let silent = seen
        .grants
        .iter()
        .filter(|it| !sorted.is_calm(it.process, it.begun, it.begun + micros(LEASE)));
    let all = faults.chain(orders).chain(done).chain(revoked);
    let all = all.chain(silent.map(|lease| (lease.begun, lease.at)));
    all.filter(|(from, _)| *from <= by).map(|(_, to)| to).max().unwrap_or(0)
}

/// Users of whom a process that lived to the end said nothing any more, and for how long.
fn unread<'a>(sorted: &'a Sorted<'_>) -> impl Iterator<Item = (User, Process, Micros)> + 'a {
    let last_reads = sorted.users.values().flat_map(|seen| seen.last_reads.values());
    let end = last_reads.map(|read| read.begun).max().unwrap_or(0);
    let lines = sorted.evidence.lines.iter();
    let living = lines
        .filter(|(process, said)| *said == Said::Ready && !sorted.killed.contains_key(process));
    living.flat_map(move |(process, _)| {
        (0..sorted.evidence.population.total()).filter_map(move |user| {
            let last = sorted.users.get(&user).and_then(|seen| seen.last_reads.get(process));
            let last = last.map_or(0, |read| read.begun);
            let is_silent = end - last > 2 * SERVED_WITHIN && sorted.is_calm(*process, last, end);
            is_silent.then_some((user, *process, end - last))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::made_up::*;
    use super::*;
    use crate::judge::{Deed, Evidence};
    use crate::provider::Arrival;

    /// Ann's reads fail for so long, while others are served.
    fn failing_for(span: Micros) -> Evidence {
        let mut evidence = evidence();
        let why = Why::Error("unavailable".to_owned());
        evidence.lines = (0..60).map(|second| (2, saved_by_other(second * SECOND))).collect();
        evidence.lines.push((1, failing(why, SECOND, SECOND + span)));
        evidence
    }

    fn saved_by_other(at: Micros) -> Said {
        Said::Saved { user: ANN + 1, version: FIRST, at }
    }

    #[test]
    fn starved_user_is_seen_once() {
        let mut evidence = failing_for(SERVED_WITHIN);
        assert_eq!(broken(&evidence), []);
        evidence = failing_for(SERVED_WITHIN + SECOND);
        evidence.lines.push(evidence.lines.last().expect("a line").clone());
        assert_eq!(broken(&evidence), [Invariant::NobodyStarves]);
    }

    /// Her own troubles, or one of the process that reads, begin the time anew.
    #[test]
    fn troubled_user_is_not_starved() {
        let from = 2 * SECOND;
        let (to, user) = (from, ANN);
        let fault = Arrival { is_faulty: true, issued: None, ..refresh(from, 10, 0) };
        let mut evidence = failing_for(SERVED_WITHIN + SECOND);
        evidence.arrivals.push(fault);
        evidence.lines.push((1, granted(from, FIRST)));
        assert_eq!(broken(&evidence), []);
        for deed in [
            Deed::Stopped { process: 1, from, to },
            Deed::Revoked { user, at: from },
            Deed::Ordered { process: 2, user, is_login: false, at: from },
        ] {
            let mut evidence = failing_for(SERVED_WITHIN + SECOND);
            evidence.deeds.push(deed);
            assert_eq!(broken(&evidence), []);
        }
    }

    /// Where nobody is served it is no user's, until the fleet is at rest.
    #[test]
    fn outage_starves_nobody_until_rest() {
        let mut evidence = failing_for(2 * SERVED_WITHIN);
        evidence.lines.retain(|(_, said)| !matches!(said, Said::Saved { .. }));
        assert_eq!(broken(&evidence), []);
        evidence.rested = 2 * SECOND;
        assert_eq!(broken(&evidence), [Invariant::NobodyStarves]);
    }

    #[test]
    fn user_nobody_reads_is_seen() {
        let mut evidence = evidence();
        evidence.population.enterprise = 0;
        evidence.lines = vec![(1, Said::Ready), (1, Said::Served(vec![(ANN, 100, SECOND)]))];
        assert_eq!(broken(&evidence), []);
        let end = 2 * SECOND + 2 * SERVED_WITHIN;
        evidence.population.enterprise = 1;
        evidence.lines.push((1, Said::Served(vec![(ANN + 1, 7, end)])));
        assert_eq!(broken(&evidence), [Invariant::NobodyStarves]);
    }

    #[test]
    fn enterprise_user_never_logs_in() {
        let mut evidence = evidence();
        evidence.population.people = 0;
        evidence.lines = vec![(1, failing(Why::LoginOver, SECOND, SECOND))];
        assert_eq!(broken(&evidence), [Invariant::NobodyStarves]);
    }
}
