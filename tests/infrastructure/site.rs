//! A provider, its users, and what they need to be served from a store.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{PostgresStore, Realm, Row, RowKind, StoreKey, TokenStore};
use hurdlr_oauth2::testing::{FakeHurdlr, ManualClock, Rotation};
use hurdlr_oauth2::{Error, ErrorKind, Hurdlr, TokenManager, UserId};

const HOUR: Duration = Duration::from_secs(3_600);

/// A provider that takes the use of an old refresh token for theft.
pub(crate) struct Site {
    pub(crate) fake: FakeHurdlr,
    clock: ManualClock,
}

impl Site {
    /// With tokens of an hour, which [`exercise`](Self::exercise) lets pass.
    pub(crate) fn new() -> Self {
        Self::with_token_life(HOUR)
    }

    pub(crate) fn with_token_life(life: Duration) -> Self {
        let fake = FakeHurdlr::builder().token_life(life).rotation(Rotation::KillFamily);
        Self { fake: fake.record(false).in_memory(), clock: ManualClock::new() }
    }

    fn hurdlr(&self) -> Hurdlr {
        Hurdlr::builder(self.fake.client_id(), self.fake.client_secret())
            .environment(self.fake.base_url())
            .authorize_url(self.fake.authorize_url())
            .redirect_uri("https://app.example.com/callback")
            .http_client(self.fake.http_client())
            .clock(self.clock.clone())
            .build()
            .unwrap()
    }

    pub(crate) fn manager(&self, store: impl TokenStore) -> TokenManager {
        TokenManager::builder(self.hurdlr(), store).build().unwrap()
    }

    /// Logs a person in as an app does.
    pub(crate) async fn log_in(&self, manager: &TokenManager, user: &UserId) -> Result<(), Error> {
        let (url, pending) = self.hurdlr().begin_login().unwrap();
        let callback = self.fake.consent(&url, user.as_str()).await.unwrap();
        assert!(manager.complete_login(user, pending, &callback).await?, "its state is new");
        Ok(())
    }

    pub(crate) fn key(&self, user: &UserId) -> StoreKey {
        let hurdlr = self.hurdlr();
        let realm =
            Realm::new(hurdlr.api_version(), self.fake.base_url().as_str(), hurdlr.client_id());
        StoreKey::new(Arc::new(realm), RowKind::Login, user.clone())
    }

    pub(crate) async fn row(&self, store: &impl TokenStore, user: &UserId) -> Option<Row> {
        store.read(&[self.key(user)]).await.unwrap().remove(0).unwrap()
    }

    /// Whether the user's login can go on: the provider takes the refresh token in the store.
    pub(crate) async fn login_lives(&self, store: &impl TokenStore, user: &UserId) -> bool {
        let row = self.row(store, user).await.filter(|row| !row.refused);
        let Some(token) = row.and_then(|row| row.token) else {
            return false;
        };
        let object: serde_json::Value =
            serde_json::from_slice(token.payload.expose_secret()).unwrap();
        self.fake.refresh_is_alive(object["refresh_token"].as_str().unwrap())
    }

    /// Takes a user through a whole life on a store: a login, a refresh, a look by another manager,
    /// and the end.
    pub(crate) async fn exercise<S: TokenStore + Clone>(&self, store: &S) {
        let (ann, bob) = (user("ann"), user("bob"));
        let [here, elsewhere] = [(); 2].map(|()| self.manager(store.clone()));
        for user in [&ann, &bob] {
            self.log_in(&here, user).await.unwrap();
        }
        self.clock.advance(HOUR);
        self.fake.advance_clock(HOUR);
        let token = here.user(&ann).token().await.unwrap();
        let token = token.access_token().expose_secret();
        assert!(self.fake.is_alive(token), "the refresh brought another token");
        assert_eq!(self.row(store, &ann).await.unwrap().version.revision, 2);
        assert!(self.login_lives(store, &ann).await);
        let same = elsewhere.user(&ann).token().await.unwrap();
        assert_eq!(same.access_token().expose_secret(), token);
        here.user(&bob).forget().await.unwrap();
        assert!(self.row(store, &bob).await.is_none());
        let realm = self.key(&ann).realm().clone();
        let rows = store.scan(&realm, None, 1_000).await.unwrap();
        assert!(rows.iter().any(|(key, _)| *key == self.key(&ann)));
        store.due(&realm, None, 10).await.unwrap();
        for manager in [here, elsewhere] {
            assert!(manager.shutdown().await.is_empty());
        }
    }
}

pub(crate) fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// A store in a schema of its own, with its tables.
pub(crate) async fn migrated(url: &str, schema: &str) -> PostgresStore {
    let store = PostgresStore::at(url).schema(schema).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// Opens a store, makes its tables and asks it for a user; until one of these fails.
pub(crate) async fn first_failure(url: &str, schema: &str) -> Option<Error> {
    let used = async {
        let store = PostgresStore::at(url).schema(schema).open_plaintext().await?;
        store.migrate().await?;
        store.read(&[Site::new().key(&user("ann"))]).await?;
        Ok(())
    };
    used.await.err()
}

/// An error and its causes.
pub(crate) fn said(error: &Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let _ = write!(said, " <- {cause}");
        next = cause.source();
    }
    said
}

/// Whether an error has a word of each group, in any case.
pub(crate) fn names(error: &Error, groups: &[&[&str]]) -> bool {
    let said = said(error).to_lowercase();
    groups.iter().all(|words| words.iter().any(|word| said.contains(&word.to_lowercase())))
}

/// Expects an error that names the fault: it has a word of each group.
pub(crate) fn assert_names(error: &Error, groups: &[&[&str]]) {
    assert!(names(error, groups), "no word of each of {groups:?} in: {}", said(error));
}

/// Expects an error that names the fault, and says that somebody has to mend it first.
pub(crate) fn assert_final(error: &Error, groups: &[&[&str]]) {
    assert_names(error, groups);
    assert!(matches!(error.kind(), ErrorKind::Store | ErrorKind::Config), "{error:?}");
    assert!(!error.is_temporary(), "it does not heal by itself: {}", said(error));
}
