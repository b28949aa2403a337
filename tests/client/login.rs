//! A login is bound to the browser that began it: what an attacker sends back reaches nobody.

use std::collections::HashSet;
use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{ErrorStyle, FakeHurdlr, ManualClock, Outcome};
use hurdlr_oauth2::url::Url;
use hurdlr_oauth2::{
    ApiVersion, Callback, CallbackProblem, Error, ErrorKind, Hurdlr, HurdlrBuilder, PendingLogin,
    TokenManager, UserId,
};

use crate::support;

const ISSUER: &str = "https://connect.example.com";
const MINUTE: Duration = Duration::from_secs(60);

fn provider() -> (FakeHurdlr, Hurdlr, ManualClock) {
    let fake = FakeHurdlr::in_memory();
    let (builder, clock) = support::in_memory(&fake);
    (fake, builder.issuer(ISSUER).build().unwrap(), clock)
}

/// A login up to the moment the person is sent back.
async fn sent_back(fake: &FakeHurdlr, hurdlr: &Hurdlr, user: &str) -> (PendingLogin, Url) {
    let (url, pending) = hurdlr.begin_login().unwrap();
    let callback = fake.consent(&url, user).await.unwrap();
    (pending, callback)
}

fn parameter(url: &Url, name: &str) -> String {
    let found = url.query_pairs().find(|(key, _)| key == name);
    found.expect("the parameter").1.into_owned()
}

fn refused(fake: &FakeHurdlr, error: &Error, problem: CallbackProblem, why: &str) {
    assert_eq!(error.kind(), ErrorKind::InvalidCallback, "{why}");
    assert_eq!(error.callback_problem(), Some(problem), "{why}");
    assert_eq!((error.attempts(), error.status()), (0, None), "{why}");
    assert_eq!(fake.count().total(), 0, "{why}: nothing was sent");
}

/// Callbacks as an attacker sends them, by what they are. `CODE` and `STATE` stand for what the
/// person would have come back with, `OTHER` for the state of another login.
const ATTACKS: [(&str, &str, CallbackProblem); 18] = [
    ("nothing", "", CallbackProblem::StateMissing),
    ("no state", "code=CODE", CallbackProblem::StateMissing),
    ("an empty state", "code=CODE&state=", CallbackProblem::StateMismatch),
    ("the state of another login", "code=CODE&state=OTHER", CallbackProblem::StateMismatch),
    (
        "a state with something behind it",
        "code=CODE&state=STATE%00",
        CallbackProblem::StateMismatch,
    ),
    ("half a state", "code=CODE&state=HALF", CallbackProblem::StateMismatch),
    ("a state in other letters", "code=CODE&state=FLIPPED", CallbackProblem::StateMismatch),
    (
        "two states, the right one first",
        "code=CODE&state=STATE&state=OTHER",
        CallbackProblem::StateDoubled,
    ),
    (
        "two states, the right one last",
        "code=CODE&state=OTHER&state=STATE",
        CallbackProblem::StateDoubled,
    ),
    ("the right state twice", "code=CODE&state=STATE&state=STATE", CallbackProblem::StateDoubled),
    ("no code", "state=STATE", CallbackProblem::CodeMissing),
    ("an empty code", "code=&state=STATE", CallbackProblem::CodeMissing),
    ("two codes", "code=CODE&code=x&state=STATE", CallbackProblem::CodeDoubled),
    ("the right code twice", "code=CODE&code=CODE&state=STATE", CallbackProblem::CodeDoubled),
    (
        "another issuer",
        "code=CODE&state=STATE&iss=https://evil.example",
        CallbackProblem::IssuerMismatch,
    ),
    (
        "the issuer with a slash",
        "code=CODE&state=STATE&iss=https://connect.example.com/",
        CallbackProblem::IssuerMismatch,
    ),
    (
        "two issuers",
        "code=CODE&state=STATE&iss=https://connect.example.com&iss=https://evil.example",
        CallbackProblem::IssuerMismatch,
    ),
    ("a refusal that is forged", "error=access_denied&state=OTHER", CallbackProblem::StateMismatch),
];

#[tokio::test]
async fn no_bad_callback_reaches_the_token_endpoint() {
    let (fake, hurdlr, _) = provider();
    let (other, _) = sent_back(&fake, &hurdlr, "mallory").await;
    let other = other.state().expose_secret();
    for (why, query, problem) in ATTACKS {
        let (pending, callback) = sent_back(&fake, &hurdlr, "ann").await;
        let state = pending.state().expose_secret().to_owned();
        let code = parameter(&callback, "code");
        let query = query
            .replace("CODE", &code)
            .replace("STATE", &state)
            .replace("OTHER", other)
            .replace("HALF", &state[..state.len() / 2])
            .replace("FLIPPED", &flipped(&state));
        let result = hurdlr.complete_login(pending, query.as_str()).await;
        let error = result.unwrap_err();
        refused(&fake, &error, problem, why);
        let said = support::everything_said(&error);
        assert!(!said.contains(&code) && !said.contains(&state) && !said.contains(other));
    }
    assert_eq!(fake.tokens_alive("ann"), 0);
}

fn flipped(state: &str) -> String {
    let flip = |letter: char| {
        if letter.is_ascii_lowercase() {
            letter.to_ascii_uppercase()
        } else {
            letter.to_ascii_lowercase()
        }
    };
    state.chars().map(flip).collect()
}

#[tokio::test]
async fn kept_login_that_was_changed_is_none() {
    let (fake, hurdlr, _) = provider();
    let (pending, _) = sent_back(&fake, &hurdlr, "ann").await;
    let kept = pending.to_secret().expose_secret().to_owned();
    for text in ["", "x", &kept[1..], &kept[..kept.len() - 4], &kept.repeat(2)] {
        let error = PendingLogin::from_secret(&text.into()).unwrap_err();
        refused(&fake, &error, CallbackProblem::Unreadable, text);
    }
}

#[tokio::test]
async fn a_login_ends_after_ten_minutes() {
    for (waited, alive) in [
        (9 * MINUTE, true),
        (Duration::from_secs(598), true),
        (10 * MINUTE, false),
        (60 * 24 * MINUTE, false),
    ] {
        let (fake, hurdlr, clock) = provider();
        let (pending, callback) = sent_back(&fake, &hurdlr, "ann").await;
        let kept = pending.to_secret();
        clock.advance(waited);
        let pending = PendingLogin::from_secret(&kept).unwrap();
        match hurdlr.complete_login(pending, &callback).await {
            Ok(_) => assert!(alive, "{waited:?}"),
            Err(error) => {
                assert!(!alive, "{waited:?}");
                refused(&fake, &error, CallbackProblem::Expired, "too late");
            }
        }
    }
}

#[tokio::test]
async fn login_begun_in_the_future_is_over() {
    let fake = FakeHurdlr::in_memory();
    let at = |wall| {
        support::of(&fake)
            .clock(ManualClock::at(wall))
            .http_client(fake.http_client())
            .build()
            .unwrap()
    };
    let (ahead, hurdlr) = (at(fake.now() + 11 * MINUTE), at(fake.now()));
    let (pending, callback) = sent_back(&fake, &ahead, "ann").await;
    let error = hurdlr.complete_login(pending, &callback).await.unwrap_err();
    refused(&fake, &error, CallbackProblem::Expired, "in the future");
}

#[tokio::test]
async fn two_logins_at_once_get_own_tokens() {
    let fake = FakeHurdlr::start().await.unwrap();
    let hurdlr = support::of(&fake).build().unwrap();
    let (ann, anns_callback) = sent_back(&fake, &hurdlr, "ann").await;
    let (bob, bobs_callback) = sent_back(&fake, &hurdlr, "bob").await;
    assert_ne!(ann.state().expose_secret(), bob.state().expose_secret());

    let kept = ann.to_secret();
    let bob = hurdlr.complete_login(bob, &bobs_callback).await.unwrap();
    let ann = PendingLogin::from_secret(&kept).unwrap();
    let ann = hurdlr.complete_login(ann, &anns_callback).await.unwrap();

    let count = fake.count();
    assert_eq!(count.total(), 2, "each code is sent once");
    assert_eq!((count.user("ann"), count.user("bob")), (1, 1));
    for (token, user) in [(&ann, "ann"), (&bob, "bob")] {
        assert!(fake.is_alive(token.access_token().expose_secret()));
        assert_eq!(whose(&fake, token).await, user);
    }
}

/// Asks the protected resource whom the token speaks for.
async fn whose(fake: &FakeHurdlr, token: &hurdlr_oauth2::Token) -> String {
    use hurdlr_oauth2::oauth2::AsyncHttpClient;
    let request = hurdlr_oauth2::http::Request::get(fake.resource_url().as_str())
        .header("authorization", token.authorization_header())
        .body(Vec::new())
        .unwrap();
    let answer = fake.http_client().call(request).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    answer["user"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_form_of_true_callback_is_accepted() {
    let (fake, hurdlr, _) = provider();
    let forms: [fn(&Url) -> Callback; 5] = [
        |url| Callback::from(url),
        |url| Callback::from_query(url.query().unwrap()),
        |url| Callback::from_query(&format!("?{}", url.query().unwrap())),
        |url| Callback::from_pairs(url.query_pairs()),
        |url| Callback::from_query(&format!("{}&iss={ISSUER}", url.query().unwrap())),
    ];
    for form in forms {
        let (pending, callback) = sent_back(&fake, &hurdlr, "ann").await;
        let token = hurdlr.complete_login(pending, form(&callback)).await;
        assert!(token.unwrap().refresh_token().is_some());
    }
}

#[tokio::test]
async fn code_in_another_login_fails_its_verifier() {
    for style in [ErrorStyle::Envelope, ErrorStyle::Rfc6749] {
        let (fake, hurdlr, _) = provider();
        fake.set_error_style(style);
        let (_, victims_callback) = sent_back(&fake, &hurdlr, "ann").await;
        let (mallory, _) = sent_back(&fake, &hurdlr, "mallory").await;
        let state = mallory.state().expose_secret().to_owned();
        let code = parameter(&victims_callback, "code");
        let stolen = vec![("code", code.as_str()), ("state", state.as_str())];
        let error = hurdlr.complete_login(mallory, stolen).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(!error.needs_login());
        assert_eq!(fake.count().total(), 1);
        assert_eq!(fake.count().outcome(Outcome::InvalidGrant), 1);
        assert_eq!(fake.tokens_alive("ann"), 0);
        assert!(!support::everything_said(&error).contains(&code));
    }
}

#[tokio::test]
async fn code_used_twice_is_refused_by_provider() {
    let (fake, hurdlr, _) = provider();
    let (pending, callback) = sent_back(&fake, &hurdlr, "ann").await;
    let again = PendingLogin::from_secret(&pending.to_secret()).unwrap();
    hurdlr.complete_login(pending, &callback).await.unwrap();
    let error = hurdlr.complete_login(again, &callback).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert_eq!(fake.count().total(), 2);
}

#[tokio::test]
async fn person_who_says_no_is_told_apart() {
    let (fake, hurdlr, _) = provider();
    let (url, pending) = hurdlr.begin_login().unwrap();
    let callback = fake.deny(&url).await.unwrap();
    let error = hurdlr.complete_login(pending, &callback).await.unwrap_err();
    refused(&fake, &error, CallbackProblem::Refused, "denied");
    assert_eq!(error.code(), Some("access_denied"));
}

#[tokio::test]
async fn refusal_carries_code_and_bounded_description() {
    let (fake, hurdlr, _) = provider();
    let (_, pending) = hurdlr.begin_login().unwrap();
    let state = pending.state().expose_secret().to_owned();
    let description = format!("down\r\nfor {}", "long ".repeat(1_000));
    let callback = vec![
        ("error", "temporarily_unavailable"),
        ("error_description", &description),
        // What stands beside an error is not used.
        ("code", "c"),
        ("state", &state),
    ];
    let error = hurdlr.complete_login(pending, callback).await.unwrap_err();
    refused(&fake, &error, CallbackProblem::Refused, "unavailable");
    assert_eq!(error.code(), Some("temporarily_unavailable"));
    let description = error.description().unwrap();
    assert!(description.starts_with("down  for long "));
    assert!(description.len() < 600);
}

/// Only v6 has a code verifier in its reference.
#[tokio::test]
async fn stolen_code_is_refused_where_pkce_counts() {
    for (version, is_accepted) in
        [(ApiVersion::V4, true), (ApiVersion::V5, true), (ApiVersion::V6, false)]
    {
        let fake = FakeHurdlr::builder().ignore_pkce(true).in_memory();
        let (builder, _) = support::in_memory(&fake);
        let hurdlr = builder.api_version(version).build().unwrap();
        let (_, victims_callback) = sent_back(&fake, &hurdlr, "ann").await;
        let (mallory, _) = sent_back(&fake, &hurdlr, "mallory").await;
        let state = mallory.state().expose_secret().to_owned();
        let stolen = vec![("code", parameter(&victims_callback, "code")), ("state", state)];
        let result = hurdlr.complete_login(mallory, stolen).await;
        assert_eq!(result.is_ok(), is_accepted, "{version}");
    }
}

/// RFC 9207.
#[tokio::test]
async fn issuer_of_callback_is_compared() {
    for (issuer, is_accepted) in [(ISSUER, true), ("https://evil.example", false)] {
        let fake = FakeHurdlr::builder().issuer(issuer).in_memory();
        let (builder, _) = support::in_memory(&fake);
        let hurdlr = builder.issuer(ISSUER).build().unwrap();
        let (pending, callback) = sent_back(&fake, &hurdlr, "ann").await;
        match hurdlr.complete_login(pending, &callback).await {
            Ok(_) => assert!(is_accepted),
            Err(error) => {
                assert!(!is_accepted);
                refused(&fake, &error, CallbackProblem::IssuerMismatch, issuer);
            }
        }
    }
}

#[tokio::test]
async fn login_is_completed_by_its_own_settings() {
    let fake = FakeHurdlr::in_memory();
    let of = |change: fn(HurdlrBuilder) -> HurdlrBuilder| {
        change(support::in_memory(&fake).0).build().unwrap()
    };
    let hurdlr = of(|builder| builder);
    for change in [
        (|builder| builder.api_version(ApiVersion::V6)) as fn(HurdlrBuilder) -> HurdlrBuilder,
        |builder| builder.redirect_uri("https://app.example.com/other"),
        |builder| builder.issuer(ISSUER),
    ] {
        let (pending, callback) = sent_back(&fake, &hurdlr, "ann").await;
        let error = of(change).complete_login(pending, &callback).await.unwrap_err();
        refused(&fake, &error, CallbackProblem::OtherSettings, "other settings");
    }
    // A later build of the same settings is the same.
    let (pending, callback) = sent_back(&fake, &hurdlr, "ann").await;
    assert!(of(|builder| builder).complete_login(pending, &callback).await.is_ok());
}

#[tokio::test]
async fn manager_completes_a_login_once() {
    let (fake, hurdlr, clock) = provider();
    let manager = TokenManager::builder(hurdlr, MemoryStore::with_clock(clock)).build().unwrap();
    let ann = UserId::new("ann").unwrap();
    let (pending, callback) = sent_back(&fake, manager.hurdlr(), "ann").await;
    let again = PendingLogin::from_secret(&pending.to_secret()).unwrap();
    assert!(manager.complete_login(&ann, pending, &callback).await.unwrap());
    assert!(manager.user(&ann).token().await.is_ok());
    assert!(!manager.complete_login(&ann, again, &callback).await.unwrap());
    assert_eq!(fake.count().total(), 1);

    let (pending, callback) = sent_back(&fake, manager.hurdlr(), "ann").await;
    manager.shutdown().await;
    let error = manager.complete_login(&ann, pending, &callback).await.unwrap_err();
    assert_eq!((error.kind(), fake.count().total()), (ErrorKind::Unavailable, 1));
}

#[test]
fn each_problem_has_its_own_text() {
    let problems = [
        CallbackProblem::Unreadable,
        CallbackProblem::OtherSettings,
        CallbackProblem::Expired,
        CallbackProblem::StateMissing,
        CallbackProblem::StateDoubled,
        CallbackProblem::StateMismatch,
        CallbackProblem::IssuerMismatch,
        CallbackProblem::Refused,
        CallbackProblem::CodeMissing,
        CallbackProblem::CodeDoubled,
    ];
    let texts = problems.map(|problem| Error::from(problem).to_string());
    let different: HashSet<_> = texts.iter().filter(|text| !text.is_empty()).collect();
    assert_eq!(different.len(), problems.len(), "{texts:?}");
}
