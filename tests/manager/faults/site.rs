//! The set-up that all these tests share.

use std::cell::Cell;
use std::io;
use std::panic;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use hurdlr_oauth2::manager::{TokenEvent, UserHandle};
use hurdlr_oauth2::secrecy::SecretBox;
use hurdlr_oauth2::store::{Row, RowKind, StoredToken, TokenStore, Version};
use hurdlr_oauth2::testing::{Fault, StoreCall, StoreFault, seed_row};
use hurdlr_oauth2::{Error, TokenManager, UserId};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::LevelFilter;

use crate::logged::listen;
pub(crate) use crate::polled_once;
pub(crate) use crate::site::{HOUR, SECOND, Site, access, refresh};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// The answer to wrong client credentials, and to a dead token.
pub(crate) const INVALID_TOKEN: &str = r#"{"result":"FAILURE","error":[{"type":"INVALID_TOKEN"}]}"#;

pub(crate) fn id(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

pub(crate) fn ids(prefix: &str, count: usize) -> Vec<UserId> {
    (0..count).map(|n| id(&format!("{prefix}-{n}"))).collect()
}

pub(crate) fn ann() -> UserId {
    id("ann")
}

pub(crate) fn doubtful_refusal() -> Fault {
    Fault::answer(401, INVALID_TOKEN)
}

/// Lets every task run until it has to wait.
pub(crate) async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// The access token that a caller gets who is in a hurry.
pub(crate) async fn soon(user: &UserHandle) -> Result<String, Error> {
    user.token_timeout(SECOND / 10).await.map(|token| access(&token))
}

/// The access token that a patient caller gets, and the task that waits for it.
pub(crate) fn spawn_read(user: UserHandle) -> tokio::task::JoinHandle<Result<String, Error>> {
    tokio::spawn(async move { user.token().await.map(|token| access(&token)) })
}

/// Collects the events of a user from now on.
pub(crate) fn events(user: &UserHandle) -> Arc<Mutex<Vec<TokenEvent>>> {
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let (mut events, written) = (user.subscribe(), Arc::clone(&seen));
    tokio::spawn(async move {
        loop {
            let event = events.next().await;
            written.lock().unwrap().push(event);
        }
    });
    seen
}

/// What this binary asks of a site beyond what the other test binaries do.
pub(crate) trait Attacked {
    /// How often the store was called so.
    fn calls(&self, call: StoreCall) -> usize;

    /// The next call of this kind panics.
    fn panic_once(&self, call: StoreCall);

    /// The store goes down at the next save.
    fn go_down_at_next_save(&self);

    /// How many rows hold a token, including those that wait for a revocation.
    async fn rows(&self) -> usize;

    /// Makes the row of a login unreadable.
    async fn damage(&self, user: &UserId);

    /// Puts a login back to its first revision, as it was so long ago.
    async fn restore(&self, user: &UserId, backup: Row, age: Duration);

    /// Logs so many people in, and returns the manager they logged in to.
    async fn all_logged_in(&self, users: &[UserId]) -> TokenManager;
}

impl Attacked for Site {
    fn calls(&self, call: StoreCall) -> usize {
        self.store.calls().into_iter().filter(|it| *it == call).count()
    }

    fn panic_once(&self, call: StoreCall) {
        let mut is_over = false;
        self.store.plan(move |it| -> Option<StoreFault> {
            if it == call && !is_over {
                is_over = true;
                panic!("a bug of the store");
            }
            None
        });
    }

    fn go_down_at_next_save(&self) {
        let mut is_down = false;
        self.store.plan(move |call| {
            is_down |= call == StoreCall::Save;
            is_down.then_some(StoreFault::Before)
        });
    }

    async fn rows(&self) -> usize {
        let realm = Arc::new(self.hurdlr().realm());
        self.store.scan(&realm, None, 1_000).await.unwrap().len()
    }

    async fn damage(&self, user: &UserId) {
        let garbage = StoredToken {
            payload: SecretBox::new(Box::new(b"garbage".to_vec())),
            age: Duration::ZERO,
            due_in: HOUR,
        };
        let key = self.key(RowKind::Login, user);
        seed_row(&self.store, &key, Version { incarnation: 7, revision: 1 }, garbage).await;
    }

    async fn restore(&self, user: &UserId, backup: Row, age: Duration) {
        let key = self.key(RowKind::Login, user);
        let stored = StoredToken { age, due_in: Duration::ZERO, ..backup.token.unwrap() };
        let version = Version { revision: 1, ..backup.version };
        seed_row(&self.store, &key, version, stored).await;
    }

    async fn all_logged_in(&self, users: &[UserId]) -> TokenManager {
        let manager = self.manager();
        for user in users {
            manager.adopt(user, self.login(user).await).await.unwrap();
        }
        self.fake.clear_requests();
        manager
    }
}

/// The log lines of one test, from `info` on.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Collects the lines of this thread until the guard is dropped.
    pub(crate) fn begin() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, listen(subscriber))
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// How many panics this thread has seen since the first call.
pub(crate) fn panics() -> usize {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            earlier(info);
        }));
    });
    PANICS.get()
}
