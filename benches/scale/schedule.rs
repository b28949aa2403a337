//! When very many users are refreshed, by the policy itself.
//!
//! A user's tokens all live equally long, so the policy gives a user the same span from one refresh
//! to the next. Each user is imported by a manager, which says when the token is due; the rest is
//! counting. `sample.rs` proves on some users that a manager whose clock is turned refreshes them
//! then. What a refresh takes, milliseconds, is left out.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use hurdlr_oauth2::manager::RefreshPolicy;
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::{Hurdlr, TokenManager};

use crate::harness::Outcome;
use crate::nowhere::Nowhere;
use crate::provider::token_json;
use crate::rows::user;
use crate::{IS_MEASURED, Options, count, figure};

const USERS: usize = 10_000_000;

/// How many parts a lifetime is counted in: days where it is 90 days.
const PARTS: usize = 90;

/// How many users a manager has in memory.
const CHUNK: usize = 50_000;

/// The highest rate after the first lifetime that meets the goal, over the mean. Chance alone makes
/// higher ones of fewer than a few hundred thousand users.
const HIGHEST: f64 = 1.5;

const LIFETIMES: [(&str, Duration); 2] =
    [("90_days", Duration::from_hours(90 * 24)), ("1_hour", Duration::from_hours(1))];

/// The time of day at which clocks that are turned start.
pub(crate) const START: Duration = Duration::from_secs(1_800_000_000);

pub(crate) fn policy(options: &Options) -> RefreshPolicy {
    let policy = RefreshPolicy::default();
    match options.spread {
        None => policy,
        Some((fraction, jitter)) => policy.refresh_fraction(fraction).refresh_jitter(jitter),
    }
}

pub(crate) fn measure(options: &Options) -> Outcome {
    let users = options.users.unwrap_or(USERS);
    let (mut series, mut highest) = (String::new(), 0.0_f64);
    for (name, lifetime) in LIFETIMES {
        let halves = [0..users / 2, users / 2..users];
        let rates = thread::scope(|scope| {
            let halves = halves.map(|half| scope.spawn(|| Rates::of(half, lifetime, options)));
            let joined = halves.map(|half| half.join().map_err(|_| "a thread panicked"));
            let [first, second] = joined;
            Outcome::Ok(first??.with(&second??))
        })?;
        for (granted, rates) in [("together", &rates.together), ("spread", &rates.spread)] {
            let peak = tell(name, granted, rates);
            if peak > highest || peak.is_nan() {
                highest = peak;
            }
            write!(series, "{name} {granted}")?;
            for refreshes in rates {
                write!(series, " {:.3}", count(*refreshes) / mean_after_first(rates))?;
            }
            series.push('\n');
        }
        let life_used = rates.life_used / count(users);
        figure(&format!("scale.life_used.{name}"), life_used, "of a lifetime");
        figure(&format!("scale.schedule_users.{name}"), count(users), "users");
    }
    if let Some(path) = &options.series {
        std::fs::write(path, series)?;
    }
    // A figure that is no number meets no goal.
    if IS_MEASURED.load(Ordering::Relaxed) && (highest > HIGHEST || highest.is_nan()) {
        let words = format!("the highest rate is {highest:.2} of the mean: {HIGHEST} is the goal");
        return Err(words.into());
    }
    Ok(())
}

/// Prints the peaks, and returns the highest after the first lifetime.
fn tell(lifetime: &str, granted: &str, rates: &[u64]) -> f64 {
    let (first, later) = rates.split_at(PARTS);
    let mean = mean_after_first(rates);
    let peak = |rates: &[u64]| count(rates.iter().copied().max().unwrap_or(0)) / mean;
    figure(&format!("scale.peak_over_mean.{lifetime}.{granted}"), peak(later), "x");
    figure(&format!("scale.first_peak_over_mean.{lifetime}.{granted}"), peak(first), "x");
    let late = rates.split_at(rates.len() / 2).1;
    figure(&format!("scale.late_peak_over_mean.{lifetime}.{granted}"), peak(late), "x");
    peak(later)
}

/// The mean rate after the first lifetime.
fn mean_after_first(rates: &[u64]) -> f64 {
    count(rates[PARTS..].iter().sum::<u64>()) / count(rates.len() - PARTS)
}

/// How many refreshes come in each part of each lifetime.
struct Rates {
    /// All users were granted their first token in one moment.
    together: Vec<u64>,
    /// They were granted it at random moments of the first lifetime.
    spread: Vec<u64>,
    /// The sum of the shares of their lives after which tokens are due.
    life_used: f64,
}

impl Rates {
    fn of(users: Range<usize>, lifetime: Duration, options: &Options) -> Outcome<Self> {
        let parts = options.lifetimes * PARTS;
        let (mut together, mut spread) = (vec![0; parts], vec![0; parts]);
        let mut random = fastrand::Rng::with_seed(options.seed ^ count(users.start).to_bits());
        let mut life_used = 0.0;
        for_each_due(users, lifetime, options, |due| {
            let share = due.as_secs_f64() / lifetime.as_secs_f64();
            life_used += share;
            add_refreshes(&mut together, 0.0, share);
            add_refreshes(&mut spread, random.f64(), share);
        })?;
        Ok(Self { together, spread, life_used })
    }

    fn with(mut self, other: &Self) -> Self {
        let pairs = [(&mut self.together, &other.together), (&mut self.spread, &other.spread)];
        for (ours, theirs) in pairs {
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours += theirs);
        }
        self.life_used += other.life_used;
        self
    }
}

/// Adds the refreshes of a user who was granted a token at `granted`, in lifetimes.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
fn add_refreshes(rates: &mut [u64], granted: f64, share: f64) {
    let mut at = granted + share;
    while let Some(rate) = rates.get_mut((at * count(PARTS)) as usize) {
        *rate += 1;
        at += share;
    }
}

/// Calls `take` with the span after which each user's token is due, by a manager.
fn for_each_due(
    users: Range<usize>,
    lifetime: Duration,
    options: &Options,
    mut take: impl FnMut(Duration),
) -> Outcome {
    // Time stands still, so that no token ages.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(async {
        let clock = ManualClock::at(UNIX_EPOCH + START);
        let hurdlr = Hurdlr::builder("client-id", "client-secret".into()).clock(clock).build()?;
        let json = token_json(1, lifetime.as_secs(), START.as_secs());
        for start in users.clone().step_by(CHUNK) {
            let manager = TokenManager::builder(hurdlr.clone(), Nowhere)
                .refresh_policy(policy(options))
                .cache_capacity(2 * CHUNK)
                .build()?;
            for n in start..users.end.min(start + CHUNK) {
                let id = user(n)?;
                manager.import_if_absent(&id, hurdlr.import(&json)?).await?;
                take(manager.user(&id).due_in().ok_or("a user has no token")?);
            }
        }
        Ok(())
    })
}
