//! The paths that the provider answers on.

use std::sync::Arc;

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{MethodRouter, any, get},
};
use http::{HeaderValue, header::DATE};

use super::{
    authorize,
    delivery::Disconnect,
    listener::ConnHandle,
    provider::Provider,
    resource,
    token_endpoint::{self, Endpoint},
    version::Version,
};

pub(super) fn router(provider: &Arc<Provider>) -> Router {
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
        .layer(middleware::from_fn_with_state(Arc::clone(provider), send))
        .with_state(Arc::clone(provider))
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
