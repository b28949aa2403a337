//! A protected resource, for requests that carry an access token (RFC 6750).

use std::sync::Arc;

use axum::{
    body,
    extract::{Request, State},
    response::Response,
};
use http::StatusCode;

use super::{
    answer::{Answer, Refusal},
    provider::{Provider, lock},
    token_endpoint::bearer,
};

/// Bytes: enough for tests that send a body along.
const BODY_LIMIT: usize = 1024 * 1024;

/// Says who the token speaks for and how long the body was, or 401 for a dead token.
pub(super) async fn me(State(provider): State<Arc<Provider>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = body::to_bytes(body, BODY_LIMIT).await else {
        return provider.refuse(Refusal::too_large(BODY_LIMIT)).into_response();
    };
    let Some(token) = bearer(&parts.headers) else {
        provider.journal.resource(false);
        return Answer::challenge().into_response();
    };
    let user = lock(&provider.ledger).bearer(token, provider.now());
    provider.journal.resource(user.is_ok());
    match user {
        Ok(user) => {
            let answer = serde_json::json!({
                "user": &*user,
                "method": parts.method.as_str(),
                "body_bytes": body.len(),
            });
            Answer::json(StatusCode::OK, answer.to_string()).into_response()
        }
        Err(lapse) => provider.refuse(Refusal::dead_access_token(lapse)).into_response(),
    }
}
