//! Plain `oauth2` behind a `tokio::sync::Mutex`, which is what most apps write: the lock is held
//! while a token is refreshed, and a reader clones the access token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use oauth2::{AccessToken, RefreshToken};
use tokio::sync::Mutex;

use super::oauth2_login::Oauth2Login;
use super::user_map::UserMap;
use crate::Outcome;
use crate::peer::{Peer, Work};
use crate::site::Site;

#[derive(Clone)]
pub(crate) struct Oauth2Mutex(Arc<User>);

#[derive(Debug)]
struct User {
    login: Arc<Oauth2Login>,
    tokens: Mutex<Tokens>,
}

#[derive(Debug)]
struct Tokens {
    access_token: Option<(AccessToken, Instant)>,
    refresh_token: RefreshToken,
}

impl Oauth2Mutex {
    fn new(login: Arc<Oauth2Login>, tokens: Tokens) -> Self {
        Self(Arc::new(User { login, tokens: Mutex::new(tokens) }))
    }
}

impl Peer for Oauth2Mutex {
    const NAME: &'static str = "oauth2_mutex";
    const MARGIN: u64 = 60;
    const USERS: usize = 1_000_000;

    type Token = AccessToken;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Users = UserMap<Self>;

    async fn open(site: &Site) -> Outcome<Self> {
        let refresh_token = RefreshToken::new(site.refresh_token.clone());
        let tokens = Tokens { access_token: None, refresh_token };
        Ok(Self::new(Arc::new(Oauth2Login::new(site)?), tokens))
    }

    async fn token(&self) -> Result<AccessToken, Self::Error> {
        let mut tokens = self.0.tokens.lock().await;
        if let Some((token, over)) = &tokens.access_token
            && Instant::now() + Duration::from_secs(Self::MARGIN) < *over
        {
            return Ok(token.clone());
        }
        let refreshed = self.0.login.refresh(&tokens.refresh_token).await?;
        if let Some(rotated) = refreshed.refresh_token {
            tokens.refresh_token = rotated;
        }
        tokens.access_token = Some((refreshed.access_token.clone(), refreshed.over));
        Ok(refreshed.access_token)
    }

    async fn many(site: &Site, users: usize) -> Outcome<Self::Users> {
        let login = Arc::new(Oauth2Login::new(site)?);
        let over = Instant::now() + Duration::from_secs(90 * 24 * 3_600);
        Ok(UserMap::new((0..users).map(|n| {
            let secret = format!("{n:064x}.{n:032x}");
            let access_token = Some((AccessToken::new(secret.clone()), over));
            let tokens = Tokens { access_token, refresh_token: RefreshToken::new(secret) };
            Self::new(Arc::clone(&login), tokens)
        })))
    }

    fn debug(&self, token: Option<&AccessToken>) -> Option<String> {
        Some(format!("{:?} {token:?}", self.0))
    }

    fn lacks(work: Work) -> Option<&'static str> {
        (work == Work::RotationByProcesses).then_some("no storage: an app writes its own")
    }
}
