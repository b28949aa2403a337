//! The web login and those who attack it, by requests.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the failure of the test")]

mod app;

use std::fmt::Write;
use std::time::Duration;

use app::{App, Browser, KEY, Log, OTHER_KEY, OWN_PAGE, cookie_of};
use axum::Router;
use hurdlr_oauth2::manager::UnfinishedWork;
use hurdlr_oauth2::testing::{Fault, Gate, StoreCall, StoreFault};
use hurdlr_oauth2::web::{LoginConfig, login_routes};
use hurdlr_oauth2::{ApiVersion, ErrorKind, UserId};

const MINUTE: Duration = Duration::from_secs(60);

fn parameter(url: &str, name: &str) -> String {
    let url: url::Url = format!("https://x{}", url.trim_start_matches("https://")).parse().unwrap();
    let mut pairs = url.query_pairs();
    pairs.find(|(key, _)| key == name).unwrap().1.into_owned()
}

#[tokio::test]
async fn a_user_connects_is_kept_and_disconnects() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let began = ann.get(&app, "/hurdlr/connect?return_to=/accounting%3Fyear=2026").await;
    assert_eq!(began.status, 303);
    assert!(began.location().starts_with(app.site.fake.authorize_url().as_str()));
    let cookie = began.set_cookies().remove(0);
    let attributes: Vec<_> = cookie.split("; ").skip(1).collect();
    assert!(cookie.starts_with("__Host-hurdlr_login_"), "{cookie}");
    for attribute in ["HttpOnly", "SameSite=Lax", "Secure", "Path=/", "Max-Age=600"] {
        assert!(attributes.contains(&attribute), "{attribute} is not in {cookie}");
    }
    assert!(!cookie.contains("Domain"));

    let callback = app.consent(&began, "ann").await;
    let done = ann.get(&app, &callback).await;
    assert_eq!((done.status, done.location()), (303, "/accounting?year=2026"));
    assert!(done.set_cookies()[0].contains("Max-Age=0"));
    assert!(ann.cookies.is_empty());
    assert!(app.is_connected("ann").await && !app.is_connected("bob").await);
    assert_eq!(app.site.fake.count().grant("authorization_code"), 1);
    assert_eq!(app.failures(), [""; 0]);

    let gone = ann.disconnect(&app, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!((gone.status, gone.location()), (303, "/home"));
    assert!(!app.is_connected("ann").await);
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn the_redirect_uri_decides_how_the_cookie_is_guarded_and_not_the_request() {
    for (redirect_uri, guarded) in [
        ("https://app.example.com/hurdlr/callback", true),
        ("http://127.0.0.1:3000/hurdlr/callback", false),
    ] {
        let app = App::with(|site| site.builder().redirect_uri(redirect_uri), |config| config);
        let began = Browser::of("ann").get(&app, "/hurdlr/connect").await;
        let cookie = began.set_cookies().remove(0);
        assert_eq!(cookie.starts_with("__Host-"), guarded, "{cookie}");
        assert_eq!(cookie.contains("; Secure"), guarded, "{cookie}");
    }
}

#[tokio::test]
async fn where_nobody_is_signed_in_the_app_answers() {
    let app = App::new();
    let mut nobody = Browser::of("");
    for path in ["/hurdlr/connect", "/hurdlr/callback?code=c&state=s"] {
        let answer = nobody.get(&app, path).await;
        assert_eq!((answer.status, answer.location()), (303, "/sign-in"), "{path}");
    }
    let answer = nobody.disconnect(&app, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(answer.location(), "/sign-in");
    assert_eq!((app.site.fake.count().total(), app.failures().len()), (0, 0));
}

#[tokio::test]
async fn a_session_under_same_site_strict_is_brought_back_by_one_bounce() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    for site in ["cross-site", "same-site"] {
        let mut without_session = Browser { user: String::new(), ..ann.clone() };
        let bounced =
            without_session.send(&app, "GET", &callback, &[("sec-fetch-site", site)]).await;
        assert_eq!((bounced.status, bounced.set_cookies().len()), (200, 0));
        assert!(bounced.body.contains(r#"http-equiv="refresh" content="0">"#));
        // Once: now the browser says that the page is our own.
        let still_nobody =
            without_session.send(&app, "GET", &callback, &[("sec-fetch-site", "same-origin")]);
        assert_eq!(still_nobody.await.location(), "/sign-in");
    }
    assert_eq!(app.site.fake.count().total(), 0);
    let done = ann.send(&app, "GET", &callback, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(done.location(), "/home");
    assert!(app.is_connected("ann").await);
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn two_tabs_do_not_disturb_each_other() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let one = ann.begin(&app, "ann").await;
    let two = ann.begin(&app, "ann").await;
    assert_eq!(ann.cookies.len(), 2);
    assert_eq!(ann.get(&app, &one).await.location(), "/home");
    assert_eq!(ann.get(&app, &two).await.location(), "/home");
    assert_eq!(app.site.fake.count().grant("authorization_code"), 2);
}

#[tokio::test]
async fn of_more_than_four_logins_the_oldest_is_dropped() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let mut callbacks = Vec::new();
    for _ in 0..6 {
        callbacks.push(ann.begin(&app, "ann").await);
        app.site.clock.advance(Duration::from_secs(1));
        assert!(ann.cookies.len() <= 4);
    }
    for (number, callback) in callbacks.iter().enumerate() {
        let finds = ann.get(&app, callback).await.status == 303;
        assert_eq!(finds, number >= 2, "{number}");
    }
    assert_eq!(app.failures(), ["NotBegunHere"; 2]);
}

#[tokio::test]
async fn a_cookie_that_cannot_be_a_login_goes_first_and_one_of_another_name_is_left_alone() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let login = ann.begin(&app, "ann").await;
    let name = ann.only_cookie().0;
    let prefix = &name[..name.len() - 12];
    for number in 0..5 {
        ann.cookies.insert(format!("{prefix}planted-{number}---"), "planted".into());
        let forged = format!("{prefix}{number}%3B%20Domain%3Dexample.com%0D%0A");
        ann.cookies.insert(forged, "planted".into());
    }
    let began = ann.get(&app, "/hurdlr/connect").await;
    assert_eq!(began.set_cookies().len(), 4, "three are dropped, one is kept");
    assert!(began.set_cookies().iter().all(|cookie| !cookie.contains("Domain")));
    assert_eq!(ann.cookies.len(), 4 + 5);
    assert_eq!(ann.get(&app, &login).await.location(), "/home");
}

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

fn to_strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[tokio::test]
async fn a_login_cannot_be_completed_in_another_browser() {
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
async fn a_cookie_is_of_no_use_to_another_user() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let mut mallory = Browser { user: "mallory".into(), ..ann.clone() };
    let answer = mallory.get(&app, &callback).await;
    assert_eq!((answer.status, answer.set_cookies().len()), (403, 0));
    assert_eq!((app.failures(), app.site.fake.count().total()), (to_strings(&["OtherUser"]), 0));
    assert_eq!(ann.get(&app, &callback).await.location(), "/home");
    assert!(app.is_connected("ann").await && !app.is_connected("mallory").await);
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn a_callback_that_is_loaded_again_sends_nothing_and_says_where_the_person_is() {
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
async fn two_replicas_that_get_the_same_callback_send_one_exchange() {
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
async fn a_browser_that_goes_away_does_not_take_the_token_along() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let gate = Gate::closed();
    app.site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let user = app.manager.user(&UserId::new("ann").unwrap());
    let mut changes = user.subscribe();
    tokio::select! {
        _ = ann.get(&app, &callback) => panic!("the exchange is held"),
        () = app.site.fake.arrived(1) => {}
    }
    gate.open();
    // Nothing waits so long; it is the failure of the test.
    tokio::time::timeout(MINUTE / 2, changes.next()).await.expect("the exchange goes on");
    assert!(app.is_connected("ann").await);
    assert_eq!(app.site.fake.count().total(), 1);
}

#[tokio::test]
async fn a_browser_that_goes_away_while_the_token_is_saved_does_not_take_it_along() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let user = app.manager.user(&UserId::new("ann").unwrap());
    let mut changes = user.subscribe();
    app.site.store.delay(Duration::from_millis(100));
    let saving = async {
        while !app.site.store.calls().contains(&StoreCall::Save) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = ann.get(&app, &callback) => panic!("the store takes longer"),
        () = saving => {}
    }
    tokio::time::timeout(MINUTE / 2, changes.next()).await.expect("the token is saved");
    assert!(app.is_connected("ann").await);
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
async fn markup_in_a_refusal_is_shown_as_text() {
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
async fn a_person_who_says_no_is_told_so_and_can_try_again() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let began = ann.get(&app, "/hurdlr/connect?return_to=/a%3Fb").await;
    let denied = app.site.fake.deny(&began.location().parse().unwrap()).await.unwrap();
    let answer = ann.get(&app, &app::path_of(&denied)).await;
    assert!(answer.body.contains("You did not allow access."), "{}", answer.body);
    assert!(answer.body.contains("href=\"/hurdlr/connect?return_to=%2Fa%3Fb\""), "{}", answer.body);
    assert_eq!((app.failures(), app.site.fake.count().total()), (to_strings(&["Refused"]), 0));
    assert!(ann.cookies.is_empty());
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
async fn a_code_of_another_session_is_refused_by_its_verifier() {
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

#[tokio::test]
async fn a_query_of_100_kilobytes_is_not_read() {
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
async fn a_cookie_that_was_tampered_with_is_unreadable() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let (name, value) = ann.only_cookie();
    let mut spoilt = vec![
        String::new(),
        "x".into(),
        value[1..].into(),
        value[..value.len() - 1].into(),
        value[..value.len() / 2].into(),
        format!("{value}{value}"),
    ];
    // Not within an escape: what is no text any more is no cookie, and never arrives.
    let is_escape = |place: &usize| value[place.saturating_sub(2)..=*place].contains('%');
    for place in (0..value.len()).step_by(7).filter(|place| !is_escape(place)) {
        let mut letters = value.clone().into_bytes();
        letters[place] = if letters[place] == b'A' { b'B' } else { b'A' };
        spoilt.push(String::from_utf8(letters).unwrap());
    }
    // One that is whole, and of another login.
    let mut other = Browser::of("ann");
    other.begin(&app, "ann").await;
    spoilt.push(other.only_cookie().1);
    for value in spoilt {
        let mut browser = Browser::of("ann");
        browser.cookies.insert(name.clone(), value.clone());
        assert_eq!(browser.get(&app, &callback).await.status, 400, "{value}");
        assert_eq!(app.failures(), ["Unreadable"], "{value}");
        assert!(browser.cookies.is_empty(), "it is of no use any more");
        app.clear_failures();
    }
    assert_eq!(app.site.fake.count().total(), 0);
    assert_eq!(ann.get(&app, &callback).await.location(), "/home");
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn a_cookie_that_another_site_of_the_domain_put_beside_ours_ends_no_login() {
    let app = App::new();
    for beside in ["planted; {name}={value}", "{value}; {name}=planted"] {
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        let (name, value) = ann.only_cookie();
        let both = beside.replace("{name}", &name).replace("{value}", &value);
        ann.cookies.insert(name, both);
        assert_eq!(ann.get(&app, &callback).await.location(), "/home", "{beside}");
    }
}

#[tokio::test]
async fn a_login_left_for_too_long_is_over() {
    for (minutes, reason) in [(9, None), (11, Some("Expired"))] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        app.site.clock.advance(minutes * MINUTE);
        ann.get(&app, &callback).await;
        assert_eq!(app.failures().first().map(String::as_str), reason);
        assert_eq!(app.site.fake.count().total(), u64::from(reason.is_none()));
    }
}

#[tokio::test]
async fn keys_are_changed_without_losing_a_login() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let unknown = App::keyed(app.site.clone(), OTHER_KEY, |config| config);
    assert_eq!(ann.clone().get(&unknown, &callback).await.status, 400);
    assert_eq!(unknown.failures(), ["Unreadable"]);
    assert_eq!(app.site.fake.count().total(), 0);
    let changed = App::keyed(app.site.clone(), OTHER_KEY, |config| config.other_key(app::key(KEY)));
    assert_eq!(ann.get(&changed, &callback).await.location(), "/home");
    // And nothing is made by the retired key.
    let callback = ann.begin(&changed, "ann").await;
    assert_eq!(ann.get(&unknown, &callback).await.location(), "/home");
}

#[tokio::test]
async fn a_login_is_not_completed_by_other_settings_than_it_began_with() {
    type Settings = fn(&app::Site) -> hurdlr_oauth2::HurdlrBuilder;
    let changed: [(Settings, &str); 4] = [
        (|site| site.builder().api_version(ApiVersion::V5), "OtherSettings"),
        (|site| site.builder().issuer("https://issuer.example"), "OtherSettings"),
        (|site| site.builder_of("other-client").redirect_uri(app::REDIRECT_URI), "OtherSettings"),
        // To its cookies that is another app.
        (
            |site| site.builder().redirect_uri("https://app.example.com:8443/hurdlr/callback"),
            "NotBegunHere",
        ),
    ];
    let app = App::new();
    for (settings, reason) in changed {
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        let other = App::on(app.site.clone(), settings, |config| config);
        assert_eq!(ann.get(&other, &callback).await.status, 400);
        assert_eq!(other.failures(), [reason]);
    }
    assert_eq!(app.site.fake.count().total(), 0);
}

/// While replicas are replaced, a callback may come to one that has other settings than the one
/// the login began at.
#[tokio::test]
async fn foreign_replica_leaves_login_alone() {
    let app = App::new();
    let v6 = |site: &app::Site| site.builder().api_version(ApiVersion::V6);
    let foreign = App::on(app.site.clone(), v6, |config| config);
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let answer = ann.get(&foreign, &callback).await;
    assert_eq!((answer.status, foreign.failures()), (400, to_strings(&["OtherSettings"])));
    assert!(answer.body.contains("This site has changed"), "{}", answer.body);
    assert_eq!(ann.get(&app, &callback).await.location(), "/home");
    assert!(ann.cookies.is_empty());
}

#[tokio::test]
async fn a_state_that_cannot_be_redeemed_is_not_exchanged() {
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
async fn an_exchange_that_fails_is_told_and_keeps_nothing() {
    for (fault, status, reason) in [
        (Fault::status(500), 503, "Unavailable"),
        (Fault::DropAfter, 503, "Unavailable"),
        (Fault::html(502), 503, "Unavailable"),
        (Fault::answer_after(200, "{}"), 502, "InvalidResponse"),
        (Fault::answer(400, r#"{"error":"invalid_client"}"#), 502, "Rejected"),
    ] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        app.site.fake.fault_next(fault);
        let answer = ann.get(&app, &callback).await;
        assert_eq!((answer.status, app.failures()), (status, to_strings(&[reason])));
        assert_eq!(app.site.fake.count().total(), 1);
        assert!(!app.is_connected("ann").await);
        app.assert_nothing_leaked();
    }
}

#[tokio::test]
async fn only_the_apps_own_pages_disconnect() {
    let own = "https://app.example.com";
    for (headers, goes) in [
        (vec![("sec-fetch-site", "same-origin")], true),
        (vec![("sec-fetch-site", "same-origin"), ("origin", "null")], true),
        (vec![("sec-fetch-site", "cross-site")], false),
        (vec![("sec-fetch-site", "same-site")], false),
        (vec![("sec-fetch-site", "none")], false),
        (vec![("sec-fetch-site", "")], false),
        (vec![("sec-fetch-site", "cross-site"), ("origin", own)], false),
        (vec![("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], false),
        (vec![("origin", own)], true),
        (vec![("origin", "http://app.example.com")], false),
        (vec![("origin", "https://app.example.com:8443")], false),
        (vec![("origin", "https://app.example.com.evil.example")], false),
        (vec![("origin", "https://evil.example")], false),
        (vec![("origin", "null")], false),
        (vec![("origin", own), ("origin", "https://evil.example")], false),
        (vec![("referer", "https://app.example.com/")], false),
        (vec![], false),
    ] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        ann.get(&app, &callback).await;
        let answer = ann.disconnect(&app, &headers).await;
        assert_eq!(answer.status == 303, goes, "{headers:?}");
        assert_eq!(app.failures().len(), usize::from(!goes), "{headers:?}");
        assert_eq!(app.is_connected("ann").await, !goes, "{headers:?}");
        if !goes {
            assert_eq!((answer.status, app.failures()[0].as_str()), (403, "CrossSite"));
        }
    }
}

#[tokio::test]
async fn other_methods_do_nothing() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    for (method, path) in [
        ("HEAD", callback.as_str()),
        ("POST", &callback),
        ("HEAD", "/hurdlr/connect"),
        ("PUT", "/hurdlr/connect"),
        ("GET", "/hurdlr/disconnect"),
    ] {
        let answer = ann.send(&app, method, path, &[("sec-fetch-site", "same-origin")]).await;
        assert_eq!((answer.status, answer.set_cookies().len()), (405, 0), "{method} {path}");
    }
    assert_eq!(app.site.fake.count().total(), 0);
    assert_eq!(ann.get(&app, &callback).await.location(), "/home");
}

#[tokio::test]
async fn a_login_returns_to_paths_of_the_app_and_nowhere_else() {
    let longest = format!("/{}", "a".repeat(255));
    let too_long = format!("/{}", "a".repeat(256));
    let app = App::new();
    for target in [
        "/",
        "/accounting",
        "/accounting/",
        "/a/b?c=d&e=%2Ff",
        "/a?next=https://b.example",
        "/a#b",
        "/a?b=//c",
        "/%C3%A9",
        "/a.b~c-d_e!$&'()*+,;=:@",
        "/a?b=%0A",
        longest.as_str(),
    ] {
        assert_eq!(returned(&app, target).await, target);
    }
    for target in [
        "",
        "accounting",
        "?a",
        "#a",
        ".",
        "..",
        "./a",
        "../a",
        "~",
        "@evil.example",
        ":80/",
        ".evil.example",
        "https://evil.example",
        "https:/evil.example",
        "https:evil.example",
        "HTTPS://evil.example",
        "http://app.example.com/",
        "https://app.example.com/",
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil.example",
        "///evil.example",
        "////evil.example",
        "//evil.example/..",
        "/\\evil.example",
        "\\/evil.example",
        "\\\\evil.example",
        "\\evil.example",
        "/a\\b",
        "/a//evil.example",
        "/.//evil.example",
        "/..//evil.example",
        "/a/..//evil.example",
        "/../a",
        "/a/../b",
        "/./a",
        "/%2e%2e/a",
        "/%2e/a",
        "/%2f/evil.example",
        "/%2F%2Fevil.example",
        "/%5cevil.example",
        "/%5C%5Cevil.example",
        "/%252f%252fevil.example",
        "/%0d%0aSet-Cookie:a=b",
        "/%09/evil.example",
        "/%00",
        "/%7f",
        "/%",
        "/%2",
        "/%zz",
        "\t//evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "/\r\nLocation: https://evil.example",
        " //evil.example",
        "/ /evil.example",
        "/a b",
        "/\u{0}",
        "/\u{7f}",
        "/<script>",
        "/\"",
        "/hurdlr/connect",
        "/hurdlr/connect?return_to=/",
        "/hurdlr/callback",
        "/hurdlr/disconnect#a",
        too_long.as_str(),
    ] {
        assert_eq!(returned(&app, target).await, "/home", "{target:?}");
    }
    // Text beyond ASCII is what a browser makes of it.
    for (target, location) in [
        ("/b\u{fc}cher?jahr=M\u{e4}rz#\u{4f60}", "/b%C3%BCcher?jahr=M%C3%A4rz#%E4%BD%A0"),
        ("/\u{2028}", "/%E2%80%A8"),
        ("/\u{ff0f}evil.example", "/%EF%BC%8Fevil.example"),
    ] {
        assert_eq!(returned(&app, target).await, location);
    }
}

/// The end of a whole login that was asked to return to `target`.
async fn returned(app: &App, target: &str) -> String {
    let mut ann = Browser::of("ann");
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("return_to", target)
        .finish();
    let began = ann.get(app, &format!("/hurdlr/connect?{query}")).await;
    let callback = app.consent(&began, "ann").await;
    ann.get(app, &callback).await.location().to_owned()
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    type Change = fn(LoginConfig) -> LoginConfig;
    let changes: [(Change, &str); 8] = [
        (|config| config.other_key(vec![0; 63].into()), "64"),
        (|config| config.return_to("https://evil.example"), "return_to"),
        (|config| config.return_to(""), "return_to"),
        (|config| config.connect_path("hurdlr"), "connect_path"),
        (|config| config.connect_path("/{hurdlr}"), "connect_path"),
        (|config| config.callback_path("/a?b"), "callback_path"),
        (|config| config.disconnect_path(""), "disconnect_path"),
        (|config| config.disconnect_path("/hurdlr/connect"), "path"),
    ];
    let site = app::Site::new();
    for (change, named) in changes {
        let manager = site.manager(site.builder());
        let config = change(app::config(KEY, |_| ()));
        let error = login_routes::<()>(manager, config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(named), "{error}");
    }
    let without = hurdlr_oauth2::Hurdlr::builder("id", "secret".into());
    let routes = login_routes::<()>(site.manager(without), app::config(KEY, |_| ()));
    assert!(routes.unwrap_err().to_string().contains("authorize_url"));
}

fn below_books(config: LoginConfig) -> LoginConfig {
    config.connect_path("/in").callback_path("/back").disconnect_path("/out")
}

#[tokio::test]
async fn links_stay_below_proxys_prefix() {
    let builder = |site: &app::Site| site.builder().redirect_uri("https://example.com/books/back");
    let app = App::with(builder, |config| below_books(config).return_to("/x"));
    for (asked, end) in [
        ("", "/books/x"),
        ("?return_to=/books/y%3Fz", "/books/y?z"),
        ("?return_to=/y%23z", "/books/y#z"),
        ("?return_to=/books", "/books"),
        ("?return_to=/bookshop", "/books/bookshop"),
        ("?return_to=/books/in", "/books/x"),
        ("?return_to=/in%3Freturn_to=/", "/books/x"),
        ("?return_to=/books/back", "/books/x"),
        ("?return_to=//evil.example", "/books/x"),
    ] {
        let mut ann = Browser::of("ann");
        let began = ann.get(&app, &format!("/in{asked}")).await;
        let callback = app.consent(&began, "ann").await;
        let callback = callback.strip_prefix("/books").unwrap();
        assert_eq!(ann.get(&app, callback).await.location(), end, "{asked}");
    }
    let mut ann = Browser::of("ann");
    let gone = ann.send(&app, "POST", "/out", &[("origin", "https://example.com")]).await;
    assert_eq!(gone.location(), "/books/x");
    let asked = ann.send(&app, "GET", "/in", &[("sec-fetch-site", "cross-site")]).await;
    assert!(asked.body.contains("action=\"/books/in?return_to=%2Fbooks%2Fx\""), "{}", asked.body);
    let failed = ann.get(&app, "/back?code=c&state=s").await;
    assert!(failed.body.contains("href=\"/books/in?return_to=%2Fbooks%2Fx\""), "{}", failed.body);
    assert!(failed.body.contains("href=\"/books/x\""), "{}", failed.body);
    // By default the app's root is returned to, and not that of the host.
    let LoginPage { routes, .. } = LoginPage::of("https://example.com/books/back", below_books);
    let answer = routes.unwrap();
    let answer = app::answer(&answer, "GET", "/in", &[("sec-fetch-site", "none")]).await;
    assert!(answer.body.contains("return_to=%2Fbooks%2F\""), "{}", answer.body);
}

/// The routes of an app that says nothing else about its login.
struct LoginPage {
    routes: Result<Router, hurdlr_oauth2::Error>,
    site: app::Site,
}

impl LoginPage {
    fn of(redirect_uri: &str, change: impl FnOnce(LoginConfig) -> LoginConfig) -> Self {
        let site = app::Site::new();
        let manager = site.manager(site.builder().redirect_uri(redirect_uri));
        let config = change(LoginConfig::new(app::key(KEY), app::signed_in));
        Self { routes: login_routes(manager, config), site }
    }
}

#[tokio::test]
async fn nested_routes_work_or_name_nest() {
    let nested = LoginPage::of("https://example.com/books/back", below_books);
    let router = Router::new().nest("/books", nested.routes.unwrap());
    let began = app::answer(&router, "GET", "/books/in", &OWN_PAGE).await;
    let url = began.location().parse().unwrap();
    let back = nested.site.fake.consent(&url, "ann").await.unwrap();
    let cookie = began.set_cookies().remove(0);
    let headers = [("cookie", cookie.split_once(';').unwrap().0)];
    let done = app::answer(&router, "GET", &app::path_of(&back), &headers).await;
    assert_eq!((done.status, done.location()), (303, "/books/"));

    for redirect_uri in ["https://example.com/books/back", "https://example.com/back"] {
        let misplaced = LoginPage::of(redirect_uri, |config| config.connect_path("/in"));
        let router = Router::new().nest("/books", misplaced.routes.unwrap());
        let answer = app::answer(&router, "GET", "/books/in", &OWN_PAGE).await;
        assert_eq!((answer.status, answer.set_cookies().len()), (500, 0), "{redirect_uri}");
        assert!(answer.body.contains("not set up"), "{}", answer.body);
    }
    assert!(Log::of_everything().text().contains("the login routes are nested at /books,"));
}

#[tokio::test]
async fn odd_redirect_uri_works_or_is_named() {
    for path in [
        "/hurdlr;v=1/callback",
        "/a=b/callback",
        "/a@b/@c",
        "/a:b/callback",
        "/a!$&'()*+,=~b",
        "/hurdlr/callback/",
        "/a%20b/%C3%A9",
        "/a%7Bb%7D",
        "//a",
        "/hurdlr/callback?tenant=1&b=c?d",
        "/ä/{b}",
    ] {
        let page = LoginPage::of(&format!("https://app.example.com{path}"), |config| config);
        // Merged, as apps do it: axum judges the paths once more.
        let router = Router::new()
            .route("/", axum::routing::get(async || "home"))
            .merge(page.routes.unwrap());
        let began = app::answer(&router, "GET", "/hurdlr/connect", &OWN_PAGE).await;
        let url = began.location().parse().unwrap();
        let back = page.site.fake.consent(&url, "ann").await.unwrap();
        let cookie = began.set_cookies().remove(0);
        let headers = [("cookie", cookie.split_once(';').unwrap().0)];
        let done = app::answer(&router, "GET", &app::path_of(&back), &headers).await;
        assert_eq!((done.status, done.location()), (303, "/"), "{path}");
    }
    for path in ["", "/", "/:a/callback", "/a/*b", "/?a=b", "/hurdlr/connect"] {
        let page = LoginPage::of(&format!("https://app.example.com{path}"), |config| config);
        let error = page.routes.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let named = error.to_string();
        assert!(named.contains("redirect_uri") || named.contains("callback_path"), "{named}");
    }
    let odd = LoginPage::of("https://example.com/a//back", below_books).routes.unwrap_err();
    assert!(odd.to_string().contains("redirect_uri"), "{odd}");
}

#[tokio::test]
async fn one_router_serves_several_managers() {
    let site = app::Site::new();
    let manager = |version| site.manager(site.builder().api_version(version));
    let (v4, v6) = (manager(ApiVersion::V4), manager(ApiVersion::V6));
    let before = App::of(site.clone(), v4.clone(), |config| config);
    let during = App::of(site.clone(), v6.clone(), |config| config.other_manager(v4.clone()));
    let after = App::of(site.clone(), v6.clone(), |config| config);
    let ann = UserId::new("ann").unwrap();

    // One that began with the old version is completed by it, and only while that is there.
    let mut browser = Browser::of("ann");
    let callback = browser.begin(&before, "ann").await;
    assert_eq!(browser.clone().get(&after, &callback).await.status, 400);
    assert_eq!(after.failures(), ["OtherSettings"]);
    assert_eq!(browser.get(&during, &callback).await.location(), "/home");
    assert!(v4.user(&ann).token().await.is_ok() && v6.user(&ann).token().await.is_err());
    // Connected at either is connected.
    let again = browser.get(&during, &callback).await;
    assert!(again.body.contains("You are connected"), "{}", again.body);

    let callback = browser.begin(&during, "ann").await;
    assert_eq!(browser.get(&during, &callback).await.location(), "/home");
    assert!(v6.user(&ann).token().await.is_ok());
    let requests = site.fake.requests();
    let paths: Vec<_> = requests.iter().map(|request| request.path().to_owned()).collect();
    assert_eq!(paths, ["/rest/v4/auth/token", "/v6/auth/token"]);

    let gone = browser.disconnect(&during, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(gone.status, 303);
    assert!(v4.user(&ann).token().await.is_err() && v6.user(&ann).token().await.is_err());

    let elsewhere = site.builder().redirect_uri("https://app.example.com/else");
    for other in [elsewhere, site.builder_of("no-redirect-uri")] {
        let config = app::config(KEY, |_| ()).other_manager(site.manager(other));
        let error = login_routes::<()>(v6.clone(), config).unwrap_err();
        assert!(error.to_string().contains("redirect_uri of other_manager"), "{error}");
    }
}

/// The provider may take long to revoke a token; until then the browser waits.
#[tokio::test]
async fn abandoned_disconnect_reaches_every_manager() {
    let site = app::Site::new();
    let manager = |version| site.manager(site.builder().api_version(version));
    let (v4, v6) = (manager(ApiVersion::V4), manager(ApiVersion::V6));
    let before = App::of(site.clone(), v4.clone(), |config| config);
    let both = App::of(site.clone(), v6.clone(), |config| config.other_manager(v4.clone()));
    let mut browser = Browser::of("ann");
    for app in [&before, &both] {
        let callback = browser.begin(app, "ann").await;
        assert_eq!(browser.get(app, &callback).await.location(), "/home");
    }
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let requests = site.fake.count().total();
    tokio::select! {
        _ = browser.disconnect(&both, &[("sec-fetch-site", "same-origin")]) => {
            panic!("the revocation is held")
        }
        () = site.fake.arrived(requests + 1) => {}
    }
    assert_eq!(v4.shutdown().await, []);
    let error = manager(ApiVersion::V4).user(&UserId::new("ann").unwrap()).token().await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::LoginRequired);
    gate.open();
}

#[tokio::test]
async fn two_versions_routes_share_a_host() {
    let site = app::Site::new();
    let routes = |version, path: &str| {
        let uri = format!("https://app.example.com/{path}/callback");
        let manager = site.manager(site.builder().api_version(version).redirect_uri(uri));
        let connect = format!("/{path}/connect");
        App::of(site.clone(), manager, |config| config.connect_path(connect))
    };
    let (v4, v6) = (routes(ApiVersion::V4, "v4"), routes(ApiVersion::V6, "v6"));
    let mut ann = Browser::of("ann");
    let began = ann.get(&v4, "/v4/connect").await;
    let callback = v4.consent(&began, "ann").await;
    for _ in 0..5 {
        assert_eq!(ann.get(&v6, "/v6/connect").await.status, 303);
    }
    assert_eq!(ann.get(&v4, &callback).await.location(), "/home");
}

#[tokio::test]
async fn more_authorize_parameters_are_sent() {
    let app = App::with(app::Site::builder, |config| {
        config.authorize_params(|user: &UserId| {
            [("prompt", "login".to_owned()), ("login_hint", user.as_str().to_owned())]
        })
    });
    let began = Browser::of("ann").get(&app, "/hurdlr/connect").await;
    assert_eq!(parameter(began.location(), "prompt"), "login");
    assert_eq!(parameter(began.location(), "login_hint"), "ann");
    let doubled = App::with(app::Site::builder, |c| c.authorize_params(|_| [("state", "x")]));
    let began = Browser::of("ann").get(&doubled, "/hurdlr/connect").await;
    assert_eq!((began.status, doubled.failures()), (500, to_strings(&["Config"])));
}

#[tokio::test]
async fn page_tells_whose_fault_it_is() {
    let (site, provider) = ("This site is not set up", "Hurdlr refused the login");
    for (fault, says) in [
        (Fault::answer(400, r#"{"error":"invalid_client"}"#), site),
        (Fault::answer(401, r#"{"error":"invalid_client","error_description":"marker"}"#), site),
        (Fault::answer(400, r#"{"error":"unauthorized_client"}"#), site),
        (Fault::answer(401, r#"{"error":[{"type":"INVALID_TOKEN","message":"marker"}]}"#), site),
        (Fault::answer(401, r#"{"error":[{"type":"EXPIRED_TOKEN","message":"marker"}]}"#), site),
        (Fault::answer(403, r#"{"error":[{"type":"BAD_REQUEST","message":"marker"}]}"#), site),
        (Fault::answer(401, ""), site), // as frameworks answer wrong Basic credentials
        (Fault::answer(403, "<html>marker</html>"), site),
        (Fault::answer(400, r#"{"error":"invalid_grant"}"#), provider),
        (Fault::answer(400, r#"{"error":[{"type":"INVALID_VALUE"}]}"#), provider),
        (Fault::status(500), "did not answer"),
    ] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        app.site.fake.fault_next(fault);
        let answer = ann.get(&app, &callback).await;
        assert!(answer.body.contains(says), "{says}: {}", answer.body);
        assert!(!answer.body.contains("marker"), "{}", answer.body);
    }
    // The site's own secret is wrong.
    for version in [ApiVersion::V4, ApiVersion::V5, ApiVersion::V6] {
        let app = App::with(
            |site| {
                let wrong = "wrong".to_owned().into();
                site.builder_by(site.fake.client_id(), wrong)
                    .redirect_uri(app::REDIRECT_URI)
                    .api_version(version)
            },
            |config| config,
        );
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        let answer = ann.get(&app, &callback).await;
        assert!(answer.body.contains(site), "{version}: {}", answer.body);
    }
    for (code, says) in [
        ("unauthorized_client", site),
        ("invalid_scope", site),
        ("temporarily_unavailable", "did not answer"),
        ("login_required", provider),
    ] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let state = parameter(&ann.begin(&app, "ann").await, "state");
        let path = format!("/hurdlr/callback?error={code}&state={state}");
        let answer = ann.get(&app, &path).await;
        assert!(answer.body.contains(says), "{code}: {}", answer.body);
    }
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
async fn the_routes_fit_into_an_app_with_a_state() {
    #[derive(Clone)]
    struct AppState;
    let site = app::Site::new();
    let manager = site.manager(site.builder());
    let routes = login_routes(manager, app::config(KEY, |_| ())).unwrap();
    let _: Router = Router::<AppState>::new().merge(routes).with_state(AppState);
}

#[tokio::test]
async fn a_cookie_holds_its_secrets_encrypted() {
    let app = App::new();
    let mut ann = Browser::of("ann.of.accounting");
    let callback = ann.begin(&app, "ann").await;
    let (name, value) = ann.only_cookie();
    let kept = cookie_of(&name, &value, KEY).unwrap();
    let state = parameter(&callback, "state");
    assert!(kept.contains(&state) && kept.contains("ann.of.accounting"));
    assert!(!value.contains(&state) && !name.contains(&state));
    assert!(!value.contains("accounting"));
    assert!(!Log::of_everything().text().contains("ann.of.accounting"));
}

#[tokio::test]
async fn the_largest_login_takes_at_most_1400_bytes_of_a_browser() {
    let app = App::with(
        |site| {
            let path = "p".repeat(1_000);
            site.builder().redirect_uri(format!("https://app.example.com/{path}"))
        },
        |config| config,
    );
    let longest = UserId::MAX_BYTES;
    for _ in 0..50 {
        let mut user = Browser::of(&"u".repeat(longest));
        let return_to = format!("/{}", "r".repeat(longest - 1));
        user.get(&app, &format!("/hurdlr/connect?return_to={return_to}")).await;
        let (name, value) = user.only_cookie();
        assert!(name.len() + 1 + value.len() <= 1_400, "{}", value.len());
    }
}

#[tokio::test]
async fn login_begins_from_own_pages_only() {
    let own = "https://app.example.com";
    let navigates = ("sec-fetch-mode", "navigate");
    for (method, headers, begins) in [
        ("GET", vec![("sec-fetch-site", "same-origin"), navigates], true),
        ("GET", vec![("sec-fetch-site", "same-origin")], true),
        ("POST", vec![("sec-fetch-site", "same-origin"), navigates, ("origin", "null")], true),
        ("POST", vec![("origin", own)], true), // a browser of before 2023
        ("GET", vec![("sec-fetch-site", "cross-site"), navigates], false),
        ("GET", vec![("sec-fetch-site", "same-site"), navigates], false),
        ("GET", vec![("sec-fetch-site", "none"), navigates], false),
        ("GET", vec![("sec-fetch-site", ""), navigates], false),
        ("GET", vec![("sec-fetch-site", "cross-site"), navigates, ("origin", own)], false),
        ("GET", vec![("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], false),
        ("POST", vec![("sec-fetch-site", "cross-site"), navigates, ("origin", own)], false),
        ("POST", vec![("origin", "https://evil.example")], false),
        ("POST", vec![("origin", "null")], false),
        ("GET", vec![("referer", "https://app.example.com/")], false),
        ("GET", vec![], false),
    ] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let path = "/hurdlr/connect?return_to=/a%3Fb";
        let answer = ann.send(&app, method, path, &headers).await;
        assert_eq!(answer.status == 303, begins, "{method} {headers:?}");
        assert_eq!(ann.cookies.len(), usize::from(begins), "{method} {headers:?}");
        if !begins {
            assert_eq!((answer.status, app.failures()), (200, to_strings(&["Unconfirmed"])));
            // The page asks, and its button comes from the app's own page.
            let form = "<form method=\"post\" action=\"/hurdlr/connect?return_to=%2Fa%3Fb\">";
            assert!(answer.body.contains(form), "{}", answer.body);
            let pressed = ann.send(&app, "POST", path, &OWN_PAGE).await;
            assert_eq!((pressed.status, ann.cookies.len()), (303, 1));
        }
    }
}

#[tokio::test]
async fn foreign_page_leaves_connection_alone() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    assert_eq!(ann.get(&app, &callback).await.location(), "/home");
    let cross_site = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    let answer = ann.send(&app, "GET", "/hurdlr/connect", &cross_site).await;
    assert_eq!((answer.location(), ann.cookies.len()), ("", 0));
    assert_eq!(app.site.fake.count().total(), 1);
}

/// Not even one that is made for a page of the app, such as by its own speculation rules.
#[tokio::test]
async fn prefetch_begins_no_login() {
    for (name, value) in [
        ("sec-purpose", "prefetch"),
        ("sec-purpose", "prefetch;prerender"),
        ("purpose", "prefetch"),
        ("x-purpose", "preview"),
        ("x-sec-purpose", "prefetch"),
        ("x-moz", "prefetch"),
        ("sec-fetch-mode", "cors"),
        ("sec-fetch-mode", "no-cors"),
    ] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        for _ in 0..4 {
            let headers = [("sec-fetch-site", "same-origin"), (name, value)];
            let answer = ann.send(&app, "GET", "/hurdlr/connect", &headers).await;
            // A browser keeps no prefetched answer that failed.
            assert_eq!((answer.status, answer.location()), (503, ""), "{name}: {value}");
            let early = ann.send(&app, "GET", &callback, &[(name, value)]).await;
            assert_eq!(early.status, 503, "{name}: {value}");
        }
        assert_eq!((ann.cookies.len(), app.site.fake.count().total()), (1, 0));
        assert_eq!(ann.get(&app, &callback).await.location(), "/home", "{name}: {value}");
    }
}

#[tokio::test]
async fn shutdown_waits_for_abandoned_callback() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let gate = Gate::closed();
    app.site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    tokio::select! {
        _ = ann.get(&app, &callback) => panic!("the exchange is held"),
        () = app.site.fake.arrived(1) => {}
    }
    let shutdown = app.manager.shutdown();
    let opens = async {
        tokio::task::yield_now().await;
        gate.open();
    };
    let (unfinished, ()) = tokio::join!(shutdown, opens);
    assert_eq!(unfinished, []);
    assert!(app.is_connected("ann").await);
    assert_eq!(app.site.store.calls().last(), Some(&StoreCall::Save));
}

#[tokio::test(start_paused = true)]
async fn shutdown_names_unfinished_login() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let gate = Gate::closed();
    app.site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    tokio::select! {
        _ = ann.get(&app, &callback) => panic!("the exchange is held"),
        () = app.site.fake.arrived(1) => {}
    }
    let unfinished = app.manager.shutdown().await;
    let works: Vec<_> = unfinished.iter().map(|it| (it.user.as_str(), it.work)).collect();
    assert_eq!(works, [("ann", UnfinishedWork::Login)]);
    gate.open();
    assert_eq!(app.manager.shutdown().await, []);
}

#[tokio::test]
async fn callback_after_shutdown_spends_no_code() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    assert_eq!(app.manager.shutdown().await, []);
    let answer = ann.get(&app, &callback).await;
    assert_eq!((answer.status, app.site.fake.count().total()), (503, 0));
    // Another replica completes it.
    let other = App::on(app.site.clone(), app::Site::builder, |config| config);
    assert_eq!(ann.get(&other, &callback).await.location(), "/home");
}

#[tokio::test]
async fn apps_on_one_host_share_no_limit() {
    let of_port = |port: u16| {
        let uri = format!("http://localhost:{port}/hurdlr/callback");
        App::with(|site| site.builder().redirect_uri(uri), |config| config)
    };
    let (one, other) = (of_port(3_000), of_port(4_000));
    let mut ann = Browser::of("ann"); // cookies know no ports
    let callback = ann.begin(&one, "ann").await;
    for _ in 0..6 {
        ann.begin(&other, "ann").await;
    }
    assert_eq!(ann.cookies.len(), 5);
    assert_eq!(ann.get(&one, &callback).await.location(), "/home");
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

#[tokio::test]
async fn foreign_cookie_beyond_ascii_hides_no_login() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let (name, value) = ann.only_cookie();
    for bytes in [&b"caf\xe9"[..], b"caf\xc3\xa9", b"\xff\xfe", b"=\x80="] {
        let cookies =
            [b"a=", bytes, b"; ", name.as_bytes(), b"=", value.as_bytes(), b"; b=", bytes];
        let connect = ann.raw(&app, "/hurdlr/connect", &cookies.concat()).await;
        assert_eq!(connect.set_cookies().len(), 1);
        let state = parameter(connect.location(), "state");
        assert!(!state.is_empty());
    }
    let cookies = [b"a=\xe9; ", name.as_bytes(), b"=", value.as_bytes()].concat();
    assert_eq!(ann.raw(&app, &callback, &cookies).await.location(), "/home");
}

#[tokio::test]
async fn of_planted_cookies_few_are_decrypted() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let (name, value) = ann.only_cookie();
    let prefix = &name[..name.len() - 12];
    let mut planted = String::new();
    for number in 0..10_000 {
        write!(planted, "{prefix}{number:012}={value}; ").unwrap();
    }
    let same = format!("{name}=planted; ").repeat(10_000);
    for cookies in [format!("{planted}{name}={value}"), format!("{name}={value}; {same}")] {
        let began = ann.raw(&app, "/hurdlr/connect", cookies.as_bytes()).await;
        assert!(began.set_cookies().len() <= 16, "{}", began.set_cookies().len());
        let again = ann.clone().raw(&app, &callback, same.as_bytes()).await;
        assert_eq!(again.status, 400);
    }
    // A login behind more of its name than are decrypted is not found.
    let behind = |others: usize| format!("{name}=x; ").repeat(others) + &format!("{name}={value}");
    let cookies = behind(16);
    assert_eq!(ann.clone().raw(&app, &callback, cookies.as_bytes()).await.status, 400);
    let cookies = planted + &behind(15);
    assert_eq!(ann.raw(&app, &callback, cookies.as_bytes()).await.location(), "/home");
}
