//! The plan: all that is done to the fleet, and when. It follows from the seed alone.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use hurdlr_oauth2::testing::{Fault, Gate, Rotation};

use crate::record::{Micros, Population, REFRESH_TIMEOUT, SECOND, User};

/// The processes that are there at a time. The first one is never killed, so that its memory can be
/// watched.
pub(crate) const SLOTS: usize = 4;

const PEOPLE: User = 650;
const ENTERPRISE: User = 350;
/// For how long tokens are remembered by [`Rotation::Grace`]: longer than any run.
const GRACE: Duration = Duration::from_hours(24);
const ERAS: u32 = 3;
/// One user of so many fails for ever.
const CURSED: u64 = 60;

/// One thing that is done to the fleet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    /// The provider goes by other rules from now on.
    Era {
        rotation: Rotation,
        faults_in_1000: u64,
    },
    /// SIGKILL. Another process takes the place after the pause.
    Kill {
        slot: usize,
        pause: Micros,
    },
    /// SIGSTOP, and SIGCONT after so long.
    Stop {
        slot: usize,
        lasts: Micros,
    },
    /// The time of day of one process jumps.
    Jump {
        slot: usize,
        seconds: i64,
    },
    LogIn {
        slot: usize,
        user: User,
    },
    Remove {
        slot: usize,
        user: User,
    },
    /// The provider revokes all that the user has, as an administrator would.
    Revoke {
        user: User,
    },
}

/// What is done to the fleet on one store.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    seed: u64,
    pub(crate) population: Population,
    pub(crate) is_v6: bool,
    /// How many users a process keeps in memory.
    pub(crate) capacity: usize,
    pub(crate) lasts: Micros,
    /// In the order of time.
    pub(crate) events: Vec<(Micros, Event)>,
}

impl Plan {
    pub(crate) fn new(seed: u64, lasts: Micros) -> Self {
        let mut rng = Rng::with_seed(mixed(&[seed, 1]));
        let population = Population { people: PEOPLE, enterprise: ENTERPRISE };
        let is_v6 = rng.bool();
        let total = usize::try_from(population.total()).unwrap_or(usize::MAX);
        let capacity = if rng.u8(..3) == 0 { total / 2 } else { 2 * total };
        let mut events = Vec::new();
        for era in 0..ERAS {
            let at = lasts / u64::from(ERAS) * u64::from(era);
            let rotation = rotation(&mut rng);
            let faults_in_1000 = [20, 100, 250][rng.usize(..3)];
            events.push((at, Event::Era { rotation, faults_in_1000 }));
        }
        // Everything is quiet before the first of them, and after the last.
        let mut every = |mean: Micros, draw: &mut dyn FnMut(&mut Rng) -> Event| {
            let mut at = rng.u64(mean / 2..2 * mean);
            while at < lasts {
                events.push((at, draw(&mut rng)));
                at += rng.u64(mean / 2..mean * 3 / 2);
            }
        };
        every(4 * SECOND, &mut |rng| Event::Kill {
            slot: rng.usize(1..SLOTS),
            pause: rng.u64(..SECOND),
        });
        every(5 * SECOND, &mut |rng| Event::Stop {
            slot: rng.usize(..SLOTS),
            lasts: rng.u64(SECOND / 10..6 * SECOND),
        });
        every(8 * SECOND, &mut |rng| {
            let slot = rng.usize(..SLOTS);
            let seconds = match rng.u8(..4) {
                0 => rng.i64(1..30),
                1 => rng.i64(30..10_000),
                2 => -rng.i64(1..30),
                _ => -rng.i64(30..10_000),
            };
            Event::Jump { slot, seconds }
        });
        every(SECOND / 8, &mut |rng| Event::LogIn {
            slot: rng.usize(..SLOTS),
            user: rng.u32(..PEOPLE),
        });
        every(SECOND / 4, &mut |rng| Event::Remove {
            slot: rng.usize(..SLOTS),
            user: rng.u32(..PEOPLE + ENTERPRISE),
        });
        every(SECOND, &mut |rng| Event::Revoke { user: rng.u32(..PEOPLE) });
        events.sort_by_key(|(at, _)| *at);
        Self { seed, population, is_v6, capacity, lasts, events }
    }

    /// The seed of a process's own choices, such as whom it reads.
    pub(crate) fn seed_of(&self, process: u32) -> u64 {
        mixed(&[self.seed, 2, u64::from(process)])
    }

    /// Whether every request of this user fails, until the curse is lifted.
    pub(crate) fn is_cursed(&self, user: User) -> bool {
        mixed(&[self.seed, 3, u64::from(user)]).is_multiple_of(CURSED)
    }

    /// The fault of a cursed user's requests. The provider acts on none of them.
    pub(crate) fn curse(&self, user: User) -> Planned {
        let planned = |effect, fault| Planned { effect, fault };
        match mixed(&[self.seed, 4, u64::from(user)]) % 5 {
            0 => planned(Effect::None, Fault::status(500)),
            1 => planned(Effect::None, Fault::DropBefore),
            2 => planned(Effect::None, Fault::html(502)),
            3 => planned(Effect::None, Fault::Hold(Gate::closed())),
            _ => pause(1, Fault::rate_limited_for),
        }
    }

    /// The fault of a user's request, by how many there were of this user before it.
    pub(crate) fn fault(&self, user: User, before: u64, faults_in_1000: u64) -> Option<Planned> {
        let mut rng = Rng::with_seed(mixed(&[self.seed, 5, u64::from(user), before]));
        if rng.u64(..1_000) >= faults_in_1000 {
            return None;
        }
        let millis = |from, to, rng: &mut Rng| Duration::from_millis(rng.u64(from..to));
        let (effect, fault) = match rng.u8(..18) {
            0 => (Effect::None, Fault::DropBefore),
            1 | 2 => (Effect::AnswerLost, Fault::DropAfter),
            3 => (Effect::None, Fault::Delay(millis(20, 700, &mut rng))),
            4 => (Effect::None, Fault::DelayAfter(millis(20, 700, &mut rng))),
            5 => (Effect::Late, Fault::Delay(REFRESH_TIMEOUT + millis(0, 2_000, &mut rng))),
            6 => (Effect::AnswerLost, Fault::DelayAfter(2 * REFRESH_TIMEOUT)),
            7 => (Effect::Doubt, Fault::Unauthorized),
            8 => (Effect::None, Fault::rate_limited()),
            9 => return Some(pause(rng.u64(1..3), Fault::rate_limited_for)),
            10 => return Some(pause(rng.u64(1..3), Fault::unavailable_for)),
            11 => (Effect::None, Fault::status([500, 503, 504, 408][rng.usize(..4)])),
            12 => (Effect::None, Fault::html(502)),
            13 => (Effect::AnswerLost, Fault::unavailable_after()),
            14 => (Effect::AnswerLost, Fault::Truncated),
            15 => (Effect::AnswerLost, Fault::Oversized),
            16 => (Effect::None, Fault::ContentType("text/html".to_owned())),
            _ => (Effect::None, Fault::redirect(307, "http://127.0.0.1:1/")),
        };
        Some(Planned { effect, fault })
    }

    /// Whether the API refuses a user's call although its token lives.
    pub(crate) fn refuses(&self, user: User, before: u64) -> bool {
        mixed(&[self.seed, 6, u64::from(user), before]).is_multiple_of(50)
    }
}

/// A fault, and what a judge has to know of it.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) effect: Effect,
    pub(crate) fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// No answer with a token is lost.
    None,
    /// The provider may act after the client has given up.
    Late,
    /// The provider acts, and its answer does not arrive, or not whole.
    AnswerLost,
    /// The provider refuses, and it may mean the login or the client: each one in a row doubles the
    /// pause.
    Doubt,
    /// The provider does not act, and asks for a pause.
    Pause(Micros),
}

fn pause(seconds: u64, fault: impl Fn(Duration) -> Fault) -> Planned {
    let span = Duration::from_secs(seconds);
    Planned { effect: Effect::Pause(seconds * SECOND), fault: fault(span) }
}

fn rotation(rng: &mut Rng) -> Rotation {
    match rng.u8(..6) {
        0 => Rotation::None,
        1 => Rotation::Grace(GRACE),
        2 => Rotation::KillAccess,
        3 => Rotation::KillFamily,
        _ => Rotation::RotateAndKill,
    }
}

/// A number that follows from these, and looks random.
fn mixed(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |mixed, number| Rng::with_seed(mixed ^ *number).u64(..))
}

/// The plan as it is printed: each deed with its time. Logins, removals and revocations are too
/// many to be listed one by one.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Population { people, enterprise } = self.population;
        let version = if self.is_v6 { "v6" } else { "v4" };
        let cursed = (0..self.population.total()).filter(|user| self.is_cursed(*user)).count();
        writeln!(
            f,
            "  {people} people and {enterprise} enterprise users of API {version}; the requests of \
             {cursed} of them always fail; {SLOTS} processes, each with room for {} users",
            self.capacity
        )?;
        let (mut logins, mut removals, mut revocations) = (0, 0, 0);
        for (at, event) in &self.events {
            let words = match event {
                Event::LogIn { .. } => {
                    logins += 1;
                    continue;
                }
                Event::Remove { .. } => {
                    removals += 1;
                    continue;
                }
                Event::Revoke { .. } => {
                    revocations += 1;
                    continue;
                }
                Event::Era { rotation, faults_in_1000 } => {
                    format!("{rotation:?}, {faults_in_1000} of 1,000 requests fail")
                }
                Event::Kill { slot, pause } => {
                    format!("kill process {slot}, restart after {:.1} s", seconds(*pause))
                }
                Event::Stop { slot, lasts } => {
                    format!("stop process {slot} for {:.1} s", seconds(*lasts))
                }
                Event::Jump { slot, seconds } => {
                    format!("turn the clock of process {slot} by {seconds} s")
                }
            };
            writeln!(f, "  {:>7.1} s  {words}", seconds(*at))?;
        }
        write!(
            f,
            "  and all along {logins} logins, {removals} removals, and {revocations} revocations \
             by the provider"
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is shown to a tenth of a second")]
pub(crate) fn seconds(micros: Micros) -> f64 {
    micros as f64 / SECOND as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed that failed is planned again letter by letter.
    #[test]
    fn plan_follows_from_seed() {
        let plan = || Plan::new(7, 60 * SECOND);
        assert_eq!(plan().events, plan().events);
        assert_eq!(plan().to_string(), plan().to_string());
        assert_ne!(plan().to_string(), Plan::new(8, 60 * SECOND).to_string());
        let faults = |plan: &Plan| {
            let faults = (0..500).map(|user| format!("{:?}", plan.fault(user, 3, 500)));
            faults.collect::<Vec<_>>()
        };
        assert_eq!(faults(&plan()), faults(&plan()));
    }

    /// Every kind of deed is part of a minute.
    #[test]
    fn minute_has_every_deed() {
        for seed in 0..50 {
            let plan = Plan::new(seed, 60 * SECOND);
            for is_it in [
                |event: &Event| matches!(event, Event::Era { .. }),
                |event: &Event| matches!(event, Event::Kill { .. }),
                |event: &Event| matches!(event, Event::Stop { .. }),
                |event: &Event| matches!(event, Event::Jump { .. }),
                |event: &Event| matches!(event, Event::LogIn { .. }),
                |event: &Event| matches!(event, Event::Remove { .. }),
                |event: &Event| matches!(event, Event::Revoke { .. }),
            ] {
                assert!(plan.events.iter().any(|(_, event)| is_it(event)), "seed {seed}");
            }
        }
    }

    /// The process whose memory is watched is not killed.
    #[test]
    fn first_process_is_never_killed() {
        let plan = Plan::new(9, 600 * SECOND);
        let killed = |event: &Event| matches!(event, Event::Kill { slot: 0, .. });
        assert!(!plan.events.iter().any(|(_, event)| killed(event)));
    }
}
