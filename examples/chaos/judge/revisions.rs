//! Law 1: one refresh per revision is in flight, in all processes. A second one is sent only by the
//! table of failures, or after the holder was silent for its whole lease.

use super::{Broken, Invariant, Lease, Seen, Sorted};
use crate::provider::{Arrival, Grant};
use crate::record::{Digest, LEASE, Micros, Process, REFRESH_TIMEOUT, SECOND, Said, User, micros};

/// A lease cannot be over by then, even if the store's clock is not quite the processes' own.
const CERTAIN_LEASE: Micros = LEASE.as_secs() * SECOND * 9 / 10;

pub(super) fn judge(sorted: &Sorted<'_>) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (user, seen) in &sorted.users {
        two_leases(*user, seen, &mut broken);
        for arrival in seen.arrivals.iter().filter(|it| it.grant != Grant::Login) {
            let Some(process) = arrival.process else { continue };
            if let Some(words) = is_out_of_turn(sorted, seen, process, arrival) {
                broken.push(Broken {
                    invariant: Invariant::OneRefresh,
                    user: Some(*user),
                    at: arrival.at,
                    words: format!("process {process} {words}"),
                });
            }
        }
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

/// Why a process should not have sent this request, if it should not.
fn is_out_of_turn(
    sorted: &Sorted<'_>,
    seen: &Seen<'_>,
    process: Process,
    arrival: &Arrival,
) -> Option<String> {
    let Some(lease) = seen.lease(arrival) else {
        return Some("asked without a lease of what it sent".to_owned());
    };
    // Clocks and the way to the provider may add a second, and a process may be held up on that way.
    let since = lease.begun.max(arrival.at.saturating_sub(micros(LEASE)));
    let is_late =
        arrival.at > lease_end(seen, lease) + SECOND && sorted.is_calm(process, since, arrival.at);
    // A lease allows what its row held, whatever others save meanwhile.
    let by = if is_late { arrival.at } else { lease.begun };
    if let Some(by) = arrival.refresh.and_then(|sent| replaced_by(seen, sent, by)) {
        return Some(format!("sent a refresh token that process {by} had replaced before"));
    }
    if is_late {
        return Some("asked after its lease had ended".to_owned());
    }
    let was_answered = |first: &&&Arrival| {
        let since = first.at.saturating_sub(micros(REFRESH_TIMEOUT));
        first.process == arrival.process
            && first.refresh == arrival.refresh
            && !first.is_faulty
            && first.issued.is_some_and(|new| new.refresh != first.refresh)
            && seen.had_time(first)
            && sorted.is_calm(process, since, arrival.at)
    };
    let mut before = seen.arrivals.iter().take_while(|first| !std::ptr::eq(**first, arrival));
    (arrival.grant == Grant::Refresh && before.any(|first| was_answered(&first)))
        .then(|| "sent a refresh token for which it had been given another".to_owned())
}

/// The process, if any, that had saved the successor of a refresh token by then.
fn replaced_by(seen: &Seen<'_>, token: Digest, by: Micros) -> Option<Process> {
    let answers = seen.arrivals.iter().filter(|arrival| arrival.refresh == Some(token));
    let successors: Vec<_> = answers.filter_map(|arrival| arrival.issued?.refresh).collect();
    let saves = seen.saves.iter().filter(|save| save.taken < by);
    saves
        .filter(|save| save.refresh != Some(token))
        .find(|save| save.refresh.is_some_and(|refresh| successors.contains(&refresh)))
        .map(|save| save.process)
}

/// When a lease ended: by a release, by a save, or by its time.
fn lease_end(seen: &Seen<'_>, lease: &Lease) -> Micros {
    let ends = seen.lines.iter().filter_map(|(process, said)| match said {
        Said::Releasing { version, at, .. } if *version == lease.version => Some((*process, *at)),
        Said::Saved { at, .. } => Some((*process, *at)),
        _ => None,
    });
    let ends = ends.filter(|(process, at)| *process == lease.process && *at >= lease.begun);
    ends.map(|(_, at)| at).min().unwrap_or(Micros::MAX).min(lease.at + micros(LEASE))
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
        let late = Said::Granted { user: ANN, version: FIRST, refresh: Some(10), begun, at };
        evidence.lines = vec![(1, late), (2, granted(15 * SECOND / 2, FIRST))];
        assert_eq!(broken(&evidence), []);
    }

    #[test]
    fn replaced_token_sent_again_is_seen() {
        let mut evidence = evidence();
        evidence.lines = vec![(1, granted(SECOND, FIRST)), (1, granted(5 * SECOND, FIRST))];
        evidence.arrivals.push(refresh(SECOND + 2_000, 10, 11));
        let again = Arrival { issued: None, ..refresh(5 * SECOND, 10, 11) };
        evidence.arrivals.push(again);
        assert_eq!(broken(&evidence), [Invariant::OneRefresh]);

        // A process that was stopped meanwhile may not have had the answer in time.
        evidence.deeds.push(Deed::Stopped { process: 1, from: SECOND, to: 4 * SECOND });
        assert_eq!(broken(&evidence), []);
    }

    /// Once the store had its successor, no row holds a token any more, whoever sends it.
    #[test]
    fn replaced_token_of_other_process_is_seen() {
        let mut evidence = evidence();
        evidence.lines = vec![
            (1, granted(SECOND, FIRST)),
            (1, reached(SECOND + 3_000, SECOND_REVISION, 11)),
            (1, saved(SECOND + 4_000, SECOND_REVISION)),
            (2, granted(9 * SECOND, FIRST)),
        ];
        evidence.arrivals.push(refresh(SECOND + 2_000, 10, 11));
        let at = 9 * SECOND;
        let again = Arrival { process: Some(2), issued: None, ..refresh(at + 1, 10, 0) };
        evidence.arrivals.push(again);
        assert_eq!(broken(&evidence), [Invariant::OneRefresh]);
        // By a lease from before it may, if the other was silent for its own.
        evidence.lines[2] = (1, saved(at + 1, SECOND_REVISION));
        assert_eq!(broken(&evidence), []);
    }

    #[test]
    fn request_without_lease_is_seen() {
        let mut evidence = evidence();
        evidence.arrivals.push(refresh(2 * SECOND, 10, 11));
        assert_eq!(broken(&evidence), [Invariant::OneRefresh]);
        // One of another row is none.
        evidence.lines = vec![(1, granted(SECOND, SECOND_REVISION))];
        assert_eq!(broken(&evidence), [Invariant::OneRefresh]);
        evidence.lines = vec![(1, granted(SECOND, FIRST))];
        assert_eq!(broken(&evidence), []);
        // Nor is one that is over.
        evidence.arrivals[1].at = 9 * SECOND;
        assert_eq!(broken(&evidence), [Invariant::OneRefresh]);
        evidence.deeds.push(Deed::Stopped { process: 1, from: 3 * SECOND, to: 9 * SECOND });
        assert_eq!(broken(&evidence), []);
        evidence.deeds.pop();
        evidence.arrivals[1].at = 3 * SECOND;
        evidence.lines.push((1, releasing(SECOND + 2_000, FIRST, Note::default())));
        assert_eq!(broken(&evidence), [Invariant::OneRefresh]);
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
