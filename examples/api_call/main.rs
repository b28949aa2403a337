//! Calls to the API that carry a user's token by themselves: with `reqwest`, and with hyper and
//! tower. One that succeeds, a 401 that heals itself, and a 429 that is waited out.
//!
//! ```text
//! cargo run --example api_call --features middleware,testing,tower
//! ```
//!
//! Provider and API are inside this process.

// Its output is what it is for.
#![allow(clippy::print_stdout)]

mod api;
use api::Api;

use std::error::Error;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, ManualClock};
use hurdlr_oauth2::{CallPolicy, Hurdlr, TokenManager, UserId};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{Layer, ServiceExt};

const HOUR: Duration = Duration::from_secs(3_600);

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome {
    println!(
        "\
Calls to an API, with FakeHurdlr: a provider inside this program. Nothing leaves
this machine. Tokens are shown by name, as <access token 1>."
    );
    let fake = FakeHurdlr::builder().token_life(HOUR).start().await?;
    let (api, api_url) = Api::start(&fake).await?;
    let clock = ManualClock::new();
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .clock(clock.clone())
        .build()?;
    let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
    let customer = manager.enterprise_user(&UserId::new("customer-4711")?);
    // With the real provider the API is where tokens come from, and needs not be named.
    let policy = CallPolicy::default().origin(&api_url);
    let world = World { fake, api, clock };

    println!("\n1. With reqwest: a client whose calls are made for customer-4711.");
    let middleware = customer.middleware().policy(policy.clone())?;
    let client = middleware.client(|builder| builder)?.build();
    let url = format!("{api_url}/rest/v4/expenses");
    world.tell(async || Ok(client.get(&url).send().await?.status())).await?;

    println!("\n2. With hyper and tower: a layer on a client does the same.");
    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = customer.layer().policy(policy)?.layer(client);
    let call = async || {
        let call = Request::get(&url).body(Empty::<Bytes>::new())?;
        Ok(service.clone().oneshot(call).await?.status())
    };
    world.tell(call).await?;

    println!("\n3. Another server gets no token, whoever pastes its URL into the app.");
    let (_other, other_url) = Api::start(&world.fake).await?;
    let call = Request::get(other_url).body(Empty::<Bytes>::new())?;
    app_got(service.oneshot(call).await?.status());

    match manager.shutdown().await.len() {
        0 => Ok(()),
        lost => Err(format!("{lost} tokens could not be saved").into()),
    }
}

/// All that the app does not see.
struct World {
    fake: FakeHurdlr,
    api: Api,
    clock: ManualClock,
}

impl World {
    /// Makes the same call in three situations.
    async fn tell(&self, call: impl AsyncFn() -> Outcome<StatusCode>) -> Outcome {
        println!("\n  A call. Nobody has mentioned a token.");
        app_got(call().await?);

        println!(
            "\n  The provider ends that token before its time. The app calls, and knows of nothing."
        );
        self.fake.advance_clock(HOUR);
        self.clock.advance(2 * Duration::from_secs(60));
        self.fake.clear_requests();
        app_got(call().await?);
        println!("    Tokens asked for: {}.", self.fake.count().total());

        println!("\n  The API has too much to do, and asks for a pause.");
        self.api.be_busy_once();
        let start = Instant::now();
        app_got(call().await?);
        println!("    That took {:.1} s.", start.elapsed().as_secs_f64());
        Ok(())
    }
}

fn app_got(status: StatusCode) {
    println!("    app   got {status}");
}
