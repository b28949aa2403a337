//! Callbacks that were forged, repeated, or meant for somebody else.

use hurdlr_oauth2::testing::{StoreCall, StoreFault};

use super::{parameter, to_strings};
use crate::app::{self, App, Browser};

#[tokio::test]
async fn a_forged_state_is_not_completed() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let state = parameter(&callback, "state");
    for forged in ["forged", "", &state[1..], &format!("{state}x"), &state.to_uppercase()] {
        let path = format!("/hurdlr/callback?code=c&state={forged}");
        let answer = ann.get(&app, &path).await;
        assert_eq!((answer.status, answer.set_cookies().len()), (400, 0), "{forged}");
    }
    assert_eq!(ann.get(&app, "/hurdlr/callback?code=c").await.status, 400);
    assert_eq!(ann.get(&app, "/hurdlr/callback").await.status, 400);
    let mut expected = vec!["NotBegunHere"; 5];
    expected.extend(["StateMissing"; 2]);
    assert_eq!((app.failures(), app.site.fake.count().total()), (to_strings(&expected), 0));
    // And the true one is not disturbed by any of them.
    assert_eq!(ann.get(&app, &callback).await.location(), "/home");
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn login_cannot_end_in_another_browser() {
    let app = App::new();
    // An attacker sends their own callback to Ann, whose data would then go to their account.
    let attackers = Browser::of("mallory").begin(&app, "mallory").await;
    let mut ann = Browser::of("ann");
    ann.begin(&app, "ann").await;
    let answer = ann.get(&app, &attackers).await;
    assert_eq!((answer.status, answer.set_cookies().len()), (400, 0));
    assert_eq!((app.failures(), app.site.fake.count().total()), (to_strings(&["NotBegunHere"]), 0));
    assert!(!app.is_connected("ann").await);
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn callback_loaded_again_sends_nothing() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let mut before = ann.clone(); // as a browser that sent both before either was answered
    assert_eq!(ann.get(&app, &callback).await.status, 303);
    for (browser, reason) in [(&mut before, "AlreadyUsed"), (&mut ann, "NotBegunHere")] {
        let again = browser.get(&app, &callback).await;
        assert_eq!(again.status, 200);
        assert!(again.body.contains("You are connected"), "{}", again.body);
        assert_eq!(app.failures(), [reason]);
        app.clear_failures();
    }
    assert_eq!(app.site.fake.count().total(), 1);
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn one_callback_at_two_replicas_exchanges_once() {
    let app = App::new();
    let other = App::on(app.site.clone(), app::Site::builder, |config| config);
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let mut ann_too = ann.clone();
    let (one, two) = tokio::join!(ann.get(&app, &callback), ann_too.get(&other, &callback));
    assert_eq!([one.status, two.status].iter().filter(|&&status| status == 303).count(), 1);
    assert_eq!(app.site.fake.count().total(), 1);
    assert_eq!([app.failures(), other.failures()].concat(), ["AlreadyUsed"]);
    assert!(app.is_connected("ann").await && other.is_connected("ann").await);
}

#[tokio::test]
async fn doubled_parameters_are_not_chosen_from() {
    for (more, reason) in [
        ("&state={state}", "StateDoubled"),
        ("&state=x", "StateDoubled"),
        ("&code=other", "CodeDoubled"),
        ("&iss=https://issuer.example&iss=https://evil.example", "IssuerMismatch"),
    ] {
        let app = App::with(|site| site.builder().issuer("https://issuer.example"), |c| c);
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        let more = more.replace("{state}", &parameter(&callback, "state"));
        let answer = ann.get(&app, &format!("{callback}{more}")).await;
        assert_eq!(answer.status, 400, "{more}");
        let sent = app.site.fake.count().total();
        assert_eq!((app.failures(), sent), (to_strings(&[reason]), 0), "{more}");
        app.assert_nothing_leaked();
    }
}

#[tokio::test]
async fn markup_in_refusal_is_shown_as_text() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let state = parameter(&callback, "state");
    let markup = "%3Cscript%3Ealert(1)%3C/script%3E%22%27%3Ca+href%3D//evil.example%3E%7Blinks%7D";
    let path = format!("/hurdlr/callback?error={markup}&error_description={markup}&state={state}");
    let answer = ann.get(&app, &path).await;
    assert_eq!(answer.status, 400);
    assert_eq!((app.failures(), app.site.fake.count().total()), (to_strings(&["Refused"]), 0));
    assert!(answer.body.contains("&lt;script&gt;alert(1)"), "{}", answer.body);
    for raw in ["<script", "<a href=//", "\"'"] {
        assert!(!answer.body.contains(raw), "{}", answer.body);
    }
    assert!(answer.header("content-security-policy").contains("default-src 'none'"));
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn another_issuers_callback_is_not_completed() {
    let app = App::with(|site| site.builder().issuer("https://issuer.example"), |c| c);
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let answer = ann.get(&app, &format!("{callback}&iss=https://evil.example")).await;
    assert_eq!(answer.status, 400);
    let sent = app.site.fake.count().total();
    assert_eq!((app.failures(), sent), (to_strings(&["IssuerMismatch"]), 0));
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn code_of_another_session_fails_its_verifier() {
    let app = App::new();
    let stolen = Browser::of("mallory").begin(&app, "mallory").await;
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let injected = callback.replace(&parameter(&callback, "code"), &parameter(&stolen, "code"));
    assert_ne!(injected, callback);
    let answer = ann.get(&app, &injected).await;
    assert_eq!(answer.status, 502);
    // The provider is the one who can tell.
    assert_eq!((app.failures(), app.site.fake.count().total()), (to_strings(&["Rejected"]), 1));
    assert!(!app.is_connected("ann").await);
    app.assert_nothing_leaked();
}

/// The app is told who it was, and that somebody who has a token is where they wanted to be.
#[tokio::test]
async fn failure_names_its_user() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let unknown = "/hurdlr/callback?code=c&state=s";
    ann.get(&app, unknown).await;
    let callback = ann.begin(&app, "ann").await;
    ann.get(&app, &callback).await;
    ann.get(&app, unknown).await;
    ann.get(&app, &format!("/hurdlr/callback?{}", "x".repeat(20_000))).await;
    let of_ann = |is_connected| (Some("ann".to_owned()), is_connected);
    assert_eq!(app.whose_failures(), [of_ann(false), of_ann(true), of_ann(true)]);
}

/// As long as it may be, to the byte.
#[tokio::test]
async fn longest_query_is_read() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let (_, query) = callback.split_once('?').unwrap();
    let rest = 16 * 1024 - query.len() - "&x=".len();
    assert_eq!(ann.get(&app, &format!("{callback}&x={}", "x".repeat(rest + 1))).await.status, 414);
    assert_eq!(ann.get(&app, &format!("{callback}&x={}", "x".repeat(rest))).await.status, 303);
    assert!(app.is_connected("ann").await);
}

#[tokio::test]
async fn query_of_100_kilobytes_goes_unread() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    // In two parts: the type of a URI holds less than 64 KiB.
    for name in ["code", "state", "iss", "x"] {
        let answer = ann.get(&app, &format!("{callback}&{name}={}", "x".repeat(60_000))).await;
        assert_eq!(answer.status, 414);
    }
    let began = ann.get(&app, &format!("/hurdlr/connect?return_to=/{}", "x".repeat(60_000))).await;
    assert_eq!(began.status, 303);
    assert_eq!((app.failures(), app.site.fake.count().total()), (to_strings(&["TooLong"; 4]), 0));
    assert_eq!(app::raw_status(&app, 100_000).await, 414);
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn state_that_stays_unredeemed_is_not_exchanged() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    app.site.store.plan(|call| (call == StoreCall::Redeem).then_some(StoreFault::Before));
    let answer = ann.get(&app, &callback).await;
    assert_eq!(answer.status, 503);
    assert_eq!((app.failures(), app.site.fake.count().total()), (to_strings(&["Store"]), 0));
    app.assert_nothing_leaked();
    // The store did nothing, and may be asked again.
    app.site.store.recover();
    assert_eq!(ann.get(&app, &callback).await.location(), "/home");
}

#[tokio::test]
async fn forged_callback_is_not_called_completed() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    ann.get(&app, &callback).await;
    let forged = ann.get(&app, "/hurdlr/callback?code=c&state=forged").await;
    assert_eq!(app.failures(), ["NotBegunHere"]);
    assert!(forged.body.contains("You are connected"), "{}", forged.body);
    assert!(!forged.body.contains("completed before"), "{}", forged.body);
}

#[tokio::test]
async fn another_user_is_told_no_destination() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let began = ann.get(&app, "/hurdlr/connect?return_to=/reports/annual").await;
    let callback = app.consent(&began, "ann").await;
    let mut mallory = Browser { user: "mallory".into(), ..ann.clone() };
    let answer = mallory.get(&app, &callback).await;
    assert_eq!(app.failures(), ["OtherUser"]);
    assert!(!answer.body.contains("reports"), "{}", answer.body);
    assert!(answer.body.contains("href=\"/home\""), "{}", answer.body);
}
