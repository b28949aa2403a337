//! The token endpoint (RFC 6749 section 3.2), as strict as the reference allows.

use std::borrow::Cow;

use axum::{body, extract::Request, response::Response};
use http::{
    HeaderMap, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use secrecy::ExposeSecret;

use super::{
    answer::{Answer, Refusal},
    delivery::Delivery,
    journal::{Outcome, RecordedRequest},
    ledger::{CodeRefusal, Issued},
    provider::{Provider, lock},
    version::Version,
};

/// Bytes. The longest honest request is a tenth of it.
const BODY_LIMIT: usize = 16 * 1024;

const FORM: &str = "application/x-www-form-urlencoded";

/// Takes one request from its arrival to the delivery of its answer.
pub(super) async fn answer(provider: &Provider, version: Version, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (body, too_large) = match body::to_bytes(body, BODY_LIMIT).await {
        Ok(body) => (body, false),
        // Too long, or the client went away in the middle; who is gone reads no answer.
        Err(_) => (body::Bytes::new(), true),
    };
    let request = RecordedRequest::new(parts, body);
    let user = user(provider, &request);
    let request = request.about(user);

    let fault = provider.faults.next(&request);
    let entry = provider.journal.open(&request);

    if let Some(fault) = &fault {
        fault.before().await;
        if let Some(delivery) = fault.instead(|| rate_limited(provider)) {
            provider.journal.settle(entry, Outcome::Faulted, delivery.status());
            return delivery.into_response();
        }
    }

    let judged = if too_large {
        Err(Refusal::too_large(BODY_LIMIT))
    } else {
        judge(provider, version, &request)
    };
    let (outcome, answer) = match judged {
        Ok(issued) => (Outcome::Issued, token(provider, &issued)),
        Err(refusal) => (refusal.outcome(), provider.refuse(refusal)),
    };
    let delivery = match &fault {
        Some(fault) => fault.deliver(answer),
        None => Delivery::Whole(answer),
    };
    provider.journal.settle(entry, outcome, delivery.status());

    if let Some(fault) = &fault {
        fault.after().await;
    }
    delivery.into_response()
}

fn token(provider: &Provider, issued: &Issued) -> Answer {
    let reshape = lock(&provider.settings).reshape.clone();
    match reshape {
        Some(reshape) => Answer::reshaped_token(issued, &*reshape),
        None => Answer::token(issued),
    }
}

fn rate_limited(provider: &Provider) -> Answer {
    let mut answer = provider.refuse(Refusal::bad_request("Too many requests"));
    answer.status = StatusCode::TOO_MANY_REQUESTS;
    answer
}

/// Whom the request is about, as far as the provider can tell before it judges it.
fn user(provider: &Provider, request: &RecordedRequest) -> Option<String> {
    let ledger = lock(&provider.ledger);
    let user = match request.grant()? {
        "authorization_code" => ledger.user_of_code(&request.value("code")?)?.to_owned(),
        "refresh_token" => {
            ledger.user_of_refresh_token(&request.value("refresh_token")?)?.to_owned()
        }
        _ => request.field("userId").filter(|user| !user.is_empty())?,
    };
    Some(user)
}

fn judge(
    provider: &Provider,
    version: Version,
    request: &RecordedRequest,
) -> Result<Issued, Refusal> {
    check_shape(request)?;
    check_client(provider, request)?;
    match &*required(request, "grant_type")? {
        "authorization_code" => redeem(provider, request),
        "refresh_token" => refresh(provider, request),
        "client_credentials" => {
            // Where no user need be named, the tokens are the client's own: those of user "".
            let user = match required(request, "userId") {
                Err(_) if !version.requires_user_id() => Cow::Borrowed(""),
                named => named?,
            };
            let terms = provider.terms();
            Ok(lock(&provider.ledger).grant(&user, &terms))
        }
        _ => Err(Refusal::unknown_grant()),
    }
}

/// Whether it is a token request at all: RFC 6749 section 3.2 and appendix B.
fn check_shape(request: &RecordedRequest) -> Result<(), Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::wrong_method());
    }
    if !is_form(request.headers()) {
        return Err(Refusal::bad_request(format!("The body must be {FORM}")));
    }
    if request.query().is_some() {
        return Err(Refusal::bad_request("Parameters belong into the body, never into the URL"));
    }
    let mut seen = Vec::with_capacity(8);
    for (name, _) in request.form() {
        if seen.contains(&name) {
            return Err(Refusal::repeated(&name));
        }
        seen.push(name);
    }
    Ok(())
}

fn is_form(headers: &HeaderMap) -> bool {
    let media_type = |value: &str| value.split(';').next().unwrap_or_default().trim().to_owned();
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| media_type(value).eq_ignore_ascii_case(FORM))
}

/// By the form body, which is all that v4 and v5 know.
fn check_client(provider: &Provider, request: &RecordedRequest) -> Result<(), Refusal> {
    let client_id = required(request, "client_id")?;
    let client_secret = required(request, "client_secret")?;
    if client_id != provider.client_id {
        return Err(Refusal::wrong_client("client_id"));
    }
    if client_secret != provider.client_secret.expose_secret() {
        return Err(Refusal::wrong_client("client_secret"));
    }
    Ok(())
}

fn redeem(provider: &Provider, request: &RecordedRequest) -> Result<Issued, Refusal> {
    let code = required(request, "code")?;
    let redirect_uri = request.value("redirect_uri");
    let verifier = request.value("code_verifier");
    let terms = provider.terms();
    lock(&provider.ledger)
        .redeem_code(&code, redirect_uri.as_deref(), verifier.as_deref(), &terms)
        .map_err(|refusal| match refusal {
            CodeRefusal::Dead => Refusal::wrong_grant("code", "The code is not valid"),
            CodeRefusal::RedirectUri => Refusal::wrong_grant(
                "redirect_uri",
                "The redirect URI is not the one the code was asked for with",
            ),
            CodeRefusal::VerifierMissing => Refusal::required("code_verifier"),
            CodeRefusal::Verifier => {
                Refusal::wrong_grant("code_verifier", "The verifier does not fit the challenge")
            }
        })
}

fn refresh(provider: &Provider, request: &RecordedRequest) -> Result<Issued, Refusal> {
    let token = required(request, "refresh_token")?;
    let terms = provider.terms();
    let mut ledger = lock(&provider.ledger);
    if provider.checks_bearer
        && let Some(bearer) = bearer(request.headers())
        && ledger.bearer(bearer, terms.now).is_err()
    {
        return Err(Refusal::stale_bearer());
    }
    ledger.refresh(&token, &terms).map_err(Refusal::dead_refresh_token)
}

/// The token of an `Authorization: Bearer` header (RFC 6750 section 2.1).
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then_some(token.trim_start())
}

/// An empty parameter is a missing one: RFC 6749 section 3.2.
fn required<'a>(request: &'a RecordedRequest, name: &str) -> Result<Cow<'a, str>, Refusal> {
    request.value(name).filter(|value| !value.is_empty()).ok_or_else(|| Refusal::required(name))
}
