//! What an authorised call costs beyond the call: by the middleware, and by the layer.
//!
//! ```text
//! cargo bench --bench edges
//! ```
//!
//! The same call is made with a header that is set by hand. The sides alternate call by call, over a
//! connection each, so that whatever else the machine does befalls both. Connections differ by some
//! thousandths, so the sides have new ones now and then.

// Its output is what it is for.
#![allow(clippy::print_stdout)]

mod harness;
use harness::{Job, Outcome, Provider, figure};

use std::future::{Future, ready};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty};
use hurdlr_oauth2::manager::UserHandle;
use hurdlr_oauth2::reqwest_middleware::ClientWithMiddleware;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::{TokenManager, UserId, reqwest};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{Layer, Service, service_fn};
use url::Url;

type Call = Request<Empty<Bytes>>;

fn main() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let job = Job::asked_for();
    if job == Job::Serve {
        return runtime.block_on(harness::serve());
    }
    let amount = match job {
        Job::Measure => Amount { connections: 20, calls: 2_000 },
        _ => Amount { connections: 1, calls: 1 },
    };
    runtime.block_on(measure(amount))
}

/// How many calls each side makes over how many connections, one after the other.
#[derive(Clone, Copy)]
struct Amount {
    connections: usize,
    calls: usize,
}

async fn measure(amount: Amount) -> Outcome {
    let provider = Provider::start()?;
    let manager = TokenManager::builder(provider.hurdlr()?, MemoryStore::new()).build()?;
    let user = manager.enterprise_user(&UserId::new("customer-4711")?);
    let header = user.token().await?.authorization_header();
    let url = manager.hurdlr().token_url().join("/rest/v4/me")?;

    let by_hand = || {
        let client = reqwest::Client::new();
        let (url, header) = (&url, &header);
        Ok(async move || {
            let call = client.get(url.clone()).header(AUTHORIZATION, header.clone());
            call.send().await?.error_for_status()?.bytes().await?;
            Ok(())
        })
    };
    let authorised = || {
        let api = user.middleware().client(|builder| builder)?.build();
        let url = &url;
        Ok(async move || {
            api.get(url.clone()).send().await?.error_for_status()?.bytes().await?;
            Ok(())
        })
    };
    let by_middleware = alternate(amount, by_hand, authorised).await?;

    // One client for all users, and one that is made for a user and a call.
    let shared = manager.middleware().client(|builder| builder)?.build();
    let by_shared = async || {
        let call = shared.get(url.clone()).with_extension(user.clone());
        call.send().await?.error_for_status()?.bytes().await?;
        Ok(())
    };
    let by_own = async || {
        let api = user.middleware().client(|builder| builder)?.build();
        api.get(url.clone()).send().await?.error_for_status()?.bytes().await?;
        Ok(())
    };
    let (mut shared_times, mut own_times) = (Vec::new(), Vec::new());
    for _ in 0..amount.calls.min(50) {
        shared_times.push(time(&by_shared).await?);
        own_times.push(time(&by_own).await?);
    }

    // What of that is the wrapper's own, with nothing in it.
    let wrapped = || {
        let client = ClientWithMiddleware::from(reqwest::Client::new());
        let (url, header) = (&url, &header);
        Ok(async move || {
            let call = client.get(url.clone()).header(AUTHORIZATION, header.clone());
            call.send().await?.error_for_status()?.bytes().await?;
            Ok(())
        })
    };
    let by_wrapper = alternate(amount, by_hand, wrapped).await?;

    let request = || -> Outcome<Call> { Ok(Request::get(url.as_str()).body(Empty::new())?) };
    let client = || Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let by_hand = || {
        let (client, header) = (client(), &header);
        Ok(async move || {
            let mut call = request()?;
            call.headers_mut().insert(AUTHORIZATION, header.clone());
            let answer = client.clone().call(call).await?;
            is_fine(answer.status())?;
            answer.into_body().collect().await?;
            Ok(())
        })
    };
    let authorised = || {
        let api = user.layer().layer(client());
        Ok(async move || {
            let answer = api.clone().call(request()?).await?;
            is_fine(answer.status())?;
            answer.into_body().collect().await?;
            Ok(())
        })
    };
    let by_layer = alternate(amount, by_hand, authorised).await?;

    let allocations = allocations(&user, &header, &url)?;
    if amount.calls > 1 {
        println!(
            "a call by reqwest takes {:.1} us, one by hyper {:.1} us; reqwest-middleware adds {:.1} us",
            median_of(&by_middleware, |sides| sides.plain),
            median_of(&by_layer, |sides| sides.plain),
            median_of(&by_wrapper, Sides::overhead),
        );
        figure("edges.middleware_overhead_us", median_of(&by_middleware, Sides::overhead), "us");
        figure("edges.middleware_vs_plain", median_of(&by_middleware, Sides::ratio), "ratio");
        figure("edges.shared_client_ms", median(shared_times) / 1e3, "ms");
        figure("edges.client_per_call_ms", median(own_times) / 1e3, "ms");
        figure("edges.layer_vs_plain", median_of(&by_layer, Sides::ratio), "ratio");
        figure("edges.allocations_per_call", allocations, "allocations");
    }
    Ok(())
}

fn is_fine(status: http::StatusCode) -> Outcome {
    if status.is_success() { Ok(()) } else { Err(status.to_string().into()) }
}

/// What the calls over one connection took, as medians, in microseconds.
#[derive(Clone, Copy)]
struct Sides {
    plain: f64,
    authorised: f64,
}

impl Sides {
    fn overhead(self) -> f64 {
        self.authorised - self.plain
    }

    fn ratio(self) -> f64 {
        self.authorised / self.plain
    }
}

async fn alternate<Plain, Authorised>(
    amount: Amount,
    plain: impl Fn() -> Outcome<Plain>,
    authorised: impl Fn() -> Outcome<Authorised>,
) -> Outcome<Vec<Sides>>
where
    Plain: AsyncFn() -> Outcome,
    Authorised: AsyncFn() -> Outcome,
{
    let mut all = Vec::with_capacity(amount.connections);
    for _ in 0..amount.connections {
        let (plain, authorised) = (plain()?, authorised()?);
        plain().await?;
        authorised().await?;
        let (mut ones, mut others) = (Vec::new(), Vec::new());
        for round in 0..amount.calls {
            // Who goes first finds the caches as the other left them, so they take turns in that.
            if round % 2 == 0 {
                ones.push(time(&plain).await?);
                others.push(time(&authorised).await?);
            } else {
                others.push(time(&authorised).await?);
                ones.push(time(&plain).await?);
            }
        }
        all.push(Sides { plain: median(ones), authorised: median(others) });
    }
    Ok(all)
}

fn median_of(all: &[Sides], figure: impl Fn(Sides) -> f64) -> f64 {
    median(all.iter().map(|&sides| figure(sides)).collect())
}

async fn time(call: &impl AsyncFn() -> Outcome) -> Outcome<f64> {
    let start = Instant::now();
    call().await?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What the layer allocates beyond what the call does with a header that is set by hand: on a call
/// with the usual headers, that could be sent again, to a service that allocates nothing.
fn allocations(user: &UserHandle, header: &HeaderValue, url: &Url) -> Outcome<f64> {
    let mut template = Request::get(url.as_str()).body(Empty::new())?;
    for (name, value) in
        [(ACCEPT, "application/json"), (CONTENT_TYPE, "text/plain"), (USER_AGENT, "an-app/1.0")]
    {
        template.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let plain = service_fn(|call: Call| {
        // A call without its token would be cheap.
        let is_authorised = call.headers().contains_key(AUTHORIZATION);
        ready(is_authorised.then(|| Response::new(())).ok_or("no token"))
    });
    let mut layered = user.layer().layer(plain);
    let mut by_hand = plain;
    let mut outcomes = (Poll::Pending, Poll::Pending);
    let plainly = allocation_counter::measure(|| {
        let mut call = template.clone();
        call.headers_mut().insert(AUTHORIZATION, header.clone());
        outcomes.0 = at_once(by_hand.call(call));
    });
    let authorised = allocation_counter::measure(|| {
        outcomes.1 = at_once(layered.call(template.clone()));
    });
    let (Poll::Ready(Ok(_)), Poll::Ready(Ok(_))) = outcomes else {
        return Err("a call was not made at once".into());
    };
    #[expect(clippy::cast_precision_loss, reason = "there are a handful")]
    let [plainly, authorised] = [plainly, authorised].map(|counted| counted.count_total as f64);
    Ok(authorised - plainly)
}

fn at_once<T>(call: impl Future<Output = T>) -> Poll<T> {
    pin!(call).poll(&mut Context::from_waker(Waker::noop()))
}
