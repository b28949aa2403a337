//! A choice: something that can happen next, and what it has in common with others.

use std::fmt;

use crate::scenarios::Budget;
use crate::world::{Call, Name, Stage};

/// Something that can happen next. The order is that in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Choice {
    /// A gate opens.
    Open(Name),
    /// Time goes on to the next moment at which something happens.
    Time,
    /// A gate opens with a failure.
    Fail(Name),
    /// The provider turns a request away, and names a pause.
    Throttle(Name),
    /// A gate stays shut for longer than a lease.
    Late(Name),
    /// The oldest caller of a process goes away.
    DropCaller(usize),
    Evict(usize),
    /// The API refuses the token that this process handed out last.
    Refuse(usize),
    LogIn(usize),
    Remove(usize),
    /// The process dies.
    Die(usize),
    /// The process dies, and another one starts in its place.
    Restart(usize),
    /// The store's clock jumps ahead, past any lease.
    Jump,
    /// The store is put back to an earlier day.
    Restore,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(name) => write!(f, "{name}"),
            Self::Fail(name) => write!(f, "{name}.fails"),
            Self::Throttle(name) => write!(f, "{name}.throttled"),
            Self::Late(name) => write!(f, "{name}.late"),
            Self::Time => f.write_str("time"),
            Self::DropCaller(process) => write!(f, "p{process}.caller-leaves"),
            Self::Evict(process) => write!(f, "p{process}.evicts"),
            Self::Refuse(process) => write!(f, "p{process}.refused"),
            Self::LogIn(process) => write!(f, "p{process}.login"),
            Self::Remove(process) => write!(f, "p{process}.removal"),
            Self::Die(process) => write!(f, "p{process}.dies"),
            Self::Restart(process) => write!(f, "p{process}.restarts"),
            Self::Jump => f.write_str("clock-jumps"),
            Self::Restore => f.write_str("restored"),
        }
    }
}

impl Choice {
    pub(crate) fn in_words(self) -> String {
        let call =
            |name: Name| format!("{:?} {} of process {}", name.call, name.number, name.process);
        match self {
            Self::Open(name) if name.stage == Stage::Effect => {
                format!("{} takes effect", call(name))
            }
            Self::Open(name) => format!("{} is answered", call(name)),
            Self::Fail(name) if name.stage == Stage::Effect => {
                format!("{} fails unseen", call(name))
            }
            Self::Fail(name) => format!("The answer to {} is lost", call(name)),
            Self::Throttle(name) => format!("{} is throttled", call(name)),
            Self::Late(name) if name.stage == Stage::Effect => format!("{} is late", call(name)),
            Self::Late(name) => format!("The answer to {} is late", call(name)),
            Self::Time => "Time goes on".to_owned(),
            Self::DropCaller(process) => format!("A caller of process {process} goes away"),
            Self::Evict(process) => format!("Process {process} evicts the user"),
            Self::Refuse(process) => format!("The API refuses the token of process {process}"),
            Self::LogIn(process) => format!("The user logs in at process {process}"),
            Self::Remove(process) => format!("Process {process} removes the user"),
            Self::Die(process) => format!("Process {process} dies"),
            Self::Restart(process) => format!("Process {process} restarts"),
            Self::Jump => "The store's clock jumps ahead by a minute".to_owned(),
            Self::Restore => "The store is restored to an earlier day".to_owned(),
        }
    }

    /// The budget that the choice takes from.
    pub(crate) fn cost(self) -> Option<Budget> {
        Some(match self {
            Self::Open(_) | Self::Time => return None,
            Self::Fail(_) => Budget::Failures,
            Self::Throttle(_) => Budget::Throttles,
            Self::Late(_) => Budget::Late,
            Self::DropCaller(_) => Budget::Drops,
            Self::Evict(_) => Budget::Evictions,
            Self::Refuse(_) => Budget::Refusals,
            Self::LogIn(_) => Budget::Logins,
            Self::Remove(_) => Budget::Removals,
            Self::Die(_) => Budget::Deaths,
            Self::Restart(_) => Budget::Restarts,
            Self::Jump => Budget::Jumps,
            Self::Restore => Budget::Restores,
        })
    }

    fn process(self) -> Option<usize> {
        match self {
            Self::Open(name) | Self::Fail(name) | Self::Throttle(name) | Self::Late(name) => {
                Some(name.process)
            }
            Self::DropCaller(process)
            | Self::Evict(process)
            | Self::Refuse(process)
            | Self::LogIn(process)
            | Self::Remove(process)
            | Self::Die(process)
            | Self::Restart(process) => Some(process),
            Self::Time | Self::Jump | Self::Restore => None,
        }
    }

    /// What the choice touches beside its process. A claim that cannot be granted writes nothing.
    fn touches(self, is_leased: impl Fn(usize) -> bool) -> Touched {
        match self {
            Self::Open(Name { stage: Stage::Effect, call, process, .. }) => match call {
                Call::Request => Touched::Provider,
                Call::Read | Call::Due => Touched::StoreRead,
                Call::Claim if is_leased(process) => Touched::StoreRead,
                _ => Touched::StoreWritten,
            },
            Self::Jump | Self::Restore => Touched::StoreWritten,
            // A login begins a family of its own.
            _ => Touched::Nothing,
        }
    }
}

/// A choice, with what it touches in the present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) choice: Choice,
    touches: Touched,
}

impl Offer {
    /// `is_leased` says whether a living lease keeps a process from claiming.
    pub(crate) fn new(choice: Choice, is_leased: impl Fn(usize) -> bool) -> Self {
        Self { choice, touches: choice.touches(is_leased) }
    }

    /// Leaves the choices of one process alone where they touch nothing else: whatever the others
    /// do first, it can as well be done afterwards.
    pub(crate) fn first(offers: &[Self]) -> Vec<Self> {
        let is_time = |offer: &Self| offer.choice == Choice::Time;
        let processes = offers.iter().filter_map(|offer| offer.choice.process());
        let is_local = |process: usize| {
            let mut own = offers.iter().filter(|offer| offer.choice.process() == Some(process));
            let has_gate = own.clone().any(|offer| matches!(offer.choice, Choice::Open(_)));
            has_gate && own.all(|offer| offer.touches == Touched::Nothing)
        };
        let mut processes = processes;
        let local = processes.find(|process| is_local(*process));
        match local.filter(|_| !offers.iter().any(is_time)) {
            Some(local) => {
                let own = offers.iter().filter(|offer| offer.choice.process() == Some(local));
                own.copied().collect()
            }
            None => offers.to_vec(),
        }
    }

    /// Whether both orders of two choices lead to the same state.
    pub(crate) fn commutes_with(self, other: Self) -> bool {
        use Touched::{Provider, StoreRead, StoreWritten};
        let (one, two) = (self.choice, other.choice);
        if one == Choice::Time || two == Choice::Time {
            return false;
        }
        let same_process = one.process().is_some() && one.process() == two.process();
        let same_budget = one.cost().is_some() && one.cost() == two.cost();
        let collide = matches!(
            (self.touches, other.touches),
            (Provider, Provider)
                | (StoreRead | StoreWritten, StoreWritten)
                | (StoreWritten, StoreRead)
        );
        !collide && !same_process && !same_budget
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touched {
    Nothing,
    StoreRead,
    StoreWritten,
    Provider,
}
