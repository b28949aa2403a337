//! The cookies of logins: whose they are, and what they can bear.

use std::fmt::Write;
use std::time::Duration;

use hurdlr_oauth2::{ApiVersion, UserId};

use super::{parameter, to_strings};
use crate::app::{self, App, Browser, KEY, Log, OTHER_KEY, cookie_of};

#[tokio::test]
async fn redirect_uri_decides_the_cookies_guard() {
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
async fn oldest_of_five_logins_is_dropped() {
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
async fn broken_cookie_goes_before_any_login() {
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
async fn cookie_is_useless_to_another_user() {
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
async fn tampered_cookie_is_unreadable() {
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
async fn neighbouring_sites_cookie_ends_no_login() {
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
async fn login_ends_under_its_own_settings() {
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
async fn largest_login_takes_at_most_1400_bytes() {
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
