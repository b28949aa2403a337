//! Law 3: no token is served that was removed, that the API refused, or whose life is over.

use std::collections::HashMap;

use super::logins::{Presence, presence};
use super::{Broken, Invariant, Seen, Sorted};
use crate::plan::seconds;
use crate::provider::Arrival;
use crate::record::{Checked, Digest, Micros, Process, SECOND, Said, User};

/// How much longer than its life a token may seem to live: the provider counts whole seconds, and
/// a store adds what a save took if that was a second or more.
const ROUNDING: Micros = 5 * SECOND / 2;

pub(super) fn judge(sorted: &Sorted<'_>) -> Vec<Broken> {
    let mut broken = Vec::new();
    let last_reads = last_reads(sorted);
    for (process, said) in &sorted.evidence.lines {
        match said {
            Said::Served(reads) => {
                for (user, access, begun) in reads {
                    outlived(sorted, *process, (*user, *access, *begun), &mut broken);
                }
            }
            Said::Refused { user, access, at } => {
                let last = last_reads.get(&(*process, *user, *access)).copied().unwrap_or(0);
                // A provider that hands out the same token when it is asked for another stands by
                // it.
                let stands_by = sorted.issued.get(access).is_some_and(|(_, last)| last > at);
                if last > *at && !stands_by {
                    let words =
                        format!("process {process} served a token that the API had refused");
                    broken.push(dead(*user, last, words));
                }
            }
            Said::Done { user, begun, at, is_ok: true } => {
                if let Some(seen) = sorted.users.get(user)
                    && was_removal(seen, *process, *begun)
                {
                    removed(sorted, *user, seen, (*process, *begun, *at), &last_reads, &mut broken);
                }
            }
            _ => {}
        }
    }
    for check in &sorted.evidence.checks {
        if check.outcome == Checked::Served
            && sorted.evidence.population.is_person(check.user)
            && presence(sorted, check.user) == Presence::Gone
            && let Some(seen) = sorted.users.get(&check.user)
        {
            let removal = seen.ordered.last().map_or(0, |(_, _, at)| *at);
            if !was_saved_late(seen, removal) {
                let words = format!("process {} serves a user who was removed", check.process);
                broken.push(dead(check.user, Micros::MAX, words));
            }
        }
    }
    broken
}

/// When the last read began of each process that got a token.
fn last_reads(sorted: &Sorted<'_>) -> HashMap<(Process, User, Digest), Micros> {
    let mut last = HashMap::new();
    for (process, said) in &sorted.evidence.lines {
        let Said::Served(reads) = said else { continue };
        for (user, access, begun) in reads {
            let entry = last.entry((*process, *user, *access)).or_insert(*begun);
            *entry = (*begun).max(*entry);
        }
    }
    last
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

/// Whether what was done was a removal, not a login.
fn was_removal(seen: &Seen<'_>, process: Process, begun: Micros) -> bool {
    let mut ordered = seen.ordered.iter().filter(|(by, _, at)| *by == process && *at <= begun);
    ordered.next_back().is_some_and(|(_, is_login, _)| !is_login)
}

/// A login that the store would not take before is saved over whatever is there by then.
fn was_saved_late(seen: &Seen<'_>, since: Micros) -> bool {
    seen.lines.iter().any(|(_, said)| {
        matches!(said, Said::Saved { version, at, .. } if version.revision == 1 && *at >= since)
    })
}

/// The process that removed a user serves none of their earlier tokens.
fn removed(
    sorted: &Sorted<'_>,
    user: User,
    seen: &Seen<'_>,
    (process, begun, at): (Process, Micros, Micros),
    last_reads: &HashMap<(Process, User, Digest), Micros>,
    broken: &mut Vec<Broken>,
) {
    if sorted.evidence.population.is_person(user) && was_saved_late(seen, begun) {
        return;
    }
    let tokens = seen.arrivals.iter().filter_map(|arrival| arrival.issued);
    for token in tokens.filter(|token| token.at < begun) {
        let last = last_reads.get(&(process, user, token.access)).copied().unwrap_or(0);
        if last > at {
            let words = format!("process {process} served a token of a user whom it had removed");
            broken.push(dead(user, last, words));
        }
    }
}

fn dead(user: User, at: Micros, words: String) -> Broken {
    Broken { invariant: Invariant::NoDeadToken, user: Some(user), at, words }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::*;
    use super::*;
    use crate::fleet::Check;
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
        evidence.arrivals.push(refresh(5 * SECOND, 9, 10));
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
        // By another process it may be served until that learns of it.
        evidence.lines[1].0 = 2;
        assert_eq!(broken(&evidence), []);
    }

    /// Once the provider hands it out again, it is as good as new.
    #[test]
    fn reissued_token_may_be_served() {
        let mut evidence = evidence();
        let refused = Said::Refused { user: ANN, access: 100, at: 5 * SECOND };
        evidence.lines = vec![(1, refused), (1, granted(6 * SECOND, FIRST)), served(7 * SECOND)];
        evidence.arrivals.push(refresh(6 * SECOND, 9, 10));
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

    #[test]
    fn removed_user_served_at_end_is_seen() {
        let mut evidence = evidence();
        removal(&mut evidence);
        evidence.checks = vec![Check { process: 2, user: ANN, outcome: Checked::Served }];
        assert_eq!(broken(&evidence), [Invariant::NoDeadToken]);
        evidence.lines.push((2, saved(6 * SECOND, FIRST)));
        assert_eq!(broken(&evidence), []);
    }
}
