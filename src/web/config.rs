//! What the app decides about its logins.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use axum_extra::extract::cookie::Key;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::request::Parts;
use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest, Sha256};

use super::failure::LoginFailure;
use super::pending;
use super::return_target::{self, ReturnTarget};
use crate::endpoint::secret_bearing_url;
use crate::error::Error;
use crate::manager::TokenManager;
use crate::user::UserId;

type Eventually<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Users = dyn Fn(Parts) -> Eventually<Result<UserId, Response>> + Send + Sync;
type OnFailure = dyn Fn(LoginFailure) -> Eventually<Response> + Send + Sync;

/// The settings of [`login_routes`](super::login_routes), which judges them.
#[derive(Clone)]
#[must_use]
pub struct LoginConfig {
    keys: Vec<SecretSlice<u8>>,
    users: Arc<Users>,
    on_failure: Arc<OnFailure>,
    return_to: String,
    connect_path: String,
    callback_path: Option<String>,
    disconnect_path: String,
}

impl LoginConfig {
    /// Starts with the key for the cookies, of at least 64 random bytes and the same in all
    /// replicas; and with the one question: who is the user of this request?
    ///
    /// `users` looks at the parts of the request, as an extractor does. Where nobody is signed in,
    /// its own answer is what the browser gets, such as a redirect to the app's sign-in page. In an
    /// app that has an extractor:
    ///
    /// ```
    /// # use axum::extract::FromRequestParts;
    /// # use axum::response::Redirect;
    /// # use http::request::Parts;
    /// # use hurdlr_oauth2::web::LoginConfig;
    /// # use hurdlr_oauth2::{UserId, secrecy::SecretSlice};
    /// # #[derive(Clone)]
    /// # struct AppState;
    /// # struct SignedIn(UserId);
    /// # impl FromRequestParts<AppState> for SignedIn {
    /// #     type Rejection = Redirect;
    /// #     async fn from_request_parts(_: &mut Parts, _: &AppState) -> Result<Self, Redirect> {
    /// #         Err(Redirect::to("/sign-in"))
    /// #     }
    /// # }
    /// # fn config(cookie_key: SecretSlice<u8>, state: AppState) -> LoginConfig {
    /// LoginConfig::new(cookie_key, move |mut parts| {
    ///     let state = state.clone();
    ///     async move {
    ///         SignedIn::from_request_parts(&mut parts, &state).await.map(|SignedIn(user)| user)
    ///     }
    /// })
    /// # }
    /// ```
    pub fn new<F, R>(
        key: SecretSlice<u8>,
        users: impl Fn(Parts) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<UserId, R>> + Send + 'static,
        R: IntoResponse,
    {
        Self {
            keys: vec![key],
            users: Arc::new(move |parts| {
                let user = users(parts);
                Box::pin(async { user.await.map_err(IntoResponse::into_response) })
            }),
            on_failure: Arc::new(|failure| Box::pin(async { failure.into_response() })),
            return_to: "/".into(),
            connect_path: "/hurdlr/connect".into(),
            callback_path: None,
            disconnect_path: "/hurdlr/disconnect".into(),
        }
    }

    /// A former key, by which cookies are still read and none are made. To change keys, add the new
    /// one here on all replicas, then make it the first, and 10 minutes later drop the old one.
    pub fn other_key(mut self, key: SecretSlice<u8>) -> Self {
        self.keys.push(key);
        self
    }

    /// Where a user is sent afterwards if the request named no usable `return_to`; `/` by default.
    ///
    /// This one and those of requests are a path of the app, with a query if need be, of at most
    /// 256 bytes, and in the form that a browser would make of it.
    pub fn return_to(mut self, path: impl Into<String>) -> Self {
        self.return_to = path.into();
        self
    }

    /// Where a login begins; `/hurdlr/connect` by default.
    pub fn connect_path(mut self, path: impl Into<String>) -> Self {
        self.connect_path = path.into();
        self
    }

    /// Where the app sees the callback; by default the path of the
    /// [redirect URI](crate::HurdlrBuilder::redirect_uri). Set it where a proxy changes paths on the
    /// way.
    pub fn callback_path(mut self, path: impl Into<String>) -> Self {
        self.callback_path = Some(path.into());
        self
    }

    /// Where a user is forgotten; `/hurdlr/disconnect` by default.
    pub fn disconnect_path(mut self, path: impl Into<String>) -> Self {
        self.disconnect_path = path.into();
        self
    }

    /// What is shown when a login fails. By default that is a small page, which can be had here as
    /// well, since a [`LoginFailure`] is a response:
    ///
    /// ```
    /// # use axum::response::{IntoResponse, Redirect, Response};
    /// # use hurdlr_oauth2::web::{FailureReason, LoginConfig, LoginFailure};
    /// # fn show(config: LoginConfig) -> LoginConfig {
    /// config.on_failure(async |failure: LoginFailure| match failure.reason() {
    ///     FailureReason::OtherUser => Redirect::to("/switch-user").into_response(),
    ///     _ => failure.into_response(),
    /// })
    /// # }
    /// ```
    pub fn on_failure<F, R>(
        mut self,
        show: impl Fn(LoginFailure) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = R> + Send + 'static,
        R: IntoResponse,
    {
        self.on_failure = Arc::new(move |failure| {
            let shown = show(failure);
            Box::pin(async { shown.await.into_response() })
        });
        self
    }
}

impl fmt::Debug for LoginConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginConfig")
            .field("keys", &self.keys.len())
            .field("return_to", &self.return_to)
            .field("connect_path", &self.connect_path)
            .field("callback_path", &self.callback_path)
            .field("disconnect_path", &self.disconnect_path)
            .finish_non_exhaustive()
    }
}

/// The settings, judged, with the manager they are for.
pub(super) struct Login {
    pub(super) manager: TokenManager,
    /// The first encrypts; all decrypt.
    pub(super) keys: Vec<Key>,
    pub(super) users: Arc<Users>,
    pub(super) on_failure: Arc<OnFailure>,
    pub(super) return_to: ReturnTarget,
    pub(super) connect_path: String,
    pub(super) callback_path: String,
    pub(super) disconnect_path: String,
    pub(super) redirect_uri: String,
    /// The app's own, by its redirect URI: what a proxy in front makes of a request says little.
    pub(super) origin: String,
    /// Whether the browser reaches the app by https.
    pub(super) is_https: bool,
    pub(super) end_of_cookie: String,
    /// A digest of all settings of the provider that a login depends on, in base64.
    pub(super) settings: String,
}

impl Login {
    pub(super) fn judged(manager: TokenManager, config: LoginConfig) -> Result<Self, Error> {
        let hurdlr = manager.hurdlr();
        hurdlr.begin_login()?; // which judges what it needs
        let redirect_uri = hurdlr.redirect_uri().unwrap_or_default().to_owned();
        let redirect = secret_bearing_url("redirect_uri", &redirect_uri)?;
        let callback_path = config.callback_path.unwrap_or_else(|| redirect.path().to_owned());
        let paths = [
            ("connect_path", &config.connect_path),
            ("callback_path", &callback_path),
            ("disconnect_path", &config.disconnect_path),
        ];
        for (setting, path) in paths {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%".contains(&byte);
            if !path.starts_with('/') || !path.bytes().all(plain) {
                return Err(Error::config(format!(
                    "{setting} is {path:?}: it must be a plain path, such as /hurdlr/connect"
                )));
            }
            if paths.iter().any(|(other, same)| *other != setting && *same == path) {
                return Err(Error::config(format!("{setting} is {path:?}, as another path is")));
            }
        }
        let return_to = return_target::read(&config.return_to).ok_or_else(|| {
            Error::config(format!(
                "return_to is {:?}: it must be a path of the app, of at most {} bytes",
                config.return_to,
                return_target::MAX_BYTES
            ))
        })?;
        let keys = config.keys.iter().map(|key| {
            let key = key.expose_secret();
            Key::try_from(key).map_err(|_| {
                Error::config(format!(
                    "a cookie key has {} bytes: it needs 64 random ones",
                    key.len()
                ))
            })
        });
        let keys = keys.collect::<Result<_, _>>()?;
        let settings = Sha256::digest(format!(
            "{:?}\n{redirect_uri}\n{}",
            hurdlr.realm(),
            hurdlr.issuer().unwrap_or_default(),
        ));
        let is_https = redirect.scheme() == "https";
        Ok(Self {
            keys,
            users: config.users,
            on_failure: config.on_failure,
            return_to,
            connect_path: config.connect_path,
            callback_path,
            disconnect_path: config.disconnect_path,
            origin: redirect.origin().ascii_serialization(),
            is_https,
            end_of_cookie: pending::end_of_cookie(is_https),
            redirect_uri,
            settings: BASE64_URL_SAFE_NO_PAD.encode(settings),
            manager,
        })
    }
}
