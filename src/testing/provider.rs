//! The provider itself: what it knows, and the paths it answers on.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{MethodRouter, any, get},
};
use http::{HeaderValue, header::DATE};
use secrecy::SecretString;
use serde_json::{Map, Value};
use url::Url;

use super::{
    answer::{Answer, ErrorStyle, Refusal},
    authorize,
    clock::Clock,
    delivery::Disconnect,
    ledger::{Ledger, Rotation, Scope, Terms},
    listener::ConnHandle,
    resource::{self, Resources},
    token_endpoint::{self, Endpoint},
    traffic::Traffic,
    version::Version,
};

pub(super) type Reshape = dyn Fn(&mut Map<String, Value>) + Send + Sync;

/// Settings that can be changed while the provider runs.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) rotation: Rotation,
    pub(super) error_style: ErrorStyle,
    /// `None`: as long as the version's reference says.
    pub(super) token_life: Option<Duration>,
    pub(super) refresh_life: Option<Duration>,
    pub(super) reshape: Option<Arc<Reshape>>,
}

/// Everything the paths share.
pub(super) struct Provider {
    pub(super) base_url: Url,
    pub(super) client_id: String,
    pub(super) client_secret: SecretString,
    pub(super) redirect_uri: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) ignores_pkce: bool,
    pub(super) checks_bearer: bool,
    pub(super) clock: Clock,
    pub(super) settings: Mutex<Settings>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) resources: Resources,
    /// Token requests, and those for a revocation.
    pub(super) tokens: Traffic,
    /// Calls to the API.
    pub(super) api: Traffic,
}

impl Provider {
    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    pub(super) fn error_style(&self) -> ErrorStyle {
        lock(&self.settings).error_style
    }

    pub(super) fn terms(&self, version: Version, scope: Option<Scope>) -> Terms {
        let settings = lock(&self.settings);
        Terms {
            version,
            scope,
            now: self.clock.now(),
            token_life: settings.token_life.unwrap_or(version.token_life()),
            refresh_life: settings.refresh_life,
            rotation: settings.rotation,
            checks_pkce: version.documents_pkce() || !self.ignores_pkce,
        }
    }

    pub(super) fn refuse(&self, refusal: Refusal) -> Answer {
        refusal.into_answer(self.error_style())
    }

    pub(super) fn router(self: &Arc<Self>) -> Router {
        let mut router = Router::new()
            .route(authorize::PATH, get(authorize::page).post(authorize::decide))
            .fallback(resource::answer);
        for version in Version::ALL {
            router = router.route(version.token_path(), at(Endpoint::Token(version)));
            if let Some(path) = version.revocation_path() {
                router = router.route(path, at(Endpoint::Revocation(version)));
            }
        }
        router
            .layer(middleware::from_fn_with_state(Arc::clone(self), send))
            .with_state(Arc::clone(self))
    }
}

fn at(endpoint: Endpoint) -> MethodRouter<Arc<Provider>> {
    any(move |State(provider): State<Arc<Provider>>, request: Request| async move {
        token_endpoint::answer(&provider, endpoint, request).await
    })
}

/// The last hand an answer passes through. Either it gets its date, or its connection is cut.
async fn send(State(provider): State<Arc<Provider>>, request: Request, next: Next) -> Response {
    let conn = request.extensions().get::<ConnectInfo<ConnHandle>>().cloned();
    let mut response = next.run(request).await;
    if response.extensions().get::<Disconnect>().is_some() {
        // In memory there is no connection; that client looks for the mark itself.
        if let Some(ConnectInfo(conn)) = conn {
            conn.cut();
        }
    }
    // Set here, because the HTTP server would otherwise write its own clock's.
    let date = httpdate::fmt_http_date(provider.now());
    if let Ok(date) = HeaderValue::try_from(date) {
        response.headers_mut().insert(DATE, date);
    }
    response
}

/// A test's panic while it held a lock is that test's failure, not every later one's.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
