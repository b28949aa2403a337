//! The processes, the people, and who killed whom.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{RowKind, StoreKey, TokenStore, Version};
use hurdlr_oauth2::testing::{
    FakeHurdlr, Fault, Gate, Outcome as Answered, RecordedRequest, Rotation,
};
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinHandle;

use crate::report::{Line, table};
use crate::worker::{News, Task};
use crate::{Outcome, WORK, stores};

pub(crate) const PROCESSES: usize = 8;
pub(crate) const PEOPLE: usize = 12;

const TOKEN_LIFE: Duration = Duration::from_secs(6);

/// Longer than anything here takes, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Fleet {
    fake: FakeHurdlr,
    /// By which people log in; nobody's token is read here.
    manager: TokenManager,
    store: Arc<dyn TokenStore>,
    store_url: String,
    people: Vec<UserId>,
    keys: Vec<StoreKey>,
}

/// One of the processes that share the store.
struct Process {
    name: String,
    child: Child,
    listening: JoinHandle<()>,
}

impl Fleet {
    pub(crate) async fn new(store_url: &str) -> Outcome<Self> {
        let fake = FakeHurdlr::builder()
            .rotation(Rotation::KillFamily)
            .token_life(TOKEN_LIFE)
            .start()
            .await?;
        let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .authorize_url(fake.authorize_url())
            .redirect_uri("https://app.example.com/callback")
            .build()?;
        let store = stores::open(store_url).await?;
        let manager = TokenManager::builder(hurdlr, Arc::clone(&store)).build()?;
        let people: Vec<UserId> = (1..=PEOPLE)
            .map(|number| UserId::new(format!("person-{number}")))
            .collect::<Result<_, _>>()?;
        let realm = Arc::new(manager.hurdlr().realm());
        let keys = people.iter();
        let keys = keys.map(|user| StoreKey::new(Arc::clone(&realm), RowKind::Login, user.clone()));
        let keys = keys.collect();
        Ok(Self { fake, manager, store, store_url: store_url.to_owned(), people, keys })
    }

    /// Lets every token fall due so often, with nobody in the way.
    pub(crate) async fn undisturbed(&self, rounds: u64) -> Outcome<bool> {
        println!("\nUndisturbed: every token falls due {rounds} times.");
        for user in &self.people {
            self.log_in(user).await?;
        }
        self.fake.clear_requests();
        let before = self.versions().await?;
        let (sender, mut news) = mpsc::unbounded_channel();
        let mut lines = vec![Line::default(); PROCESSES];
        let mut processes = Vec::new();
        for number in 0..PROCESSES {
            processes.push(self.start(number, 1, &sender).await?);
        }
        let began = Instant::now();
        let mut round = 0;
        while round < rounds {
            if began.elapsed() > PATIENCE {
                println!("  not everybody's token is refreshed any more");
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            let least = gained(&before, &self.versions().await?).into_iter().min();
            if least > Some(round) {
                round += 1;
                println!(
                    "  {:>5.1} s  round {round}: everybody's token was refreshed",
                    began.elapsed().as_secs_f64()
                );
            }
        }
        stop(processes).await?;
        drop(sender);
        while let Some((number, news)) = news.recv().await {
            lines[number].note(&news);
        }
        let requests = self.fake.requests();
        count_requests(&mut lines, &requests, &[]);
        let sum = table(&lines);
        let revisions: u64 = gained(&before, &self.versions().await?).into_iter().sum();
        println!(
            "  {} refreshes for {revisions} revisions: {} each",
            sum.sent,
            share(sum.sent, revisions)
        );
        Ok(round == rounds && sum.sent == revisions && sum.failures() == 0)
    }

    /// Kills processes whose request is with the provider: half of them before it acted, half after
    /// it had replaced the refresh token.
    pub(crate) async fn disturbed(&self, kills: usize) -> Outcome<bool> {
        println!("\nDisturbed: {kills} times SIGKILL for a process that has just sent a refresh.");
        self.fake.clear_requests();
        let stages = [Stage::BeforeActing, Stage::AfterRotating];
        let (orders, mut ordered) = mpsc::unbounded_channel();
        let plan = Arc::new(Mutex::new(Plan {
            left: stages.into_iter().cycle().take(kills).collect(),
            ..Plan::default()
        }));
        let planned = Arc::clone(&plan);
        self.fake.fault_plan(move |request| {
            planned.lock().unwrap_or_else(PoisonError::into_inner).fault(request, &orders)
        });

        let (sender, mut news) = mpsc::unbounded_channel();
        let mut processes = Vec::new();
        for number in 0..PROCESSES {
            processes.push(self.start(number, 2, &sender).await?);
        }
        let mut hospital = Hospital::default();
        let mut lines = vec![Line::default(); PROCESSES];
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let began = Instant::now();
        let mut before = self.versions().await?;
        let mut revisions = 0;
        let mut killed = 0;
        while killed < kills || !hospital.hurt.is_empty() {
            if began.elapsed() > PATIENCE {
                return Err("not everybody recovered".into());
            }
            tokio::select! {
                Some(Order { name, user, stage }) = ordered.recv() => {
                    let number = number_of(&name).ok_or("an unknown process")?;
                    if stage == Stage::AfterRotating {
                        self.rotated(&user).await;
                    }
                    let process = &mut processes[number];
                    process.child.kill().await?;
                    killed += 1;
                    lines[number].killed += 1;
                    println!(
                        "  {:>5.1} s  process {} killed {stage}, for {user}",
                        began.elapsed().as_secs_f64(), number + 1
                    );
                    let version = self.version(&user).await?;
                    hospital.killed.push(name);
                    hospital.hurt.insert(user, (version, stage));
                    *process = self.start(number, killed + 2, &sender).await?;
                }
                Some((number, told)) = news.recv() => {
                    lines[number].note(&told);
                    let News::Lost { user, rotation_lost } = told else { continue };
                    let place = self.place(&user)?;
                    if !self.is_refused(place).await? {
                        continue; // this loss was told by another process, too
                    }
                    let expected = rotation_lost && hospital.took_answer(&self.fake.requests(), &user);
                    hospital.broken |= !expected;
                    let kind = if rotation_lost { "RotationLost" } else { "LoginRequired" };
                    println!(
                        "  {:>5.1} s  {user}: {kind}{}; logs in again",
                        began.elapsed().as_secs_f64(),
                        if expected { ", as the answer died with the process" } else { ", WHICH NOBODY CAUSED" }
                    );
                    hospital.lost.push(kind);
                    let last = self.version(&user).await?;
                    revisions += last.revision - before[place].revision;
                    self.log_in(&self.people[place]).await?;
                    before[place] = self.version(&user).await?;
                    hospital.hurt.remove(&user);
                    plan.lock().unwrap_or_else(PoisonError::into_inner).hurt -= 1;
                }
                _ = tick.tick() => {
                    let mut healed = Vec::new();
                    for (user, (version, stage)) in &hospital.hurt {
                        if self.version(user).await? != *version {
                            healed.push((user.clone(), *stage));
                        }
                    }
                    for (user, stage) in healed {
                        println!(
                            "  {:>5.1} s  {user}: refreshed by another process",
                            began.elapsed().as_secs_f64()
                        );
                        // A rotation that was lost cannot heal by itself.
                        hospital.broken |= stage == Stage::AfterRotating;
                        hospital.hurt.remove(&user);
                        plan.lock().unwrap_or_else(PoisonError::into_inner).hurt -= 1;
                    }
                }
            }
        }
        self.fake.clear_faults();
        stop(processes).await?;
        drop(sender);
        while let Some((number, news)) = news.recv().await {
            lines[number].note(&news);
        }
        revisions += gained(&before, &self.versions().await?).into_iter().sum::<u64>();
        hospital.report(&mut lines, &self.fake.requests(), revisions);
        Ok(!hospital.broken)
    }

    /// Leaves nothing behind in a store that stays.
    pub(crate) async fn forget_all(&self) -> Outcome {
        for user in &self.people {
            self.manager.user(user).forget().await?;
        }
        Ok(())
    }

    async fn log_in(&self, user: &UserId) -> Outcome {
        let hurdlr = self.manager.hurdlr();
        let (url, pending) = hurdlr.begin_login()?;
        let callback = self.fake.consent(&url, user.as_str()).await?;
        let token = hurdlr.complete_login(pending, &callback).await?;
        Ok(self.manager.adopt(user, token).await?)
    }

    async fn start(
        &self,
        number: usize,
        life: usize,
        news: &UnboundedSender<(usize, News)>,
    ) -> Outcome<Process> {
        let name = format!("process-{number}-{life}");
        let mut child = Command::new(std::env::current_exe()?)
            .arg(WORK)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let task = Task {
            name: name.clone(),
            store: self.store_url.clone(),
            provider: self.fake.base_url().to_string(),
            client_id: self.fake.client_id().to_owned(),
            // A fake's own, which guards nothing.
            client_secret: self.fake.client_secret().expose_secret().to_owned(),
            users: self.people.iter().map(|user| user.as_str().to_owned()).collect(),
        };
        let task = format!("{}\n", serde_json::to_string(&task)?);
        child.stdin.as_mut().ok_or("no stdin")?.write_all(task.as_bytes()).await?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        let news = news.clone();
        let listening = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // The last line of one that was killed may be half a line.
                if let Ok(told) = serde_json::from_str(&line) {
                    let _ = news.send((number, told));
                }
            }
        });
        Ok(Process { name, child, listening })
    }

    fn place(&self, user: &str) -> Outcome<usize> {
        let place = self.people.iter().position(|person| person.as_str() == user);
        Ok(place.ok_or("an unknown person")?)
    }

    async fn versions(&self) -> Outcome<Vec<Version>> {
        let mut versions = Vec::new();
        for row in self.store.read(&self.keys).await? {
            versions.push(row?.ok_or("somebody is gone")?.version);
        }
        Ok(versions)
    }

    async fn version(&self, user: &str) -> Outcome<Version> {
        Ok(self.versions().await?[self.place(user)?])
    }

    async fn is_refused(&self, place: usize) -> Outcome<bool> {
        let rows = self.store.read(&self.keys[place..=place]).await?;
        let row = rows.into_iter().next().ok_or("the store answered nothing")??;
        Ok(row.is_some_and(|row| row.refused))
    }

    /// Waits until the provider has answered this person's last request, whoever reads the answer.
    async fn rotated(&self, user: &str) {
        let is_answered = || {
            let requests = self.fake.requests();
            let last = requests.iter().rfind(|request| request.user() == Some(user));
            last.is_some_and(|request| request.outcome().is_some())
        };
        while !is_answered() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Closes their standard input, and waits until they have finished what they were at.
async fn stop(processes: Vec<Process>) -> Outcome {
    for mut process in processes {
        drop(process.child.stdin.take());
        let status = process.child.wait().await?;
        process.listening.await?;
        if !status.success() {
            return Err(format!("{} ended with {status}", process.name).into());
        }
    }
    Ok(())
}

/// When a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    BeforeActing,
    AfterRotating,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BeforeActing => "before the provider had acted",
            Self::AfterRotating => "after the provider had rotated",
        })
    }
}

/// Whom to kill next.
#[derive(Default)]
struct Plan {
    left: Vec<Stage>,
    /// How many people have not recovered yet.
    hurt: usize,
    people: HashSet<String>,
    processes: HashSet<String>,
}

struct Order {
    name: String,
    user: String,
    stage: Stage,
}

impl Plan {
    /// Holds a request up whose sender is to die.
    fn fault(
        &mut self,
        request: &RecordedRequest,
        orders: &UnboundedSender<Order>,
    ) -> Option<Fault> {
        const HURT_AT_ONCE: usize = 2;

        let name = sender_of(request)?;
        let user = request.user()?;
        if self.hurt >= HURT_AT_ONCE || self.people.contains(user) || self.processes.contains(name)
        {
            return None;
        }
        let stage = self.left.pop()?;
        self.hurt += 1;
        self.people.insert(user.to_owned());
        self.processes.insert(name.to_owned());
        let order = Order { name: name.to_owned(), user: user.to_owned(), stage };
        orders.send(order).ok()?;
        Some(match stage {
            Stage::BeforeActing => Fault::Hold(Gate::closed()),
            Stage::AfterRotating => Fault::HoldAfter(Gate::closed()),
        })
    }
}

/// What the kills led to.
#[derive(Default)]
struct Hospital {
    hurt: HashMap<String, (Version, Stage)>,
    /// The names of processes that were killed.
    killed: Vec<String>,
    lost: Vec<&'static str>,
    broken: bool,
}

impl Hospital {
    fn report(&self, lines: &mut [Line], requests: &[RecordedRequest], revisions: u64) {
        count_requests(lines, requests, &self.killed);
        let sum = table(lines);
        let refused = refreshes(requests)
            .filter(|request| request.outcome() == Some(Answered::InvalidGrant))
            .count() as u64;
        println!(
            "  {} refreshes: {revisions} became revisions, {} died with their process, {refused} were \
             refused\n  (one that is refused is sent again without the Bearer header, to be sure)",
            sum.sent,
            sum.sent.saturating_sub(revisions + refused)
        );
        println!("  {} logins lost: {}", self.lost.len(), listed(&self.lost));
    }

    /// Whether this person's newest refresh token was sent to a process that died.
    fn took_answer(&self, requests: &[RecordedRequest], user: &str) -> bool {
        refreshes(requests)
            .filter(|request| request.user() == Some(user))
            .rfind(|request| request.outcome() == Some(Answered::Issued))
            .and_then(sender_of)
            .is_some_and(|name| self.killed.iter().any(|killed| killed == name))
    }
}

fn refreshes(requests: &[RecordedRequest]) -> impl DoubleEndedIterator<Item = &RecordedRequest> {
    requests.iter().filter(|request| sender_of(request).is_some())
}

/// Which process sent a refresh.
fn sender_of(request: &RecordedRequest) -> Option<&str> {
    let name = request.headers().get("user-agent")?.to_str().ok()?;
    name.starts_with("process-").then_some(name)
}

fn number_of(name: &str) -> Option<usize> {
    name.split('-').nth(1)?.parse().ok()
}

fn count_requests(lines: &mut [Line], requests: &[RecordedRequest], killed: &[String]) {
    for request in refreshes(requests) {
        let Some(name) = sender_of(request) else { continue };
        let Some(line) = number_of(name).and_then(|number| lines.get_mut(number)) else { continue };
        line.sent += 1;
        // The last that a killed one sent was held back.
        let is_last = || refreshes(requests).rfind(|other| sender_of(other) == Some(name));
        let is_held = killed.iter().any(|killed| killed == name)
            && is_last().is_some_and(|last| std::ptr::eq(last, request));
        if request.outcome() == Some(Answered::Issued) && !is_held {
            line.answered += 1;
        }
    }
}

fn gained(before: &[Version], now: &[Version]) -> Vec<u64> {
    let pairs = before.iter().zip(now);
    pairs.map(|(before, now)| now.revision.saturating_sub(before.revision)).collect()
}

/// With two digits, and no rounding up to what was hoped for.
fn share(sent: u64, revisions: u64) -> String {
    let hundredths = sent * 100 / revisions.max(1);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn listed(kinds: &[&str]) -> String {
    let count = |kind: &str| kinds.iter().filter(|other| **other == kind).count();
    format!("{} RotationLost, {} LoginRequired", count("RotationLost"), count("LoginRequired"))
}
