//! What holds between processes that share a store, on their worst days: real processes, real
//! databases, real signals.

#![allow(clippy::unwrap_used, reason = "what fails unexpectedly is the test's failure")]

#[path = "../support/postgres.rs"]
mod postgres;
mod site;
mod worker;

use std::collections::HashSet;
use std::pin::Pin;
use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{Fault, Gate, Rotation};
use libtest_mimic::{Arguments, Trial};
use site::{Database, HOUR, Process, Site};
use worker::{Order, Point, Setup, Who};

/// What a process is started with to be a worker.
const WORKER: &str = "worker";

/// As many as an app may have replicas.
const PROCESSES: usize = 16;
const ROUNDS: u64 = 30;

/// By when a token of an hour is due, and by when it is expired, wherever the user is in the
/// spread.
const DUE: u64 = 51 * 60;
const EXPIRED: u64 = 60 * 60;

/// Within what time a process knows what another did, in seconds.
const BOUND: u64 = 60;

type Test = fn(Site) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! tests {
    ($($name:ident,)*) => {
        const TESTS: &[(&str, Test)] = &[
            $((stringify!($name), |site| Box::pin($name(site))),)*
        ];
    };
}

tests! {
    many_processes_due_at_once_refresh_once,
    many_processes_grant_a_cold_user_once,
    killed_before_request_loses_nothing,
    killed_before_provider_acts_loses_nothing,
    killed_before_answer_tells_lost_rotation,
    killed_before_answer_grace_recovers_it,
    killed_before_answer_grants_enterprise_anew,
    killed_before_save_tells_lost_rotation,
    killed_before_save_grace_recovers_it,
    killed_after_save_loses_nothing,
    stopped_before_answer_keeps_live_token,
    stopped_before_save_keeps_live_token,
    stopped_past_lease_sends_nothing_on_waking,
    stopped_past_lease_disturbs_no_peer,
    clocks_an_hour_apart_change_nothing,
    many_replicas_importing_one_table_replace_nothing,
    login_in_another_process_is_known,
    disconnect_in_another_process_is_known,
    refresh_in_another_process_is_known,
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some(WORKER) {
        return worker::run();
    }
    let mut arguments = Arguments::from_args();
    // They wait, most of the time.
    arguments.test_threads.get_or_insert(8);
    let trials = TESTS.iter().flat_map(|(name, test)| {
        [Database::Postgres, Database::Sqlite].map(|database| {
            let name = *name;
            let test = *test;
            let called = format!("{name}::{database:?}").to_lowercase();
            Trial::test(called, move || {
                run(database, name, test);
                Ok(())
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    site::stop_server();
    conclusion.exit();
}

fn run(database: Database, name: &str, test: Test) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // A name in PostgreSQL has 63 letters at the most.
        let place = TESTS.iter().position(|(other, _)| *other == name).unwrap();
        test(Site::new(database, &format!("test_{place}")).await).await;
    });
}

// --- At once --------------------------------------------------------------------------------

/// Every other round the token is due, and every other it is expired and callers wait.
async fn many_processes_due_at_once_refresh_once(site: Site) {
    const CALLERS: usize = 4;
    let ann = site.logged_in("ann").await;
    let mut processes = site.processes(PROCESSES).await;
    let mut last = String::new();
    for process in &mut processes {
        last = process.read(&ann).await.unwrap().access_token;
        process.tell(Order::Watch(ann.clone())).await;
    }
    for round in 0..ROUNDS {
        let is_due = round % 2 == 0;
        let gate = Gate::closed();
        site.fake.clear_requests();
        site.fake.fault_next(Fault::HoldAfter(gate.clone()));
        site.advance(if is_due { DUE } else { EXPIRED }, &mut processes).await;
        for process in &mut processes {
            process.forget_claims();
            process.tell(Order::Read(ann.clone(), CALLERS)).await;
        }
        if is_due {
            for process in &mut processes {
                for outcome in process.outcomes().await {
                    assert_eq!(outcome.unwrap().access_token, last, "round {round}");
                }
            }
        }
        // All of them have asked before any of them is answered.
        for process in &mut processes {
            process.has_claimed().await;
        }
        gate.open();
        let mut newest = HashSet::new();
        for process in &mut processes {
            if is_due {
                newest.insert(process.renewed(&ann, &last).await.access_token);
            } else {
                let outcomes = process.outcomes().await;
                newest.extend(outcomes.into_iter().map(|outcome| outcome.unwrap().access_token));
            }
        }
        assert_eq!(site.requests(), 1, "round {round}");
        assert_eq!(newest.len(), 1, "round {round}");
        last = newest.into_iter().next().unwrap();
        assert!(site.fake.is_alive(&last), "round {round}");
    }
    assert_eq!(site.row(&ann).await.unwrap().version.revision, 1 + ROUNDS);
    assert!(site.stored_refresh_token_lives(&ann).await);
}

async fn many_processes_grant_a_cold_user_once(site: Site) {
    let ann = Who::Enterprise("ann".to_owned());
    let mut processes = site.processes(PROCESSES).await;
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    for process in &mut processes {
        process.tell(Order::Read(ann.clone(), 1)).await;
    }
    for process in &mut processes {
        process.has_claimed().await;
    }
    gate.open();
    let mut tokens = HashSet::new();
    for process in &mut processes {
        tokens.insert(process.outcome().await.unwrap().access_token);
    }
    assert_eq!(tokens.len(), 1);
    assert_eq!(site.requests(), 1);
    assert_eq!(site.fake.count().grant("client_credentials"), 1);
}

// --- Killed ---------------------------------------------------------------------------------

/// Where the holder of the lease is killed.
#[derive(Clone, Copy)]
enum Killed {
    At(Point),
    /// The request has come to the provider, who has not acted.
    Arrived,
    /// The provider has acted, and not answered.
    Acted,
}

/// Kills the holder of the lease there, while callers in two others wait. Returns those, and what
/// they got.
async fn killed(site: &Site, who: &Who, there: Killed) -> ([Process; 2], [Result<(), String>; 2]) {
    let mut holder = Process::start(&site.short_lease()).await;
    let mut others = [site.process().await, site.process().await];
    if matches!(who, Who::Login(_)) {
        for process in others.iter_mut().chain([&mut holder]) {
            process.read(who).await.unwrap();
        }
        site.advance(EXPIRED, others.iter_mut().chain([&mut holder])).await;
    }
    match there {
        Killed::At(point) => holder.tell(Order::StopAt(point)).await,
        Killed::Arrived => site.fake.fault_next(Fault::Hold(Gate::closed())),
        Killed::Acted => site.fake.fault_next(Fault::HoldAfter(Gate::closed())),
    }
    holder.tell(Order::Read(who.clone(), 1)).await;
    match there {
        Killed::At(point) => holder.stands_at(point).await,
        Killed::Arrived => site.fake.arrived(1).await,
        Killed::Acted => site.issued(1).await,
    }
    for other in &mut others {
        other.tell(Order::Read(who.clone(), 1)).await;
        // Where it is saved, a look may have found it before anybody claims.
        if !matches!(there, Killed::At(Point::Saved)) {
            other.has_claimed().await;
        }
    }
    holder.kill().await;
    let mut outcomes = [Ok(()), Ok(())];
    for (other, outcome) in others.iter_mut().zip(&mut outcomes) {
        *outcome = other.outcome().await.map(|seen| {
            assert!(site.fake.is_alive(&seen.access_token));
        });
    }
    (others, outcomes)
}

/// All go on, after so many requests and answers with tokens in all.
async fn killed_and_recovered(site: Site, who: Who, there: Killed, requests: u64, issues: u64) {
    let (_others, outcomes) = killed(&site, &who, there).await;
    assert_eq!(outcomes, [Ok(()), Ok(())]);
    assert_eq!((site.requests(), site.issues()), (requests, issues));
    let row = site.row(&who).await.unwrap();
    assert!(!row.refused && !row.in_flight && row.leased_for.is_none(), "{row:?}");
    if matches!(who, Who::Login(_)) {
        assert_eq!(row.version.revision, 2);
        assert!(site.stored_refresh_token_lives(&who).await);
    }
}

/// How many requests it takes to know that a refresh token is dead: one with the Bearer header,
/// which may be what was refused, and one without.
const REFUSED: u64 = 2;

/// All are told, once it was refused; so is who comes later, by no request; and a login ends it.
async fn killed_and_lost(site: Site, there: Killed) {
    let ann = site.logged_in("ann").await;
    let (mut others, outcomes) = killed(&site, &ann, there).await;
    let lost = || Err("RotationLost".to_owned());
    assert_eq!(outcomes, [lost(), lost()]);
    assert_eq!((site.requests(), site.issues()), (1 + REFUSED, 1));
    let row = site.row(&ann).await.unwrap();
    assert!(row.refused && row.in_flight, "{row:?}");
    assert_eq!(row.version.revision, 1);
    let mut late = site.process().await;
    // By the store's clock, which nobody turns, the token still lives.
    assert!(late.read(&ann).await.is_ok());
    site.advance(EXPIRED, [&mut late]).await;
    assert_eq!(late.read(&ann).await, Err("RotationLost".to_owned()));
    assert_eq!(site.requests(), 1 + REFUSED);
    site.logged_in("ann").await;
    for process in others.iter_mut().chain([&mut late]) {
        process.tell(Order::Turn(BOUND)).await;
        let seen = process.read(&ann).await.unwrap();
        assert!(site.fake.is_alive(&seen.access_token));
    }
}

async fn killed_before_request_loses_nothing(site: Site) {
    let ann = site.logged_in("ann").await;
    killed_and_recovered(site, ann, Killed::At(Point::Claimed), 1, 1).await;
}

async fn killed_before_provider_acts_loses_nothing(site: Site) {
    let ann = site.logged_in("ann").await;
    killed_and_recovered(site, ann, Killed::Arrived, 2, 1).await;
}

async fn killed_before_answer_tells_lost_rotation(site: Site) {
    killed_and_lost(site, Killed::Acted).await;
}

async fn killed_before_answer_grace_recovers_it(site: Site) {
    site.fake.set_rotation(Rotation::Grace(Duration::from_secs(HOUR)));
    let ann = site.logged_in("ann").await;
    killed_and_recovered(site, ann, Killed::Acted, 2, 2).await;
}

async fn killed_before_answer_grants_enterprise_anew(site: Site) {
    let ann = Who::Enterprise("ann".to_owned());
    killed_and_recovered(site, ann, Killed::Acted, 2, 2).await;
}

async fn killed_before_save_tells_lost_rotation(site: Site) {
    killed_and_lost(site, Killed::At(Point::Answered)).await;
}

async fn killed_before_save_grace_recovers_it(site: Site) {
    site.fake.set_rotation(Rotation::Grace(Duration::from_secs(HOUR)));
    let ann = site.logged_in("ann").await;
    killed_and_recovered(site, ann, Killed::At(Point::Answered), 2, 2).await;
}

async fn killed_after_save_loses_nothing(site: Site) {
    let ann = site.logged_in("ann").await;
    killed_and_recovered(site, ann, Killed::At(Point::Saved), 1, 1).await;
}

// --- Stopped --------------------------------------------------------------------------------

/// A process whose token is expired and whose lease is short, and a peer of it.
async fn holder_and_peer(site: &Site, who: &Who) -> (Process, Process) {
    let mut holder = Process::start(&site.short_lease()).await;
    let mut peer = site.process().await;
    for process in [&mut holder, &mut peer] {
        process.read(who).await.unwrap();
    }
    site.advance(EXPIRED, [&mut holder, &mut peer]).await;
    (holder, peer)
}

/// The holder of the lease is stopped, and the provider has rotated: till the lease is over and the
/// peer was refused.
async fn peer_is_refused(site: &Site, who: &Who, peer: &mut Process) {
    site.claimable(who).await;
    assert_eq!(peer.read(who).await, Err("RotationLost".to_owned()));
    let row = site.row(who).await.unwrap();
    assert!(row.refused && row.in_flight, "{row:?}");
    assert_eq!(site.requests(), 1 + REFUSED);
}

/// The holder has been woken: its token is everybody's.
async fn live_token_survives(site: &Site, who: &Who, holder: &mut Process, peer: &mut Process) {
    let token = holder.outcome().await.unwrap().access_token;
    assert!(site.fake.is_alive(&token));
    let row = site.row(who).await.unwrap();
    assert!(!row.refused && !row.in_flight, "{row:?}");
    assert_eq!(row.version.revision, 2);
    assert!(site.stored_refresh_token_lives(who).await);
    peer.tell(Order::Turn(BOUND)).await;
    assert_eq!(peer.read(who).await.unwrap().access_token, token);
    assert_eq!((site.requests(), site.issues()), (1 + REFUSED, 1));
}

/// The answer comes while the process stands still. When it wakes, the answer is there, and the
/// time to wait for it is over.
async fn stopped_before_answer_keeps_live_token(site: Site) {
    site.fake.set_rotation(Rotation::RotateAndKill);
    let ann = site.logged_in("ann").await;
    let (mut holder, mut peer) = holder_and_peer(&site, &ann).await;
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    holder.tell(Order::Read(ann.clone(), 1)).await;
    site.issued(1).await;
    holder.stop();
    gate.open();
    peer_is_refused(&site, &ann, &mut peer).await;
    holder.wake();
    live_token_survives(&site, &ann, &mut holder, &mut peer).await;
}

async fn stopped_before_save_keeps_live_token(site: Site) {
    // By a provider that leaves the family alone, or nothing could survive.
    site.fake.set_rotation(Rotation::RotateAndKill);
    let ann = site.logged_in("ann").await;
    let (mut holder, mut peer) = holder_and_peer(&site, &ann).await;
    holder.tell(Order::StopAt(Point::Answered)).await;
    holder.tell(Order::Read(ann.clone(), 1)).await;
    holder.stands_at(Point::Answered).await;
    holder.stop();
    peer_is_refused(&site, &ann, &mut peer).await;
    holder.wake();
    holder.tell(Order::Go).await;
    live_token_survives(&site, &ann, &mut holder, &mut peer).await;
}

/// Stops a process that has the lease and has sent nothing, until the lease is over.
async fn stopped_before_sending(site: &Site, who: &Who, holder: &mut Process) {
    holder.tell(Order::StopAt(Point::Claimed)).await;
    holder.tell(Order::Read(who.clone(), 1)).await;
    holder.stands_at(Point::Claimed).await;
    holder.stop();
    site.claimable(who).await;
}

async fn stopped_past_lease_sends_nothing_on_waking(site: Site) {
    let ann = site.logged_in("ann").await;
    let (mut holder, _peer) = holder_and_peer(&site, &ann).await;
    stopped_before_sending(&site, &ann, &mut holder).await;
    holder.wake();
    holder.tell(Order::Go).await;
    assert_eq!(holder.outcome().await, Err("Unavailable".to_owned()));
    assert_eq!(site.requests(), 0);
    site.claimable(&ann).await;
    holder.tell(Order::Turn(BOUND)).await;
    holder.read(&ann).await.unwrap();
    assert_eq!((site.requests(), site.issues()), (1, 1));
}

async fn stopped_past_lease_disturbs_no_peer(site: Site) {
    let ann = site.logged_in("ann").await;
    let (mut holder, mut peer) = holder_and_peer(&site, &ann).await;
    stopped_before_sending(&site, &ann, &mut holder).await;
    let token = peer.read(&ann).await.unwrap().access_token;
    holder.wake();
    holder.tell(Order::Go).await;
    // A look at the store may have found the peer's token by now.
    let _ = holder.outcome().await;
    holder.tell(Order::Turn(BOUND)).await;
    assert_eq!(holder.read(&ann).await.unwrap().access_token, token);
    assert!(site.fake.is_alive(&token));
    assert_eq!((site.requests(), site.issues()), (1, 1));
    assert!(site.stored_refresh_token_lives(&ann).await);
}

// --- Clocks ---------------------------------------------------------------------------------

/// The database's clock is the machine's; the processes' differ from it and from each other by an
/// hour or more, and so does the provider's.
async fn clocks_an_hour_apart_change_nothing(site: Site) {
    const OLD: u64 = 30 * 60;
    site.fake.advance_clock(Duration::from_secs(5 * HOUR));
    // A token that was half an hour old when it came, by the provider's own clock.
    site.fake.reshape(|token| {
        let created_at = token["created_at"].as_u64().unwrap();
        token.insert("created_at".to_owned(), (created_at - OLD).into());
    });
    let ann = site.logged_in("ann").await;
    site.fake.clear_reshape();
    let hour = i64::try_from(HOUR).unwrap();
    let mut processes = Vec::new();
    for ahead in [-2 * hour, -hour, hour, 2 * hour] {
        processes.push(Process::start(&Setup { ahead, ..site.setup() }).await);
    }
    let mut last = String::new();
    for process in &mut processes {
        let seen = process.read(&ann).await.unwrap();
        assert!((OLD..OLD + 5 * 60).contains(&seen.age.as_secs()), "{seen:?}");
        last = seen.access_token;
        process.tell(Order::Watch(ann.clone())).await;
    }
    assert_eq!(site.requests(), 0, "it is fresh");

    // Due by all of their clocks. While one of them has the lease, all others see that it lives.
    site.advance(DUE - OLD, &mut processes).await;
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    for process in &mut processes {
        assert_eq!(process.read(&ann).await.unwrap().access_token, last);
    }
    site.fake.arrived(1).await;
    for process in &mut processes {
        process.has_claimed().await;
    }
    gate.open();
    for process in &mut processes {
        let seen = process.renewed(&ann, &last).await;
        assert!(seen.age.as_secs() < 5 * 60, "{seen:?}");
    }
    assert_eq!(site.requests(), 1);

    // Fresh for long, then expired by all of their clocks.
    for (seconds, requests) in [(OLD, 1), (EXPIRED - OLD, 2)] {
        site.advance(seconds, &mut processes).await;
        for process in &mut processes {
            process.tell(Order::Read(ann.clone(), 1)).await;
        }
        for process in &mut processes {
            let seen = process.outcome().await.unwrap();
            assert!(site.fake.is_alive(&seen.access_token));
        }
        assert_eq!(site.requests(), requests);
    }
    assert!(site.stored_refresh_token_lives(&ann).await);
}

// --- Imports --------------------------------------------------------------------------------

async fn many_replicas_importing_one_table_replace_nothing(site: Site) {
    const USERS: usize = 5;
    let mut table = Vec::new();
    for n in 0..USERS {
        let user = format!("user-{n}");
        let token = site.login(&user).await.to_secret();
        table.push((user, token.expose_secret().to_owned()));
    }
    // At the first boot one of them imports each user; at the second, after a refresh, none.
    for boot in 0..2_usize {
        let mut replicas = site.processes(PROCESSES).await;
        for replica in &mut replicas {
            replica.tell(Order::Import(table.clone())).await;
        }
        let mut imports = [0; USERS];
        for replica in &mut replicas {
            for (count, imported) in imports.iter_mut().zip(replica.imported().await) {
                *count += usize::from(imported);
            }
        }
        assert_eq!(imports, [1 - boot; USERS]);
        for (id, _) in &table {
            let who = Who::Login(id.clone());
            let mut tokens = HashSet::new();
            for replica in &mut replicas {
                tokens.insert(replica.read(&who).await.unwrap().access_token);
            }
            assert_eq!(tokens.len(), 1);
            assert!(tokens.iter().all(|token| site.fake.is_alive(token)));
            assert!(site.stored_refresh_token_lives(&who).await);
        }
        assert_eq!(site.requests(), 0, "boot {boot}");
        if boot == 0 {
            site.advance(EXPIRED, &mut replicas).await;
            for (id, _) in &table {
                replicas[0].read(&Who::Login(id.clone())).await.unwrap();
            }
            site.fake.clear_requests();
        }
    }
}

// --- What others did ------------------------------------------------------------------------

/// Two processes that have read ann's token, and watch her.
async fn two_readers(site: &Site) -> (Who, Process, Process, String) {
    let ann = site.logged_in("ann").await;
    let (mut here, mut elsewhere) = (site.process().await, site.process().await);
    let token = here.read(&ann).await.unwrap().access_token;
    assert_eq!(elsewhere.read(&ann).await.unwrap().access_token, token);
    for process in [&mut here, &mut elsewhere] {
        process.tell(Order::Watch(ann.clone())).await;
    }
    (ann, here, elsewhere, token)
}

/// Reads as one who is read does, until the bound is over: what changed by then.
async fn change_within_the_bound(here: &mut Process, who: &Who) -> String {
    for _ in 0..6 {
        here.tell(Order::Turn(BOUND / 6)).await;
        let _ = here.read(who).await;
    }
    here.change().await
}

async fn login_in_another_process_is_known(site: Site) {
    let (ann, mut here, mut elsewhere, old) = two_readers(&site).await;
    let login = site.login("ann").await.to_secret();
    elsewhere.tell(Order::Adopt("ann".to_owned(), login.expose_secret().to_owned())).await;
    elsewhere.done().await;
    let new = elsewhere.read(&ann).await.unwrap().access_token;
    assert_ne!(new, old);
    assert_eq!(change_within_the_bound(&mut here, &ann).await, "NewToken");
    assert_eq!(here.read(&ann).await.unwrap().access_token, new);
}

async fn disconnect_in_another_process_is_known(site: Site) {
    let (ann, mut here, mut elsewhere, _) = two_readers(&site).await;
    elsewhere.tell(Order::Forget(ann.clone())).await;
    elsewhere.done().await;
    assert_eq!(change_within_the_bound(&mut here, &ann).await, "Forgotten");
    assert_eq!(here.read(&ann).await, Err("LoginRequired".to_owned()));
    assert!(site.row(&ann).await.is_none(), "and nobody brought her back");
    assert_eq!(site.requests(), 0);
}

async fn refresh_in_another_process_is_known(site: Site) {
    let (ann, mut here, mut elsewhere, old) = two_readers(&site).await;
    // There an hour passes, and here it does not.
    site.advance(EXPIRED, [&mut elsewhere]).await;
    let new = elsewhere.read(&ann).await.unwrap().access_token;
    assert_ne!(new, old);
    assert_eq!(change_within_the_bound(&mut here, &ann).await, "NewToken");
    assert_eq!(here.read(&ann).await.unwrap().access_token, new);
    assert_eq!(site.requests(), 1);
}
