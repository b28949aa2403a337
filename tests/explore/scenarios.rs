//! The scenarios: who is there, what may happen, and how often.

use std::time::Duration;

use crate::provider::Reuse;

/// A step before the part that is explored, in which every gate is open.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Setup {
    LogIn(usize),
    Ask(usize),
    /// A caller of each process asks.
    AskAll,
    /// So many seconds pass.
    Pass(u64),
    /// The row is copied, to be restored later. It must be of the first revision.
    BackUp,
}

/// Something that may happen only so often in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Budget {
    Failures,
    Throttles,
    Late,
    /// Time goes on although gates could be opened.
    Slow,
    Drops,
    Evictions,
    Refusals,
    Logins,
    Removals,
    Deaths,
    Restarts,
    Jumps,
    Restores,
}

/// How often each of the above may happen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Budgets([u8; 13]);

impl Budgets {
    pub(crate) fn left(&self, budget: Budget) -> bool {
        self.0[budget as usize] > 0
    }

    pub(crate) fn take(&mut self, budget: Budget) {
        self.0[budget as usize] -= 1;
    }
}

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// How many callers each process has.
    pub(crate) callers: Vec<usize>,
    pub(crate) reuse: Reuse,
    pub(crate) setup: &'static [Setup],
    pub(crate) budgets: Budgets,
    pub(crate) revalidate_after: Duration,
    /// Left to the larger run.
    pub(crate) is_large: bool,
}

use Budget::{
    Deaths, Drops, Evictions, Failures, Jumps, Late, Logins, Refusals, Removals, Restarts,
    Restores, Slow, Throttles,
};
use Setup::{Ask, AskAll, BackUp, LogIn, Pass};

/// All processes hold a token that is expired.
const EXPIRED: &[Setup] = &[LogIn(0), AskAll, Pass(3_700)];
/// All processes hold a token that is fresh, and too old to be doubted when it is refused.
const FRESH: &[Setup] = &[LogIn(0), AskAll, Pass(100)];
/// All processes hold a token that has just come.
const YOUNG: &[Setup] = &[LogIn(0), AskAll];
/// Process 0 is at the third revision, process 1 at the second, and the backup holds the first.
const SCATTERED: &[Setup] =
    &[LogIn(0), BackUp, Pass(3_700), Ask(0), Ask(1), Pass(3_700), Ask(0), Pass(3_700)];

fn scenario(
    name: &'static str,
    processes: usize,
    setup: &'static [Setup],
    budgets: &[(Budget, u8)],
) -> Scenario {
    let mut left = Budgets::default();
    for (budget, times) in budgets {
        left.0[*budget as usize] = *times;
    }
    Scenario {
        name,
        callers: vec![1; processes],
        reuse: Reuse::KillsFamily,
        setup,
        budgets: left,
        revalidate_after: Duration::from_secs(86_400),
        is_large: false,
    }
}

impl Scenario {
    /// The provider refuses a refresh token that comes twice, and kills no family.
    fn lenient(self) -> Self {
        Self { reuse: Reuse::IsRefused, ..self }
    }

    /// Processes look at the store in the background.
    fn looks(self) -> Self {
        Self { revalidate_after: Duration::from_secs(10), ..self }
    }

    /// Each process has two callers.
    fn crowded(self) -> Self {
        Self { callers: vec![2; self.callers.len()], ..self }
    }

    fn large(self) -> Self {
        Self { is_large: true, ..self }
    }
}

/// All scenarios, small ones first.
///
/// A name tells what may happen beside the calls of all processes in every order. Nobody looks at
/// the store in the background, save where the name says `looks`.
pub(crate) fn scenarios() -> Vec<Scenario> {
    [one_process(), more_processes(), with_looks(), large(), large_with_looks()]
        .into_iter()
        .flatten()
        .collect()
}

fn one_process() -> Vec<Scenario> {
    let throttled = &[(Failures, 1), (Throttles, 1), (Evictions, 1)];
    let evicted = &[(Refusals, 1), (Evictions, 1), (Failures, 2)];
    let refused = &[(Refusals, 1), (Removals, 1), (Failures, 1)];
    vec![
        scenario("one_failures", 1, EXPIRED, &[(Failures, 3)]),
        scenario("one_pause_evicted", 1, EXPIRED, throttled),
        scenario("one_refusal_evicted", 1, FRESH, evicted),
        scenario("one_young_refusal_evicted", 1, YOUNG, evicted),
        scenario("one_refusal_removal", 1, FRESH, refused),
        scenario("one_refusal_login", 1, EXPIRED, &[(Refusals, 1), (Logins, 1), (Slow, 1)]),
        scenario("one_login_failures", 1, EXPIRED, &[(Logins, 1), (Failures, 2)]),
        scenario("one_removal_failures", 1, EXPIRED, &[(Removals, 1), (Failures, 2)]),
        scenario("one_removal_login", 1, EXPIRED, &[(Removals, 1), (Logins, 1)]),
    ]
}

fn more_processes() -> Vec<Scenario> {
    let jump = &[(Jumps, 1), (Failures, 1)];
    vec![
        scenario("two", 2, EXPIRED, &[]),
        scenario("two_failures", 2, EXPIRED, &[(Failures, 3)]),
        scenario("two_failures_lenient", 2, EXPIRED, &[(Failures, 3)]).lenient(),
        scenario("two_callers_leave", 2, EXPIRED, &[(Drops, 2), (Failures, 1)]).crowded(),
        scenario("two_late", 2, EXPIRED, &[(Late, 1), (Failures, 1)]),
        scenario("two_late_lenient", 2, EXPIRED, &[(Late, 2)]).lenient(),
        scenario("two_slow", 2, EXPIRED, &[(Slow, 2), (Failures, 1)]),
        scenario("two_overtaken", 2, EXPIRED, jump),
        scenario("two_overtaken_lenient", 2, EXPIRED, jump).lenient(),
        scenario("two_pause", 2, EXPIRED, &[(Failures, 1), (Throttles, 1)]),
        scenario("two_refusal", 2, FRESH, &[(Refusals, 1), (Failures, 2)]),
        scenario("two_login", 2, EXPIRED, &[(Logins, 1), (Failures, 1)]),
        scenario("two_removal", 2, EXPIRED, &[(Removals, 1), (Failures, 1)]),
        scenario("two_restart", 2, EXPIRED, &[(Restarts, 1)]),
        scenario("two_death", 2, EXPIRED, &[(Deaths, 1), (Failures, 1)]),
        scenario("two_restored", 2, SCATTERED, &[(Restores, 1)]),
        scenario("two_restored_lenient", 2, SCATTERED, &[(Restores, 1)]).lenient(),
        scenario("three_failures", 3, EXPIRED, &[(Failures, 2)]),
        scenario("three_overtaken", 3, EXPIRED, &[(Jumps, 1)]),
        scenario("three_death", 3, EXPIRED, &[(Deaths, 1)]),
    ]
}

fn with_looks() -> Vec<Scenario> {
    let refused = &[(Refusals, 1), (Removals, 1), (Failures, 1)];
    vec![
        scenario("two_looks", 2, EXPIRED, &[]).looks(),
        scenario("two_looks_failure", 2, EXPIRED, &[(Failures, 1)]).looks(),
        scenario("two_looks_removal", 2, EXPIRED, &[(Removals, 1)]).looks(),
        scenario("two_looks_login", 2, EXPIRED, &[(Logins, 1)]).looks(),
        scenario("two_looks_restored", 2, SCATTERED, &[(Restores, 1)]).looks(),
        scenario("one_looks_refusal", 1, FRESH, refused).looks(),
    ]
}

/// For the larger run.
fn large() -> Vec<Scenario> {
    let throttled = &[(Failures, 2), (Throttles, 1), (Evictions, 1)];
    let refused = &[(Refusals, 1), (Logins, 1), (Evictions, 1), (Failures, 1)];
    let jump = &[(Jumps, 1), (Failures, 1)];
    let large = vec![
        scenario("two_many_failures", 2, EXPIRED, &[(Failures, 4)]),
        scenario("two_pause_evicted", 2, EXPIRED, throttled),
        scenario("two_refusal_login", 2, FRESH, refused),
        scenario("two_late_failures", 2, EXPIRED, &[(Late, 1), (Failures, 2)]),
        scenario("two_slow_failures", 2, EXPIRED, &[(Slow, 3), (Failures, 2)]),
        scenario("two_login_failures", 2, EXPIRED, &[(Logins, 1), (Failures, 2)]),
        scenario("two_removal_failures", 2, EXPIRED, &[(Removals, 1), (Failures, 2)]),
        scenario("two_removal_login", 2, EXPIRED, &[(Removals, 1), (Logins, 1), (Failures, 1)]),
        scenario("two_restart_failures", 2, EXPIRED, &[(Restarts, 1), (Failures, 2)]),
        scenario("two_restored_failure", 2, SCATTERED, &[(Restores, 1), (Failures, 1)]),
        scenario("three_login", 3, EXPIRED, &[(Logins, 1), (Failures, 1)]),
        scenario("three_removal", 3, EXPIRED, &[(Removals, 1), (Failures, 1)]),
        scenario("three_restart", 3, EXPIRED, &[(Restarts, 1), (Failures, 1)]),
        scenario("three_refusal", 3, FRESH, &[(Refusals, 1), (Failures, 1)]),
        scenario("three_overtaken_lenient", 3, EXPIRED, jump).lenient(),
    ];
    large.into_iter().map(Scenario::large).collect()
}

fn large_with_looks() -> Vec<Scenario> {
    let all = &[(Failures, 2), (Late, 1), (Jumps, 1), (Logins, 1), (Evictions, 1), (Refusals, 1)];
    let large = vec![
        scenario("two_looks_failures", 2, EXPIRED, &[(Failures, 2)]),
        scenario("two_looks_login_failure", 2, EXPIRED, &[(Logins, 1), (Failures, 1)]),
        scenario("two_looks_removal_failure", 2, EXPIRED, &[(Removals, 1), (Failures, 1)]),
        scenario("two_looks_restored_failure", 2, SCATTERED, &[(Restores, 1), (Failures, 1)]),
        scenario("two_looks_restart", 2, EXPIRED, &[(Restarts, 1), (Failures, 1)]),
        scenario("two_looks_refusal", 2, FRESH, &[(Refusals, 1), (Failures, 1)]),
        scenario("three_looks_failure", 3, EXPIRED, &[(Failures, 1)]),
        scenario("two_looks_everything", 2, EXPIRED, all),
    ];
    large.into_iter().map(|scenario| scenario.looks().large()).collect()
}

/// Scenarios that can be explored without leaving anything out, to compare.
pub(crate) fn small() -> Vec<Scenario> {
    vec![
        scenario("two", 2, EXPIRED, &[]),
        scenario("two_with_jump", 2, EXPIRED, &[(Jumps, 1)]),
        scenario("two_with_failure", 2, EXPIRED, &[(Failures, 1)]),
        scenario("two_with_drop", 2, EXPIRED, &[(Drops, 1)]),
        scenario("two_with_login", 2, EXPIRED, &[(Logins, 1)]).large(),
        scenario("two_with_removal", 2, EXPIRED, &[(Removals, 1)]).large(),
    ]
}
