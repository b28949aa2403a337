//! A refresh as it would be without this crate: the statements and the request, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::store::Version;
use reqwest::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPool;
use sqlx::sqlite::SqlitePool;
use sqlx::{AssertSqlSafe, Row};
use url::{Url, form_urlencoded};

use crate::harness::Outcome;

/// State shared by all bare users.
pub(crate) struct Loop {
    pub(crate) pool: Pool,
    pub(crate) claim: Arc<str>,
    pub(crate) save: Arc<str>,
    pub(crate) http: reqwest::Client,
    pub(crate) token_url: Url,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
}

/// A user, and the token that was last got for them.
pub(crate) struct BareUser {
    pub(crate) shared: Arc<Loop>,
    /// API version, environment, client id, kind and subject.
    pub(crate) key: [String; 5],
    pub(crate) version: Version,
    pub(crate) token: Answer,
}

/// The provider's answer, and what is kept of it.
#[derive(Deserialize, Serialize)]
pub(crate) struct Answer {
    pub(crate) access_token: String,
    pub(crate) refresh_token: String,
    expires_in: Option<u32>,
    created_at: Option<i64>,
}

impl Answer {
    pub(crate) fn new(access_token: &str, refresh_token: &str) -> Self {
        let (access_token, refresh_token) = (access_token.to_owned(), refresh_token.to_owned());
        Self { access_token, refresh_token, expires_in: None, created_at: None }
    }
}

pub(crate) enum Pool {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// The request's client, with the settings that `Hurdlr` uses.
pub(crate) fn http() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(5))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .build()
}

/// The statement with what both of them are asked first: whose row.
macro_rules! about {
    ($user:expr, $sql:expr) => {{
        let mut query = sqlx::query(AssertSqlSafe(Arc::clone($sql)));
        for text in &$user.key {
            query = query.bind(text);
        }
        query
    }};
}

macro_rules! claim {
    ($user:expr, $pool:expr) => {{
        let [incarnation, revision] = $user.version()?;
        let rows = about!($user, &$user.shared.claim)
            .bind(fastrand::i64(1..))
            .bind(60_000_i64)
            .bind(incarnation)
            .bind(revision)
            .fetch_all($pool)
            .await?;
        // A row comes back where the lease was granted, and is decoded as far as this.
        match rows.first() {
            Some(row) => row.try_get::<i64, _>("revision")? == revision,
            None => false,
        }
    }};
}

macro_rules! save {
    ($user:expr, $pool:expr, $payload:expr) => {{
        let [incarnation, revision] = $user.version()?;
        let done = about!($user, &$user.shared.save)
            .bind(incarnation)
            .bind(revision)
            .bind(incarnation)
            .bind(revision + 1)
            .bind($payload)
            .bind(0_i64)
            .bind(0_i64)
            .execute($pool)
            .await?;
        done.rows_affected()
    }};
}

impl BareUser {
    pub(crate) async fn refresh(&mut self) -> Outcome {
        if !self.claim().await? {
            return Err("a lease was not granted".into());
        }
        self.token = self.ask().await?;
        if self.save().await? != 1 {
            return Err("a token was not saved".into());
        }
        self.version = self.version.next();
        Ok(())
    }

    fn version(&self) -> Outcome<[i64; 2]> {
        Ok([self.version.incarnation.try_into()?, self.version.revision.try_into()?])
    }

    async fn claim(&self) -> Outcome<bool> {
        Ok(match &self.shared.pool {
            Pool::Postgres(pool) => claim!(self, pool),
            Pool::Sqlite(pool) => claim!(self, pool),
        })
    }

    async fn save(&self) -> Outcome<u64> {
        let payload = serde_json::to_vec(&self.token)?;
        Ok(match &self.shared.pool {
            Pool::Postgres(pool) => save!(self, pool, payload),
            Pool::Sqlite(pool) => save!(self, pool, payload),
        })
    }

    async fn ask(&self) -> Outcome<Answer> {
        let shared = &*self.shared;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", &self.token.refresh_token)
            .append_pair("client_id", &shared.client_id)
            .append_pair("client_secret", &shared.client_secret)
            .finish();
        let request = shared
            .http
            .post(shared.token_url.clone())
            .bearer_auth(&self.token.access_token)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .timeout(Duration::from_secs(30))
            .body(form);
        let answer = request.send().await?.error_for_status()?.bytes().await?;
        Ok(serde_json::from_slice(&answer)?)
    }
}
