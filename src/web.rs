//! The login of a web app's users, for axum: from the link "Connect Hurdlr" to a page with their
//! data.
//!
//! The app adds one router and answers one question: who is this user of mine?
//!
//! ```
//! use axum::Router;
//! use axum::http::request::Parts;
//! use axum::response::Redirect;
//! use axum::routing::get;
//! use hurdlr_oauth2::store::MemoryStore;
//! use hurdlr_oauth2::testing::FakeHurdlr;
//! use hurdlr_oauth2::web::{ConnectedUser, CookieKey, Login, LoginConfig, UserRejection};
//! use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
//! # use axum::body::{Body, to_bytes};
//! # use tower::ServiceExt;
//!
//! /// The one question. An app looks into its session here.
//! async fn signed_in(parts: Parts) -> Result<UserId, Redirect> {
//!     let user = parts.headers.get("x-user").and_then(|user| user.to_str().ok());
//!     user.and_then(|user| user.parse().ok()).ok_or(Redirect::to("/sign-in"))
//! }
//!
//! /// A page for connected users. Others are sent to connect, and come back.
//! async fn expenses(user: ConnectedUser) -> Result<String, UserRejection> {
//!     let answer = user.get("/rest/v4/expenses").send().await.map_err(|e| user.rejection(e))?;
//!     answer.text().await.map_err(|e| user.rejection(e))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fake = FakeHurdlr::start().await?;
//! let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
//!     .environment(fake.base_url())
//!     .authorize_url(fake.authorize_url())
//!     .redirect_uri("https://app.example.com/hurdlr/callback")
//!     .build()?;
//! let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
//!
//! # let variable = "QUFB".repeat(22);
//! let cookie_key = CookieKey::from_base64(&variable.into())?; // of `openssl rand -base64 64`
//! let login = Login::new(manager.clone(), LoginConfig::new(cookie_key, signed_in))?;
//! let app: Router = Router::new()
//!     .route("/expenses", get(expenses))
//!     .merge(login.routes())
//!     .with_state(login);
//! # let get = |path: &str| http::Request::get(path)
//! #     .header("x-user", "ann")
//! #     .header("sec-fetch-site", "same-origin")
//! #     .body(Body::empty());
//! # let sent = app.clone().oneshot(get("/expenses")?).await?;
//! # let connect = sent.headers()["location"].to_str()?;
//! # assert_eq!(connect, "/hurdlr/connect?return_to=%2Fexpenses");
//! # let answer = app.clone().oneshot(get(connect)?).await?;
//! # let authorize = answer.headers()["location"].to_str()?;
//! # assert!(authorize.starts_with(fake.authorize_url().as_str()));
//! # let cookie = answer.headers()["set-cookie"].to_str()?;
//! # assert!(cookie.starts_with("__Host-hurdlr_login_"));
//! # let back = fake.consent(&authorize.parse()?, "ann").await?;
//! # let mut callback = get(&back[url::Position::BeforePath..])?;
//! # let cookie = cookie.split_once(';').ok_or("attributes")?.0.parse()?;
//! # callback.headers_mut().insert("cookie", cookie);
//! # let answer = app.clone().oneshot(callback).await?;
//! # assert_eq!(answer.headers()["location"], "/expenses");
//! # let answer = app.oneshot(get("/expenses")?).await?;
//! # let text = to_bytes(answer.into_body(), 4096).await?;
//! # assert!(std::str::from_utf8(&text)?.contains("amount"));
//! # Ok(())
//! # }
//! ```
//!
//! From then on `manager.user(&ann).token()` is Ann's token, in background jobs as well. A page of
//! the app has a link to `/hurdlr/connect`, and `<form method="post" action="/hurdlr/disconnect">`
//! with a button. Both take `?return_to=` with a path of the app to go to afterwards.
//!
//! A layer of axum's router sees the routes that were added before it: merge the login's routes
//! first, and add the layer of the app's sessions after that. Then the function that is asked for
//! the user finds the session among the extensions of the request's parts, as every extractor does.
//!
//! The guide has [attacks on a login](crate::guide::login_attacks) and how each one ends.
//!
//! # Who begins a login
//!
//! A login begins at once only where a page of the app asks for it, by `Sec-Fetch-Site` or, where a
//! browser does not send that, by the `Origin` of a form. Otherwise any page on the web could have
//! its visitors connected to an account of its own choice. Whoever comes from elsewhere, from a
//! mail, from a sign-in at another host or by a typed address sees a page with a button. Nothing
//! begins for a browser that prefetches a page, nor for a script that fetches it: `/hurdlr/connect`
//! is for links and forms.
//!
//! # Where a login is kept
//!
//! A login that has begun is kept in the browser that began it, encrypted and authenticated, in a
//! cookie of its own: so two tabs do not disturb each other, and no server has to remember
//! anything. The cookie is `HttpOnly` and `SameSite=Lax`, is good for 10 minutes, and is removed
//! when used; where the redirect URI is https it is `Secure` and its name begins with `__Host-`. It
//! binds state, PKCE verifier, user, the provider's settings, the time, and where to return. An
//! app's cookies are named by its redirect URI, so apps that share a host do not disturb each other
//! either.
//!
//! A callback is completed if it belongs to such a cookie, if the user of the request is the one
//! who began, and if the manager's [store](crate::store) sees its state for the first time. So a
//! login cannot be finished in another browser or by another user, and its code is sent once, by
//! whichever replica comes first.
//!
//! # The session of the app
//!
//! A session cookie under `SameSite=Strict` is absent when the provider sends the browser back. The
//! callback then answers with a page that loads itself again from the app's own site, once; so it
//! needs no JavaScript and works with either kind of session. That takes a browser that sends
//! `Sec-Fetch-Site`, as all do since 2023, and an app that answers `Err` for who is not signed in:
//! one that answers a guest's id instead gets [`FailureReason::OtherUser`].
//!
//! The callback's URL holds the code. This crate logs no URL; see that the app's own request log
//! writes paths and no queries. The code is of no use without the cookie, and only once with it.

mod config;
pub use config::LoginConfig;
use config::LoginRoutes;
mod connected_user;
pub use connected_user::{ConnectedUser, UserRejection};
mod cookie_key;
pub use cookie_key::CookieKey;
mod failure;
pub use failure::{FailureReason, LoginFailure};
mod login_cookie;
mod return_path;
mod routes;

use std::fmt;
use std::sync::Arc;

use axum::Router;

use crate::error::Error;
use crate::manager::TokenManager;

/// The login of an app's users: its [routes](Self::routes), and the state of the extractor
/// [`ConnectedUser`]. Cheap to clone.
#[derive(Clone)]
pub struct Login(Arc<LoginRoutes>);

impl Login {
    /// Validates the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) names the setting that cannot be used.
    pub fn new(manager: TokenManager, config: LoginConfig) -> Result<Self, Error> {
        Ok(Self(Arc::new(LoginRoutes::new(manager, config)?)))
    }

    /// The routes, to be merged into the app's router.
    ///
    /// | | |
    /// |---|---|
    /// | `GET` or `POST /hurdlr/connect` | begins a login, and sends the browser to the provider |
    /// | `GET` of the redirect URI's path | [completes](TokenManager::complete_login) it |
    /// | `POST /hurdlr/disconnect` | disconnects the user, for the app's own pages only |
    ///
    /// All of them end with a redirect to where the app wants the user to be, or with what the app
    /// shows of a [`LoginFailure`]. Every answer has `Cache-Control: no-store`. The callback's
    /// answers have `Referrer-Policy: no-referrer`, and the others' `same-origin`, since a form of
    /// a page under `no-referrer` would not name its origin.
    ///
    /// They can be nested where [`callback_path`](LoginConfig::callback_path) is set. Nested
    /// otherwise, they begin no login, since its callback would not arrive.
    pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        routes::router(Arc::clone(&self.0))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("manager", &self.0.managers[0])
            .field("connect_path", &self.0.connect_path)
            .field("callback_path", &self.0.callback_path)
            .finish_non_exhaustive()
    }
}

/// The [routes](Login::routes) alone, for an app that has no use for [`ConnectedUser`].
///
/// # Errors
///
/// [`ErrorKind::Config`](crate::ErrorKind::Config) names the setting that cannot be used.
pub fn login_routes<S>(manager: TokenManager, config: LoginConfig) -> Result<Router<S>, Error>
where
    S: Clone + Send + Sync + 'static,
{
    Ok(Login::new(manager, config)?.routes())
}
