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

use std::error::Error;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, ManualClock};
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
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
    let url = fake.base_url().join("rest/v4/expenses")?;
    let clock = ManualClock::new();
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .clock(clock.clone())
        .build()?;
    let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
    let customer = manager.enterprise_user(&UserId::new("customer-4711")?);
    let mut world = World { fake, clock, seen: Vec::new() };

    println!("\n1. With reqwest: one client for all users. Each call names its own.");
    let client = manager.middleware().client(|builder| builder)?.build();
    let call = async || {
        let call = client.get(url.clone()).with_extension(customer.clone());
        Ok(call.send().await?.status())
    };
    world.tell(call).await?;

    println!("\n2. With hyper and tower: a layer on a client does the same.");
    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = manager.layer().layer(client);
    let request = |url: &str| {
        let request = Request::get(url).extension(customer.clone());
        request.body(Empty::<Bytes>::new())
    };
    let call = async || Ok(service.clone().oneshot(request(url.as_str())?).await?.status());
    world.tell(call).await?;

    println!("\n3. Another server gets no token, whoever pastes its URL into the app.");
    let other = FakeHurdlr::start().await?;
    let status = service.oneshot(request(other.resource_url().as_str())?).await?.status();
    world.show_calls(&other);
    app_got(status);

    match manager.shutdown().await.len() {
        0 => Ok(()),
        lost => Err(format!("{lost} tokens could not be saved").into()),
    }
}

/// All that the app does not see.
struct World {
    fake: FakeHurdlr,
    clock: ManualClock,
    /// Tokens are shown by the order in which they were seen.
    seen: Vec<String>,
}

impl World {
    /// Makes the same call in three situations.
    async fn tell(&mut self, call: impl AsyncFn() -> Outcome<StatusCode>) -> Outcome {
        println!("\n  A call for customer-4711. Nobody has mentioned a token.");
        let status = call().await?;
        self.show_calls(&self.fake.clone());
        app_got(status);

        println!(
            "\n  The provider ends that token before its time. The app calls, and knows of nothing."
        );
        self.fake.advance_clock(HOUR);
        self.clock.advance(2 * Duration::from_secs(60));
        self.fake.clear_requests();
        let status = call().await?;
        self.show_calls(&self.fake.clone());
        app_got(status);
        println!("    Tokens asked for: {}.", self.fake.count().total());

        println!("\n  The API has too much to do, and asks for a pause.");
        self.fake.api().fault_next(Fault::rate_limited_for(Duration::from_secs(1)));
        let start = Instant::now();
        let status = call().await?;
        self.show_calls(&self.fake.clone());
        app_got(status);
        println!("    That took {:.1} s.", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// The calls that an API received since it was last asked.
    fn show_calls(&mut self, fake: &FakeHurdlr) {
        for call in fake.api().requests() {
            let header = call.headers().get(header::AUTHORIZATION);
            let token = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
            let token = token.map_or_else(|| "no token".to_owned(), |token| self.name_of(token));
            let status = call.status().map(|status| status.to_string()).unwrap_or_default();
            println!("    API   {} {} with {token}: {status}", call.method(), call.path());
        }
        fake.api().clear_requests();
    }

    fn name_of(&mut self, token: &str) -> String {
        let known = self.seen.iter().position(|known| known == token);
        let index = known.unwrap_or_else(|| {
            self.seen.push(token.to_owned());
            self.seen.len() - 1
        });
        format!("<access token {}>", index + 1)
    }
}

fn app_got(status: StatusCode) {
    println!("    app   got {status}");
}
