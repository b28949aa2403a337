//! The processes, and the plan as it is carried out on them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::Rotation;
use hurdlr_oauth2::{ApiVersion, Hurdlr, TokenManager, UserId};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::judge::{Deed, Evidence, SERVED_WITHIN};
use crate::plan::{Event, Plan, SLOTS};
use crate::provider::Provider;
use crate::record::{
    Micros, Order, Process, READ_EVERY, REFRESH_TIMEOUT, SECOND, Said, Setup, TOKEN_LIFE, User,
    now, user_name,
};
use crate::{Outcome, WORK, store};

/// Longer than anything takes that is waited for without a verdict.
const PATIENCE: Duration = Duration::from_secs(300);
/// How many logins there are at once before the fleet starts.
const AT_ONCE: usize = 16;

/// The fleet on one store.
pub(crate) struct Fleet {
    plan: Plan,
    provider: Provider,
    store_url: String,
    slots: Vec<Option<Member>>,
    processes: Process,
    heard: Arc<Heard>,
    deeds: Vec<Deed>,
    jumps: u64,
    memory: Vec<(Micros, u64)>,
}

/// One process.
struct Member {
    process: Process,
    child: Child,
    orders: ChildStdin,
    listening: JoinHandle<()>,
    stopped_since: Option<Micros>,
}

/// What the processes said.
#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<(Process, Said)>>,
    /// Users about whom an order is under way, and who has it.
    busy: Mutex<HashMap<User, Process>>,
    /// How many processes are ready.
    ready: watch::Sender<u32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Heard {
    fn hear(&self, process: Process, said: Said) {
        match &said {
            Said::Ready => self.ready.send_modify(|ready| *ready += 1),
            Said::Done { user, .. } => drop(lock(&self.busy).remove(user)),
            _ => {}
        }
        lock(&self.lines).push((process, said));
    }
}

impl Fleet {
    /// Carries out the plan on the store at this URL, and returns what was seen.
    pub(crate) async fn run(plan: Plan, store_url: &str) -> Outcome<Evidence> {
        let provider = Provider::start(&plan).await?;
        let mut fleet = Self {
            plan,
            provider,
            store_url: store_url.to_owned(),
            slots: Vec::new(),
            processes: 0,
            heard: Arc::default(),
            deeds: Vec::new(),
            jumps: 0,
            memory: Vec::new(),
        };
        let watch = tokio::spawn(watch_cpu(Arc::clone(&fleet.heard)));
        fleet.log_everybody_in().await?;
        for _ in 0..SLOTS {
            let member = fleet.start().await?;
            fleet.slots.push(Some(member));
        }
        fleet.wait_until_ready().await?;
        fleet.disturb().await?;
        let rested = fleet.rest().await?;
        fleet.end().await?;
        watch.abort();
        let _ = watch.await;
        fleet.evidence(rested)
    }

    /// Puts the logins of all people into the store, by a manager that is gone afterwards.
    async fn log_everybody_in(&self) -> Outcome {
        let fake = &self.provider.fake;
        let version = if self.plan.is_v6 { ApiVersion::V6 } else { ApiVersion::V4 };
        let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .api_version(version)
            .authorize_url(fake.authorize_url())
            .redirect_uri("https://app.example.com/callback")
            .http_client(fake.http_client())
            .build()?;
        let store = store::open(&self.store_url).await?;
        let manager = TokenManager::builder(hurdlr, store).build()?;
        let mut logins = JoinSet::new();
        for user in 0..self.plan.population.people {
            if logins.len() >= AT_ONCE {
                logins.join_next().await.transpose()?.transpose()?;
            }
            let (fake, manager) = (fake.clone(), manager.clone());
            logins.spawn(async move {
                let (url, pending) = manager.hurdlr().begin_login()?;
                let name = user_name(user);
                let callback = fake.consent(&url, &name).await?;
                let id = UserId::new(name)?;
                manager.complete_login(&id, pending, &callback).await?;
                Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
            });
        }
        while let Some(login) = logins.join_next().await {
            login??;
        }
        let unfinished = manager.shutdown().await;
        if unfinished.is_empty() { Ok(()) } else { Err("the first logins were not saved".into()) }
    }

    async fn start(&mut self) -> Outcome<Member> {
        let process = self.processes;
        self.processes += 1;
        let fake = &self.provider.fake;
        let setup = Setup {
            process,
            provider: fake.base_url().to_string(),
            authorize_url: fake.authorize_url().to_string(),
            client_id: fake.client_id().to_owned(),
            client_secret: fake.client_secret().expose_secret().to_owned(),
            is_v6: self.plan.is_v6,
            store: self.store_url.clone(),
            population: self.plan.population,
            capacity: self.plan.capacity,
            seed: self.plan.seed_of(process),
        };
        let mut child = Command::new(std::env::current_exe()?)
            .arg(WORK)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut orders = child.stdin.take().ok_or("no input")?;
        orders.write_all((serde_json::to_string(&setup)? + "\n").as_bytes()).await?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let heard = Arc::clone(&self.heard);
        let listening = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // The last line of a killed process may be half a line.
                if let Ok(said) = serde_json::from_str(&line) {
                    heard.hear(process, said);
                }
            }
        });
        Ok(Member { process, child, orders, listening, stopped_since: None })
    }

    async fn wait_until_ready(&self) -> Outcome {
        let all = u32::try_from(SLOTS)?;
        let mut ready = self.heard.ready.subscribe();
        let waited = tokio::time::timeout(PATIENCE, ready.wait_for(|count| *count >= all)).await;
        waited.map_err(|_| "waited in vain for the processes to be ready")??;
        Ok(())
    }

    /// Carries out the plan.
    async fn disturb(&mut self) -> Outcome {
        let begun = now();
        self.provider.set_cursing(true);
        let mut due: BTreeMap<(Micros, usize), Step> = BTreeMap::new();
        for (index, (at, event)) in self.plan.events.iter().enumerate() {
            due.insert((*at, index), Step::Event(*event));
        }
        let mut index = due.len();
        let mut later = |due: &mut BTreeMap<_, _>, at, step| {
            index += 1;
            due.insert((at, index), step);
        };
        for second in 0..self.plan.lasts / SECOND {
            later(&mut due, second * SECOND, Step::Weigh);
        }
        while let Some(((at, _), step)) = due.pop_first() {
            sleep_until(begun + at).await;
            match step {
                Step::Weigh => self.weigh(),
                Step::Wake(slot, process) => self.wake(slot, process),
                Step::Restart(slot) => self.slots[slot] = Some(self.start().await?),
                Step::Event(Event::Kill { slot, pause }) => {
                    if self.kill(slot).await? {
                        later(&mut due, at + pause, Step::Restart(slot));
                    }
                }
                Step::Event(Event::Stop { slot, lasts }) => {
                    if let Some(process) = self.stop(slot) {
                        later(&mut due, at + lasts, Step::Wake(slot, process));
                    }
                }
                Step::Event(Event::Jump { slot, seconds }) => self.jump(slot, seconds).await,
                Step::Event(Event::LogIn { slot, user }) => self.order(slot, user, true).await,
                Step::Event(Event::Remove { slot, user }) => self.order(slot, user, false).await,
                Step::Event(Event::Revoke { user }) => {
                    self.deeds.push(Deed::Revoked { user, at: now() });
                    self.provider.fake.revoke_everything(&user_name(user));
                }
                Step::Event(Event::Era { rotation, faults_in_1000 }) => {
                    self.deeds.push(Deed::Era {
                        kills: kills(rotation),
                        is_family: is_family(rotation),
                        at: now(),
                    });
                    self.provider.fake.set_rotation(rotation);
                    self.provider.set_faults(faults_in_1000);
                }
            }
        }
        sleep_until(begun + self.plan.lasts).await;
        Ok(())
    }

    /// No more faults, save for those who are cursed; then none at all. The readers go on, so that
    /// everybody who is not served by then is seen. Returns when it began.
    async fn rest(&mut self) -> Outcome<Micros> {
        self.provider.set_faults(0);
        for slot in 0..SLOTS {
            if self.slots[slot].is_none() {
                self.slots[slot] = Some(self.start().await?);
            }
            if let Some(process) = self.slots[slot].as_ref().map(|it| it.process) {
                self.wake(slot, process);
            }
        }
        self.weigh();
        let orders_over = async {
            while !lock(&self.heard.busy).is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, orders_over).await.map_err(|_| "an order hangs")?;
        let rested = now();
        // Everybody's token ends, and is replaced beside those of the cursed.
        tokio::time::sleep(Duration::from_secs(TOKEN_LIFE)).await;
        self.provider.set_cursing(false);
        let served = Duration::from_micros(SERVED_WITHIN);
        tokio::time::sleep(REFRESH_TIMEOUT + served + 2 * READ_EVERY).await;
        Ok(rested)
    }

    /// All processes end by themselves.
    async fn end(&mut self) -> Outcome {
        for member in self.slots.drain(..).flatten() {
            let Member { mut child, orders, listening, .. } = member;
            drop(orders);
            let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
            if !ended.map_err(|_| "a process hangs at its end")??.success() {
                return Err("a process failed at its end".into());
            }
            listening.await?;
        }
        Ok(())
    }

    fn evidence(self, rested: Micros) -> Outcome<Evidence> {
        let (arrivals, refused_calls) = self.provider.arrivals();
        let heard = Arc::into_inner(self.heard).ok_or("somebody still listens")?;
        let lines = heard.lines.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Evidence {
            population: self.plan.population,
            is_v6: self.plan.is_v6,
            token_life: TOKEN_LIFE * SECOND,
            arrivals,
            refused_calls,
            lines,
            deeds: self.deeds,
            rested,
            jumps: self.jumps,
            memory: self.memory,
        })
    }

    async fn tell(&mut self, slot: usize, order: &Order) {
        if let Some(member) = &mut self.slots[slot]
            && let Ok(line) = serde_json::to_string(order)
        {
            // It may have been killed just now.
            let _ = member.orders.write_all((line + "\n").as_bytes()).await;
        }
    }

    /// Has one process log a user in, or remove them; one order about a user at a time.
    async fn order(&mut self, slot: usize, user: User, is_login: bool) {
        let Some(process) = self.slots[slot].as_ref().map(|it| it.process) else { return };
        if self.slots[slot].as_ref().is_some_and(|it| it.stopped_since.is_some()) {
            return;
        }
        if lock(&self.heard.busy).contains_key(&user) {
            return;
        }
        lock(&self.heard.busy).insert(user, process);
        self.deeds.push(Deed::Ordered { process, user, is_login, at: now() });
        let order = if is_login { Order::LogIn(user) } else { Order::Remove(user) };
        self.tell(slot, &order).await;
    }

    async fn jump(&mut self, slot: usize, seconds: i64) {
        self.jumps += u64::from(self.slots[slot].is_some());
        self.tell(slot, &Order::Jump { seconds, sent: now() }).await;
    }

    /// SIGKILL, and waits until all is read that the process said.
    async fn kill(&mut self, slot: usize) -> Outcome<bool> {
        let Some(mut member) = self.slots[slot].take() else { return Ok(false) };
        self.deeds.push(Deed::Killed { process: member.process, at: now() });
        member.child.kill().await?;
        member.listening.await?;
        lock(&self.heard.busy).retain(|_, process| *process != member.process);
        if let Some(from) = member.stopped_since {
            self.deeds.push(Deed::Stopped { process: member.process, from, to: now() });
        }
        Ok(true)
    }

    /// SIGSTOP, unless it is stopped already.
    fn stop(&mut self, slot: usize) -> Option<Process> {
        let member = self.slots[slot].as_mut().filter(|it| it.stopped_since.is_none())?;
        member.stopped_since = Some(now());
        kill_process(pid(&member.child)?, Signal::STOP).ok()?;
        Some(member.process)
    }

    /// SIGCONT, if it is this process still.
    fn wake(&mut self, slot: usize, process: Process) {
        if let Some(member) = self.slots[slot].as_mut().filter(|it| it.process == process)
            && let Some(from) = member.stopped_since.take()
            && let Some(pid) = pid(&member.child)
        {
            let _ = kill_process(pid, Signal::CONT);
            self.deeds.push(Deed::Stopped { process, from, to: now() });
        }
    }

    /// Notes how much memory the process has that is never killed, where the system tells.
    fn weigh(&mut self) {
        const PAGE: u64 = 4_096;
        let pid = self.slots[0].as_ref().and_then(|member| member.child.id());
        let resident = pid.and_then(|pid| {
            let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
            statm.split(' ').nth(1)?.parse::<u64>().ok()
        });
        if let Some(pages) = resident {
            self.memory.push((now(), pages * PAGE));
        }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Event(Event),
    Wake(usize, Process),
    Restart(usize),
    Weigh,
}

/// Whether a refresh token is dead once it was used.
fn kills(rotation: Rotation) -> bool {
    !matches!(rotation, Rotation::None | Rotation::Grace(_))
}

/// Whether the use of an old refresh token ends the login.
fn is_family(rotation: Rotation) -> bool {
    matches!(rotation, Rotation::KillFamily)
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id()?.try_into().ok()?)
}

async fn sleep_until(at: Micros) {
    tokio::time::sleep(Duration::from_micros(at.saturating_sub(now()))).await;
}

/// Notes when the machine left this process, and so the provider, without a CPU.
async fn watch_cpu(heard: Arc<Heard>) {
    const BEAT: Duration = Duration::from_millis(50);
    const LAG: Micros = 2 * SECOND / 5;
    loop {
        let from = now();
        tokio::time::sleep(BEAT).await;
        let to = now();
        if to - from > LAG {
            heard.hear(Process::MAX, Said::Lagged { from, to });
        }
    }
}
