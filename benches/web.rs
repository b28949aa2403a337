//! The cost of a web login beside the exchange in it, and its size in a browser:
//!
//! ```text
//! cargo bench --bench web
//! ```
//!
//! A whole callback (router, user, cookie, redemption, exchange, adoption, redirect) alternates with a
//! bare [`Hurdlr::complete_login`], and the medians of each batch are compared. The provider is a process
//! of its own.

// Its output is what it is for.
#![allow(clippy::print_stdout)]

mod harness;
use harness::{Job, Outcome, Provider, figure};

use std::hint::black_box;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request, StatusCode};
use hurdlr_oauth2::secrecy::SecretSlice;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::web::{LoginConfig, login_routes};
use hurdlr_oauth2::{Hurdlr, PendingLogin, TokenManager, UserId};
use tower::ServiceExt;
use url::{Position, Url};

fn main() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measures = match Job::asked_for() {
        Job::Serve => return runtime.block_on(harness::serve()),
        job => job == Job::Measure,
    };
    runtime.block_on(measure(if measures { 6_000 } else { 1 }))
}

/// The number of people who come back at a time.
const BATCH: usize = 100;

async fn measure(rounds: usize) -> Outcome {
    let provider = Provider::start()?;
    let hurdlr = Hurdlr::builder(&provider.client_id, provider.client_secret.as_str().into())
        .environment(provider.base_url.clone())
        .authorize_url(provider.base_url.join("oauth/authorize")?)
        .redirect_uri("https://app.example.com/hurdlr/callback")
        .build()?;
    let manager = TokenManager::builder(hurdlr.clone(), MemoryStore::new()).build()?;
    let config = LoginConfig::new(SecretSlice::from(vec![1; 64]), async |parts: Parts| {
        named(&parts.headers)
    });
    let app = login_routes(manager.clone(), config)?;
    let person = Person::new()?;

    let mut batches = Vec::new();
    for _ in 0..rounds.div_ceil(BATCH) {
        let (mut whole, mut bare) = (Vec::new(), Vec::new());
        // What people do comes before all that is measured.
        let (mut callbacks, mut exchanges) = (Vec::new(), Vec::new());
        for _ in 0..BATCH.min(rounds) {
            callbacks.push(a_callback(&app, &person).await?);
            exchanges.push(an_exchange(&hurdlr, &person).await?);
        }
        for (number, (request, (pending, url))) in callbacks.into_iter().zip(exchanges).enumerate()
        {
            let ours = async || -> Outcome<f64> {
                let start = Instant::now();
                let answer = black_box(app.clone().oneshot(request).await?);
                let taken = micros(start);
                let is_done = answer.status() == StatusCode::SEE_OTHER;
                if is_done { Ok(taken) } else { Err("no redirect".into()) }
            };
            let theirs = async || -> Outcome<f64> {
                let start = Instant::now();
                black_box(hurdlr.complete_login(pending, &url).await?);
                Ok(micros(start))
            };
            if number % 2 == 0 {
                whole.push(ours().await?);
                bare.push(theirs().await?);
            } else {
                bare.push(theirs().await?);
                whole.push(ours().await?);
            }
        }
        batches.push((median(whole), median(bare)));
    }
    // The first ones are warming up.
    batches.drain(..batches.len() / 10);
    // Each is encrypted anew, and some letters take three in a cookie.
    let mut longest = 0;
    for _ in 0..rounds {
        longest = longest.max(cookie_of(&begin(&app, "u", "/").await?)?.len());
        let user = "u".repeat(UserId::MAX_BYTES);
        let return_to = format!("/{}", "r".repeat(255));
        longest = longest.max(cookie_of(&begin(&app, &user, &return_to).await?)?.len());
    }
    if rounds > 1 {
        let over_batches =
            |of: fn((f64, f64)) -> f64| median(batches.iter().map(|&batch| of(batch)).collect());
        figure("web.callback_time", over_batches(|(whole, _)| whole), "us");
        figure("web.exchange_time", over_batches(|(_, bare)| bare), "us");
        figure("web.callback_vs_exchange", over_batches(|(whole, bare)| whole / bare), "x");
        println!("figure: web.state_bytes = {longest} bytes");
        figure("web.planted_cookies_time", planted_cookies(&app).await?, "us");
    }
    Ok(())
}

/// The time that a login takes to begin in a browser with 10,000 cookies that somebody planted
/// under the names of logins.
async fn planted_cookies(app: &Router) -> Outcome<f64> {
    let cookie = cookie_of(&begin(app, "ann", "/").await?)?;
    let (name, value) = cookie.split_once('=').ok_or("no value")?;
    let prefix = name.get(..name.len() - 12).ok_or("a short name")?;
    let planted = (0..10_000).map(|number| format!("{prefix}{number:012}={value}"));
    let planted = planted.collect::<Vec<_>>().join("; ");
    let mut times = Vec::new();
    for _ in 0..20 {
        let request = Request::get("/hurdlr/connect")
            .header("x-user", "ann")
            .header("sec-fetch-site", "same-origin")
            .header("cookie", &planted)
            .body(Body::empty())?;
        let start = Instant::now();
        let answer = black_box(app.clone().oneshot(request).await?);
        times.push(micros(start));
        if answer.status() != StatusCode::SEE_OTHER {
            return Err("no redirect".into());
        }
    }
    Ok(median(times))
}

/// The app's users are named by a header.
fn named(headers: &HeaderMap) -> Result<UserId, StatusCode> {
    let user = headers.get("x-user").and_then(|user| user.to_str().ok());
    user.and_then(|user| user.parse().ok()).ok_or(StatusCode::UNAUTHORIZED)
}

async fn a_callback(app: &Router, person: &Person) -> Outcome<Request<Body>> {
    let began = begin(app, "ann", "/").await?;
    let callback = person.allows(&began["location"].to_str()?.parse()?).await?;
    Ok(Request::get(&callback[Position::BeforePath..])
        .header("x-user", "ann")
        .header("cookie", cookie_of(&began)?)
        .body(Body::empty())?)
}

async fn an_exchange(hurdlr: &Hurdlr, person: &Person) -> Outcome<(PendingLogin, Url)> {
    let (authorize_url, pending) = hurdlr.begin_login()?;
    Ok((pending, person.allows(&authorize_url).await?))
}

async fn begin(app: &Router, user: &str, return_to: &str) -> Outcome<HeaderMap> {
    let request = Request::get(format!("/hurdlr/connect?return_to={return_to}"))
        .header("x-user", user)
        .header("sec-fetch-site", "same-origin")
        .body(Body::empty())?;
    Ok(app.clone().oneshot(request).await?.into_parts().0.headers)
}

/// Name and value, as the browser sends them back.
fn cookie_of(began: &HeaderMap) -> Outcome<String> {
    let cookie = began["set-cookie"].to_str()?;
    Ok(cookie.split_once(';').ok_or("no attributes")?.0.to_owned())
}

/// A person who logs in with the provider, and allows everything.
struct Person(reqwest::Client);

impl Person {
    fn new() -> Outcome<Self> {
        let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        Ok(Self(browser.no_proxy().build()?))
    }

    async fn allows(&self, authorize_url: &Url) -> Outcome<Url> {
        let asked = authorize_url.query().ok_or("nothing is asked for")?;
        let answer = self
            .0
            .post(&authorize_url[..Position::AfterPath])
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("{asked}&user=ann&decision=allow"))
            .send()
            .await?;
        Ok(answer.headers().get("location").ok_or("no redirect")?.to_str()?.parse()?)
    }
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
