//! What the client layer costs beside plain `oauth2`:
//!
//! ```text
//! cargo bench --bench client
//! ```
//!
//! Both sides of a figure alternate in one run, so that whatever else the machine does befalls
//! both, and the medians are compared. The provider is a process of its own, so that its work is
//! not measured as ours.

// Its output is what it is for.
#![allow(clippy::print_stdout)]

mod harness;
use harness::{Job, Outcome, Provider, figure};

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::time::{Duration, Instant};

use hurdlr_oauth2::UserId;
use hurdlr_oauth2::basic::BasicTokenResponse;
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
    BasicTokenType,
};
use oauth2::{
    AccessToken, AsyncHttpClient, AuthType, ClientId, ClientSecret, HttpRequest, HttpResponse,
    RefreshToken, Scope, StandardRevocableToken, TokenResponse, TokenUrl,
};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

fn main() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measures = match Job::asked_for() {
        Job::Serve => return runtime.block_on(harness::serve()),
        job => job == Job::Measure,
    };
    parse_token(if measures { 400 } else { 1 })?;
    runtime.block_on(refresh(if measures { 6_000 } else { 1 }))
}

/// The time of each side, round by round.
struct Sides {
    ours: Vec<Duration>,
    theirs: Vec<Duration>,
}

impl Sides {
    fn new(rounds: usize) -> Self {
        Self { ours: Vec::with_capacity(rounds), theirs: Vec::with_capacity(rounds) }
    }

    /// The medians in seconds, without the first tenth: that is warming up.
    fn medians(self) -> (f64, f64) {
        let median = |mut times: Vec<Duration>| {
            times.drain(..times.len() / 10);
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64()
        };
        (median(self.ours), median(self.theirs))
    }
}

/// Reading the provider's own example answer, over reading it into plain strings.
fn parse_token(rounds: usize) -> Outcome {
    const ANSWER: &[u8] = include_bytes!("../tests/fixtures/v4_token.json");
    const PARSES: u32 = 500;

    fn time<T: for<'de> Deserialize<'de>>() -> serde_json::Result<Duration> {
        let start = Instant::now();
        for _ in 0..PARSES {
            black_box(serde_json::from_slice::<T>(black_box(ANSWER))?);
        }
        Ok(start.elapsed() / PARSES)
    }

    let mut sides = Sides::new(rounds);
    for round in 0..rounds {
        if round % 2 == 0 {
            sides.ours.push(time::<BasicTokenResponse>()?);
            sides.theirs.push(time::<PlainAnswer>()?);
        } else {
            sides.theirs.push(time::<PlainAnswer>()?);
            sides.ours.push(time::<BasicTokenResponse>()?);
        }
    }
    let (ours, theirs) = sides.medians();
    if rounds > 1 {
        figure("client.parse_token_time", ours * 1e9, "ns");
        figure("client.parse_token_time_plain", theirs * 1e9, "ns");
        figure("client.parse_token", ours / theirs, "x");
    }
    Ok(())
}

/// A refresh by [`Hurdlr`], over one by plain `oauth2` on the same `reqwest`.
async fn refresh(rounds: usize) -> Outcome {
    let provider = Provider::start()?;
    let hurdlr = provider.hurdlr()?;
    let token = hurdlr.client_credentials(&UserId::new("ann")?).await?;

    let plain = PlainClient::new(ClientId::new(provider.client_id.clone()))
        .set_client_secret(ClientSecret::new(provider.client_secret.clone()))
        .set_token_uri(TokenUrl::from_url(hurdlr.token_url().clone()))
        .set_auth_type(AuthType::RequestBody);
    let http = PlainHttp::new()?;
    let refresh_token = token.refresh_token().ok_or("no refresh token")?;
    let refresh_token = RefreshToken::new(refresh_token.expose_secret().to_owned());

    let ours = async || -> Outcome<Duration> {
        let start = Instant::now();
        black_box(hurdlr.refresh(&token).await?);
        Ok(start.elapsed())
    };
    let theirs = async || -> Outcome<Duration> {
        let start = Instant::now();
        let request = plain.exchange_refresh_token(&refresh_token);
        black_box(request.request_async(&http).await?);
        Ok(start.elapsed())
    };

    let mut sides = Sides::new(rounds);
    for round in 0..rounds {
        if round % 2 == 0 {
            sides.ours.push(ours().await?);
            sides.theirs.push(theirs().await?);
        } else {
            sides.theirs.push(theirs().await?);
            sides.ours.push(ours().await?);
        }
    }
    let (ours, theirs) = sides.medians();
    if rounds > 1 {
        figure("client.refresh_time", ours * 1e6, "us");
        figure("client.refresh_time_oauth2", theirs * 1e6, "us");
        figure("client.refresh_vs_oauth2", ours / theirs, "x");
    }
    Ok(())
}

/// The provider's answer as the least code reads it. `oauth2`'s own type cannot: the provider
/// sends no `token_type`.
#[derive(Debug, Deserialize, Serialize)]
struct PlainAnswer {
    access_token: String,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
    created_at: Option<i64>,
    scope: Option<String>,
}

/// The same, as `oauth2` wants it.
#[derive(Debug, Deserialize, Serialize)]
struct PlainTokenResponse {
    access_token: AccessToken,
    refresh_token: Option<RefreshToken>,
    expires_in: Option<u64>,
    #[serde(rename = "scope")]
    #[serde(deserialize_with = "oauth2::helpers::deserialize_space_delimited_vec")]
    #[serde(serialize_with = "oauth2::helpers::serialize_space_delimited_vec")]
    #[serde(default)]
    scopes: Option<Vec<Scope>>,
}

impl TokenResponse for PlainTokenResponse {
    type TokenType = BasicTokenType;

    fn access_token(&self) -> &AccessToken {
        &self.access_token
    }

    fn token_type(&self) -> &BasicTokenType {
        &BasicTokenType::Bearer
    }

    fn expires_in(&self) -> Option<Duration> {
        self.expires_in.map(Duration::from_secs)
    }

    fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh_token.as_ref()
    }

    fn scopes(&self) -> Option<&Vec<Scope>> {
        self.scopes.as_ref()
    }
}

type PlainClient = oauth2::Client<
    BasicErrorResponse,
    PlainTokenResponse,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
>;

/// The shortest way from `oauth2` to `reqwest`, with the settings that `Hurdlr` uses.
struct PlainHttp(reqwest::Client);

impl PlainHttp {
    fn new() -> reqwest::Result<Self> {
        reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(30))
            .pool_idle_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .build()
            .map(Self)
    }
}

impl<'c> AsyncHttpClient<'c> for PlainHttp {
    type Error = reqwest::Error;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Self::Error>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let mut response = self.0.execute(request.try_into()?).await?;
            let mut answer = HttpResponse::new(Vec::new());
            *answer.status_mut() = response.status();
            *answer.headers_mut() = std::mem::take(response.headers_mut());
            *answer.body_mut() = response.bytes().await?.into();
            Ok(answer)
        })
    }
}
