//! Protected resources: data of the API, for requests that carry an access token (RFC 6750).

use std::sync::Arc;

use axum::{
    body,
    extract::{Request, State},
    response::Response,
};
use http::StatusCode;
use secrecy::ExposeSecret;

use super::{
    answer::{Answer, Refusal},
    journal::{Outcome, RecordedRequest},
    lock::lock,
    provider::Provider,
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
    let serve = |call: &RecordedRequest| {
        if is_too_large {
            return refused(&provider, Refusal::too_large(BODY_LIMIT));
        }
        serve(&provider, call)
    };
    provider.api.answer(provider.error_style(), call.about(user), serve).await
}

/// The user of a call, as far as the provider can tell before it looks at the rest: dead tokens
/// have an owner too.
fn user(provider: &Provider, call: &RecordedRequest) -> Option<String> {
    match bearer(call.headers()) {
        Some(token) => lock(&provider.ledger).user_of_token(token).map(str::to_owned),
        None => call.headers().get("userid")?.to_str().ok().map(str::to_owned),
    }
}

fn serve(provider: &Provider, call: &RecordedRequest) -> (Outcome, Answer) {
    let Some(data) = provider.resources.get(call.path()) else {
        return refused(provider, Refusal::unknown_path());
    };
    // Without a lock, since the data may be made with the provider's help.
    let served = || (Outcome::Served, Answer::json(StatusCode::OK, data(call).to_string()));
    let version = Version::of_path(call.path());
    if version.is_some_and(Version::has_partner_calls)
        && let Some((id, secret)) = plain_basic(call.headers())
    {
        return if id != provider.client_id || secret != provider.client_secret.expose_secret() {
            refused(provider, Refusal::wrong_basic())
        } else if call.user().is_none_or(str::is_empty) {
            refused(provider, Refusal::required("userId"))
        } else {
            served()
        };
    }
    let Some(token) = bearer(call.headers()) else {
        return (Outcome::BearerRefused, Answer::challenge());
    };
    let scope = lock(&provider.ledger).bearer(token, version, provider.now());
    match scope {
        Ok(Scope::Read) if !call.method().is_safe() => refused(provider, Refusal::forbidden()),
        Ok(_) => served(),
        Err(status) => refused(provider, Refusal::dead_access_token(status)),
    }
}

fn refused(provider: &Provider, refusal: Refusal) -> (Outcome, Answer) {
    (refusal.outcome(), provider.refuse(refusal))
}
