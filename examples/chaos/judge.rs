//! The judge: reads all that was written down, and names what must never happen.
//!
//! It judges by what is certain on a machine that may leave any process without a CPU for any time.
//! Orders of events are certain where one caused the other. Of spans only those count that a
//! process, or the store, had to wait itself. Where a process was killed, stopped, turned in time or
//! kept waiting, it says nothing about what that process should have done meanwhile.

mod dead_tokens;
mod logins;
mod memory;
mod pauses;
mod revisions;
mod starvation;

use std::collections::HashMap;

use crate::plan::seconds;
use crate::provider::Arrival;
use crate::record::{
    Digest, Failing, Micros, Population, Process, REFRESH_TIMEOUT, RowVersion, Said, User, micros,
    user_name,
};
pub(crate) use logins::Losses;
pub(crate) use memory::growth;
pub(crate) use starvation::SERVED_WITHIN;

/// All that was seen of one run.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) population: Population,
    pub(crate) is_v6: bool,
    pub(crate) token_life: Micros,
    /// In the order they came.
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) refused_calls: u64,
    /// What the processes said, each in its own order.
    pub(crate) lines: Vec<(Process, Said)>,
    /// What was done to them, in that order.
    pub(crate) deeds: Vec<Deed>,
    /// When the last thing was done to them. From then on only the cursed fail.
    pub(crate) rested: Micros,
    pub(crate) jumps: u64,
    /// Bytes that the process had that is never killed, from time to time.
    pub(crate) memory: Vec<(Micros, u64)>,
}

impl Evidence {
    /// When the plan began.
    fn begun(&self) -> Micros {
        self.deeds.first().map_or(0, Deed::at)
    }
}

/// What was done to the fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deed {
    /// The provider went by other rules: whether a used refresh token is dead, and whether its use
    /// ends the login.
    Era {
        kills: bool,
        is_family: bool,
        at: Micros,
    },
    Killed {
        process: Process,
        at: Micros,
    },
    Stopped {
        process: Process,
        from: Micros,
        to: Micros,
    },
    /// A process was told to log a user in, or to remove them.
    Ordered {
        process: Process,
        user: User,
        is_login: bool,
        at: Micros,
    },
    Revoked {
        user: User,
        at: Micros,
    },
}

impl Deed {
    fn at(&self) -> Micros {
        match self {
            Self::Stopped { from: at, .. }
            | Self::Era { at, .. }
            | Self::Killed { at, .. }
            | Self::Ordered { at, .. }
            | Self::Revoked { at, .. } => *at,
        }
    }
}

/// What must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// One refresh per revision, or what the table allows.
    OneRefresh,
    /// No refresh token that reached a living process is lost.
    NoLoginLost,
    /// No token that was removed, refused or is over is served.
    NoDeadToken,
    /// No pause is cut short.
    NoPauseCut,
    /// Whoever can be served is served.
    NobodyStarves,
    /// Memory does not grow once all users were read.
    NoGrowth,
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) invariant: Invariant,
    pub(crate) user: Option<User>,
    pub(crate) at: Micros,
    pub(crate) words: String,
}

impl Broken {
    /// What was broken, and all that is known of the user.
    pub(crate) fn story(&self, evidence: &Evidence) -> String {
        let begun = evidence.begun();
        let at = |at: Micros| match at {
            Micros::MAX => "at the end".to_owned(),
            at => format!("{:.3} s", seconds(at.saturating_sub(begun))),
        };
        let whom = self.user.map_or_else(|| "everybody".to_owned(), user_name);
        let mut story = format!("{:?}, {whom}, {}: {}", self.invariant, at(self.at), self.words);
        let Some(user) = self.user else { return story };
        let sorted = Sorted::new(evidence);
        let mut lines: Vec<(Micros, String)> = Vec::new();
        if let Some(seen) = sorted.users.get(&user) {
            lines.extend(seen.arrivals.iter().map(|it| (it.at, format!("{it:x?}"))));
            lines.extend(seen.grants.iter().map(|it| (it.at, format!("{it:x?}"))));
            lines.extend(
                seen.lines
                    .iter()
                    .map(|(process, said)| (said.at(), format!("process {process}: {said:x?}"))),
            );
            lines.extend(seen.revoked.iter().map(|at| (*at, "revoked by the provider".to_owned())));
        }
        for (process, said) in &evidence.lines {
            match said {
                Said::Served(reads) => {
                    let of_user = reads.iter().filter(|(served, ..)| *served == user);
                    lines.extend(of_user.map(|(_, access, begun)| {
                        (*begun, format!("process {process}: served {access:x}"))
                    }));
                }
                Said::Failing(failing) => {
                    let of_user = failing.iter().filter(|failing| failing.user == user);
                    lines.extend(
                        of_user.map(|it| (it.last, format!("process {process}: {:?}", it.why))),
                    );
                }
                _ => {}
            }
        }
        for deed in &evidence.deeds {
            let concerns = !matches!(deed, Deed::Ordered { user: other, .. }
                | Deed::Revoked { user: other, .. } if *other != user);
            if concerns {
                lines.push((deed.at(), format!("{deed:?}")));
            }
        }
        lines.sort();
        for (when, line) in lines {
            story.extend([&format!("\n    {:>10}  ", at(when)), &*line]);
        }
        story
    }
}

/// Everything that was broken.
pub(crate) fn judge(evidence: &Evidence) -> (Vec<Broken>, Losses) {
    let sorted = Sorted::new(evidence);
    let mut broken = revisions::judge(&sorted);
    let losses = logins::judge(&sorted, &mut broken);
    broken.extend(dead_tokens::judge(&sorted));
    broken.extend(pauses::judge(&sorted));
    broken.extend(starvation::judge(&sorted));
    broken.extend(memory::judge(evidence));
    (broken, losses)
}

/// A lease that the store granted.
#[derive(Clone, Copy, Debug)]
struct Lease {
    process: Process,
    version: RowVersion,
    refresh: Option<Digest>,
    begun: Micros,
    at: Micros,
}

/// A token that the store took, at some time between `reached` and `taken`.
struct SavedToken {
    process: Process,
    access: Digest,
    refresh: Option<Digest>,
    reached: Micros,
    taken: Micros,
}

/// How a process's last read of a user ended.
#[derive(Clone, Copy)]
struct LastRead<'a> {
    begun: Micros,
    failing: Option<&'a Failing>,
}

/// What was seen of one user.
#[derive(Default)]
struct Seen<'a> {
    arrivals: Vec<&'a Arrival>,
    grants: Vec<Lease>,
    lines: Vec<(Process, &'a Said)>,
    /// `(process, is_login, at)`
    ordered: Vec<(Process, bool, Micros)>,
    revoked: Vec<Micros>,
    /// When each process began to read each of their access tokens.
    served: HashMap<(Process, Digest), Vec<Micros>>,
    last_reads: HashMap<Process, LastRead<'a>>,
    saves: Vec<SavedToken>,
}

/// The evidence by users, and what kept the processes from doing what they should.
struct Sorted<'a> {
    evidence: &'a Evidence,
    users: HashMap<User, Seen<'a>>,
    killed: HashMap<Process, Micros>,
    disturbed: HashMap<Process, Vec<(Micros, Micros)>>,
    /// When each access token was issued first and last.
    issued: HashMap<Digest, (Micros, Micros)>,
}

impl<'a> Sorted<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let mut users: HashMap<User, Seen<'a>> = HashMap::new();
        let mut issued: HashMap<Digest, (Micros, Micros)> = HashMap::new();
        let mut disturbed: HashMap<Process, Vec<(Micros, Micros)>> = HashMap::new();
        let mut killed = HashMap::new();
        for arrival in &evidence.arrivals {
            users.entry(arrival.user).or_default().arrivals.push(arrival);
            if let Some(token) = arrival.issued {
                let times = issued.entry(token.access).or_insert((token.at, token.at));
                *times = (times.0.min(token.at), times.1.max(token.at));
            }
        }
        for (process, said) in &evidence.lines {
            match said {
                Said::Granted { user, version, refresh, begun, at } => {
                    let (process, version, refresh) = (*process, *version, *refresh);
                    let grant = Lease { process, version, refresh, begun: *begun, at: *at };
                    users.entry(*user).or_default().grants.push(grant);
                }
                Said::Served(reads) => {
                    for (user, access, begun) in reads {
                        let seen = users.entry(*user).or_default();
                        seen.served.entry((*process, *access)).or_default().push(*begun);
                        seen.read(*process, LastRead { begun: *begun, failing: None });
                    }
                }
                Said::Failing(failing) => {
                    for failing in failing {
                        let read = LastRead { begun: failing.last, failing: Some(failing) };
                        users.entry(failing.user).or_default().read(*process, read);
                    }
                }
                Said::Reached { user, .. } | Said::Saved { user, .. } => {
                    let seen = users.entry(*user).or_default();
                    seen.lines.push((*process, said));
                    seen.saves.extend(seen.last_save());
                }
                Said::Releasing { user, .. }
                | Said::Released { user, .. }
                | Said::Done { user, .. } => {
                    users.entry(*user).or_default().lines.push((*process, said));
                }
                Said::Lagged { from, to } | Said::Jumped { from, to } => {
                    disturbed.entry(*process).or_default().push((*from, *to));
                }
                _ => {}
            }
        }
        for deed in &evidence.deeds {
            match *deed {
                Deed::Killed { process, at } => {
                    killed.insert(process, at);
                    disturbed.entry(process).or_default().push((at, Micros::MAX));
                }
                Deed::Stopped { process, from, to } => {
                    disturbed.entry(process).or_default().push((from, to));
                }
                Deed::Ordered { process, user, is_login, at } => {
                    users.entry(user).or_default().ordered.push((process, is_login, at));
                }
                Deed::Revoked { user, at } => users.entry(user).or_default().revoked.push(at),
                Deed::Era { .. } => {}
            }
        }
        for seen in users.values_mut() {
            seen.grants.sort_by_key(|grant| grant.at);
        }
        Self { evidence, users, killed, disturbed, issued }
    }

    /// Whether a process, and the provider, could do what they should during all of this time.
    fn is_calm(&self, process: Process, from: Micros, to: Micros) -> bool {
        let of = |process| self.disturbed.get(&process).into_iter().flatten();
        !of(process).chain(of(Process::MAX)).any(|(begun, end)| *begun <= to && *end >= from)
    }
}

impl<'a> Seen<'a> {
    fn read(&mut self, process: Process, read: LastRead<'a>) {
        let last = self.last_reads.entry(process).or_insert(read);
        if read.begun >= last.begun {
            *last = read;
        }
    }

    /// When the last read began for which a process served this token.
    fn last(&self, process: Process, access: Digest) -> Option<Micros> {
        self.served.get(&(process, access))?.iter().max().copied()
    }

    /// The token that the store took, if the last line says that it did.
    fn last_save(&self) -> Option<SavedToken> {
        let ((by, last), before) = self.lines.split_last()?;
        let Said::Saved { version: row, at: taken, .. } = **last else { return None };
        before.iter().rev().find_map(|(process, said)| match **said {
            Said::Reached { version, access, refresh, at: reached, .. }
                if process == by && version == row =>
            {
                Some(SavedToken { process: *by, access, refresh, reached, taken })
            }
            _ => None,
        })
    }

    /// The last reads while the fleet was at rest, by the processes that lived to the end.
    fn living_reads(&self, sorted: &Sorted<'_>) -> impl Iterator<Item = (Process, LastRead<'a>)> {
        let reads = self.last_reads.iter().map(|(process, read)| (*process, *read));
        reads.filter(|(process, read)| {
            read.begun >= sorted.evidence.rested && !sorted.killed.contains_key(process)
        })
    }

    /// The lease that a request was sent under: the process's last one of a row that held what it
    /// sent.
    fn lease(&self, arrival: &Arrival) -> Option<&Lease> {
        self.grants.iter().rfind(|grant| {
            Some(grant.process) == arrival.process
                && grant.begun <= arrival.at
                && (arrival.refresh.is_none() || arrival.refresh == grant.refresh)
        })
    }

    /// Whether a request had enough time for its answer: what a process does with one that comes
    /// late says nothing.
    fn had_time(&self, arrival: &Arrival) -> bool {
        let lease = self.lease(arrival);
        lease.is_some_and(|lease| arrival.at - lease.begun < micros(REFRESH_TIMEOUT) / 2)
    }
}

#[cfg(test)]
mod made_up {
    //! Records as a run leaves them, made up for the tests of the judge.

    use super::*;
    use crate::plan::Effect;
    use crate::provider::{Grant, Issued};
    use crate::record::{Note, SECOND, Why};

    pub(crate) const ANN: User = 0;
    pub(crate) const FIRST: RowVersion = RowVersion { incarnation: 7, revision: 1 };
    pub(crate) const SECOND_REVISION: RowVersion = RowVersion { incarnation: 7, revision: 2 };

    /// Ann's first login: her refresh token is 10, her access token 100.
    pub(crate) fn evidence() -> Evidence {
        let login =
            Arrival { process: None, grant: Grant::Login, refresh: None, ..refresh(0, 9, 10) };
        Evidence {
            population: Population { people: 1, enterprise: 1 },
            is_v6: false,
            token_life: 20 * SECOND,
            arrivals: vec![login],
            refused_calls: 0,
            lines: Vec::new(),
            deeds: vec![Deed::Era { kills: true, is_family: false, at: 0 }],
            rested: Micros::MAX,
            jumps: 0,
            memory: Vec::new(),
        }
    }

    /// Process 1 sends refresh token `old`, and is answered at once with `new`; the access token is
    /// ten times that.
    pub(crate) fn refresh(at: Micros, old: Digest, new: Digest) -> Arrival {
        Arrival {
            at,
            user: ANN,
            process: Some(1),
            grant: Grant::Refresh,
            refresh: Some(old),
            is_faulty: false,
            effect: Effect::None,
            issued: Some(Issued { at, access: new * 10, refresh: Some(new) }),
        }
    }

    /// The refresh token of a revision: the first has 10.
    fn of_row(version: RowVersion) -> Digest {
        9 + version.revision
    }

    pub(crate) fn granted(at: Micros, version: RowVersion) -> Said {
        let refresh = Some(of_row(version));
        Said::Granted { user: ANN, version, refresh, begun: at, at: at + 1_000 }
    }

    pub(crate) fn reached(at: Micros, version: RowVersion, refresh: Digest) -> Said {
        let (access, refresh) = (refresh * 10, Some(refresh));
        Said::Reached { user: ANN, version, access, refresh, at }
    }

    pub(crate) fn saved(at: Micros, version: RowVersion) -> Said {
        Said::Saved { user: ANN, version, at }
    }

    pub(crate) fn releasing(at: Micros, version: RowVersion, release: Note) -> Said {
        Said::Releasing { user: ANN, version, release, at }
    }

    /// A read that failed at `last` as all since `since` had.
    pub(crate) fn failing(why: Why, since: Micros, last: Micros) -> Said {
        Said::Failing(vec![Failing { user: ANN, why, since, last }])
    }

    pub(crate) fn broken(evidence: &Evidence) -> Vec<Invariant> {
        judge(evidence).0.into_iter().map(|broken| broken.invariant).collect()
    }
}
