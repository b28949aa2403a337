//! Tokens stay on their origin, whatever a redirect says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::header::AUTHORIZATION;
use http::{Method, Request, Response};
use hurdlr_oauth2::manager::TokenEvent;
use hurdlr_oauth2::reqwest_middleware::{self, ClientBuilder, Next};
use hurdlr_oauth2::{CallPolicy, reqwest};

use super::{Content, Edge, KINDS, Kind, Stage, TestBody, answer, bearers};
use crate::site::access;
use crate::support::{RawServer, Reply};

#[tokio::test]
async fn no_redirect_takes_tokens_to_another_host() {
    for kind in KINDS {
        for status in [301, 302, 303, 307, 308] {
            for method in [Method::GET, Method::POST, Method::PUT] {
                let stage = Stage::new().await;
                // The second hop within the other origin is where clients forget what they knew.
                let location = "Location: /further\r\n";
                let other =
                    RawServer::replying([Reply::answer(status, location, ""), answer(200)]).await;
                let port = other.port();
                for there in
                    [format!("http://127.0.0.1:{port}/"), format!("http://localhost:{port}/")]
                {
                    let location = format!("Location: {there}\r\n");
                    let api = RawServer::replying([Reply::answer(status, &location, "")]).await;
                    let policy = CallPolicy::default().origin(api.base_url());
                    let edge = kind.of_user(&stage.user, policy);
                    edge.call(method.clone(), &api.base_url(), Content::Whole).await;
                    assert_eq!(bearers(&api), [format!("Bearer {}", stage.old)]);
                }
                let leaked = bearers(&other).into_iter().any(|header| !header.is_empty());
                assert!(!leaked, "{kind:?} {method} {status}");
            }
        }
    }
}

#[tokio::test]
async fn token_stays_on_scheme_host_and_port() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(401)]).await;
        let origin = format!("http://localhost:{}", api.port());
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(origin));
        // The same server by another name, and no token for it: its 401 means nothing.
        assert_eq!(edge.get(&api.base_url()).await, 401);
        assert_eq!(bearers(&api), [""], "{kind:?}");
        assert_eq!(access(&stage.user.token().await.unwrap()), stage.old, "{kind:?}");
        assert_eq!(stage.site.refreshes(), 0, "{kind:?}");
    }
}

#[tokio::test]
async fn redirect_within_origin_keeps_the_token() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let api =
            RawServer::replying([Reply::answer(302, "Location: /there\r\n", ""), answer(200)]);
        let api = api.await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        assert_eq!(edge.get(&api.base_url()).await, 200);
        let bearer = format!("Bearer {}", stage.old);
        assert_eq!(bearers(&api), [bearer.clone(), bearer], "{kind:?}");
    }
}

#[tokio::test]
async fn foreign_origins_401_means_nothing() {
    struct Elsewhere(String);

    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Elsewhere {
        async fn handle(
            &self,
            mut request: reqwest::Request,
            extensions: &mut http::Extensions,
            next: Next<'_>,
        ) -> reqwest_middleware::Result<reqwest::Response> {
            *request.url_mut() = self.0.parse().unwrap();
            request.headers_mut().remove(AUTHORIZATION);
            next.run(request, extensions).await
        }
    }

    let other = RawServer::replying([answer(401)]).await;
    for kind in KINDS {
        let stage = Stage::new().await;
        let location = format!("Location: {}\r\n", other.base_url());
        let api = RawServer::replying([Reply::answer(302, &location, "")]).await;
        let policy = CallPolicy::default().origin(api.base_url());
        let edge = match kind {
            Kind::Layer => kind.of_user(&stage.user, policy),
            Kind::Middleware => {
                let Edge::Middleware(client) = kind.of_user(&stage.user, policy) else {
                    unreachable!("that is what it makes")
                };
                let client = ClientBuilder::from_client(client);
                Edge::Middleware(client.with(Elsewhere(other.base_url())).build())
            }
        };
        assert_eq!(edge.get(&api.base_url()).await, 401, "{kind:?}");
        assert_eq!(access(&stage.user.token().await.unwrap()), stage.old, "{kind:?}");
        assert_eq!(stage.site.refreshes(), 0, "{kind:?}");
    }
}

/// A call to a loopback host goes there, however the app configures its client.
#[tokio::test]
async fn plain_http_call_uses_no_proxy() {
    let stage = Stage::new().await;
    let proxy = RawServer::replying([Reply::answer(200, "", "proxied")]).await;
    let server = RawServer::replying([Reply::answer(200, "", "direct")]).await;
    let policy = CallPolicy::default().origin(server.base_url());
    let proxy_url = proxy.base_url();
    let api = stage.user.middleware().policy(policy).unwrap();
    let api = api
        .client(|builder| {
            builder
                .proxy(reqwest::Proxy::all(proxy_url).unwrap())
                .resolve("localhost", ([192, 0, 2, 1], 0).into())
        })
        .unwrap()
        .build();
    let answer = api.get(server.base_url()).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "direct");
    assert!(server.requests()[0].contains(&stage.old));
    assert!(proxy.requests().is_empty());
}

/// No setting of the app sends a token to a host that cannot show a certificate.
#[cfg(feature = "rustls")]
#[tokio::test]
async fn call_verifies_certificates_by_rustls() {
    let stage = Stage::new().await;
    let (url, certificate) = crate::support::tls::serve("served").await;
    let root = reqwest::Certificate::from_der(&certificate).unwrap();
    let send = async |configure: &dyn Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder| {
        let policy = CallPolicy::default().origin(&url);
        let api = stage.user.middleware().policy(policy).unwrap();
        api.client(configure).unwrap().build().get(&url).send().await
    };
    let error = send(&|builder| builder.tls_danger_accept_invalid_certs(true)).await.unwrap_err();
    assert!(crate::support::tls::is_of_rustls(&error), "{error:?}");
    let answer = send(&|builder| builder.tls_certs_only([root.clone()])).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "served");
}

/// An API that redirects a change of its entries, once made, to a page that answers the first call
/// with `refusal`. Remembers the method and path of each request.
async fn redirecting(
    status: u16,
    to: &'static str,
    refusal: u16,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let requests = Arc::<Mutex<Vec<String>>>::default();
    let (seen, refused) = (Arc::clone(&requests), AtomicUsize::new(0));
    let answer = move |method: &Method, path: &str| {
        seen.lock().unwrap().push(format!("{method} {path}"));
        let response = Response::builder();
        if path == "/entries" && !method.is_safe() {
            response.status(status).header("location", to)
        } else if refused.fetch_add(1, Ordering::SeqCst) == 0 {
            response.status(refusal).header("retry-after", "1")
        } else {
            response
        }
    };
    let answer = Arc::new(answer);
    let api = axum::Router::new().fallback(move |method: Method, uri: http::Uri| {
        let response = answer(&method, uri.path()).body(axum::body::Body::empty()).unwrap();
        std::future::ready(response)
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, api).await });
    (url, requests)
}

/// A request that was answered by a redirect may have been acted on: it is not made again, whatever
/// the page behind the redirect says.
#[tokio::test]
async fn redirected_change_is_made_once() {
    for kind in KINDS {
        for (status, to) in [
            (301, "/done"),
            (302, "/done"),
            (302, "/entries"),
            (303, "/done"),
            (303, "/entries"),
            (307, "/done"),
            (308, "/done"),
        ] {
            for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
                if to == "/entries" && status == 302 && method != Method::POST {
                    continue; // clients go on by the same method, for ever
                }
                for refusal in [401, 429] {
                    let name = format!("{kind:?} {method} {status} {to} {refusal}");
                    let stage = Stage::new().await;
                    let (url, requests) = redirecting(status, to, refusal).await;
                    let policy = CallPolicy::default().origin(&url).repeat_every_method(true);
                    let edge = kind.of_user(&stage.user, policy);
                    let entries = format!("{url}/entries");
                    let mut changes = stage.user.subscribe();
                    let got = edge.call(method.clone(), &entries, Content::None).await;
                    if refusal == 401 {
                        // In the background, where nobody waits for it.
                        assert_eq!(changes.next().await, TokenEvent::NewToken, "{name}");
                    }

                    let requests = requests.lock().unwrap().clone();
                    let made = requests.iter().filter(|it| **it == format!("{method} /entries"));
                    assert_eq!(made.count(), 1, "{name}: {requests:?}");
                    // Each hop is a call of the layer's, which repeats the one that was refused.
                    let expected = match kind {
                        Kind::Middleware => (refusal, 2),
                        Kind::Layer => (200, 3),
                    };
                    assert_eq!((got, requests.len()), expected, "{name}: {requests:?}");
                    assert_eq!(stage.site.refreshes(), u64::from(refusal == 401), "{name}");
                }
            }
        }
    }
}

/// To read again changes nothing, so a refused call heals behind a redirect, too.
#[tokio::test]
async fn redirected_read_is_repeated() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let redirect = || Reply::answer(302, "Location: /there\r\n", "");
        let replies = match kind {
            Kind::Middleware => vec![redirect(), answer(401), redirect(), answer(200)],
            Kind::Layer => vec![redirect(), answer(401), answer(200)],
        };
        let api = RawServer::replying(replies).await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        assert_eq!(edge.get(&api.base_url()).await, 200, "{kind:?}");
        assert_ne!(access(&stage.user.token().await.unwrap()), stage.old, "{kind:?}");
    }
}

/// A URL with user info has credentials of its own, also where a redirect leads to it.
#[tokio::test]
async fn redirect_to_user_info_gets_no_token() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let there = Arc::new(Mutex::new(None));
        let location = Arc::clone(&there);
        // The second answer has no redirect, nor has any later one.
        let api = RawServer::answering(move || match location.lock().unwrap().take() {
            Some(port) => {
                let location = format!("Location: http://user:pw@127.0.0.1:{port}/there\r\n");
                Reply::answer(302, &location, "")
            }
            None => answer(200),
        });
        let api = api.await;
        *there.lock().unwrap() = Some(api.port());
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        let request = Request::get(format!("{}/here", api.base_url())).body(TestBody::default());
        let _ = edge.send(request.unwrap()).await;
        for request in api.requests() {
            let is_first = request.starts_with("GET /here ");
            let has_token = request.contains(&stage.old);
            assert_eq!(has_token, is_first, "{kind:?}: {request}");
        }
    }
}
