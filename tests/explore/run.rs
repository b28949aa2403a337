//! One run of a scenario on the real code: whatever can happen next is offered, and what was
//! chosen is done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hurdlr_oauth2::manager::{RefreshPolicy, SharedToken};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{MemoryStore, RowKind, StoreKey};
use hurdlr_oauth2::testing::Rng;
use hurdlr_oauth2::{Error, Hurdlr, RetryPolicy, Token, TokenManager, UserId};
use tokio::task::JoinHandle;

use crate::choice::{Choice, Offer};
use crate::laws::{Law, REQUESTS_PER_CLAIM};
use crate::provider::{Pair, Wire};
use crate::scenarios::{Budget, Budgets, Scenario, Setup};
use crate::store::{Backup, GatedStore, back_up, pair, restore, row};
use crate::world::{Call, Stage, Verdict, Whose, World, WorldClock};

/// Short, since whoever waits for a lease looks again each second.
const LEASE: Duration = Duration::from_secs(6);
const REFRESH: Duration = Duration::from_secs(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// Longer than the lease.
const LATE: Duration = Duration::from_secs(7);
/// Longer than any lease, pause, backoff or look at the store.
const CALM: Duration = Duration::from_secs(60);
/// The pauses of a caller who asks again: the second one is longer than the lease.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];
/// A run with more choices than this has gone astray.
const LONGEST: usize = 400;

/// Picks what happens next; `None` ends a run that an earlier one covers.
pub(crate) trait Chooser {
    fn choose(&mut self, options: &[Offer]) -> Option<Choice>;
}

/// The end of a run.
pub(crate) struct Outcome {
    pub(crate) broken: Option<(Law, String)>,
    pub(crate) taken: Vec<Choice>,
    /// It was not given up as covered by another run.
    pub(crate) is_over: bool,
    pub(crate) story: Vec<String>,
}

/// Runs a scenario once.
pub(crate) fn run(scenario: &Scenario, chooser: &mut dyn Chooser, with_story: bool) -> Outcome {
    fastrand::seed(1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut run = Run::new(scenario);
        run.set_up().await;
        run.world.lock().story = with_story.then(Vec::new);
        let (taken, is_over) = run.explore(chooser).await;
        let mut state = run.world.lock();
        let broken = state.laws.broken.take();
        Outcome { broken, taken, is_over, story: state.story.take().unwrap_or_default() }
    })
}

#[derive(Debug)]
struct Numbers(AtomicU64);

impl Rng for Numbers {
    fn next_u64(&self) -> u64 {
        // SplitMix64.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // Whoever waits for a lease waits as long as the modulus allows.
        z - z % 950 + 949
    }
}

/// The things that all processes of a run share.
struct Shared {
    world: World,
    store: MemoryStore,
    user: UserId,
    revalidate_after: Duration,
}

/// A process: what its callers share.
#[derive(Clone)]
struct Process {
    number: usize,
    world: World,
    manager: TokenManager,
    hurdlr: Hurdlr,
    user: UserId,
    /// The token that a caller was handed last.
    last: Arc<Mutex<Option<SharedToken>>>,
}

fn pair_of(token: &Token) -> Pair {
    let secret = token.refresh_token().map(|token| token.expose_secret().as_bytes());
    secret.and_then(Pair::find).expect("every token here has a refresh token")
}

impl Process {
    fn start(number: usize, shared: &Shared) -> Self {
        let (world, store) = (&shared.world, &shared.store);
        let hurdlr = Hurdlr::builder("id", "secret".into())
            .environment("http://localhost:1")
            .retry(RetryPolicy::default().max_attempts(REQUESTS_PER_CLAIM))
            .clock(WorldClock { world: world.clone(), whose: Whose::Process(number) })
            .http_client(Wire { process: number, world: world.clone() })
            .rng(Numbers(AtomicU64::new(number as u64)))
            .build()
            .expect("settings that can be used");
        let policy = RefreshPolicy::default()
            .lease(LEASE)
            .refresh_timeout(REFRESH)
            .max_backoff(LONGEST_BACKOFF);
        let gated = GatedStore { process: number, world: world.clone(), store: store.clone() };
        let manager = TokenManager::builder(hurdlr.clone(), gated)
            .cache_capacity(4)
            .max_concurrent_refreshes(2)
            .revalidate_after(shared.revalidate_after)
            .refresh_policy(policy)
            .build()
            .expect("settings that can be used");
        let (world, user) = (world.clone(), shared.user.clone());
        Self { number, world, manager, hurdlr, user, last: Arc::default() }
    }

    fn last(&self) -> Option<SharedToken> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for a token once.
    async fn ask(&self) -> Result<Pair, Error> {
        let asked = self.world.lock().laws.asks();
        let answer = self.manager.user(&self.user).token().await;
        let mut state = self.world.lock();
        match answer {
            Ok(token) => {
                let pair = pair_of(&token);
                state.serves(self.number, pair, asked);
                let shared = Some(token.into_shared());
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = shared;
                Ok(pair)
            }
            Err(error) => {
                state.fails(self.number, &error, asked);
                Err(error)
            }
        }
    }

    /// A caller who asks again after a pause.
    async fn call(self) {
        let _ = self.ask().await;
        for pause in PAUSES {
            self.world.sleep(self.number, pause).await;
            let _ = self.ask().await;
        }
    }

    async fn log_in(self) {
        let json = {
            let mut state = self.world.lock();
            state.laws.begin_login();
            let now = state.now;
            state.provider.log_in(now).json(now)
        };
        let token = self.hurdlr.import(json).expect("a token");
        let adopted = self.manager.adopt(&self.user, token).await;
        self.world.lock().laws.end_login(adopted.is_ok());
    }

    async fn remove(self) {
        self.world.lock().laws.begin_removal();
        let forgotten = self.manager.user(&self.user).forget().await;
        self.world.lock().laws.end_removal(self.number, forgotten.is_ok());
    }

    /// Evicts the user, unless somebody holds their entry.
    fn evict(&self) {
        for number in 0..8 {
            let other = UserId::new(format!("other-{number}")).expect("an id");
            // More than once, since users who came only once give way first.
            for _ in 0..3 {
                drop(self.manager.user(&other));
            }
        }
    }

    /// The API refuses the token that was handed out last.
    fn refuse(&self) {
        let Some(token) = self.last() else { return };
        let handle = self.manager.user(&self.user);
        let served = handle.try_token().map(|served| pair_of(&served));
        if served == Some(pair_of(&token)) {
            self.world.lock().laws.refused(self.number, pair_of(&token));
        }
        handle.report_unauthorized(&token);
    }
}

struct Run<'s> {
    world: World,
    store: MemoryStore,
    shared: Shared,
    scenario: &'s Scenario,
    key: StoreKey,
    processes: Vec<Process>,
    /// The tasks of callers, by process.
    callers: Vec<(usize, JoinHandle<()>)>,
    budgets: Budgets,
    /// The row as it was, and when.
    backup: Option<(Backup, Duration)>,
}

impl<'s> Run<'s> {
    fn new(scenario: &'s Scenario) -> Self {
        let world = World::new();
        world.lock().provider.reuse = scenario.reuse;
        let clock = WorldClock { world: world.clone(), whose: Whose::Store };
        let store = MemoryStore::with_clock(clock);
        let user = UserId::new("ann").expect("an id");
        let revalidate_after = scenario.revalidate_after;
        let shared = Shared { world: world.clone(), store: store.clone(), user, revalidate_after };
        let start = |number| Process::start(number, &shared);
        let processes: Vec<_> = (0..scenario.callers.len()).map(start).collect();
        let realm = Arc::new(processes[0].hurdlr.realm());
        let key = StoreKey::new(realm, RowKind::Login, shared.user.clone());
        let (callers, budgets) = (Vec::new(), scenario.budgets);
        Self { world, store, shared, scenario, key, processes, callers, budgets, backup: None }
    }

    async fn set_up(&mut self) {
        for step in self.scenario.setup {
            match *step {
                Setup::LogIn(process) => self.processes[process].clone().log_in().await,
                Setup::Ask(process) => drop(self.processes[process].ask().await),
                Setup::AskAll => {
                    for process in &self.processes {
                        drop(process.ask().await);
                    }
                }
                Setup::Pass(seconds) => {
                    let moment = self.world.lock().now + Duration::from_secs(seconds);
                    self.pass_until(moment).await;
                }
                Setup::BackUp => {
                    let now = self.world.lock().now;
                    self.backup = back_up(&self.store, &self.key).await.map(|it| (it, now));
                }
            }
            self.world.settle().await;
        }
        let has_looks = self.scenario.revalidate_after < CALM;
        self.world.lock().laws.begin(has_looks);
    }

    /// Lets all that happens by itself happen until a moment.
    async fn pass_until(&self, moment: Duration) {
        loop {
            self.world.settle().await;
            let next = self.world.lock().next_moment().filter(|next| *next < moment);
            self.world.lock().pass_until(next.unwrap_or(moment));
            if next.is_none() {
                return self.world.settle().await;
            }
        }
    }

    fn spawn_callers(&mut self, process: usize, count: usize) {
        for _ in 0..count {
            let caller = tokio::spawn(self.processes[process].clone().call());
            self.callers.push((process, caller));
        }
    }

    /// Explores until nobody asks any more, and checks what must hold then.
    async fn explore(&mut self, chooser: &mut dyn Chooser) -> (Vec<Choice>, bool) {
        let mut taken = Vec::new();
        self.world.lock().shut_gates();
        for (process, count) in self.scenario.callers.iter().enumerate() {
            self.spawn_callers(process, *count);
        }
        loop {
            self.world.settle().await;
            self.world.lock().settled();
            if self.world.lock().laws.broken.is_some() {
                return (taken, true);
            }
            let options = self.options().await;
            if options.is_empty() {
                break;
            }
            let Some(choice) = chooser.choose(&options) else { return (taken, false) };
            taken.push(choice);
            if taken.len() > LONGEST {
                let words = format!("the run does not end within {LONGEST} choices");
                self.world.lock().laws.break_law(Law::NoCircles, words);
                return (taken, true);
            }
            self.world.lock().tell(|| choice.in_words());
            self.perform(choice).await;
        }
        self.calm().await;
        (taken, true)
    }

    /// All that can happen next, in a stable order; nothing where all is over.
    async fn options(&mut self) -> Vec<Offer> {
        let choices = self.choices();
        let claims =
            |choice: &Choice| matches!(choice, Choice::Open(name) if name.call == Call::Claim);
        let is_leased = choices.iter().any(claims) && self.is_leased().await;
        let state = self.world.lock();
        let is_leased = |to| is_leased && state.laws.last_claimant != Some(to);
        choices.into_iter().map(|choice| Offer::new(choice, is_leased)).collect()
    }

    fn choices(&mut self) -> Vec<Choice> {
        let mut state = self.world.lock();
        let gates = state.open_gates();
        let next_moment = state.next_moment();
        self.callers.retain(|(process, caller)| !caller.is_finished() && !state.is_dead(*process));
        if gates.is_empty() && (self.callers.is_empty() || next_moment.is_none()) {
            return Vec::new();
        }
        let mut options: Vec<_> = gates.iter().map(|name| Choice::Open(*name)).collect();
        let may_pass = gates.is_empty() || self.budgets.left(Budget::Slow);
        options.extend((may_pass && next_moment.is_some()).then_some(Choice::Time));
        for name in gates {
            // A lost answer to a read is as good as a read that failed.
            let is_read = name.call == Call::Read && name.stage == Stage::Answer;
            options.extend((!is_read).then_some(Choice::Fail(name)));
            let may_throttle = name.call == Call::Request && name.stage == Stage::Effect;
            options.extend(may_throttle.then_some(Choice::Throttle(name)));
            options.push(Choice::Late(name));
        }
        let living = self.processes.iter().filter(|process| !state.is_dead(process.number));
        for process in living {
            let number = process.number;
            if self.callers.iter().any(|(of, _)| *of == number) {
                options.push(Choice::DropCaller(number));
            }
            if process.last().is_some() {
                options.push(Choice::Refuse(number));
            }
            options.extend([Choice::Evict(number), Choice::LogIn(number), Choice::Remove(number)]);
            options.extend([Choice::Die(number), Choice::Restart(number)]);
        }
        options.extend([Choice::Jump, Choice::Restore]);
        options.retain(|option| option.cost().is_none_or(|budget| self.budgets.left(budget)));
        options.sort_unstable();
        options
    }

    async fn perform(&mut self, choice: Choice) {
        if let Some(budget) = choice.cost() {
            self.budgets.take(budget);
        }
        match choice {
            Choice::Evict(process) => {
                self.world.lock().laws.evicted(process);
                self.processes[process].evict();
            }
            Choice::Refuse(process) => self.processes[process].refuse(),
            Choice::Restart(process) => {
                self.world.lock().kill(process);
                let number = self.processes.len();
                self.processes.push(Process::start(number, &self.shared));
                self.spawn_callers(number, 1);
            }
            Choice::Restore => {
                let now = self.world.lock().now;
                if let Some((backup, at)) = &self.backup {
                    restore(&self.store, &self.key, backup, now.saturating_sub(*at)).await;
                }
                let stored = pair(row(&self.store, &self.key).await.as_ref());
                self.world.lock().restored(stored);
            }
            _ => self.perform_at_once(choice),
        }
    }

    fn perform_at_once(&mut self, choice: Choice) {
        let mut state = self.world.lock();
        match choice {
            Choice::Open(name) => state.open(name, Verdict::Go),
            Choice::Fail(name) => {
                if name.call != Call::Request {
                    state.laws.store_failed(name.process);
                }
                state.open(name, Verdict::Fail);
            }
            Choice::Throttle(name) => state.open(name, Verdict::Throttle),
            Choice::Late(name) => state.delay(name, LATE),
            Choice::Time => {
                if !state.open_gates().is_empty() {
                    self.budgets.take(Budget::Slow);
                }
                let moment = state.next_moment().expect("time was offered");
                state.pass_until(moment);
            }
            Choice::DropCaller(process) => {
                let caller = self.callers.iter().position(|(of, _)| *of == process);
                self.callers.remove(caller.expect("it was offered")).1.abort();
            }
            Choice::LogIn(process) => {
                drop(tokio::spawn(self.processes[process].clone().log_in()));
            }
            Choice::Remove(process) => {
                drop(tokio::spawn(self.processes[process].clone().remove()));
            }
            Choice::Die(process) => state.kill(process),
            Choice::Jump => state.store_ahead += LATE,
            _ => unreachable!("{choice} is performed step by step"),
        }
    }

    async fn is_leased(&self) -> bool {
        row(&self.store, &self.key).await.is_some_and(|row| row.leased_for.is_some())
    }

    /// Everything works again, for long enough that all are told and saved.
    async fn calm(&mut self) {
        {
            let mut state = self.world.lock();
            state.tell(|| "All is calm from here on".to_owned());
            state.open_all();
        }
        let now = self.world.lock().now;
        self.pass_until(now + CALM).await;
        let is_dead = |process: &Process| self.world.lock().is_dead(process.number);
        let living: Vec<_> = self.processes.iter().filter(|it| !is_dead(it)).cloned().collect();
        let mut tasks: Vec<_> = self.callers.drain(..).collect();
        // The first answer may be what was last seen; the second one is up to date.
        for round in 0..2 {
            let mut asking = Vec::new();
            for process in &living {
                let asked = process.clone();
                asking.push((
                    process.number,
                    tokio::spawn(async move {
                        let answer = asked.ask().await;
                        if round == 1 {
                            asked.world.lock().calm_answer(asked.number, &answer);
                        }
                    }),
                ));
            }
            let now = self.world.lock().now;
            self.pass_until(now + CALM / 2).await;
            tasks.extend(asking);
        }
        let mut state = self.world.lock();
        let waiting = tasks.iter().find(|(of, task)| !task.is_finished() && !state.is_dead(*of));
        if let Some((process, _)) = waiting {
            let words = format!("a caller of process {process} waits for ever");
            state.laws.break_law(Law::NobodyWaits, words);
        }
        state.calm();
    }
}
