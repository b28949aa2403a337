//! Protected resources: data of the API, for requests that carry an access token (RFC 6750).

use std::sync::Arc;

use axum::{
    Router,
    body::{self, Body},
    extract::{Request, State},
    response::Response,
};
use http::StatusCode;
use secrecy::ExposeSecret;
use tower_service::Service;

use super::{
    answer::{Answer, Refusal},
    journal::{Outcome, RecordedRequest},
    lock::lock,
    provider::Provider,
    resources::Data,
    token_endpoint::{bearer, plain_basic},
    version::{Scope, Version},
};

/// Bytes: enough for tests that send a body along.
const BODY_LIMIT: usize = 1024 * 1024;

/// Answers a call to the API.
pub(super) async fn answer(State(provider): State<Arc<Provider>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (body, is_too_large) = match body::to_bytes(body, BODY_LIMIT).await {
        Ok(body) => (body, false),
        Err(_) => (body::Bytes::new(), true),
    };
    let call = RecordedRequest::new(parts, body);
    let user = user(&provider, &call);
    let serve = async |call: RecordedRequest| {
        if is_too_large {
            return refused(&provider, Refusal::too_large(BODY_LIMIT));
        }
        match serve(&provider, &call) {
            Source::Data(data) => {
                // Without a lock, since the data may be made with the provider's help.
                (Outcome::Served, Answer::json(StatusCode::OK, data(&call).to_string()))
            }
            Source::Router(router) => (Outcome::Served, routed(router, call).await),
            Source::Refused(refused) => refused,
        }
    };
    provider.api.answer(provider.error_style(), call.about(user), serve).await
}

/// The source of the answer to a call.
enum Source {
    Data(Arc<Data>),
    Router(Router),
    Refused((Outcome, Answer)),
}

/// The answer of the test's own router, held whole so that a fault can still be applied to it.
async fn routed(mut router: Router, call: RecordedRequest) -> Answer {
    let mut request = http::Request::new(Body::from(call.body().to_vec()));
    *request.method_mut() = call.method().clone();
    *request.headers_mut() = call.headers().clone();
    let query = call.query().map_or_else(String::new, |query| format!("?{query}"));
    // It came as the URI of a request.
    *request.uri_mut() = format!("{}{query}", call.path()).parse().unwrap_or_default();
    request.extensions_mut().insert(call);
    let response = match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    match body::to_bytes(body, usize::MAX).await {
        Ok(body) => Answer { status: parts.status, headers: parts.headers, body },
        Err(_) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "the router's answer broke off"),
    }
}

/// The user of a call, as far as the provider can tell before it looks at the rest: dead tokens
/// have an owner too.
fn user(provider: &Provider, call: &RecordedRequest) -> Option<String> {
    match bearer(call.headers()) {
        Some(token) => lock(&provider.ledger).user_of_token(token).map(str::to_owned),
        None => call.headers().get("userid")?.to_str().ok().map(str::to_owned),
    }
}

fn serve(provider: &Provider, call: &RecordedRequest) -> Source {
    let refused = |refusal| Source::Refused(refused(provider, refusal));
    let source = match provider.resources.get(call.path()) {
        Some(data) => Some(Source::Data(data)),
        None => provider.resources.router().map(Source::Router),
    };
    let Some(source) = source else { return refused(Refusal::unknown_path()) };
    let version = Version::of_path(call.path());
    if version.is_some_and(Version::has_partner_calls)
        && let Some((id, secret)) = plain_basic(call.headers())
    {
        return if id != provider.client_id || secret != provider.client_secret.expose_secret() {
            refused(Refusal::wrong_basic())
        } else if call.user().is_none_or(str::is_empty) {
            refused(Refusal::required("userId"))
        } else {
            source
        };
    }
    let Some(token) = bearer(call.headers()) else {
        return Source::Refused((Outcome::BearerRefused, Answer::challenge()));
    };
    let scope = lock(&provider.ledger).bearer(token, version, provider.now());
    match scope {
        Ok(Scope::Read) if !call.method().is_safe() => refused(Refusal::forbidden()),
        Ok(_) => source,
        Err(status) => refused(Refusal::dead_access_token(status)),
    }
}

fn refused(provider: &Provider, refusal: Refusal) -> (Outcome, Answer) {
    (refusal.outcome(), provider.refuse(refusal))
}
