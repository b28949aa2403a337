//! Calls to the API by both edges, and what becomes of them.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{ErrorStyle, Fault, FaultyStore, ManualClock, StoreCall, StoreFault};
use hurdlr_oauth2::{
    ApiVersion, CallPolicy, Partner, RetryPolicy, TokenLayer, TokenManager, TokenMiddleware,
};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{Layer, ServiceExt};

use super::provider::{LIFE, Provider, quote, user};
use super::{CLIENT_SECRET, Sweep};
use crate::support::{RawServer, Reply};

pub(super) async fn fail_all(sweep: &Sweep) {
    for style in [ErrorStyle::Envelope, ErrorStyle::Rfc6749] {
        let provider = Provider::start(sweep, style).await;
        let clock = ManualClock::at(provider.fake.now());
        let hurdlr = provider.builder(ApiVersion::V4).clock(clock.clone()).build().unwrap();
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
        let manager = TokenManager::builder(hurdlr.clone(), store.clone()).build().unwrap();
        let handle = manager.user(&user());
        let base = provider.fake.base_url();
        let partner = Partner::new("watched-client", &CLIENT_SECRET.into(), &base.into()).unwrap();
        let partner_user = partner.user(&user()).unwrap();

        // Servers that quote what they are sent, by a page and by a header.
        for status in [200, 307, 401, 403, 429, 500] {
            let headers = format!("Location: /moved\r\nRetry-After: {CLIENT_SECRET}\r\n");
            let api = RawServer::replying([Reply::answer(status, &headers, CLIENT_SECRET)]).await;
            let url = api.base_url();
            for trouble in 0..4 {
                manager.adopt(&user(), provider.log_in(&hurdlr).await.unwrap()).await.unwrap();
                clock.advance(2 * Duration::from_secs(60));
                match trouble {
                    1 => provider.fake.revoke_everything(super::USER),
                    2 => store.plan(of_claims),
                    3 => {
                        let sweep = sweep.clone();
                        provider.fake.fault_plan(move |request| {
                            Some(Fault::answer(500, quote(&sweep, request)))
                        });
                    }
                    _ => {}
                }
                by_middleware(sweep, &provider, handle.middleware(), &url).await;
                by_layer(sweep, handle.layer(), &url).await;
                store.recover();
                provider.fake.clear_faults();
            }
            by_middleware(sweep, &provider, partner_user.middleware(), &url).await;
            by_layer(sweep, partner_user.layer(), &url).await;
            // Nobody says whose call it is.
            by_middleware(sweep, &provider, partner.middleware(), &url).await;
            by_layer(sweep, manager.layer(), &url).await;
            let sent = api.requests();
            assert!(
                sent.iter()
                    .any(|request| request.contains("Bearer ") || request.contains("bearer "))
            );
            for request in sent {
                for header in request.lines() {
                    let Some((name, value)) = header.split_once(": ") else { continue };
                    if name.eq_ignore_ascii_case("authorization") {
                        sweep.secret("authorization", value.split_once(' ').unwrap().1);
                    }
                }
            }
        }
        // Nobody is there.
        let (_port, port) = crate::support::closed_port();
        let nowhere = format!("http://127.0.0.1:{port}");
        by_middleware(sweep, &provider, handle.middleware(), &nowhere).await;
        by_layer(sweep, handle.layer(), &nowhere).await;
        clock.advance(LIFE);
    }
}

fn of_claims(call: StoreCall) -> Option<StoreFault> {
    (call == StoreCall::Claim).then_some(StoreFault::Before)
}

fn policy(url: &str) -> CallPolicy {
    CallPolicy::default().origin(url).retry(RetryPolicy::never())
}

async fn by_middleware(sweep: &Sweep, provider: &Provider, edge: TokenMiddleware, url: &str) {
    let edge = edge.policy(policy(url)).unwrap();
    let client = edge.client(|client| provider.trusted(client)).unwrap().build();
    let result = client.post(url).body("content").send().await;
    // The answer is the app's, headers and all.
    let result = result.map(|answer| answer.error_for_status().map(|_| ()));
    sweep.result("a call by reqwest", &result);
}

async fn by_layer(sweep: &Sweep, edge: TokenLayer, url: &str) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let edge = edge.policy(policy(url)).unwrap().copy_body(|body: &Full<Bytes>| Some(body.clone()));
    let request = Request::post(url).body(Full::from("content")).unwrap();
    match edge.layer(client).oneshot(request).await {
        Ok(answer) => sweep.text("a call by hyper", format!("{:?}", answer.status())),
        Err(error) => sweep.error("a call by hyper", &*error),
    }
}
