//! Law 1: one refresh per revision is in flight, in all processes. A second one is sent only by the
//! table of failures, or after the holder was silent for its whole lease.

use super::{Broken, Invariant, Lease, Seen, Sorted};
use crate::provider::Grant;
use crate::record::{LEASE, Micros, REFRESH_TIMEOUT, SECOND, Said, User, micros};

/// A lease cannot be over by then, even if the store's clock is not quite the processes' own.
const CERTAIN_LEASE: Micros = LEASE.as_secs() * SECOND * 9 / 10;

pub(super) fn judge(sorted: &Sorted<'_>) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (user, seen) in &sorted.users {
        two_leases(*user, seen, &mut broken);
        answered_twice(sorted, *user, seen, &mut broken);
    }
    broken
}

/// Two processes had the lease of one revision at the same time.
fn two_leases(user: User, seen: &Seen<'_>, broken: &mut Vec<Broken>) {
    for (index, second) in seen.grants.iter().enumerate() {
        for first in &seen.grants[..index] {
            if first.process == second.process || first.version != second.version {
                continue;
            }
            // A process that is stopped says late what it was granted.
            let orders = [(first, second), (second, first)];
            let mut possible = orders.iter().filter(|(first, second)| first.begun <= second.at);
            if possible.all(|(first, second)| is_within_lease(seen, first, second)) {
                broken.push(Broken {
                    invariant: Invariant::OneRefresh,
                    user: Some(user),
                    at: second.at,
                    words: format!(
                        "process {} was granted the lease that process {} had",
                        second.process, first.process
                    ),
                });
            }
        }
    }
}

/// Whether the first lease lived when the second one was granted, if that was their order.
fn is_within_lease(seen: &Seen<'_>, first: &Lease, second: &Lease) -> bool {
    let was_released = || {
        seen.lines.iter().any(|(process, said)| {
            *process == first.process
                && matches!(said, Said::Releasing { version, at, .. }
                    if *version == first.version && (first.begun..=second.at).contains(at))
        })
    };
    second.at < first.begun + CERTAIN_LEASE && !was_released()
}

/// A process sent a refresh token for which it had been given another one.
fn answered_twice(sorted: &Sorted<'_>, user: User, seen: &Seen<'_>, broken: &mut Vec<Broken>) {
    for (index, second) in seen.arrivals.iter().enumerate() {
        for first in &seen.arrivals[..index] {
            let Some(process) = second.process.filter(|_| first.process == second.process) else {
                continue;
            };
            let same_token = second.grant == Grant::Refresh && first.refresh == second.refresh;
            let was_answered = !first.is_faulty
                && first.issued.is_some_and(|new| new.refresh != first.refresh)
                && seen.had_time(first);
            let since = first.at.saturating_sub(micros(REFRESH_TIMEOUT));
            if same_token && was_answered && sorted.is_calm(process, since, second.at) {
                broken.push(Broken {
                    invariant: Invariant::OneRefresh,
                    user: Some(user),
                    at: second.at,
                    words: format!("process {process} sent a refresh token that it had replaced"),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::*;
    use super::*;
    use crate::judge::Deed;
    use crate::record::{Note, SECOND};

    #[test]
    fn two_leases_are_seen() {
        let mut evidence = evidence();
        evidence.lines = vec![(1, granted(SECOND, FIRST)), (2, granted(2 * SECOND, FIRST))];
        assert_eq!(broken(&evidence), [Invariant::OneRefresh]);
    }

    /// A lease that is over, or was released, or is of another revision, keeps nobody out.
    #[test]
    fn lease_that_ended_is_none() {
        let later = SECOND + micros(LEASE);
        for lines in [
            vec![(1, granted(SECOND, FIRST)), (2, granted(later, FIRST))],
            vec![(1, granted(SECOND, FIRST)), (2, granted(2 * SECOND, SECOND_REVISION))],
            vec![(1, granted(SECOND, FIRST)), (1, granted(2 * SECOND, FIRST))],
            vec![
                (1, granted(SECOND, FIRST)),
                (1, releasing(SECOND + 2_000, FIRST, Note::default())),
                (2, granted(2 * SECOND, FIRST)),
            ],
        ] {
            let mut evidence = evidence();
            evidence.lines = lines;
            assert_eq!(broken(&evidence), []);
        }
    }

    /// A process that was stopped while the store answered says late that it was granted a lease.
    #[test]
    fn lease_told_late_is_none() {
        let mut evidence = evidence();
        let (begun, at) = (SECOND, 8 * SECOND);
        let late = Said::Granted { user: ANN, version: FIRST, begun, at };
        evidence.lines = vec![(1, late), (2, granted(15 * SECOND / 2, FIRST))];
        assert_eq!(broken(&evidence), []);
    }

    #[test]
    fn replaced_token_sent_again_is_seen() {
        let mut evidence = evidence();
        evidence.lines = vec![(1, granted(SECOND, FIRST)), (1, granted(5 * SECOND, FIRST))];
        evidence.arrivals.push(refresh(SECOND + 2_000, 10, 11));
        let again = crate::provider::Arrival { issued: None, ..refresh(5 * SECOND, 10, 11) };
        evidence.arrivals.push(again);
        assert_eq!(broken(&evidence), [Invariant::OneRefresh]);

        // A process that was stopped meanwhile may not have had the answer in time.
        evidence.deeds.push(Deed::Stopped { process: 1, from: SECOND, to: 4 * SECOND });
        assert_eq!(broken(&evidence), []);
    }

    #[test]
    fn request_after_fault_is_allowed() {
        let mut evidence = evidence();
        evidence.lines = vec![(1, granted(SECOND, FIRST))];
        let mut faulty = refresh(SECOND + 2_000, 10, 11);
        faulty.is_faulty = true;
        evidence.arrivals.extend([faulty, refresh(SECOND + 3_000, 10, 11)]);
        assert_eq!(broken(&evidence), []);
    }
}
