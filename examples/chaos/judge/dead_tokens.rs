//! Law 3: no token is served that was removed, that the API refused, or whose life is over; and
//! none that another process has replaced or removed, beyond the time that it takes to learn of it.

use super::logins::{Presence, presence};
use super::{Broken, Invariant, Seen, Sorted};
use crate::plan::seconds;
use crate::provider::Arrival;
use crate::record::{Digest, Micros, Process, REVALIDATE_AFTER, SECOND, Said, User, micros};

/// How much longer than its life a token may seem to live: the provider counts whole seconds, and
/// a store adds what a save took if that was a second or more.
const ROUNDING: Micros = 5 * SECOND / 2;
/// The first read so long after a change has the store looked at.
const LOOK_AFTER: Micros = micros(REVALIDATE_AFTER) / 2;
/// How long that look may take. The other half of the time would do, on a machine that has no more
/// to do than it can.
const LOOK: Micros = micros(REVALIDATE_AFTER);

pub(super) fn judge(sorted: &Sorted<'_>) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (process, said) in &sorted.evidence.lines {
        if let Said::Served(reads) = said {
            for (user, access, begun) in reads {
                outlived(sorted, *process, (*user, *access, *begun), &mut broken);
            }
        }
        if let Said::Refused { user, access, at } = said
            && let Some(last) = sorted.users.get(user).and_then(|seen| seen.last(*process, *access))
        {
            // A provider that hands out the same token when it is asked for another stands by it.
            let stands_by = sorted.issued.get(access).is_some_and(|(_, last)| last > at);
            if last > *at && !stands_by {
                let words = format!("process {process} served a token that the API had refused");
                broken.push(dead(*user, last, words));
            }
        }
    }
    for (user, seen) in &sorted.users {
        let removals = removals(sorted, *user, seen);
        for removal in &removals {
            served_by_remover(sorted, *user, seen, removal, &mut broken);
        }
        stale(sorted, *user, seen, &removals, &mut broken);
        let removed = seen.ordered.last().map_or(0, |(_, _, at)| *at);
        let is_gone = sorted.evidence.population.is_person(*user)
            && presence(sorted, *user) == Presence::Gone
            && !was_saved_late(seen, removed);
        let mut reads = seen.living_reads(sorted);
        if is_gone && let Some((process, _)) = reads.find(|(_, read)| read.failing.is_none()) {
            let words = format!("process {process} serves a user who was removed");
            broken.push(dead(*user, Micros::MAX, words));
        }
    }
    broken
}

fn outlived(
    sorted: &Sorted<'_>,
    process: Process,
    (user, access, begun): (User, Digest, Micros),
    broken: &mut Vec<Broken>,
) {
    let Some((first, last)) = sorted.issued.get(&access) else { return };
    // Where the provider hands a token out again, v6 does not say how old it is.
    let issued = if sorted.evidence.is_v6 { last } else { first };
    let over = issued + sorted.evidence.token_life;
    if begun > over + ROUNDING && !was_save_cut(sorted, user, access) {
        let words = format!(
            "process {process} served a token whose life was over for {:.1} s",
            seconds(begun - over)
        );
        broken.push(dead(user, begun, words));
    }
}

/// Whether the process that was given this token was killed while it saved it: then the store may
/// not know how long that had taken.
fn was_save_cut(sorted: &Sorted<'_>, user: User, access: Digest) -> bool {
    let Some(seen) = sorted.users.get(&user) else { return false };
    let issued = |arrival: &&&Arrival| arrival.issued.is_some_and(|new| new.access == access);
    let Some(arrival) = seen.arrivals.iter().rev().find(issued) else { return false };
    let Some(process) = arrival.process else { return false };
    let was_saved = seen.lines.iter().any(|(by, said)| {
        *by == process && matches!(said, Said::Saved { at, .. } if *at > arrival.at)
    });
    sorted.killed.contains_key(&process) && !was_saved
}

/// A process removed the user: it was asked after `begun`, and had done it `at` a time.
struct Removal {
    process: Process,
    begun: Micros,
    at: Micros,
}

/// The removals that no login was saved after.
fn removals(sorted: &Sorted<'_>, user: User, seen: &Seen<'_>) -> Vec<Removal> {
    let is_person = sorted.evidence.population.is_person(user);
    let done = seen.lines.iter().filter_map(|(process, said)| match **said {
        Said::Done { begun, at, is_ok: true, .. } => Some(Removal { process: *process, begun, at }),
        _ => None,
    });
    done.filter(|Removal { process, begun, .. }| {
        let mut ordered = seen.ordered.iter().filter(|(by, _, at)| by == process && at <= begun);
        ordered.next_back().is_some_and(|(_, is_login, _)| !is_login)
            && !(is_person && was_saved_late(seen, *begun))
    })
    .collect()
}

/// A login that the store would not take before is saved over whatever is there by then.
fn was_saved_late(seen: &Seen<'_>, since: Micros) -> bool {
    seen.lines.iter().any(|(_, said)| {
        matches!(said, Said::Saved { version, at, .. } if version.revision == 1 && *at >= since)
    })
}

/// The process that removed a user serves none of their earlier tokens.
fn served_by_remover(
    sorted: &Sorted<'_>,
    user: User,
    seen: &Seen<'_>,
    removal: &Removal,
    broken: &mut Vec<Broken>,
) {
    let Removal { process, begun, at } = *removal;
    for (by, access) in seen.served.keys().filter(|(by, _)| *by == process) {
        let is_earlier = sorted.issued.get(access).is_some_and(|(_, issued)| *issued < begun);
        if let Some(last) = seen.last(*by, *access).filter(|last| is_earlier && *last > at) {
            let words = format!("process {process} served a token of a user whom it had removed");
            broken.push(dead(user, last, words));
        }
    }
}

/// No process serves a token for long that is not in the store any more.
fn stale(
    sorted: &Sorted<'_>,
    user: User,
    seen: &Seen<'_>,
    removals: &[Removal],
    broken: &mut Vec<Broken>,
) {
    for ((process, access), reads) in &seen.served {
        let Some(gone) = left_store(sorted, seen, *access, removals) else { continue };
        let late = reads.iter().find(|late| {
            let looked = reads.iter().rfind(|look| **look + LOOK < **late);
            looked.is_some_and(|look| {
                *look >= gone + LOOK_AFTER && sorted.is_calm(*process, look - LOOK, **late)
            })
        });
        if let Some(late) = late {
            let words = format!(
                "process {process} served a token {:.1} s after it had left the store",
                seconds(late - gone)
            );
            broken.push(dead(user, *late, words));
        }
    }
}

/// When a token certainly was in the store no more: another one was saved over it, or the user was
/// removed. `None` where that is not known, or where it may never have been there.
fn left_store(
    sorted: &Sorted<'_>,
    seen: &Seen<'_>,
    access: Digest,
    removals: &[Removal],
) -> Option<Micros> {
    let (_, issued) = sorted.issued.get(&access)?;
    let mut first = seen.arrivals.iter().filter(|arrival| arrival.process.is_none());
    let is_first = first.any(|arrival| arrival.issued.is_some_and(|new| new.access == access));
    let (own, others): (Vec<_>, Vec<_>) = seen.saves.iter().partition(|it| it.access == access);
    let taken = own.iter().map(|save| save.taken).max().or(is_first.then_some(0))?;
    let replaced = others.iter().filter(|save| save.reached > taken).map(|save| save.taken);
    let removed = removals.iter().filter(|it| it.begun > taken.max(*issued)).map(|it| it.at);
    replaced.chain(removed).min()
}

fn dead(user: User, at: Micros, words: String) -> Broken {
    Broken { invariant: Invariant::NoDeadToken, user: Some(user), at, words }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::*;
    use super::*;
    use crate::judge::{Deed, Evidence};

    fn served(begun: Micros) -> (Process, Said) {
        (1, Said::Served(vec![(ANN, 100, begun)]))
    }

    fn removal(evidence: &mut Evidence) {
        let (process, is_login, at) = (1, false, SECOND);
        evidence.deeds.push(Deed::Ordered { process, user: ANN, is_login, at });
        let (begun, at) = (2 * SECOND, 3 * SECOND);
        evidence.lines.push((1, Said::Done { user: ANN, begun, at, is_ok: true }));
    }

    #[test]
    fn token_past_its_life_is_seen() {
        let mut evidence = evidence();
        evidence.lines = vec![served(22 * SECOND)];
        assert_eq!(broken(&evidence), []);
        evidence.lines.push(served(23 * SECOND));
        assert_eq!(broken(&evidence), [Invariant::NoDeadToken]);
    }

    /// Its age counts from the first time it was handed out, where the provider tells.
    #[test]
    fn reissued_token_is_no_younger() {
        let mut evidence = evidence();
        evidence.lines = vec![(1, granted(4 * SECOND, FIRST)), served(23 * SECOND)];
        evidence.arrivals.push(refresh(5 * SECOND, 10, 10));
        assert_eq!(broken(&evidence), [Invariant::NoDeadToken]);
        evidence.is_v6 = true;
        assert_eq!(broken(&evidence), []);
    }

    /// A process that was killed while it saved a token cannot tell how long that took.
    #[test]
    fn token_of_interrupted_save_is_spared() {
        let mut evidence = evidence();
        evidence.lines = vec![(1, granted(SECOND, FIRST))];
        evidence.arrivals.push(refresh(SECOND, 10, 11));
        evidence.lines.push((2, Said::Served(vec![(ANN, 110, 25 * SECOND)])));
        evidence.deeds.push(Deed::Killed { process: 1, at: 8 * SECOND });
        assert_eq!(broken(&evidence), []);
        evidence.lines.push((1, saved(2 * SECOND, SECOND_REVISION)));
        assert_eq!(broken(&evidence), [Invariant::NoDeadToken]);
    }

    #[test]
    fn refused_token_served_again_is_seen() {
        let mut evidence = evidence();
        let refused = Said::Refused { user: ANN, access: 100, at: 5 * SECOND };
        evidence.lines = vec![served(4 * SECOND), (1, refused.clone())];
        assert_eq!(broken(&evidence), []);
        evidence.lines.push(served(6 * SECOND));
        assert_eq!(broken(&evidence), [Invariant::NoDeadToken]);
    }

    /// Once the provider hands it out again, it is as good as new.
    #[test]
    fn reissued_token_may_be_served() {
        let mut evidence = evidence();
        let refused = Said::Refused { user: ANN, access: 100, at: 5 * SECOND };
        evidence.lines = vec![(1, refused), (1, granted(6 * SECOND, FIRST)), served(7 * SECOND)];
        evidence.arrivals.push(refresh(6 * SECOND, 10, 10));
        assert_eq!(broken(&evidence), []);
    }

    #[test]
    fn token_of_removed_user_is_seen() {
        let mut evidence = evidence();
        removal(&mut evidence);
        evidence.lines.push(served(5 * SECOND / 2));
        assert_eq!(broken(&evidence), []);
        evidence.lines.push(served(4 * SECOND));
        assert_eq!(broken(&evidence), [Invariant::NoDeadToken]);
    }

    /// Another process learns of it while it reads.
    #[test]
    fn removal_elsewhere_is_learnt_of() {
        let mut evidence = evidence();
        removal(&mut evidence);
        let reads = |evidence: &mut Evidence, times: &[Micros]| {
            evidence.lines.truncate(1);
            let reads = times.iter().map(|at| (2, Said::Served(vec![(ANN, 100, *at)])));
            evidence.lines.extend(reads);
        };
        reads(&mut evidence, &[4 * SECOND, 6 * SECOND]);
        assert_eq!(broken(&evidence), []);
        reads(&mut evidence, &[9 * SECOND]); // as it was last seen
        assert_eq!(broken(&evidence), []);
        reads(&mut evidence, &[4 * SECOND, 6 * SECOND + 1]);
        assert_eq!(broken(&evidence), [Invariant::NoDeadToken]);
        let (from, to) = (4 * SECOND, 5 * SECOND);
        evidence.deeds.push(Deed::Stopped { process: 2, from, to });
        assert_eq!(broken(&evidence), []);
    }

    /// So it does of a newer token, such as that for which a refused one was replaced.
    #[test]
    fn replacement_elsewhere_is_learnt_of() {
        let mut evidence = evidence();
        let at = 3 * SECOND;
        evidence.lines = vec![
            (1, granted(at, FIRST)),
            (1, reached(at, SECOND_REVISION, 11)),
            (1, saved(at, SECOND_REVISION)),
            (2, Said::Served(vec![(ANN, 100, 4 * SECOND)])),
            (2, Said::Served(vec![(ANN, 110, 7 * SECOND)])),
        ];
        evidence.arrivals.push(refresh(at, 10, 11));
        assert_eq!(broken(&evidence), []);
        evidence.lines.push((2, Said::Served(vec![(ANN, 100, 7 * SECOND)])));
        assert_eq!(broken(&evidence), [Invariant::NoDeadToken]);
    }

    #[test]
    fn removed_user_served_at_end_is_seen() {
        let mut evidence = evidence();
        removal(&mut evidence);
        let at = 9 * SECOND;
        evidence.rested = 8 * SECOND;
        evidence.lines.push((2, Said::Served(vec![(ANN, 7, at)])));
        assert_eq!(broken(&evidence), [Invariant::NoDeadToken]);
        evidence.lines.push((2, saved(6 * SECOND, FIRST)));
        assert_eq!(broken(&evidence), []);
    }
}
