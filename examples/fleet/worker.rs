//! One process of the fleet: reads everybody's token, again and again, as the requests to an app
//! would.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hurdlr_oauth2::manager::{RefreshPolicy, TokenEvent, UserHandle};
use hurdlr_oauth2::{Error, Hurdlr, TokenManager, UserId};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{Outcome, stores};

/// What a process has to know, as a line of JSON.
#[derive(Deserialize, Serialize)]
pub(crate) struct Task {
    /// What the provider sees as the request's user agent.
    pub(crate) name: String,
    pub(crate) store: String,
    pub(crate) provider: String,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    pub(crate) users: Vec<String>,
}

/// What a process tells, each a line of JSON.
#[derive(Deserialize, Serialize)]
pub(crate) enum News {
    /// All users have been read once.
    Ready,
    /// So many callers got a token.
    Served(u64),
    /// A caller did not.
    Failed(String),
    /// Another token is served to somebody than before.
    Token,
    /// Somebody's login is over.
    Lost { user: String, rotation_lost: bool },
}

/// Tokens live for 6 s here. They are due after about half of that, which leaves time for a
/// process that dies: its lease ends before the token does.
pub(crate) fn policy() -> RefreshPolicy {
    RefreshPolicy::default()
        .refresh_fraction(0.4)
        .refresh_jitter(0.1)
        .refresh_timeout(Duration::from_millis(1_500))
        .lease(Duration::from_secs(2))
        .initial_backoff(Duration::from_millis(300))
}

/// Works until its standard input is closed.
pub(crate) async fn work() -> Outcome {
    let mut task = String::new();
    io::stdin().read_line(&mut task)?;
    let task: Task = serde_json::from_str(&task)?;

    let hurdlr = Hurdlr::builder(&task.client_id, task.client_secret.as_str().into())
        .environment(task.provider)
        .reqwest(|builder| builder.user_agent(&task.name))
        .build()?;
    let manager = TokenManager::builder(hurdlr, stores::open(&task.store).await?)
        .refresh_policy(policy())
        .revalidate_after(Duration::from_secs(2))
        .build()?;

    let served = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    for user in &task.users {
        let user = manager.user(&UserId::new(user.as_str())?);
        tokio::spawn(watch(user.clone()));
        tell_outcome(user.token().await.map(drop), &served);
        readers.spawn(read(user, Arc::clone(&served)));
    }
    tell(&News::Ready);

    let mut end = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()));
    let mut every = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            _ = &mut end => break,
            _ = every.tick() => tell(&News::Served(served.swap(0, Ordering::Relaxed))),
        }
    }
    // No more callers; what is being refreshed for them is finished and saved.
    readers.shutdown().await;
    let unsaved = manager.shutdown().await;
    tell(&News::Served(served.swap(0, Ordering::Relaxed)));
    if unsaved.is_empty() { Ok(()) } else { Err("a token could not be saved".into()) }
}

async fn read(user: UserHandle, served: Arc<AtomicU64>) {
    loop {
        // Not all at the same moment, as callers come.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..60))).await;
        tell_outcome(user.token().await.map(drop), &served);
    }
}

async fn watch(user: UserHandle) {
    let mut changes = user.subscribe();
    // The first token that is served is the one that was in the store.
    let mut is_first = true;
    loop {
        match changes.next().await {
            TokenEvent::NewToken if is_first => is_first = false,
            TokenEvent::NewToken => tell(&News::Token),
            over @ (TokenEvent::LoginRequired | TokenEvent::RotationLost) => tell(&News::Lost {
                user: user.id().as_str().to_owned(),
                rotation_lost: over == TokenEvent::RotationLost,
            }),
            _ => {}
        }
    }
}

fn tell_outcome(outcome: Result<(), Error>, served: &AtomicU64) {
    match outcome {
        Ok(()) => {
            served.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => tell(&News::Failed(format!("{:?}", error.kind()))),
    }
}

/// A line at once, so that what was told is known however the process ends.
fn tell(news: &News) {
    if let Ok(line) = serde_json::to_string(news) {
        // Nobody may be left to listen.
        let _ = writeln!(io::stdout(), "{line}");
    }
}
