//! An app with the login routes, and one browser that comes to it as one user.

use hurdlr_oauth2::TokenManager;
use hurdlr_oauth2::axum::Router;
use hurdlr_oauth2::axum::body::{Body, to_bytes};
use hurdlr_oauth2::axum::response::Redirect;
use hurdlr_oauth2::http::{HeaderMap, HeaderValue, Request, StatusCode};
use hurdlr_oauth2::secrecy::SecretSlice;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::web::{LoginConfig, login_routes};
use tower::ServiceExt;

use super::provider::{Client, TOKEN, block_on, user};

pub(crate) const ORIGIN: &str = "https://app.example.com";
pub(crate) const HOME: &str = "/home";
pub(crate) const CONNECT: &str = "/hurdlr/connect";
pub(crate) const CALLBACK: &str = "/hurdlr/callback";
pub(crate) const DISCONNECT: &str = "/hurdlr/disconnect";

pub(crate) struct WebApp {
    pub(crate) client: Client,
    router: Router,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl WebApp {
    /// An app whose paths a browser sees below `prefix`, which a proxy takes off. It is made on the
    /// runtime.
    pub(crate) fn below(prefix: &str) -> Self {
        let client = Client::new(&format!("{ORIGIN}{prefix}{CALLBACK}"));
        client.provider.answer(StatusCode::OK, HeaderMap::new(), TOKEN);
        let store = MemoryStore::with_clock(client.clock.clone());
        let manager = TokenManager::builder(client.hurdlr.clone(), store).build().unwrap();
        let key = SecretSlice::from(vec![1; 64]);
        let config = LoginConfig::new(key, async |_| Ok::<_, Redirect>(user()))
            .return_to(HOME)
            .callback_path(CALLBACK);
        let router = login_routes(manager, config).unwrap();
        Self { client, router }
    }

    /// Sends a request as the app's own page does, or as a link on another site.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        is_own_page: bool,
        cookies: Option<HeaderValue>,
    ) -> Answer {
        let site = if is_own_page { "same-origin" } else { "cross-site" };
        let mut request =
            Request::builder().method(method).uri(path).header("sec-fetch-site", site);
        if let Some(cookies) = cookies {
            request = request.header("cookie", cookies);
        }
        let request = request.body(Body::empty()).unwrap();
        block_on(async {
            let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
            let body = to_bytes(body, usize::MAX).await.unwrap();
            let body = String::from_utf8(body.into()).unwrap();
            Answer { status: parts.status, headers: parts.headers, body }
        })
    }
}
