//! Codes: redeemed once, in time, by whom they were issued to.

use base64::Engine as _;
use hurdlr_oauth2::testing::{ErrorStyle, FakeHurdlr, Outcome};
use oauth2::{PkceCodeChallenge, PkceCodeVerifier};

use super::{CALLBACK, code, grant, redeem, refresh, refusal, resource, seconds};

#[tokio::test]
async fn code_brings_the_consenting_users_tokens() {
    let fake = FakeHurdlr::in_memory();
    let code = code(&fake, "ann", &[]).await;
    let answer = redeem(&fake, &code, &[("redirect_uri", CALLBACK)]).await;
    assert_eq!(answer.status, 200);
    let served = resource(&fake, &answer.get("access_token")).await;
    assert_eq!(served.json()["user"], "ann");
    assert_eq!(fake.requests()[0].user(), Some("ann"));
}

#[tokio::test]
async fn code_used_twice_kills_first_tokens() {
    let fake = FakeHurdlr::in_memory();
    let code = code(&fake, "ann", &[]).await;
    let first = redeem(&fake, &code, &[]).await;
    let renewed = refresh(&fake, &first.get("refresh_token")).await;
    let other = grant(&fake, "ann").await;
    assert_eq!(fake.tokens_alive("ann"), 3);

    let second = redeem(&fake, &code, &[]).await;
    assert_eq!(second.refusal(), refusal(400, "INVALID_VALUE", "code"));
    for dead in [&first, &renewed] {
        assert!(!fake.is_alive(&dead.get("access_token")));
        assert!(!fake.refresh_is_alive(&dead.get("refresh_token")));
    }
    assert!(fake.is_alive(&other.get("access_token")), "another grant is another family");

    fake.set_error_style(ErrorStyle::Rfc6749);
    assert_eq!(redeem(&fake, &code, &[]).await.get("error"), "invalid_grant");
    assert_eq!(fake.count().outcome(Outcome::InvalidGrant), 2);
}

#[tokio::test]
async fn code_lives_ten_minutes_by_providers_clock() {
    let fake = FakeHurdlr::in_memory();
    let (young, old) = (code(&fake, "ann", &[]).await, code(&fake, "ann", &[]).await);
    fake.advance_clock(seconds(590));
    assert_eq!(redeem(&fake, &young, &[]).await.status, 200);
    fake.advance_clock(seconds(11));
    assert_eq!(redeem(&fake, &old, &[]).await.refusal(), refusal(400, "INVALID_VALUE", "code"));
}

#[tokio::test]
async fn code_survives_a_wrong_redirect_uri() {
    let fake = FakeHurdlr::in_memory();
    let code = code(&fake, "ann", &[]).await;
    let answer = redeem(&fake, &code, &[("redirect_uri", "https://app.example/callback")]).await;
    assert_eq!(answer.refusal(), refusal(400, "INVALID_VALUE", "redirect_uri"));
    assert_eq!(redeem(&fake, &code, &[("redirect_uri", CALLBACK)]).await.status, 200);
}

#[tokio::test]
async fn challenged_code_takes_its_verifier_only() {
    let fake = FakeHurdlr::in_memory();
    // The example of RFC 7636 appendix B.
    let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    let pkce = [("code_challenge", challenge), ("code_challenge_method", "S256")];
    let code = code(&fake, "ann", &pkce).await;

    let missing = redeem(&fake, &code, &[]).await;
    assert_eq!(missing.refusal(), refusal(400, "REQUIRED", "code_verifier"));
    let other = "x".repeat(43);
    for wrong in [other.as_str(), "short", challenge] {
        let answer = redeem(&fake, &code, &[("code_verifier", wrong)]).await;
        assert_eq!(answer.refusal(), refusal(400, "INVALID_VALUE", "code_verifier"));
    }
    assert_eq!(redeem(&fake, &code, &[("code_verifier", verifier)]).await.status, 200);
}

#[tokio::test]
async fn a_verifier_without_a_challenge_is_refused() {
    let fake = FakeHurdlr::in_memory();
    let code = code(&fake, "ann", &[]).await;
    let answer = redeem(&fake, &code, &[("code_verifier", &"x".repeat(43))]).await;
    assert_eq!(answer.refusal(), refusal(400, "INVALID_VALUE", "code_verifier"));
}

#[tokio::test]
async fn pkce_agrees_with_the_oauth2_crate() {
    let fake = FakeHurdlr::in_memory();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode([7; 96]);
    let verifier = PkceCodeVerifier::new(bytes);
    let challenge = PkceCodeChallenge::from_code_verifier_sha256(&verifier);
    let pkce = [
        ("code_challenge", challenge.as_str()),
        ("code_challenge_method", challenge.method().as_str()),
    ];
    let code = code(&fake, "ann", &pkce).await;
    assert_eq!(redeem(&fake, &code, &[("code_verifier", verifier.secret())]).await.status, 200);
}
