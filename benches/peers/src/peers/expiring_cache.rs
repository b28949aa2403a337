//! The `ExpiringCache` that smithy's clients keep identities in, used as its `LazyCache` uses it,
//! with token requests by plain `oauth2`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_smithy_runtime::expiring_cache;
use oauth2::{AccessToken, RefreshToken};

use super::oauth2_login::Oauth2Login;
use super::user_map::UserMap;
use crate::Outcome;
use crate::peer::{Peer, Token, Work};
use crate::site::Site;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The cache clones its value for each reader, so this is shared, as smithy's `Identity` is.
type Shared = Arc<AccessToken>;

#[derive(Clone)]
pub(crate) struct ExpiringCache {
    cache: expiring_cache::ExpiringCache<Shared, BoxError>,
    login: Arc<Oauth2Login>,
    refresh_token: Arc<Mutex<RefreshToken>>,
}

impl ExpiringCache {
    fn new(login: Arc<Oauth2Login>, refresh_token: String) -> Self {
        Self {
            cache: expiring_cache::ExpiringCache::new(Duration::from_secs(Self::MARGIN)),
            login,
            refresh_token: Arc::new(Mutex::new(RefreshToken::new(refresh_token))),
        }
    }

    async fn load(&self) -> Result<(Shared, SystemTime), BoxError> {
        let stored = || self.refresh_token.lock().unwrap_or_else(PoisonError::into_inner);
        let refresh_token = stored().clone();
        let refreshed = self.login.refresh(&refresh_token).await?;
        if let Some(rotated) = refreshed.refresh_token {
            *stored() = rotated;
        }
        let left = refreshed.over.saturating_duration_since(Instant::now());
        Ok((Arc::new(refreshed.access_token), SystemTime::now() + left))
    }
}

impl Peer for ExpiringCache {
    const NAME: &'static str = "smithy_expiring_cache";
    const MARGIN: u64 = 10; // the default of smithy's identity cache
    const USERS: usize = 1_000_000;

    type Token = Shared;
    type Error = BoxError;
    type Users = UserMap<Self>;

    async fn open(site: &Site) -> Outcome<Self> {
        Ok(Self::new(Arc::new(Oauth2Login::new(site)?), site.refresh_token.clone()))
    }

    async fn token(&self) -> Result<Shared, BoxError> {
        if let Some(token) = self.cache.yield_or_clear_if_expired(SystemTime::now()).await {
            return Ok(token);
        }
        self.cache.get_or_load(|| self.load()).await
    }

    async fn many(site: &Site, users: usize) -> Outcome<Self::Users> {
        let login = Arc::new(Oauth2Login::new(site)?);
        let over = SystemTime::now() + Duration::from_secs(90 * 24 * 3_600);
        let mut all = Vec::with_capacity(users);
        for n in 0..users {
            let secret = format!("{n:064x}.{n:032x}");
            let user = Self::new(Arc::clone(&login), secret.clone());
            let token = Arc::new(AccessToken::new(secret));
            user.cache.get_or_load(|| async { Ok((token, over)) }).await?;
            all.push(user);
        }
        Ok(UserMap::new(all))
    }

    fn debug(&self, token: Option<&Shared>) -> Option<String> {
        let Self { cache, login, refresh_token } = self;
        Some(format!("{cache:?} {login:?} {refresh_token:?} {token:?}"))
    }

    fn lacks(work: Work) -> Option<&'static str> {
        (work == Work::RotationByProcesses).then_some("no storage: a cache of one process")
    }
}

impl Token for Shared {
    fn secret(&self) -> &str {
        (**self).secret()
    }
}
