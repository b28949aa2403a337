//! The reference's own example answers are read as they stand, byte for byte.

use std::time::{Duration, UNIX_EPOCH};

use hurdlr_oauth2::basic::{BasicErrorResponse, BasicTokenResponse, BasicTokenType};
use hurdlr_oauth2::oauth2::TokenResponse;
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault};
use hurdlr_oauth2::{ErrorKind, Hurdlr, Token};

use crate::support;

const V4: &[u8] = include_bytes!("../fixtures/v4_token.json");
const V4_ACCOUNT: &[u8] = include_bytes!("../fixtures/v4_account_created.json");
const V5_ACCOUNTANT: &[u8] = include_bytes!("../fixtures/v5_accountant_user_token.json");
const V6: &[u8] = include_bytes!("../fixtures/v6_token.json");
const ENVELOPE: &[u8] = include_bytes!("../fixtures/error_envelope.json");

const ACCESS: &str = "00f6b2b68eb9459eab681d19aa86c6154e225068f3074d1d9b639316d5380a4c.91d620872c3b438ba33f4baaca124624";
const REFRESH: &str = "7369c0ee82194721ac6f633ec16206f348680736e80e4aacb85d4fbce0ee9669.56b43c61141541dc858dd8613959389a";

/// What a token says, in a form that can be compared.
#[derive(Debug, PartialEq)]
struct Said {
    access: String,
    refresh: Option<String>,
    expires_in: Option<u64>,
    created_at: Option<u64>,
    scopes: Vec<String>,
}

impl Said {
    fn of(token: &Token) -> Self {
        Self {
            access: token.access_token().expose_secret().into(),
            refresh: token.refresh_token().map(|it| it.expose_secret().into()),
            expires_in: token.expires_in().map(|span| span.as_secs()),
            created_at: token
                .created_at()
                .map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
            scopes: token.scopes().map(Into::into).collect(),
        }
    }

    fn expected(access: &str, refresh: Option<&str>, scope: &str) -> Self {
        Self {
            access: access.into(),
            refresh: refresh.map(Into::into),
            expires_in: Some(7_776_000),
            created_at: Some(1_599_065_168),
            scopes: vec![scope.into()],
        }
    }

    fn v6() -> Self {
        Self {
            expires_in: Some(3_600),
            created_at: None,
            ..Self::expected("eyJhbGciOiJSUzI1NiJ9...", Some("tGzv3JOkF0XG5Qx2TlKWIA"), "<string>")
        }
    }
}

fn client(fake: &FakeHurdlr) -> Hurdlr {
    let (builder, _) = support::in_memory(fake);
    builder.build().unwrap()
}

#[tokio::test]
async fn every_documented_answer_is_a_token() {
    let fake = FakeHurdlr::in_memory();
    let hurdlr = client(&fake);
    for (body, expected) in [
        (V4, Said::expected(ACCESS, Some(REFRESH), "token")),
        (V5_ACCOUNTANT, Said::expected(ACCESS, None, "token")),
        (V6, Said::v6()),
    ] {
        fake.fault_next(Fault::answer(200, body));
        let token = hurdlr.client_credentials(&support::ann()).await.unwrap();
        assert_eq!(Said::of(&token), expected);
    }
}

#[tokio::test]
async fn every_documented_token_answer_can_be_imported() {
    let hurdlr = client(&FakeHurdlr::in_memory());
    for (body, expected) in [
        (V4, Said::expected(ACCESS, Some(REFRESH), "token")),
        (V4_ACCOUNT, Said::expected(ACCESS, Some(REFRESH), "token")),
        (V5_ACCOUNTANT, Said::expected(ACCESS, None, "token")),
        (V6, Said::v6()),
    ] {
        assert_eq!(Said::of(&hurdlr.import(body).unwrap()), expected);
    }
}

#[test]
fn every_documented_answer_suits_oauth2() {
    for (body, refresh, expires_in) in [
        (V4, Some(REFRESH), 7_776_000),
        (V5_ACCOUNTANT, None, 7_776_000),
        (V6, Some("tGzv3JOkF0XG5Qx2TlKWIA"), 3_600),
    ] {
        let answer: BasicTokenResponse = serde_json::from_slice(body).unwrap();
        assert_eq!(answer.token_type(), &BasicTokenType::Bearer);
        assert_eq!(answer.refresh_token().map(|it| it.secret().as_str()), refresh);
        assert_eq!(answer.expires_in(), Some(Duration::from_secs(expires_in)));
    }
}

#[tokio::test]
async fn documented_envelope_is_refusal_with_codes() {
    let read: BasicErrorResponse = serde_json::from_slice(ENVELOPE).unwrap();
    assert_eq!(read.error().as_ref(), "REQUIRED");

    let fake = FakeHurdlr::in_memory();
    fake.fault_next(Fault::answer(400, ENVELOPE));
    let error = client(&fake).client_credentials(&support::ann()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert_eq!(error.code(), Some("REQUIRED"));
    assert_eq!(
        error.description(),
        Some(
            "Amount is required [amount]; \
             The bank account provided is not valid [bankAccountId]"
        )
    );
}

#[tokio::test]
async fn odd_object_is_neither_imported_nor_quoted() {
    let hurdlr = client(&FakeHurdlr::in_memory());
    for body in [
        "",
        "marker",
        "[]",
        "{}",
        r#"{"access_token":"mar ker"}"#,
        r#"{"access_token":["marker"]}"#,
        r#"{"oAuth":null,"tempPassword":"marker"}"#,
        r#"{"oAuth":{"access_token":""},"tempPassword":"marker"}"#,
    ] {
        let error = hurdlr.import(body).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidResponse, "{body}");
        let said = support::everything_said(&error);
        assert!(!said.contains("marker") && !said.contains("mar ker"), "{said}");
    }
}
