//! Law 2: a refresh token that reached a process is not lost while that process lives, save by a
//! removal or a newer revision.
//!
//! With rotation a login can really be lost: the provider has replaced the refresh token, and the
//! answer with its successor never arrived, or the process that had it was killed before it was
//! saved. Each login that is over is traced to such a loss. Those that cannot be are counted.

use std::collections::HashSet;

use super::{Broken, Deed, Invariant, Seen, Sorted};
use crate::plan::Effect;
use crate::provider::{Arrival, Grant};
use crate::record::{
    Digest, Micros, Process, REFRESH_TIMEOUT, RowVersion, SECOND, Said, User, Why, micros,
};

/// How many logins ended for which reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// The answer with the next refresh token did not arrive.
    pub(crate) answer_lost: u64,
    /// The process that had it, or was to have it, was killed.
    pub(crate) killed: u64,
    /// The process was stopped, its clock was turned, or it got no CPU.
    pub(crate) disturbed: u64,
    /// The provider took a second use for theft.
    pub(crate) family: u64,
    /// The provider revoked it.
    pub(crate) revoked: u64,
}

impl Losses {
    pub(crate) fn total(&self) -> u64 {
        self.answer_lost + self.killed + self.disturbed + self.family + self.revoked
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.answer_lost += other.answer_lost;
        self.killed += other.killed;
        self.disturbed += other.disturbed;
        self.family += other.family;
        self.revoked += other.revoked;
    }
}

/// Why a login may be over.
enum Reason {
    AnswerLost,
    Killed,
    Disturbed,
    Family,
    Revoked,
}

/// Whether a user has a login at the end, as far as that is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Here,
    Gone,
    Unclear,
}

pub(super) fn judge(sorted: &Sorted<'_>, broken: &mut Vec<Broken>) -> Losses {
    let mut losses = Losses::default();
    for (user, seen) in &sorted.users {
        let mut over: HashSet<RowVersion> = HashSet::new();
        for (_, said) in &seen.lines {
            let Said::Releasing { version, release, at, .. } = said else { continue };
            if !release.refused || has_successor(seen, *version) || !over.insert(*version) {
                continue;
            }
            // A login that was removed, or replaced by another, may end.
            let since = birth(seen, version.incarnation);
            if !seen.ordered.iter().any(|(_, _, ordered)| (since..*at).contains(ordered)) {
                account(sorted, *user, seen, *version, *at, &mut losses, broken);
            }
        }
        told_over(sorted, *user, seen, &over, &mut losses, broken);
    }
    losses
}

/// Somebody who should be logged in at the end was told to log in.
fn told_over(
    sorted: &Sorted<'_>,
    user: User,
    seen: &Seen<'_>,
    over: &HashSet<RowVersion>,
    losses: &mut Losses,
    broken: &mut Vec<Broken>,
) {
    let is_over = seen
        .living_reads(sorted)
        .any(|(_, read)| read.failing.is_some_and(|failing| failing.why == Why::LoginOver));
    let is_person = sorted.evidence.population.is_person(user);
    if !is_person || presence(sorted, user) != Presence::Here || !is_over {
        return;
    }
    let saved = seen.lines.iter().filter_map(|(_, said)| match said {
        Said::Saved { version, at, .. } => Some((*at, *version)),
        _ => None,
    });
    let granted = seen.grants.iter().map(|grant| (grant.at, grant.version));
    let last = saved.chain(granted).max().map(|(_, version)| version);
    match last {
        Some(version) if !over.contains(&version) => {
            account(sorted, user, seen, version, Micros::MAX, losses, broken);
        }
        Some(_) => {}
        None => broken.push(lost(user, 0, "they have a login that nobody touched")),
    }
}

/// Whether a later revision of the same login was saved.
fn has_successor(seen: &Seen<'_>, version: RowVersion) -> bool {
    seen.lines.iter().any(|(_, said)| {
        matches!(said, Said::Saved { version: saved, .. }
            if saved.incarnation == version.incarnation && saved.revision > version.revision)
    })
}

/// When an incarnation was first seen.
fn birth(seen: &Seen<'_>, incarnation: u64) -> Micros {
    let saved = seen.lines.iter().filter_map(|(_, said)| match said {
        Said::Reached { version, at, .. } if version.incarnation == incarnation => Some(*at),
        _ => None,
    });
    let granted = seen.grants.iter().filter(|grant| grant.version.incarnation == incarnation);
    let first = saved.chain(granted.map(|grant| grant.begun)).min().unwrap_or(0);
    // The logins that were there before the fleet are older than any order.
    let is_first = !seen.lines.iter().any(|(_, said)| {
        matches!(said, Said::Reached { version, .. }
            if version.incarnation == incarnation && version.revision == 1)
    });
    if is_first { 0 } else { first }
}

/// The refresh token of a version.
fn refresh_token(seen: &Seen<'_>, version: RowVersion) -> Option<Digest> {
    let reached = seen.lines.iter().find_map(|(_, said)| match said {
        Said::Reached { version: there, refresh, .. } if *there == version => *refresh,
        _ => None,
    });
    let first = || {
        let before = |arrival: &&&Arrival| arrival.process.is_none();
        seen.arrivals.iter().find(before)?.issued?.refresh
    };
    reached.or_else(first)
}

fn account(
    sorted: &Sorted<'_>,
    user: User,
    seen: &Seen<'_>,
    version: RowVersion,
    at: Micros,
    losses: &mut Losses,
    broken: &mut Vec<Broken>,
) {
    match reason(sorted, seen, version, at) {
        Ok(Reason::AnswerLost) => losses.answer_lost += 1,
        Ok(Reason::Killed) => losses.killed += 1,
        Ok(Reason::Disturbed) => losses.disturbed += 1,
        Ok(Reason::Family) => losses.family += 1,
        Ok(Reason::Revoked) => losses.revoked += 1,
        Err(words) => {
            let words = format!("{words} (revision {} was refused)", version.revision);
            broken.push(lost(user, at, &words));
        }
    }
}

fn lost(user: User, at: Micros, words: &str) -> Broken {
    Broken { invariant: Invariant::NoLoginLost, user: Some(user), at, words: words.to_owned() }
}

/// Why a refresh token may be dead; in words, where nothing allows it.
fn reason(
    sorted: &Sorted<'_>,
    seen: &Seen<'_>,
    version: RowVersion,
    at: Micros,
) -> Result<Reason, String> {
    let Some(token) = refresh_token(seen, version) else {
        return Err("nobody knows where their refresh token came from".to_owned());
    };
    let family = family(seen, token);
    if seen.revoked.iter().any(|revoked| (family.begun..=at).contains(revoked)) {
        return Ok(Reason::Revoked);
    }
    let replaced = |arrival: &Arrival| {
        arrival.refresh == Some(token)
            && arrival.issued.is_some_and(|new| new.refresh != Some(token))
    };
    let uses: Vec<_> = seen.arrivals.iter().filter(|arrival| replaced(arrival)).collect();
    let Some(last) = uses.last() else {
        return if family.has_second_use && has_era(sorted, |_, is_family| is_family, family.begun) {
            Ok(Reason::Family)
        } else {
            Err("the refresh token was refused, and nothing had ended it".to_owned())
        };
    };
    if !has_era(sorted, |kills, _| kills, last.at) {
        return Err("the provider would have taken the old refresh token".to_owned());
    }
    // All of them must have gone astray: one that arrived is enough.
    let mut allowed = Err("it was never replaced".to_owned());
    for arrival in uses {
        allowed = Ok(fate(sorted, seen, arrival, birth(seen, version.incarnation))?);
    }
    allowed
}

/// Why the answer with a refresh token is nowhere.
fn fate(
    sorted: &Sorted<'_>,
    seen: &Seen<'_>,
    arrival: &Arrival,
    since: Micros,
) -> Result<Reason, String> {
    let new = arrival.issued.and_then(|new| new.refresh);
    let process = arrival.process.unwrap_or(Process::MAX);
    let is_killed = |process| sorted.killed.contains_key(&process);
    let reached: Vec<_> = seen
        .lines
        .iter()
        .filter_map(|(process, said)| match said {
            Said::Reached { refresh, at, .. } if *refresh == new => Some((*process, *at)),
            _ => None,
        })
        .collect();
    let keeps = |process, at| !is_killed(process) && !moved_on(sorted, seen, since, process, at);
    if let Some((living, _)) = reached.iter().find(|(process, at)| keeps(*process, *at)) {
        return Err(format!("process {living} lives, had the next refresh token, and lost it"));
    }
    let wait = micros(REFRESH_TIMEOUT) + SECOND;
    if reached.iter().any(|(process, _)| !is_killed(*process)) {
        Ok(Reason::Disturbed)
    } else if !reached.is_empty() || is_killed(process) {
        Ok(Reason::Killed)
    } else if arrival.effect == Effect::AnswerLost || arrival.effect == Effect::Late {
        Ok(Reason::AnswerLost)
    } else if !sorted.is_calm(process, arrival.at.saturating_sub(wait), arrival.at + wait)
        || !seen.had_time(arrival)
    {
        Ok(Reason::Disturbed)
    } else {
        Err(format!("process {process} was answered with the next refresh token, and dropped it"))
    }
}

/// Whether the user was removed or logged in anew before a process that had a token by `at` can
/// have been sure to save it.
fn moved_on(
    sorted: &Sorted<'_>,
    seen: &Seen<'_>,
    since: Micros,
    process: Process,
    at: Micros,
) -> bool {
    seen.ordered.iter().map(|(_, _, ordered)| *ordered).any(|ordered| {
        ordered >= since && (ordered <= at + 10 * SECOND || !sorted.is_calm(process, at, ordered))
    })
}

/// The login that a refresh token goes back to.
struct Family {
    begun: Micros,
    /// Whether a refresh token of it was sent twice.
    has_second_use: bool,
}

fn family(seen: &Seen<'_>, token: Digest) -> Family {
    let mut tokens = HashSet::from([token]);
    let mut begun = 0;
    // Backwards, since each token was issued for an earlier one.
    for arrival in seen.arrivals.iter().rev() {
        let Some(new) = arrival.issued.and_then(|new| new.refresh) else { continue };
        if tokens.contains(&new) {
            match arrival.grant {
                Grant::Refresh => tokens.extend(arrival.refresh),
                _ => begun = arrival.at,
            }
        }
    }
    let uses = |token: &Digest| {
        seen.arrivals.iter().filter(|arrival| arrival.refresh == Some(*token)).count()
    };
    Family { begun, has_second_use: tokens.iter().any(|token| uses(token) > 1) }
}

/// Whether the provider went by such rules at some time since.
fn has_era(sorted: &Sorted<'_>, is_it: impl Fn(bool, bool) -> bool, since: Micros) -> bool {
    let eras = sorted.evidence.deeds.iter().filter_map(|deed| match deed {
        Deed::Era { kills, is_family, at } => Some((*at, is_it(*kills, *is_family))),
        _ => None,
    });
    let eras: Vec<_> = eras.collect();
    let ends = eras.iter().skip(1).map(|(at, _)| *at).chain([Micros::MAX]);
    eras.iter().zip(ends).any(|((_, is_it), end)| *is_it && end > since)
}

/// Whether a person is logged in at the end, by the orders about them.
pub(super) fn presence(sorted: &Sorted<'_>, user: User) -> Presence {
    let Some(seen) = sorted.users.get(&user) else { return Presence::Here };
    let mut presence = Presence::Here;
    for (process, is_login, at) in &seen.ordered {
        let done = seen.lines.iter().find_map(|(by, said)| match said {
            Said::Done { begun, is_ok, .. } if by == process && begun >= at => Some(*is_ok),
            _ => None,
        });
        // A login that was not saved yet ended with its process.
        let is_saved = || {
            seen.lines.iter().any(|(by, said)| {
                by == process
                    && matches!(said, Said::Saved { version, at: saved, .. }
                        if version.revision == 1 && saved >= at)
            })
        };
        presence = match (is_login, done) {
            (true, Some(true)) if !sorted.killed.contains_key(process) || is_saved() => {
                Presence::Here
            }
            (true, Some(false)) => presence,
            (false, Some(true)) => Presence::Gone,
            _ => Presence::Unclear,
        };
    }
    presence
}

#[cfg(test)]
mod tests {
    use super::super::made_up::*;
    use super::*;
    use crate::judge::{Evidence, judge};
    use crate::record::Note;

    const REFUSED: Note = Note { pause: 0, refused: true, in_flight: true };

    /// Process 1 is answered with refresh token 11 for 10, and 10 is refused later.
    fn refused() -> Evidence {
        let mut evidence = evidence();
        evidence.lines = vec![(1, granted(SECOND, FIRST))];
        evidence.arrivals.push(refresh(SECOND + 2_000, 10, 11));
        evidence.lines.push((2, releasing(9 * SECOND, FIRST, REFUSED)));
        evidence
    }

    fn losses(evidence: &Evidence) -> Losses {
        assert_eq!(broken(evidence), []);
        judge(evidence).1
    }

    #[test]
    fn token_dropped_by_living_process_is_seen() {
        let mut evidence = refused();
        assert_eq!(broken(&evidence), [Invariant::NoLoginLost]);
        evidence.lines.push((1, reached(SECOND + 3_000, SECOND_REVISION, 11)));
        assert_eq!(broken(&evidence), [Invariant::NoLoginLost]);

        // It was saved after all, and that login lives.
        evidence.lines.push((1, saved(10 * SECOND, SECOND_REVISION)));
        assert_eq!(losses(&evidence), Losses::default());
    }

    /// A fault of the answer excuses no loss of what arrived all the same.
    #[test]
    fn rescued_token_must_be_kept() {
        let mut evidence = refused();
        evidence.arrivals[1].effect = Effect::AnswerLost;
        assert_eq!(losses(&evidence).answer_lost, 1);
        evidence.lines.push((1, reached(SECOND + 3_000, SECOND_REVISION, 11)));
        assert_eq!(broken(&evidence), [Invariant::NoLoginLost]);
    }

    #[test]
    fn token_of_killed_process_may_be_lost() {
        let mut evidence = refused();
        evidence.lines.push((1, reached(SECOND + 3_000, SECOND_REVISION, 11)));
        evidence.deeds.push(Deed::Killed { process: 1, at: SECOND + 4_000 });
        assert_eq!(losses(&evidence).killed, 1);
    }

    #[test]
    fn stopped_process_may_miss_its_answer() {
        let mut evidence = refused();
        let (from, to) = (SECOND + 2_500, 8 * SECOND);
        evidence.deeds.push(Deed::Stopped { process: 1, from, to });
        assert_eq!(losses(&evidence).disturbed, 1);

        // Not one that another process was stopped for.
        evidence.deeds = vec![evidence.deeds[0], Deed::Stopped { process: 2, from, to }];
        assert_eq!(broken(&evidence), [Invariant::NoLoginLost]);
    }

    #[test]
    fn refusal_without_cause_is_seen() {
        let mut evidence = evidence();
        evidence.lines.push((2, releasing(9 * SECOND, FIRST, REFUSED)));
        assert_eq!(broken(&evidence), [Invariant::NoLoginLost]);
        evidence.deeds.push(Deed::Revoked { user: ANN, at: 8 * SECOND });
        assert_eq!(losses(&evidence).revoked, 1);
    }

    #[test]
    fn second_use_ends_family_only_there() {
        let mut evidence = refused();
        evidence.lines = vec![
            (1, granted(SECOND, FIRST)),
            (2, granted(5 * SECOND, FIRST)),
            (1, reached(5 * SECOND + 3_000, SECOND_REVISION, 11)),
            (1, saved(5 * SECOND + 4_000, SECOND_REVISION)),
            (2, granted(6 * SECOND, SECOND_REVISION)),
            (2, releasing(9 * SECOND, SECOND_REVISION, REFUSED)),
        ];
        let late = Arrival { process: Some(2), issued: None, ..refresh(5 * SECOND, 10, 0) };
        evidence.arrivals.push(late);
        assert_eq!(broken(&evidence), [Invariant::NoLoginLost]);
        evidence.deeds[0] = Deed::Era { kills: true, is_family: true, at: 0 };
        assert_eq!(losses(&evidence).family, 1);
    }

    /// Where the provider still takes the old refresh token, nothing may be lost.
    #[test]
    fn loss_despite_grace_is_seen() {
        let mut evidence = refused();
        evidence.arrivals[1].effect = Effect::AnswerLost;
        evidence.deeds = vec![Deed::Era { kills: false, is_family: false, at: 0 }];
        assert_eq!(broken(&evidence), [Invariant::NoLoginLost]);

        // Until it goes by other rules.
        evidence.deeds.push(Deed::Era { kills: true, is_family: false, at: 5 * SECOND });
        assert_eq!(losses(&evidence).answer_lost, 1);
    }

    #[test]
    fn missing_login_at_end_is_seen() {
        let mut evidence = evidence();
        evidence.lines = vec![(1, saved(SECOND, SECOND_REVISION))];
        evidence.rested = 8 * SECOND;
        evidence.lines.push((1, failing(Why::LoginOver, 9 * SECOND, 9 * SECOND)));
        assert_eq!(broken(&evidence), [Invariant::NoLoginLost]);

        // Unless she was removed.
        let (begun, at) = (3 * SECOND, 4 * SECOND);
        evidence.lines.push((1, Said::Done { user: ANN, begun, at, is_ok: true }));
        let (process, is_login, at) = (1, false, 2 * SECOND);
        evidence.deeds.push(Deed::Ordered { process, user: ANN, is_login, at });
        assert_eq!(broken(&evidence), []);
    }

    /// Of a login in a process that was killed meanwhile, nobody can tell whether it is there.
    #[test]
    fn interrupted_login_is_unclear() {
        let mut evidence = evidence();
        let (process, is_login, at) = (1, true, 2 * SECOND);
        evidence.deeds.push(Deed::Ordered { process, user: ANN, is_login, at });
        evidence.deeds.push(Deed::Killed { process: 1, at: 3 * SECOND });
        assert_eq!(presence(&Sorted::new(&evidence), ANN), Presence::Unclear);
    }
}
