//! The laws, checked at every effect, every request and every answer that a caller gets.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use hurdlr_oauth2::{Error, ErrorKind};

use crate::provider::{LIFE, Pair, RETRY_AFTER};
use crate::world::{Call, State};

/// The most requests that one claim may send: the first, and one at once if it went unanswered.
pub(crate) const REQUESTS_PER_CLAIM: u32 = 2;

/// A law that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Law {
    /// One request per revision, unless the table of docs/design.md allows another one.
    OneRequest,
    /// What is sent is the refresh token that the row held at the time of the claim.
    SentFromRow,
    /// No pause that the provider asked for is cut short.
    PauseKept,
    /// No refresh token that reached a living process is lost.
    TokenKept,
    /// A token is saved before it is handed out.
    SavedFirst,
    /// No living login is told that it is over.
    LivingLogin,
    /// Once an answer with a rotated refresh token was lost, everybody is told that.
    RotationLostTold,
    /// Nobody who was removed comes back.
    NotResurrected,
    /// No refused token is served.
    RefusedNotServed,
    /// No token that is known to be dead is served.
    DeadNotServed,
    /// A living token is served, whatever fails.
    LivingServed,
    /// When all is calm, everybody gets what there is.
    CalmServes,
    /// Nobody waits for ever.
    NobodyWaits,
    /// Nothing asks in circles.
    NoCircles,
}

/// The fate of a request, the way its sender knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    InFlight,
    Rotated(Pair),
    Refused,
    Throttled,
    NeverLeft,
    Unanswered,
}

/// A claim that was granted.
struct Granted {
    pair: Pair,
    /// The end of the lease by the clock of its holder, counted from the call.
    until: Duration,
    sends: u32,
    last: Option<Sent>,
    /// Of all granted claims, this is which.
    order: u64,
}

/// A pause that the provider asked for.
struct Pause {
    process: usize,
    until: Duration,
    /// Others can know of the pause if their claim came after this one.
    binding: Option<u64>,
    /// The store failed its holder, so others may never learn of it.
    is_private: bool,
}

/// What one process did and saw.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent facts")]
struct Process {
    is_dead: bool,
    granted: Option<Granted>,
    /// Pairs that reached this process.
    seen: Vec<Pair>,
    refused: HashSet<Pair>,
    /// The store's last answer came from a store that held a living login.
    saw_living: bool,
    store_failed: bool,
    /// The last token that was handed out, unless that may have been dropped since.
    served: Option<Pair>,
    /// The user was evicted, perhaps with a refresh in flight, whose token is dropped with it when
    /// nobody waits any more.
    is_evicted: bool,
}

#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent facts")]
pub(crate) struct Laws {
    pub(crate) broken: Option<(Law, String)>,
    processes: Vec<Process>,
    claims: u64,
    /// The process that was granted the last lease.
    pub(crate) last_claimant: Option<usize>,
    pauses: Vec<Pause>,
    pub(crate) stored: Option<Pair>,
    ever_stored: HashSet<Pair>,
    told_lost: bool,
    pub(crate) presence: Presence,
    /// Counts the logins and removals, by their beginnings and ends.
    epoch: u32,
    /// Logins and removals under way, and whether two were at once.
    changing: u32,
    overlap: bool,
    is_restored: bool,
    /// Processes look at the store for what the others did.
    has_looks: bool,
}

/// Whether the user is there, as far as that is certain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Presence {
    #[default]
    Here,
    Gone {
        by: usize,
    },
    /// A removal and a login ran at the same time, or a removal failed.
    Unclear,
}

/// What was true when a caller asked.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    told_lost: bool,
    epoch: u32,
}

impl Laws {
    pub(crate) fn break_law(&mut self, law: Law, words: String) {
        static EXCEPT: LazyLock<String> =
            LazyLock::new(|| std::env::var("EXPLORE_EXCEPT").unwrap_or_default());
        if EXCEPT.split(',').any(|except| except == format!("{law:?}")) {
            return;
        }
        self.broken.get_or_insert((law, words));
    }

    fn process(&mut self, process: usize) -> &mut Process {
        while self.processes.len() <= process {
            self.processes.push(Process::default());
        }
        &mut self.processes[process]
    }

    pub(crate) fn died(&mut self, process: usize) {
        self.process(process).is_dead = true;
    }

    pub(crate) fn circles(&mut self, process: usize) {
        self.break_law(Law::NoCircles, format!("process {process} asks in circles"));
    }

    pub(crate) fn store_answered(&mut self, process: usize, saw_living: bool) {
        self.process(process).saw_living = saw_living;
    }

    /// The store failed a call of this process.
    pub(crate) fn store_failed(&mut self, process: usize) {
        self.process(process).store_failed = true;
        for pause in self.pauses.iter_mut().filter(|pause| pause.process == process) {
            pause.is_private |= pause.binding.is_none();
        }
    }

    /// The process may have forgotten what the store does not know.
    pub(crate) fn evicted(&mut self, process: usize) {
        self.process(process).served = None;
        self.process(process).is_evicted = true;
    }

    pub(crate) fn refused(&mut self, process: usize, pair: Pair) {
        let own = self.process(process);
        own.refused.insert(pair);
        own.served = None;
    }

    pub(crate) fn asks(&self) -> Asked {
        Asked { told_lost: self.told_lost, epoch: self.epoch }
    }

    /// Forgets what happened while the scenario was set up.
    pub(crate) fn begin(&mut self, has_looks: bool) {
        self.has_looks = has_looks;
        (self.epoch, self.told_lost) = (0, false);
    }

    pub(crate) fn begin_login(&mut self) {
        self.changing += 1;
        self.overlap |= self.changing > 1;
        let is_here = self.presence == Presence::Here;
        self.presence_changes(if is_here { Presence::Here } else { Presence::Unclear });
    }

    pub(crate) fn end_login(&mut self, is_done: bool) {
        self.end_change(if is_done { Presence::Here } else { Presence::Unclear });
    }

    pub(crate) fn begin_removal(&mut self) {
        self.changing += 1;
        self.overlap |= self.changing > 1;
        self.presence_changes(Presence::Unclear);
    }

    pub(crate) fn end_removal(&mut self, by: usize, is_done: bool) {
        self.end_change(if is_done { Presence::Gone { by } } else { Presence::Unclear });
    }

    fn end_change(&mut self, presence: Presence) {
        self.changing -= 1;
        let presence = if self.overlap { Presence::Unclear } else { presence };
        self.overlap &= self.changing > 0;
        self.presence_changes(presence);
    }

    fn presence_changes(&mut self, presence: Presence) {
        self.presence = presence;
        self.epoch += 1;
        self.told_lost = false;
        for process in &mut self.processes {
            process.served = None;
        }
    }
}

impl State {
    pub(crate) fn store_holds_living(&self) -> bool {
        self.laws.stored.is_some_and(|pair| self.provider.lives(pair))
    }

    /// Whether the provider rotated the stored refresh token in an answer that reached nobody.
    fn answer_was_lost(&self) -> bool {
        self.laws.stored.is_some_and(|stored| {
            let newest = self.provider.newest(stored);
            let reached = |process: &Process| process.seen.contains(&newest);
            newest != stored && !self.laws.processes.iter().any(reached)
        })
    }

    /// A call of the store may have changed the row.
    pub(crate) fn changed(&mut self, process: usize, call: Call, stored: Option<Pair>) {
        if self.laws.stored != stored {
            let now_holds = stored.map_or("no token".to_owned(), |pair| pair.to_string());
            self.tell(|| format!("  the row holds {now_holds}"));
        }
        let gone = matches!(self.laws.presence, Presence::Gone { .. });
        if gone && stored.is_some() && !self.laws.is_restored {
            let words = format!("a {call:?} of process {process} brings the user back");
            self.laws.break_law(Law::NotResurrected, words);
        }
        self.laws.stored = stored;
        self.laws.ever_stored.extend(stored);
    }

    pub(crate) fn restored(&mut self, stored: Option<Pair>) {
        let holds = stored.map_or("no token".to_owned(), |pair| pair.to_string());
        self.tell(|| format!("  the row holds {holds}"));
        (self.laws.stored, self.laws.is_restored) = (stored, true);
    }

    /// The store granted a lease, which lasts until `until` by the holder's clock.
    pub(crate) fn granted(&mut self, process: usize, pair: Option<Pair>, until: Duration) {
        self.laws.last_claimant = Some(process);
        let Some(pair) = pair else { return };
        self.laws.claims += 1;
        let order = self.laws.claims;
        self.laws.process(process).granted =
            Some(Granted { pair, until, sends: 0, last: None, order });
        self.tell(|| format!("  process {process} has the lease on {pair}"));
    }

    /// A process is about to send a request.
    pub(crate) fn sends(&mut self, process: usize, pair: Pair) {
        self.tell(|| format!("  process {process} sends {pair}"));
        let now = self.now;
        let laws = &mut self.laws;
        let pauses: Vec<_> = laws
            .pauses
            .iter()
            .filter(|pause| now < pause.until)
            .map(|pause| (pause.process, pause.binding.filter(|_| !pause.is_private)))
            .collect();
        let Some(granted) = &mut laws.process(process).granted else {
            let words = format!("process {process} sends {pair} without a lease");
            return laws.break_law(Law::OneRequest, words);
        };
        let (held, order, last) = (granted.pair, granted.order, granted.last);
        granted.sends += 1;
        let (sends, until) = (granted.sends, granted.until);
        granted.last = Some(Sent::InFlight);
        if held != pair {
            let words = format!("process {process} sends {pair}, but the row held {held}");
            return laws.break_law(Law::SentFromRow, words);
        }
        if now >= until {
            let words = format!("process {process} sends {pair} after its lease has run out");
            return laws.break_law(Law::OneRequest, words);
        }
        let may_repeat =
            matches!(last, None | Some(Sent::NeverLeft | Sent::Unanswered | Sent::Throttled));
        let unanswered = last == Some(Sent::Unanswered);
        if !may_repeat || (unanswered && sends > REQUESTS_PER_CLAIM) {
            let words = format!("process {process} sends {pair} again after {last:?}");
            return laws.break_law(Law::OneRequest, words);
        }
        let cut = pauses.into_iter().find(|(asked, binding)| {
            *asked == process || binding.is_some_and(|binding| binding < order)
        });
        if let Some((asked, _)) = cut {
            let words = format!(
                "process {process} sends {pair} within the pause that process {asked} was told"
            );
            laws.break_law(Law::PauseKept, words);
        }
    }

    /// A process hears what became of its request.
    pub(crate) fn hears(&mut self, process: usize, sent: Sent) {
        self.tell(|| format!("  process {process} hears: {sent:?}"));
        let until = self.now + RETRY_AFTER;
        if let Some(granted) = &mut self.laws.process(process).granted {
            granted.last = Some(sent);
        }
        match sent {
            Sent::Rotated(pair) => self.laws.process(process).seen.push(pair),
            Sent::Throttled => {
                let pause = Pause { process, until, binding: None, is_private: false };
                self.laws.pauses.push(pause);
            }
            _ => {}
        }
    }

    /// Nothing can run any more. Pauses of processes that are done with them bind the others.
    pub(crate) fn settled(&mut self) {
        let open: Vec<_> = self.laws.pauses.iter().map(|it| self.has_gates(it.process)).collect();
        let claims = self.laws.claims;
        for (pause, is_busy) in self.laws.pauses.iter_mut().zip(open) {
            if pause.binding.is_none() && !is_busy {
                pause.binding = Some(claims);
            }
        }
    }

    /// A caller is handed a token.
    pub(crate) fn serves(&mut self, process: usize, pair: Pair, asked: Asked) {
        self.tell(|| format!("  a caller of process {process} gets {pair}"));
        let now = self.now;
        let over = self.provider.created.get(&pair).is_none_or(|created| now >= *created + LIFE);
        let laws = &mut self.laws;
        let unsaved = !laws.ever_stored.contains(&pair);
        let own = laws.process(process);
        own.served = Some(pair).filter(|_| !own.is_evicted);
        let own = (own.refused.contains(&pair), own.store_failed);
        if own.0 {
            let words = format!("process {process} serves {pair}, which the API refused");
            laws.break_law(Law::RefusedNotServed, words);
        }
        if over {
            let words = format!("process {process} serves {pair}, whose life is over");
            laws.break_law(Law::DeadNotServed, words);
        }
        if unsaved && !own.1 && !laws.is_restored {
            let words = format!("process {process} serves {pair} before it is saved");
            laws.break_law(Law::SavedFirst, words);
        }
        if laws.presence == (Presence::Gone { by: process }) && laws.epoch == asked.epoch {
            let words = format!("process {process} serves {pair} of a user whom it removed");
            laws.break_law(Law::NotResurrected, words);
        }
    }

    /// A caller is told why there is no token.
    pub(crate) fn fails(&mut self, process: usize, error: &Error, asked: Asked) {
        let kind = error.kind();
        self.tell(|| format!("  a caller of process {process} is told {kind:?}: {error}"));
        let (living, now) = (self.store_holds_living(), self.now);
        let provider = &self.provider;
        let own = self.laws.process(process);
        let has_newest = own.seen.iter().any(|pair| provider.lives(*pair));
        let saw_living = own.saw_living;
        let served = own.served;
        let withheld = served.filter(|pair| {
            provider
                .created
                .get(pair)
                .is_some_and(|created| now + Duration::from_secs(1) < *created + LIFE)
        });
        let newer = self.laws.epoch != asked.epoch;
        if error.needs_login() && living && !newer && (saw_living || has_newest) {
            let words = format!("process {process} tells a living login {kind:?}");
            self.laws.break_law(Law::LivingLogin, words);
        }
        if kind == ErrorKind::RotationLost && self.laws.epoch == 0 {
            self.laws.told_lost = true;
        }
        let is_lost = (asked.told_lost && self.laws.told_lost) || self.answer_was_lost();
        // A store of an earlier day does not know what was lost since.
        if kind == ErrorKind::LoginRequired && is_lost && !newer && !self.laws.is_restored {
            let words = format!("process {process} tells LoginRequired, not RotationLost");
            self.laws.break_law(Law::RotationLostTold, words);
        }
        let is_here = self.laws.presence == Presence::Here;
        if let Some(pair) = withheld.filter(|_| is_here && !newer) {
            let words = format!("process {process} withholds {pair}, which lives: {kind:?}");
            self.laws.break_law(Law::LivingServed, words);
        }
    }

    /// All is calm: nothing that lives may be lost.
    pub(crate) fn calm(&mut self) {
        let laws = &self.laws;
        // Nobody can know that the store was restored without looking at it.
        if laws.presence != Presence::Here || (laws.is_restored && !laws.has_looks) {
            return;
        }
        let living = laws.processes.iter().filter(|process| !process.is_dead);
        let mut seen = living.flat_map(|process| process.seen.iter().copied());
        let lost = seen.find(|pair| self.provider.lives(*pair) && laws.stored != Some(*pair));
        // A login in the store replaces those before it.
        let newer = |pair: Pair| laws.stored.is_some_and(|stored| stored.family > pair.family);
        if let Some(pair) = lost.filter(|pair| !newer(*pair)) {
            let words = format!("{pair} lives, reached a living process, and is not in the store");
            self.laws.break_law(Law::TokenKept, words);
        }
    }

    /// All is calm, and a caller was answered.
    pub(crate) fn calm_answer(&mut self, process: usize, answer: &Result<Pair, Error>) {
        let living = self.store_holds_living();
        let words = match (answer, self.laws.presence) {
            (Ok(pair), Presence::Gone { by }) if by == process || self.laws.has_looks => {
                format!("process {process} still serves {pair} of a removed user")
            }
            (Err(error), Presence::Here) if living => {
                format!("process {process} has no token though all works: {:?}", error.kind())
            }
            _ => return,
        };
        self.laws.break_law(Law::CalmServes, words);
    }
}
