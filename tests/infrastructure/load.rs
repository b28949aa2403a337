//! Users who are read all the time while their tokens live for seconds, so that refreshes never
//! end.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hurdlr_oauth2::store::TokenStore;
use hurdlr_oauth2::{TokenManager, UserId};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, until};
use crate::site::{Site, user};

/// The life of the provider's tokens under load. They are due after two seconds at the earliest.
pub(crate) const LIFE: Duration = Duration::from_secs(3);

/// How often each user is read at each manager.
const READ_EVERY: Duration = Duration::from_millis(100);

/// Managers that serve the same users to callers who never stop asking.
pub(crate) struct Load {
    site: Arc<Site>,
    managers: Vec<TokenManager>,
    /// Everybody who logged in.
    users: Arc<Mutex<Vec<UserId>>>,
    /// Who was told that the login is over.
    told: Arc<Mutex<BTreeSet<UserId>>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Logs `users` in at the first manager and starts to read them at all of them.
    pub(crate) async fn start(
        site: Arc<Site>,
        managers: impl Into<Vec<TokenManager>>,
        users: usize,
    ) -> Self {
        let managers = managers.into();
        let users: Vec<_> = (0..users).map(|n| user(&format!("user {n}"))).collect();
        let mut load = Self {
            site,
            managers,
            users: Arc::new(Mutex::new(users.clone())),
            told: Arc::default(),
            stop: watch::Sender::new(false),
            tasks: JoinSet::new(),
        };
        for user in &users {
            load.site.log_in(&load.managers[0], user).await.unwrap();
        }
        for manager in &load.managers {
            for user in &users {
                let (handle, told) = (manager.user(user), Arc::clone(&load.told));
                let mut stop = load.stop.subscribe();
                load.tasks.spawn(async move {
                    let mut pace = tokio::time::interval(READ_EVERY);
                    let reading = async {
                        loop {
                            pace.tick().await;
                            if handle.token().await.is_err_and(|error| error.needs_login()) {
                                told.lock().unwrap().insert(handle.id().clone());
                            }
                        }
                    };
                    tokio::select! {
                        () = reading => {}
                        _ = stop.changed() => {}
                    }
                });
            }
        }
        load
    }

    /// Has new people log in all the while. A login that fails at `redeem` is none: its code was
    /// not sent yet.
    pub(crate) fn log_in_more(&mut self) {
        let (site, manager) = (Arc::clone(&self.site), self.managers[0].clone());
        let users = Arc::clone(&self.users);
        let stop = self.stop.subscribe();
        self.tasks.spawn(async move {
            let mut pace = tokio::time::interval(READ_EVERY);
            for n in 0.. {
                pace.tick().await;
                if *stop.borrow() {
                    return;
                }
                let new = user(&format!("new {n}"));
                if site.log_in(&manager, &new).await.is_ok() {
                    users.lock().unwrap().push(new);
                }
            }
        });
    }

    pub(crate) fn users(&self) -> Vec<UserId> {
        self.users.lock().unwrap().clone()
    }

    /// Waits until every user who is read was refreshed `times` more often in the server's tables.
    pub(crate) async fn refreshed(&self, server: &Cluster, schema: &str, times: u64) {
        let behind = behind(server, schema, times);
        let what = format!("{times} refreshes of everybody");
        until(&what, async || (server.psql(&behind).ok()? == "0").then_some(())).await;
    }

    /// Waits until there was another refresh in the server's tables.
    pub(crate) async fn refreshed_once(&self, server: &Cluster, schema: &str) {
        let sum = format!("SELECT sum(revision) FROM {schema}.hurdlr_tokens");
        let before = server.run(&sum);
        until("a refresh", async || (server.psql(&sum).ok()? != before).then_some(())).await;
    }

    /// Waits until every login either lives in `store`, or is known to be over to all managers.
    /// Returns the latter.
    pub(crate) async fn settled(&self, store: &impl TokenStore) -> BTreeSet<UserId> {
        let mut over = BTreeSet::new();
        for user in self.users() {
            let what = format!("{user:?} to live or to be told");
            let is_over = until(&what, async || {
                if self.site.login_lives(store, &user).await {
                    return Some(false);
                }
                for manager in &self.managers {
                    let told = manager.user(&user).token().await.err()?;
                    if !told.needs_login() {
                        return None;
                    }
                }
                Some(true)
            });
            if is_over.await {
                over.insert(user);
            }
        }
        over
    }

    /// Ends the load and the managers, and expects that nobody's login was lost: the provider takes
    /// what is in `store`, and nobody was told otherwise.
    pub(crate) async fn lost_nobody(self, store: &impl TokenStore) {
        let (site, users, told) = (self.site.clone(), self.users(), self.told.clone());
        self.stop().await;
        let mut lost = Vec::new();
        for user in users {
            if !site.login_lives(store, &user).await {
                lost.push(user);
            }
        }
        assert!(lost.is_empty(), "lost: {lost:?}");
        let told = told.lock().unwrap().clone();
        assert!(told.is_empty(), "told that their login is over, which it is not: {told:?}");
    }

    /// Ends the load and the managers, which have saved everything by then.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        for manager in &self.managers {
            let unfinished = manager.shutdown().await;
            assert!(unfinished.is_empty(), "unsaved at the end: {unfinished:?}");
        }
    }
}

/// Counts those who were read from the start and are not at `times` revisions more than now.
fn behind(server: &Cluster, schema: &str, times: u64) -> String {
    let tokens = format!("{schema}.hurdlr_tokens WHERE subject LIKE 'user %'");
    let goals = format!(
        "SELECT string_agg(format('(%L, %s)', subject, revision + {times}), ', ') FROM {tokens}"
    );
    let goals = server.run(&goals);
    format!(
        "SELECT count(*) FROM (VALUES {goals}) AS goal (subject, revision) \
         LEFT JOIN {schema}.hurdlr_tokens AS token USING (subject) \
         WHERE token.revision IS NULL OR token.revision < goal.revision"
    )
}
