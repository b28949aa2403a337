//! Requests that another site's pages send.

use super::to_strings;
use crate::app::{App, Browser, OWN_PAGE};

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
