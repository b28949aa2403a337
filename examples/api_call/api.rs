//! An API that takes the embedded provider's tokens, and says what comes in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hurdlr_oauth2::testing::FakeHurdlr;
use tokio::net::TcpListener;

use crate::Outcome;

/// Clones are the same API.
#[derive(Clone)]
pub(crate) struct Api {
    fake: FakeHurdlr,
    is_busy: Arc<AtomicBool>,
    /// Tokens are shown by the order in which they were seen.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Api {
    /// Starts it, and tells where it is.
    pub(crate) async fn start(fake: &FakeHurdlr) -> Outcome<(Self, String)> {
        let api = Self { fake: fake.clone(), is_busy: Arc::default(), seen: Arc::default() };
        let answering = api.clone();
        let router = Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap| {
            let api = answering.clone();
            async move { api.answer(&method, &uri, &headers) }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((api, url))
    }

    /// Has it answer the next call with 429.
    pub(crate) fn be_busy_once(&self) {
        self.is_busy.store(true, Ordering::Relaxed);
    }

    fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Response {
        let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        let (status, retry_after) = match token {
            Some(token) if self.fake.is_alive(token) => {
                if self.is_busy.swap(false, Ordering::Relaxed) {
                    (StatusCode::TOO_MANY_REQUESTS, Some("1"))
                } else {
                    (StatusCode::OK, None)
                }
            }
            _ => (StatusCode::UNAUTHORIZED, None),
        };
        let token = token.map_or_else(|| "no token".to_owned(), |token| self.shown(token));
        let pause = retry_after.map(|seconds| format!(", Retry-After: {seconds}"));
        println!("    API   {method} {uri} with {token}: {status}{}", pause.unwrap_or_default());
        match retry_after {
            Some(seconds) => (status, [(RETRY_AFTER, seconds)]).into_response(),
            None => status.into_response(),
        }
    }

    fn shown(&self, token: &str) -> String {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.iter().position(|known| known == token);
        let index = known.unwrap_or_else(|| {
            seen.push(token.to_owned());
            seen.len() - 1
        });
        format!("<access token {}>", index + 1)
    }
}
