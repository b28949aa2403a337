//! A manager whose clock is turned refreshes users when the schedule says.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use hurdlr_oauth2::manager::TokenEvent;
use hurdlr_oauth2::oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::{Hurdlr, TokenManager};

use crate::harness::Outcome;
use crate::provider::token_json;
use crate::rows::user;
use crate::schedule::{START, policy};
use crate::{Options, count, figure};

const LIFETIME: Duration = Duration::from_hours(1);

/// How far the clock is turned at once.
const STEP: Duration = Duration::from_mins(1);

const USERS: usize = 500;

/// Turns the clock through all lifetimes, and has all users read after each step.
pub(crate) fn refreshes_as_scheduled(options: &Options) -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let (refreshed, scheduled) = runtime.block_on(run(options))?;
    if refreshed != scheduled {
        return Err("the manager refreshed users at other times than the schedule says".into());
    }
    figure("scale.sample_refreshes", count(refreshed.iter().sum::<u64>()), "as scheduled");
    Ok(())
}

/// The refreshes of each step, and those that the schedule has.
async fn run(options: &Options) -> Outcome<(Vec<u64>, Vec<u64>)> {
    let clock = ManualClock::at(UNIX_EPOCH + START);
    let provider = Answering::default();
    let hurdlr = Hurdlr::builder("client-id", "client-secret".into())
        .http_client(provider.clone())
        .clock(clock.clone())
        .build()?;
    let manager = TokenManager::builder(hurdlr, MemoryStore::with_clock(clock.clone()))
        .refresh_policy(policy(options))
        .build()?;
    let steps = options.lifetimes * 60;
    let (mut refreshed, mut scheduled) = (vec![0; steps], vec![0; steps]);
    let mut users = Vec::new();
    for n in 0..USERS {
        let id = user(n)?;
        let json = token_json(1, LIFETIME.as_secs(), START.as_secs());
        manager.import_if_absent(&id, manager.hurdlr().import(json)?).await?;
        let handle = manager.user(&id);
        let due = handle.due_in().ok_or("a user has no token")?;
        // Users are read after whole steps.
        let steps = due.as_millis().div_ceil(STEP.as_millis());
        let between = usize::try_from(steps)?;
        scheduled.iter_mut().skip(between - 1).step_by(between).for_each(|rate| *rate += 1);
        let events = handle.subscribe();
        users.push((handle, events));
    }
    for rate in &mut refreshed {
        clock.advance(STEP);
        provider.0.fetch_add(STEP.as_secs(), Ordering::Relaxed);
        for (handle, events) in &mut users {
            let is_due = handle.due_in() == Some(Duration::ZERO);
            handle.token().await?;
            if is_due {
                match events.next().await {
                    TokenEvent::NewToken => *rate += 1,
                    other => return Err(format!("a refresh ended with {other:?}").into()),
                }
            }
        }
    }
    Ok((refreshed, scheduled))
}

/// A provider that answers at once, and knows how many seconds have passed.
#[derive(Clone, Default)]
struct Answering(Arc<AtomicU64>);

impl<'c> AsyncHttpClient<'c> for Answering {
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Infallible>> + Send + 'c>>;

    fn call(&'c self, _: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let now = START.as_secs() + self.0.load(Ordering::Relaxed);
            Ok(HttpResponse::new(token_json(now, LIFETIME.as_secs(), now).into_bytes()))
        })
    }
}
