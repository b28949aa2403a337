//! The web login in a framework of your own, as `docs/web-login-elsewhere.md` shows it, with a
//! person who logs in at the embedded provider.
//!
//! ```text
//! cargo run --example login_elsewhere --features testing
//! ```

use std::collections::HashMap;

use hurdlr_oauth2::http::HeaderMap;
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretString};
use hurdlr_oauth2::url::Url;
use hurdlr_oauth2::{Callback, Error, PendingLogin, TokenManager, UserId};

/// Your framework's session: of one browser, on the server or in an encrypted cookie.
struct Session {
    user: UserId,
    /// Logins that have begun, by their state: one for each tab.
    logins: HashMap<String, SecretString>,
}

/// Whether a page of the app at `origin` sent the browser here, and a person is about to see the
/// answer.
fn is_from_own_page(headers: &HeaderMap, origin: &str) -> bool {
    let all = |name: &str, value: &str| headers.get_all(name).iter().all(|it| it == value);
    let is_own = if headers.contains_key("sec-fetch-site") {
        all("sec-fetch-site", "same-origin")
    } else {
        // a form, in a browser of before 2023
        headers.contains_key("origin") && all("origin", origin)
    };
    is_own && all("sec-fetch-mode", "navigate") && !headers.contains_key("sec-purpose")
}

/// `GET` and `POST /connect`: redirect (303) to the URL, if there is one. Otherwise show a page
/// with a button that posts to `/connect`.
fn connect(
    manager: &TokenManager,
    session: &mut Session,
    headers: &HeaderMap,
) -> Result<Option<Url>, Error> {
    if !is_from_own_page(headers, "https://app.example.com") {
        return Ok(None);
    }
    let (url, pending) = manager.hurdlr().begin_login()?;
    session.logins.insert(pending.state().expose_secret().into(), pending.to_secret());
    Ok(Some(url))
}

/// `GET /callback`, with the query as it came. `false`: begin again.
async fn callback(
    manager: &TokenManager,
    session: &mut Session,
    query: String,
) -> Result<bool, Error> {
    let callback = Callback::from(query);
    let Some(kept) = session.logins.remove(callback.state()?) else {
        return Ok(false); // not begun in this browser
    };
    let pending = PendingLogin::from_secret(&kept)?;
    // `false` where the callback was loaded twice, here or on another replica.
    manager.complete_login(&session.user, pending, callback).await
}

use hurdlr_oauth2::Hurdlr;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::FakeHurdlr;

/// Begins a login from one page of the app's own and four others, and completes it twice.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fake = FakeHurdlr::start().await?;
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .authorize_url(fake.authorize_url())
        .redirect_uri("https://app.example.com/callback")
        .build()?;
    let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
    let mut session = Session { user: UserId::new("ann")?, logins: HashMap::new() };
    let mut headers = HeaderMap::new();
    assert!(connect(&manager, &mut session, &headers)?.is_none());
    headers.insert("origin", "https://evil.example".parse()?);
    assert!(connect(&manager, &mut session, &headers)?.is_none());
    headers.insert("origin", "https://app.example.com".parse()?);
    assert!(connect(&manager, &mut session, &headers)?.is_some());
    headers.insert("sec-fetch-site", "cross-site".parse()?);
    assert!(connect(&manager, &mut session, &headers)?.is_none());
    headers.insert("sec-fetch-site", "same-origin".parse()?);
    headers.insert("sec-purpose", "prefetch".parse()?);
    assert!(connect(&manager, &mut session, &headers)?.is_none());
    headers.remove("sec-purpose");
    let url = connect(&manager, &mut session, &headers)?.ok_or("no login")?;
    let back = fake.consent(&url, "ann").await?;
    assert!(callback(&manager, &mut session, back.query().unwrap_or_default().into()).await?);
    assert!(!callback(&manager, &mut session, back.query().unwrap_or_default().into()).await?);
    assert!(manager.user(&session.user).token().await.is_ok());
    Ok(())
}
