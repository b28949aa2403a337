//! This crate: a manager, and a handle of one user who logged in.

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hurdlr_oauth2::manager::{TokenFuture, TokenGuard, UserHandle};
use hurdlr_oauth2::store::{MemoryStore, SqliteStore, TokenStore};
use hurdlr_oauth2::{Error, Hurdlr, TokenManager, UserId};
use secrecy::ExposeSecret;

use crate::Outcome;
use crate::endpoint::{Account, HOUR, Script};
use crate::nowhere::Nowhere;
use crate::peer::{self, Peer, Token, Users, Work};
use crate::site::Site;

const DAY: u64 = 24 * 3_600;

#[derive(Clone)]
pub(crate) struct HurdlrOauth2 {
    user: UserHandle,
    /// The manager is shared: a caller in an app clones the handle alone.
    manager: Arc<TokenManager>,
}

impl Peer for HurdlrOauth2 {
    const NAME: &'static str = "hurdlr_oauth2";
    const MARGIN: u64 = 0; // a share of the token's life: short lives have none to speak of
    const USERS: usize = 1_000_000;

    type Token = TokenGuard;
    type Error = Error;
    type Users = Manager;

    async fn open(site: &Site) -> Outcome<Self> {
        let store = Arc::new(MemoryStore::new());
        Self::import(site, Arc::clone(&store), 2 * DAY, DAY).await?;
        Self::over(site, store)
    }

    fn token(&self) -> impl Future<Output = Result<TokenGuard, Error>> + Send {
        let future: TokenFuture<'_> = self.user.token();
        future
    }

    async fn another(&self, site: &Site) -> Outcome<Self> {
        // Over, so that the first read refreshes it.
        let manager = Arc::clone(&self.manager);
        let token = manager.hurdlr().import(token_json(site, 2 * DAY, DAY))?;
        let user = manager.user(&UserId::new(format!("{:016x}", fastrand::u64(..)))?);
        manager.import_if_absent(user.id(), token).await?;
        Ok(Self { user, manager })
    }

    async fn expired(account: &Account) -> Outcome<Self> {
        account.set(HOUR).await?;
        Self::import(&account.site, Arc::new(MemoryStore::new()), 2 * DAY, DAY).await
    }

    async fn due(account: &Account) -> Outcome<Self> {
        account.set(Script { life: 90 * DAY, ..HOUR }).await?;
        Self::import(&account.site, Arc::new(MemoryStore::new()), 80 * DAY, 90 * DAY).await
    }

    async fn open_shared(site: &Site) -> Outcome<Self> {
        let file = site.folder.join("hurdlr.db");
        let file = file.to_str().ok_or("a folder whose name is not UTF-8")?;
        let store = SqliteStore::at(format!("sqlite://{file}")).open_plaintext().await?;
        store.migrate().await?;
        // The same import in each process: the first makes the row, the others find it.
        Self::import(site, store, 2 * DAY, DAY).await
    }

    async fn many(_: &Site, users: usize) -> Outcome<Manager> {
        let hurdlr = Hurdlr::builder("client-id", "client-secret".into()).build()?;
        // The store holds nothing, since a database is another process. Each part of the cache is
        // bounded by itself, so the cache is a twentieth larger.
        let manager = TokenManager::builder(hurdlr, Nowhere)
            .cache_capacity(users + users / 20 + 5_000)
            .revalidate_after(Duration::from_secs(DAY))
            .build()?;
        // All share one buffer: the heap that each would leave behind would count as the manager's.
        let mut json = String::with_capacity(512);
        for n in 0..users {
            json.clear();
            let created_at = unix_seconds();
            write!(
                json,
                r#"{{"access_token": "{n:064x}.{n:032x}", "refresh_token": "{n:064x}.{n:032x}",
                    "expires_in": 7776000, "created_at": {created_at}, "scope": "token"}}"#
            )?;
            let token = manager.hurdlr().import(&json)?;
            manager.import_if_absent(&Manager::id(n), token).await?;
        }
        if manager.users_in_memory() != users {
            return Err("not all users are in memory".into());
        }
        Ok(Manager(manager))
    }

    fn debug(&self, token: Option<&TokenGuard>) -> Option<String> {
        let Self { user, manager } = self;
        Some(format!("{manager:?} {user:?} {:?} {token:?}", manager.hurdlr()))
    }

    fn lacks(_: Work) -> Option<&'static str> {
        None
    }
}

impl HurdlrOauth2 {
    fn over(site: &Site, store: impl TokenStore) -> Outcome<Self> {
        let Site { origin, account, client_id, client_secret, .. } = site;
        let hurdlr = Hurdlr::builder(client_id, client_secret.as_str().into())
            .environment(format!("{origin}/{account}"))
            .build()?;
        let manager = TokenManager::builder(hurdlr, store).build()?;
        let user = manager.user(&UserId::new(account.as_str())?);
        Ok(Self { user, manager: Arc::new(manager) })
    }

    /// A manager that takes over a token of this age and life.
    async fn import(site: &Site, store: impl TokenStore, age: u64, life: u64) -> Outcome<Self> {
        let peer = Self::over(site, store)?;
        let token = peer.manager.hurdlr().import(token_json(site, age, life))?;
        peer.manager.import_if_absent(peer.user.id(), token).await?;
        Ok(peer)
    }
}

fn token_json(site: &Site, age: u64, life: u64) -> String {
    serde_json::json!({
        "access_token": site.access_token,
        "refresh_token": site.refresh_token,
        "expires_in": life,
        "created_at": unix_seconds().saturating_sub(age),
        "scope": "token",
    })
    .to_string()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Token for TokenGuard {
    fn secret(&self) -> &str {
        self.access_token().expose_secret()
    }
}

pub(crate) struct Manager(TokenManager);

impl Users for Manager {
    type Id = UserId;

    fn id(n: usize) -> UserId {
        // It is short and printable.
        UserId::new(peer::id(n)).unwrap_or_else(|_| unreachable!())
    }

    async fn read(&self, ids: &[UserId], reads: u32) -> Outcome<Duration> {
        let start = Instant::now();
        for id in ids.iter().cycle().take(reads as usize) {
            let token = self.0.user(black_box(id)).token().await?;
            black_box(token.access_token());
        }
        Ok(start.elapsed())
    }
}
