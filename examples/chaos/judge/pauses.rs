//! Law 6: no pause that the provider asked for, or that a failure brought, is cut short by anybody,
//! and no lease sends more requests than the table of failures allows.

use std::collections::HashMap;

use super::{Broken, Invariant, Seen, Sorted};
use crate::plan::{Effect, seconds};
use crate::provider::{Arrival, Grant};
use crate::record::{MAX_ATTEMPTS, Micros, Process, REFRESH_TIMEOUT, Said, User, micros};

pub(super) fn judge(sorted: &Sorted<'_>) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (user, seen) in &sorted.users {
        too_many_requests(sorted, *user, seen, &mut broken);
        lease_within_pause(*user, seen, &mut broken);
        for arrival in &seen.arrivals {
            if let Effect::Pause(pause) = arrival.effect
                && let Some(process) = arrival.process
                && arrival.grant != Grant::Login
            {
                request_within_pause(sorted, *user, seen, (process, arrival, pause), &mut broken);
                pause_not_noted(sorted, *user, seen, (process, arrival, pause), &mut broken);
            }
        }
    }
    broken
}

/// So long a pause lasts for certain: clocks are not quite the same.
fn certain(pause: Micros) -> Micros {
    pause / 20 * 19
}

fn cut(user: User, at: Micros, words: String) -> Broken {
    Broken { invariant: Invariant::NoPauseCut, user: Some(user), at, words }
}

/// A process sent more requests than its lease allows: the attempts of one refresh, and one more
/// without its Bearer header.
fn too_many_requests(sorted: &Sorted<'_>, user: User, seen: &Seen<'_>, broken: &mut Vec<Broken>) {
    let mut counts: HashMap<(Process, Micros), u32> = HashMap::new();
    for arrival in seen.arrivals.iter().filter(|arrival| arrival.grant != Grant::Login) {
        let Some(process) = arrival.process else { continue };
        let Some(lease) = seen.lease(arrival) else { continue };
        let count = counts.entry((process, lease.begun)).or_default();
        *count += 1;
        let allowed = MAX_ATTEMPTS + u32::from(arrival.grant == Grant::Refresh);
        let since = arrival.at.saturating_sub(micros(REFRESH_TIMEOUT));
        if *count == allowed + 1 && sorted.is_calm(process, since, arrival.at) {
            let words = format!("process {process} sent {count} requests under one lease");
            broken.push(cut(user, arrival.at, words));
        }
    }
}

/// The store granted a lease within a pause that it had been told.
fn lease_within_pause(user: User, seen: &Seen<'_>, broken: &mut Vec<Broken>) {
    for (process, said) in &seen.lines {
        let Said::Released { version, release, begun, at, .. } = said else { continue };
        let early = seen.grants.iter().find(|grant| {
            grant.version == *version
                && grant.begun >= *at
                && grant.at < begun + certain(release.pause)
        });
        if let Some(grant) = early {
            let words = format!(
                "process {} was granted a lease {:.1} s into the pause of {:.1} s by process \
                 {process}",
                grant.process,
                seconds(grant.at - begun),
                seconds(release.pause)
            );
            broken.push(cut(user, grant.at, words));
        }
    }
}

/// The process that was asked for a pause sent a request within it.
fn request_within_pause(
    sorted: &Sorted<'_>,
    user: User,
    seen: &Seen<'_>,
    (process, asked, pause): (Process, &Arrival, Micros),
    broken: &mut Vec<Broken>,
) {
    let next = seen.arrivals.iter().find(|next| {
        next.at > asked.at
            && next.process == Some(process)
            && next.grant == asked.grant
            && next.refresh == asked.refresh
    });
    let since = asked.at.saturating_sub(micros(REFRESH_TIMEOUT));
    if let Some(next) = next
        && next.at < asked.at + certain(pause)
        && seen.had_time(asked)
        && sorted.is_calm(process, since, next.at)
    {
        let words = format!(
            "process {process} asked again after {:.1} s of a pause of {:.1} s",
            seconds(next.at - asked.at),
            seconds(pause)
        );
        broken.push(cut(user, next.at, words));
    }
}

/// The process that was asked for a pause told the others of a shorter one.
fn pause_not_noted(
    sorted: &Sorted<'_>,
    user: User,
    seen: &Seen<'_>,
    (process, asked, pause): (Process, &Arrival, Micros),
    broken: &mut Vec<Broken>,
) {
    let told = seen.lines.iter().find_map(|(by, said)| match said {
        Said::Releasing { release, at, .. } if *by == process && *at >= asked.at => {
            Some((*at, release.pause))
        }
        _ => None,
    });
    let since = asked.at.saturating_sub(micros(REFRESH_TIMEOUT));
    if let Some((at, told)) = told
        && told < certain(pause)
        && seen.had_time(asked)
        && sorted.is_calm(process, since, at)
    {
        let words = format!(
            "process {process} was asked for a pause of {:.1} s, and told the others {:.1} s",
            seconds(pause),
            seconds(told)
        );
        broken.push(cut(user, at, words));
    }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::*;
    use super::*;
    use crate::judge::{Deed, Evidence};
    use crate::record::{Note, SECOND};

    /// Process 1 has the lease, and is asked for a pause of 2 s.
    fn asked() -> Evidence {
        let mut evidence = evidence();
        evidence.lines = vec![(1, granted(SECOND, FIRST))];
        let effect = Effect::Pause(2 * SECOND);
        let asked = Arrival { issued: None, is_faulty: true, effect, ..refresh(SECOND, 10, 0) };
        evidence.arrivals.push(asked);
        evidence
    }

    fn pause(pause: Micros) -> Note {
        Note { pause, ..Note::default() }
    }

    #[test]
    fn request_within_pause_is_seen() {
        let mut evidence = asked();
        evidence.arrivals.push(Arrival { is_faulty: true, ..refresh(2 * SECOND, 10, 11) });
        assert_eq!(broken(&evidence), [Invariant::NoPauseCut]);
        evidence.arrivals[2].at = 3 * SECOND + 1;
        assert_eq!(broken(&evidence), []);
    }

    /// A process whose clock was turned goes by the store's.
    #[test]
    fn turned_clock_is_no_witness() {
        let mut evidence = asked();
        evidence.arrivals.push(Arrival { is_faulty: true, ..refresh(2 * SECOND, 10, 11) });
        evidence.lines.push((1, Said::Jumped { from: SECOND, to: SECOND + 500 }));
        assert_eq!(broken(&evidence), []);
    }

    #[test]
    fn pause_kept_from_others_is_seen() {
        let mut evidence = asked();
        evidence.lines.push((1, releasing(SECOND + 2_000, FIRST, pause(SECOND / 2))));
        assert_eq!(broken(&evidence), [Invariant::NoPauseCut]);
        evidence.lines.pop();
        evidence.lines.push((1, releasing(SECOND + 2_000, FIRST, pause(2 * SECOND))));
        assert_eq!(broken(&evidence), []);
    }

    #[test]
    fn lease_within_pause_is_seen() {
        let mut evidence = asked();
        let release = pause(2 * SECOND);
        let (begun, at) = (SECOND + 2_000, SECOND + 3_000);
        evidence.lines.push((1, releasing(begun, FIRST, release)));
        let released = Said::Released { user: ANN, version: FIRST, release, begun, at };
        evidence.lines.push((1, released));
        evidence.lines.push((2, granted(2 * SECOND, FIRST)));
        assert_eq!(broken(&evidence), [Invariant::NoPauseCut]);
        evidence.lines.pop();
        evidence.lines.push((2, granted(3 * SECOND + 5_000, FIRST)));
        assert_eq!(broken(&evidence), []);
    }

    #[test]
    fn requests_beyond_lease_are_seen() {
        let mut evidence = evidence();
        evidence.lines = vec![(1, granted(SECOND, FIRST))];
        let faulty = |at| Arrival { is_faulty: true, ..refresh(at, 10, 11) };
        evidence.arrivals.extend([faulty(SECOND), faulty(SECOND + 1), faulty(SECOND + 2)]);
        assert_eq!(broken(&evidence), []);
        evidence.arrivals.push(faulty(SECOND + 3));
        assert_eq!(broken(&evidence), [Invariant::NoPauseCut]);
        // A process that was killed has sent them all the same.
        evidence.deeds.push(Deed::Killed { process: 1, at: 2 * SECOND });
        assert_eq!(broken(&evidence), [Invariant::NoPauseCut]);
        // The lease before, of which little was used, allows no more.
        evidence.lines.insert(0, (1, granted(SECOND / 2, FIRST)));
        assert_eq!(broken(&evidence), [Invariant::NoPauseCut]);
    }
}
