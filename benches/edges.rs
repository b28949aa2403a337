//! What an authorised call costs beyond the call: by the middleware, and by the layer.
//!
//! ```text
//! cargo bench --bench edges
//! ```
//!
//! The same call is made with a header that is set by hand. The sides alternate call by call, over a
//! connection each, so that whatever else the machine does befalls both.

// Its output is what it is for.
#![allow(clippy::print_stdout)]

mod harness;
use harness::{Job, Outcome, Provider, figure};

use std::future::{Future, ready};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

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
    let calls = if job == Job::Measure { 20_000 } else { 1 };
    runtime.block_on(measure(calls))
}

async fn measure(calls: usize) -> Outcome {
    let provider = Provider::start()?;
    let manager = TokenManager::builder(provider.hurdlr()?, MemoryStore::new()).build()?;
    let user = manager.enterprise_user(&UserId::new("customer-4711")?);
    let header = user.token().await?.authorization_header();
    let url = manager.hurdlr().token_url().join("/rest/v4/me")?;

    let client = reqwest::Client::new();
    let by_hand = async || -> Outcome {
        let call = client.get(url.clone()).header(AUTHORIZATION, header.clone());
        call.send().await?.error_for_status()?.bytes().await?;
        Ok(())
    };
    let api = user.middleware().client(reqwest::Client::builder())?.build();
    let authorised = async || -> Outcome {
        api.get(url.clone()).send().await?.error_for_status()?.bytes().await?;
        Ok(())
    };
    let (plain, middleware) = alternate(calls, &by_hand, authorised).await?;

    // What of that is the wrapper's own, with nothing in it.
    let bare_client = ClientWithMiddleware::from(client.clone());
    let wrapped = async || -> Outcome {
        let call = bare_client.get(url.clone()).header(AUTHORIZATION, header.clone());
        call.send().await?.error_for_status()?.bytes().await?;
        Ok(())
    };
    let (unwrapped, wrapped) = alternate(calls, by_hand, wrapped).await?;

    let request = || -> Outcome<Call> { Ok(Request::get(url.as_str()).body(Empty::new())?) };
    let client = || Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let (hyper, layered) = (client(), user.layer().layer(client()));
    let by_hand = async || -> Outcome {
        let mut call = request()?;
        call.headers_mut().insert(AUTHORIZATION, header.clone());
        let answer = hyper.clone().call(call).await?;
        is_fine(answer.status())?;
        answer.into_body().collect().await?;
        Ok(())
    };
    let authorised = async || -> Outcome {
        let answer = layered.clone().call(request()?).await?;
        is_fine(answer.status())?;
        answer.into_body().collect().await?;
        Ok(())
    };
    let (bare, layer) = alternate(calls, by_hand, authorised).await?;

    let allocations = allocations(&user, &header, &url)?;
    if calls > 1 {
        println!("a call by reqwest takes {plain:.1} us, one by hyper {bare:.1} us");
        println!("an empty reqwest-middleware client adds {:.3} us", wrapped - unwrapped);
        figure("edges.middleware_overhead_us", middleware - plain, "us");
        figure("edges.middleware_vs_plain", middleware / plain, "ratio");
        figure("edges.layer_vs_plain", layer / bare, "ratio");
        figure("edges.allocations_per_call", allocations, "allocations");
    }
    Ok(())
}

fn is_fine(status: http::StatusCode) -> Outcome {
    if status.is_success() { Ok(()) } else { Err(status.to_string().into()) }
}

/// How long each of two calls takes, as the median of so many, in microseconds.
async fn alternate(
    calls: usize,
    one: impl AsyncFn() -> Outcome,
    other: impl AsyncFn() -> Outcome,
) -> Outcome<(f64, f64)> {
    let (mut ones, mut others) = (Vec::with_capacity(calls), Vec::with_capacity(calls));
    for round in 0..calls {
        // Who goes first finds the caches as the other left them, so they take turns in that.
        if round % 2 == 0 {
            ones.push(time(&one).await?);
            others.push(time(&other).await?);
        } else {
            others.push(time(&other).await?);
            ones.push(time(&one).await?);
        }
    }
    Ok((median(ones), median(others)))
}

async fn time(call: &impl AsyncFn() -> Outcome) -> Outcome<Duration> {
    let start = Instant::now();
    call().await?;
    Ok(start.elapsed())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
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
