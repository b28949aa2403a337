//! The world of one run: virtual time, and the gates at which every call of the store and every
//! request to the provider stops.
//!
//! A call stops twice: before it takes effect, and before its answer is delivered. Nothing moves
//! unless the explorer opens a gate or lets time pass.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use hurdlr_oauth2::{Clock, Timestamp};
use tokio::sync::oneshot;

use crate::laws::Laws;
use crate::provider::Provider;

/// A call that stops at gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Call {
    Claim,
    Due,
    Forget,
    Read,
    Release,
    Request,
    Save,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    Effect,
    Answer,
}

/// The name of a gate: the same in every run that takes the same choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name {
    pub(crate) process: usize,
    pub(crate) call: Call,
    /// Counts the calls of this kind in this process.
    pub(crate) number: u32,
    pub(crate) stage: Stage,
}

impl fmt::Display for Name {
    /// Like `p0.claim2` for the effect, `p0.claim2.answer` for the answer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = format!("{:?}", self.call).to_lowercase();
        write!(f, "p{}.{call}{}", self.process, self.number)?;
        if self.stage == Stage::Answer { f.write_str(".answer") } else { Ok(()) }
    }
}

/// The way a gate opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Go,
    Fail,
    Throttle,
}

/// The way a call breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Before,
    After,
    Throttled,
}

struct Gate {
    opener: oneshot::Sender<Verdict>,
    /// The gate cannot be opened before this time.
    late_until: Duration,
}

#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<State>>);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) now: Duration,
    /// By how much the store's clock is ahead.
    pub(crate) store_ahead: Duration,
    pub(crate) provider: Provider,
    pub(crate) laws: Laws,
    /// Gates let everything pass: before and after the part that is explored.
    auto: bool,
    gates: BTreeMap<Name, Gate>,
    sleepers: BTreeMap<(Duration, u64), (usize, oneshot::Sender<()>)>,
    slept: u64,
    numbers: HashMap<(usize, Call), u32>,
    dead: Vec<usize>,
    /// Calls since time passed last: a loop that lets no time pass would hang the run.
    calls: u32,
    /// The run in words, where somebody wants to read it.
    pub(crate) story: Option<Vec<String>>,
}

impl State {
    pub(crate) fn tell(&mut self, words: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(words());
        }
    }

    pub(crate) fn is_dead(&self, process: usize) -> bool {
        self.dead.contains(&process)
    }

    /// The gates that can be opened now, by name.
    pub(crate) fn open_gates(&mut self) -> Vec<Name> {
        self.gates.retain(|_, gate| !gate.opener.is_closed());
        let now = self.now;
        let ready = self.gates.iter().filter(|(_, gate)| gate.late_until <= now);
        ready.map(|(name, _)| *name).filter(|name| !self.dead.contains(&name.process)).collect()
    }

    /// From here on calls stop at their gates.
    pub(crate) fn shut_gates(&mut self) {
        self.auto = false;
    }

    /// Lets everything pass from here on.
    pub(crate) fn open_all(&mut self) {
        self.auto = true;
        let (shut, open) = std::mem::take(&mut self.gates)
            .into_iter()
            .partition(|(name, _)| self.dead.contains(&name.process));
        self.gates = shut;
        let open: BTreeMap<Name, Gate> = open;
        for (_, gate) in open {
            let _ = gate.opener.send(Verdict::Go);
        }
    }

    pub(crate) fn has_gates(&self, process: usize) -> bool {
        self.gates.iter().any(|(name, gate)| name.process == process && !gate.opener.is_closed())
    }

    pub(crate) fn open(&mut self, name: Name, verdict: Verdict) {
        if let Some(gate) = self.gates.remove(&name) {
            let _ = gate.opener.send(verdict);
        }
    }

    pub(crate) fn delay(&mut self, name: Name, span: Duration) {
        let until = self.now + span;
        if let Some(gate) = self.gates.get_mut(&name) {
            gate.late_until = until;
        }
    }

    /// The next moment at which something happens by itself.
    pub(crate) fn next_moment(&mut self) -> Option<Duration> {
        let dead = &self.dead;
        self.sleepers.retain(|_, (process, waker)| !waker.is_closed() && !dead.contains(process));
        let now = self.now;
        let gates = self.gates.iter().filter(|(name, _)| !dead.contains(&name.process));
        let late = gates.map(|(_, gate)| gate.late_until).filter(|until| *until > now).min();
        let timer = self.sleepers.first_key_value().map(|((at, _), _)| *at);
        late.into_iter().chain(timer).min()
    }

    pub(crate) fn pass_until(&mut self, moment: Duration) {
        self.now = self.now.max(moment);
        self.calls = 0;
        while let Some(entry) = self.sleepers.first_entry().filter(|it| it.key().0 <= moment) {
            let _ = entry.remove().1.send(());
        }
    }

    /// Ends a process: its gates never open again, and its timers never fire.
    pub(crate) fn kill(&mut self, process: usize) {
        self.dead.push(process);
        self.laws.died(process);
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { auto: true, ..State::default() })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing can run any more: a timer of a paused clock fires only then.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Takes a call past its two gates. Everything that is explored goes through here.
    pub(crate) async fn gated<T>(
        &self,
        process: usize,
        call: Call,
        effect: impl Future<Output = T>,
        broken: impl Fn(Broken) -> T,
    ) -> T {
        let number = {
            let mut state = self.lock();
            let number = state.numbers.entry((process, call)).or_default();
            *number += 1;
            *number
        };
        let name = |stage| Name { process, call, number, stage };
        match self.pass(name(Stage::Effect)).await {
            Verdict::Go => {}
            Verdict::Fail => return broken(Broken::Before),
            Verdict::Throttle => return broken(Broken::Throttled),
        }
        let outcome = effect.await;
        match self.pass(name(Stage::Answer)).await {
            Verdict::Go => outcome,
            _ => broken(Broken::After),
        }
    }

    async fn pass(&self, name: Name) -> Verdict {
        let opened = {
            let mut state = self.lock();
            state.calls += 1;
            if state.calls > 2_000 {
                state.laws.circles(name.process);
                None
            } else if state.is_dead(name.process) {
                None
            } else if state.auto {
                return Verdict::Go;
            } else {
                let (opener, passage) = oneshot::channel();
                state.gates.insert(name, Gate { opener, late_until: Duration::ZERO });
                Some(passage)
            }
        };
        match opened {
            Some(opened) => match opened.await {
                Ok(verdict) => verdict,
                Err(_) => pending().await,
            },
            None => pending().await,
        }
    }

    /// Sleeps in virtual time.
    pub(crate) async fn sleep(&self, process: usize, span: Duration) {
        let woken = {
            let mut state = self.lock();
            if span.is_zero() {
                return;
            }
            state.slept += 1;
            let place = (state.now + span, state.slept);
            let (waker, woken) = oneshot::channel();
            state.sleepers.insert(place, (process, waker));
            woken
        };
        if woken.await.is_err() {
            pending::<()>().await;
        }
    }
}

/// The clock of a process, or of the store.
#[derive(Clone)]
pub(crate) struct WorldClock {
    pub(crate) world: World,
    pub(crate) whose: Whose,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Whose {
    Process(usize),
    Store,
}

/// Time at which a run starts, on all clocks.
pub(crate) const START: Duration = Duration::from_secs(1_700_000_000);

impl fmt::Debug for WorldClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.whose.fmt(f)
    }
}

impl Clock for WorldClock {
    fn now(&self) -> Timestamp {
        let state = self.world.lock();
        let ahead = if self.whose == Whose::Store { state.store_ahead } else { Duration::ZERO };
        let passed = START + state.now + ahead;
        Timestamp::new(passed, UNIX_EPOCH + passed)
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let Whose::Process(process) = self.whose else {
            return Box::pin(pending());
        };
        Box::pin(self.world.sleep(process, duration))
    }
}
