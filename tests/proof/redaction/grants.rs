//! Every fault of the provider, in every grant, both error styles and two versions of the API.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{BodyEncoding, ErrorStyle, Fault, Gate, ManualClock, RecordedRequest};
use hurdlr_oauth2::{ApiVersion, Hurdlr, RetryPolicy, TokenManager, UserId};
use serde_json::json;

use super::provider::{LIFE, Provider, quote, user};
use super::{Sweep, USER};

const LONG: Duration = Duration::from_secs(60);

/// A fault for a request with these secrets.
type MakeFault = fn(&str) -> Fault;

const FAULTS: &[MakeFault] = &[
    |_| Fault::Refuse,
    |_| Fault::DropBefore,
    |_| Fault::DropAfter,
    |_| Fault::Delay(LONG),
    |_| Fault::DelayAfter(LONG),
    |_| Fault::Hold(Gate::closed()),
    |_| Fault::HoldAfter(Gate::closed()),
    |_| Fault::Unauthorized,
    |_| Fault::Forbidden,
    |_| Fault::rate_limited(),
    |_| Fault::rate_limited_for(LONG),
    |_| Fault::rate_limited_until(SystemTime::now() + LONG),
    |said| Fault::RateLimited { retry_after: Some(said.to_owned()) },
    |_| Fault::status(500),
    |_| Fault::unavailable_for(LONG),
    |_| Fault::unavailable_after(),
    |said| Fault::Status {
        status: 500,
        content_type: said.to_owned(),
        body: said.to_owned(),
        retry_after: Some(said.to_owned()),
    },
    |_| Fault::html(502),
    |_| Fault::Truncated,
    |_| Fault::Oversized,
    |_| Fault::dripping(LONG),
    |said| Fault::ContentType(said.to_owned()),
    |_| Fault::Encoded(BodyEncoding::ByteOrderMark),
    |_| Fault::Encoded(BodyEncoding::Utf16),
    |_| Fault::Encoded(BodyEncoding::Latin1),
    |_| Fault::Encoded(BodyEncoding::Gzip),
    |_| Fault::Encoded(BodyEncoding::Deflate),
    |said| Fault::redirect(307, format!("http://127.0.0.1:1/?{}", said.replace(' ', "+"))),
    |said| Fault::redirect(302, said),
    // An error of each shape that quotes what was sent; in what is kept of it, and across its end.
    |said| {
        Fault::answer(400, json!({"error": "invalid_grant", "error_description": said}).to_string())
    },
    |said| Fault::answer(401, json!({"error": "invalid_client", "error_uri": said}).to_string()),
    |said| Fault::answer(400, json!({"error": said, "access_token": said}).to_string()),
    |said| Fault::answer(400, json!({"result": "FAILURE", "error": said}).to_string()),
    |said| Fault::answer(429, json!({"result": "FAILURE", "error": {"type": said}}).to_string()),
    |said| {
        let details = json!([{"type": "T", "message": said}, {"type": said, "param": said}]);
        Fault::answer(403, json!({"result": "FAILURE", "error": details}).to_string())
    },
    |said| {
        let late = format!("{}{said}", "x".repeat(490));
        Fault::answer(
            400,
            json!({"error": "invalid_request", "error_description": late}).to_string(),
        )
    },
    |said| {
        // With the escapes that some servers add.
        let body = json!({"error": "invalid_request", "error_description": said}).to_string();
        Fault::answer(500, body.replace('/', r"\/").replace('+', r"\u002b"))
    },
    |said| Fault::answer(500, said),
    |said| Fault::answer(200, format!("<p>{said}</p>")),
    // Tokens that cannot be read.
    |said| Fault::answer_after(200, json!({"access_token": [said]}).to_string()),
    |said| Fault::answer_after(200, json!({"access_token": said}).to_string()),
    |said| Fault::answer_after(200, json!({"access_token": said, "expires_in": said}).to_string()),
    |said| Fault::answer_after(200, json!({"refresh_token": said, "token_type": said}).to_string()),
    |said| Fault::answer_after(200, format!(r#"{{"refresh_token":"{said}","access_token":"ac"#)),
    |said| Fault::answer_after(200, format!("{{\"access_token\":\"{said}\n\"}}")),
    |said| Fault::answer_after(200, [b"{\"access_token\":\"\xff\xfe", said.as_bytes()].concat()),
];

/// The variants of `Fault`, as its source has them.
fn variants() -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testing/fault.rs");
    let source = fs::read_to_string(file).unwrap();
    let (_, body) = source.split_once("pub enum Fault {\n").unwrap();
    let (body, _) = body.split_once("\n}\n").unwrap();
    let variants = body.lines().filter_map(|line| line.strip_prefix("    "));
    let variants = variants.filter(|line| line.starts_with(char::is_uppercase));
    variants.map(name).collect()
}

fn name(shown: &str) -> String {
    shown.chars().take_while(|c| c.is_alphanumeric()).collect()
}

pub(super) async fn fail_all(sweep: &Sweep) {
    let ours = FAULTS.iter().map(|fault| name(&format!("{:?}", fault("")))).collect();
    assert_eq!(variants(), ours, "each fault has its place in the sweep");

    // Side by side, since some faults are waited for.
    let [envelope, rfc] = [ErrorStyle::Envelope, ErrorStyle::Rfc6749];
    tokio::join!(
        fail_in(sweep, envelope, ApiVersion::V4),
        fail_in(sweep, envelope, ApiVersion::V6),
        fail_in(sweep, rfc, ApiVersion::V4),
        fail_in(sweep, rfc, ApiVersion::V6),
    );
}

async fn fail_in(sweep: &Sweep, style: ErrorStyle, version: ApiVersion) {
    let provider = Provider::start(sweep, style).await;
    let patient = provider.builder(version).build().unwrap();
    let hasty = provider.builder(version).request_timeout(Duration::from_millis(100));
    let hasty = hasty.build().unwrap();
    for fault in FAULTS {
        fail(sweep, &provider, [&patient, &hasty], *fault).await;
    }
    refuse(sweep, &provider, version).await;
}

/// Every grant, with this fault.
async fn fail(sweep: &Sweep, provider: &Provider, [patient, hasty]: [&Hurdlr; 2], make: MakeFault) {
    let (fake, user) = (&provider.fake, user());
    let place = format!("{} {:?}", hasty.api_version(), name(&format!("{:?}", make(""))));
    fake.clear_faults();
    let token = provider.log_in(patient).await.unwrap();
    let (pending, callback) = provider.begin(hasty).await;
    let watching = sweep.clone();
    fake.fault_plan(move |request: &RecordedRequest| {
        let quoted = quote(&watching, request);
        Some(make(&quoted))
    });
    let (refreshed, granted, completed) = tokio::join!(
        hasty.refresh(&token),
        hasty.client_credentials(&user),
        hasty.complete_login(pending, callback),
    );
    sweep.result(format!("{place} refresh"), &refreshed);
    sweep.result(format!("{place} client_credentials"), &granted);
    sweep.result(format!("{place} authorization_code"), &completed);
    if hasty.can_revoke() {
        let (revoked, granted) = tokio::join!(hasty.revoke(&token), hasty.partner_token());
        sweep.result(format!("{place} revoke"), &revoked);
        sweep.result(format!("{place} partner_token"), &granted);
    }
}

/// What the provider refuses by itself, and what a manager makes of faults.
async fn refuse(sweep: &Sweep, provider: &Provider, version: ApiVersion) {
    const WRONG: &str = "wrong+client/secret=marker";
    sweep.secret("wrong secret", WRONG);
    let (fake, user) = (&provider.fake, user());
    fake.clear_faults();
    let repeating = RetryPolicy::default().initial_backoff(Duration::ZERO).max_attempts(2);
    let hurdlr = provider.builder(version).retry(repeating).build().unwrap();
    let token = provider.log_in(&hurdlr).await.unwrap();
    fake.fault_next(Fault::DropBefore);
    sweep.shown(&hurdlr.refresh(&token).await.unwrap());
    fake.revoke_everything(USER);
    let dead = hurdlr.refresh(&token).await;
    assert!(dead.as_ref().unwrap_err().needs_login());
    sweep.failed("a dead refresh token", dead);
    let wrong = provider.builder_by(WRONG, version).build().unwrap();
    sweep.failed("a wrong secret", wrong.client_credentials(&user).await);
    sweep.failed("a wrong secret, in a login", provider.log_in(&wrong).await);

    let clock = ManualClock::at(fake.now());
    let hurdlr = provider.builder(version).clock(clock.clone()).build().unwrap();
    let store = MemoryStore::with_clock(clock.clone());
    let manager = TokenManager::builder(hurdlr, store).build().unwrap();
    for make in FAULTS {
        let shape = format!("{:?}", make(""));
        if ["Delay", "Hold", "Drip"].iter().any(|slow| shape.starts_with(slow)) {
            continue;
        }
        fake.clear_faults();
        let token = provider.log_in(manager.hurdlr()).await.unwrap();
        manager.adopt(&user, token).await.unwrap();
        clock.advance(LIFE);
        fake.advance_clock(LIFE);
        let (watching, make) = (sweep.clone(), *make);
        fake.fault_plan(move |request| Some(make(&quote(&watching, request))));
        for handle in [manager.user(&user), manager.enterprise_user(&user)] {
            let place = format!("managed {version} {}", name(&shape));
            sweep.result(place, &handle.token().await.map(|_| ()));
            sweep.text("a status", format!("{:?}", handle.status().await));
        }
    }
    fake.clear_faults();
    let token = provider.log_in(manager.hurdlr()).await.unwrap();
    if !manager.hurdlr().can_revoke() {
        sweep.failed("a revocation", manager.hurdlr().revoke(&token).await);
    }
    manager.adopt(&user, token).await.unwrap();
    clock.advance(LIFE);
    fake.advance_clock(LIFE);
    fake.fault_next(Fault::DropAfter);
    sweep.failed("a lost answer", manager.user(&user).token().await);
    clock.advance(LONG);
    sweep.failed("a lost rotation", manager.user(&user).token().await);
    let gate = Gate::closed();
    fake.fault_next(Fault::Hold(gate.clone()));
    let cold = manager.enterprise_user(&UserId::new("cold").unwrap());
    sweep.failed("a caller's timeout", cold.token_timeout(Duration::ZERO).await);
    gate.open();
    fake.fault_next(Fault::DropBefore);
    sweep.result("disconnect", &manager.user(&user).disconnect().await);
    sweep.text("shutdown", format!("{:?}", manager.shutdown().await));
}
