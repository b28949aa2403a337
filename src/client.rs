//! `Hurdlr`: one call per grant.

mod builder;
pub use builder::HurdlrBuilder;
mod credentials;
use credentials::Credentials;
mod failure;
use failure::{Failure, Receipt};
pub(crate) mod login;
use login::{AuthorizationRequest, SettingsDigest};
pub use login::{Callback, PendingLogin};
mod operation;
use operation::{ClientCredentials, CodeExchange, Operation, Refresh, Revocation};
pub(crate) mod retry;
pub use retry::RetryPolicy;
use retry::{Attempts, FailureClass};
pub(crate) mod transport;
pub use transport::{HttpClient, HttpClientBuilder, HttpError};

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::AUTHORIZATION;
use oauth2::{
    AuthUrl, ClientId, ClientSecret, EndpointMaybeSet, EndpointNotSet, EndpointSet, RedirectUrl,
    RevocationUrl, TokenUrl,
};
use secrecy::{ExposeSecret, SecretString};
use tracing::{Instrument, field};
use url::Url;

use crate::clock::{SharedClock, millis};
use crate::error::{Error, ErrorKind};
use crate::rng::SharedRng;
use crate::token::{self, Token};
use crate::wire::basic::BasicClient;
use crate::wire::endpoint::{ApiVersion, Scope};
use crate::wire::realm::Realm;
use crate::wire::token_response::BasicTokenResponse;
use crate::wire::user::UserId;

/// A client of the provider's token endpoint: one call per grant.
///
/// Cloning is cheap and all clones share their connections. It is `Send + Sync`.
///
/// Dropping the future of a call abandons its request. For a refresh that is not safe, since the
/// provider may replace the refresh token and nobody would read the new one: let such a call
/// finish, in a task of its own, or use a [`TokenManager`](crate::TokenManager), which does.
///
/// ```
/// use hurdlr_oauth2::testing::FakeHurdlr;
/// use hurdlr_oauth2::{Hurdlr, PendingLogin, UserId};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fake = FakeHurdlr::start().await?;
/// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
///     .environment(fake.base_url())
///     .authorize_url(fake.authorize_url())
///     .redirect_uri("https://app.example.com/callback")
///     .build()?;
///
/// // client_credentials: a token for one of your users.
/// let token = hurdlr.client_credentials(&UserId::new("customer-4711")?).await?;
/// assert!(token.authorization_header().is_sensitive());
///
/// // authorization_code: a person logs in. While they are away, only their browser's next request
/// // may find `kept`: it belongs in their session, or in an encrypted cookie.
/// let (url, pending) = hurdlr.begin_login()?;
/// let kept = pending.to_secret();
/// let callback = fake.consent(&url, "ann").await?; // the URL their browser comes back to
/// let pending = PendingLogin::from_secret(&kept)?;
/// let login = hurdlr.complete_login(pending, &callback).await?;
///
/// // refresh_token: a new token without the person.
/// let newer = hurdlr.refresh(&login).await?;
/// assert!(!newer.is_expired());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Hurdlr(Arc<Inner>);

struct Inner {
    credentials: Credentials,
    version: ApiVersion,
    base_url: Url,
    token_url: Url,
    revocation_url: Option<Url>,
    scope: Option<Scope>,
    authorize_url: Option<Url>,
    redirect_uri: Option<String>,
    issuer: Option<String>,
    /// Cleared for good once the provider has shown that it wants none.
    bearer_on_refresh: AtomicBool,
    retry: RetryPolicy,
    clock: SharedClock,
    rng: SharedRng,
    request_timeout: Duration,
    http: HttpClient,
}

impl Hurdlr {
    /// Starts with the credentials the provider issued to your app.
    pub fn builder(client_id: impl Into<String>, client_secret: SecretString) -> HurdlrBuilder {
        HurdlrBuilder::new(client_id.into(), client_secret)
    }

    /// A client by the environment's variables; an error names the one at fault.
    ///
    /// The guide lists the variables beside their [settings](crate::guide::settings).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] names the variable or the setting that cannot be used.
    pub fn from_env() -> Result<Self, Error> {
        HurdlrBuilder::from_env()?.build()
    }

    /// The API version in use.
    #[must_use]
    pub fn api_version(&self) -> ApiVersion {
        self.0.version
    }

    /// The client id in use.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.0.credentials.client_id
    }

    /// Whether the API version in use can [revoke](Self::revoke) tokens.
    #[must_use]
    pub fn can_revoke(&self) -> bool {
        self.0.revocation_url.is_some()
    }

    /// The token endpoint in use.
    #[must_use]
    pub fn token_url(&self) -> &Url {
        &self.0.token_url
    }

    /// Gets a token for one of your users (RFC 6749 section 4.4, with the provider's `userId`).
    /// On v6 it comes without a refresh token, and is simply granted anew.
    ///
    /// Repeating it is harmless, so all that may be temporary is repeated by the
    /// [`RetryPolicy`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Rejected`] where the provider refuses the credentials or the user;
    /// [`ErrorKind::RateLimited`], [`ErrorKind::Unavailable`] and [`ErrorKind::TimedOut`] where a
    /// later call can succeed; [`ErrorKind::InvalidResponse`] for an answer that is no token.
    ///
    /// # Cancel safety
    ///
    /// A token that was granted by then is lost, and lives to its end. Asking again is harmless.
    pub async fn client_credentials(&self, user: &UserId) -> Result<Token, Error> {
        self.call(self.grant_operation(Some(user))?, None).await
    }

    /// Gets a token of the partner itself, which no user stands behind (RFC 6749 section 4.4). It
    /// is repeated as [`client_credentials`](Self::client_credentials) is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] on v4 and v5, which want a `userId`; else those of
    /// [`client_credentials`](Self::client_credentials).
    ///
    /// # Cancel safety
    ///
    /// Those of [`client_credentials`](Self::client_credentials).
    pub async fn partner_token(&self) -> Result<Token, Error> {
        self.call(self.grant_operation(None)?, None).await
    }

    /// Has the provider revoke a token (RFC 7009): its refresh token, and with that all access
    /// tokens of the same login; or the access token, where that is all there is. One that the
    /// provider does not know is revoked as well as any.
    ///
    /// Repeating it is harmless, so all that may be temporary is repeated by the
    /// [`RetryPolicy`].
    ///
    /// ```
    /// use hurdlr_oauth2::testing::FakeHurdlr;
    /// use hurdlr_oauth2::{ApiVersion, Hurdlr};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let fake = FakeHurdlr::start().await?;
    /// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
    ///     .environment(fake.base_url())
    ///     .api_version(ApiVersion::V6)
    ///     .build()?;
    ///
    /// let token = hurdlr.partner_token().await?;
    /// hurdlr.revoke(&token).await?;
    /// hurdlr.revoke(&token).await?; // as good as the first time
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] on v4 and v5, whose tokens live to their end;
    /// [`ErrorKind::Rejected`] where the provider refuses; else those that a later call can mend.
    ///
    /// # Cancel safety
    ///
    /// The token may be revoked or not. Asking again is harmless.
    pub async fn revoke(&self, token: &Token) -> Result<(), Error> {
        self.call(self.revocation_operation(token)?, None).await
    }

    fn unsupported(&self, what: &str) -> Error {
        let message = format!("API {} has no {what}", self.0.version);
        Error::new(ErrorKind::Unsupported, message)
    }

    /// Gets a new token by the refresh token of `token` (RFC 6749 section 6).
    ///
    /// The answer's token carries the old refresh token on where it brought no new one. Keep what
    /// comes back before anything else: the old refresh token may be dead by then, and with most
    /// servers the old access token, too. Calls that are on their way with it are then answered
    /// 401.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LoginRequired`] means that the refresh token is dead, or that there is none;
    /// [`ErrorKind::RotationLost`] that it died after an answer of this call went missing. Of an
    /// answer that is defective beside a usable refresh token, that one is in
    /// [`Error::rescued_refresh_token`]. The others are those of
    /// [`client_credentials`](Self::client_credentials).
    ///
    /// # Cancel safety
    ///
    /// **Not cancel safe**: the provider may have replaced the refresh token, and the answer that
    /// has the new one is lost. Spawn it, as [`TokenManager`](crate::manager) does.
    pub async fn refresh(&self, token: &Token) -> Result<Token, Error> {
        self.call(self.refresh_operation(token)?, None).await
    }

    /// Begins a login (RFC 6749 section 4.1 with PKCE S256): the URL to send the person to, and
    /// what to keep for their return. The login lasts 10 minutes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] where no authorize URL or redirect URI is set.
    ///
    /// ```
    /// use hurdlr_oauth2::Hurdlr;
    /// use hurdlr_oauth2::testing::FakeHurdlr;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let fake = FakeHurdlr::start().await?;
    /// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
    ///     .environment(fake.base_url())
    ///     .authorize_url(fake.authorize_url())
    ///     .redirect_uri("https://app.example.com/callback")
    ///     .build()?;
    ///
    /// let (url, pending) = hurdlr.begin_login()?;
    /// let kept = pending.to_secret(); // in the person's session, while they are away
    /// let callback = fake.consent(&url, "ann").await?; // they log in, and are sent back
    ///
    /// let pending = hurdlr_oauth2::PendingLogin::from_secret(&kept)?;
    /// let token = hurdlr.complete_login(pending, &callback).await?;
    /// assert!(token.refresh_token().is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn begin_login(&self) -> Result<(Url, PendingLogin), Error> {
        self.begin_login_with(std::iter::empty::<(&str, &str)>())
    }

    /// Like [`begin_login`](Self::begin_login), with more parameters in the URL, such as `prompt`
    /// or `login_hint`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] where no authorize URL or redirect URI is set, or where a parameter
    /// comes twice: `client_id`, `state` and the like are each login's own.
    ///
    /// ```
    /// # use hurdlr_oauth2::Hurdlr;
    /// # fn main() -> Result<(), hurdlr_oauth2::Error> {
    /// # let hurdlr = Hurdlr::builder("id", "secret".into())
    /// #     .environment("http://localhost:1")
    /// #     .authorize_url("https://connect.example.com/authorize")
    /// #     .redirect_uri("https://app.example.com/callback")
    /// #     .build()?;
    /// let more = [("prompt", "login"), ("login_hint", "ann@example.com")];
    /// let (url, pending) = hurdlr.begin_login_with(more)?;
    /// # assert!(url.as_str().ends_with("&prompt=login&login_hint=ann%40example.com"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn begin_login_with<K: Into<String>, V: Into<String>>(
        &self,
        more: impl IntoIterator<Item = (K, V)>,
    ) -> Result<(Url, PendingLogin), Error> {
        let inner = &*self.0;
        let authorize_url = inner.authorize_url.as_ref().ok_or_else(|| {
            Error::config("authorize_url (HURDLR_AUTHORIZE_URL) is not set: a login needs the provider's authorize URL")
        })?;
        let redirect_uri = inner.redirect_uri.as_ref().ok_or_else(|| {
            Error::config("redirect_uri (HURDLR_REDIRECT_URI) is not set: a login needs the URL of your callback")
        })?;
        let request = AuthorizationRequest {
            client_id: &inner.credentials.client_id,
            authorize_url,
            redirect_uri,
            scope: inner.scope,
            settings: self.login_settings(),
        };
        PendingLogin::begin(&request, more, inner.clock.now())
    }

    /// Identifies the settings that a login depends on.
    pub(crate) fn login_settings(&self) -> SettingsDigest {
        let redirect_uri = self.0.redirect_uri.as_deref().unwrap_or_default();
        SettingsDigest::new(&self.realm(), redirect_uri, self.0.issuer.as_deref())
    }

    /// Completes a login: verifies the callback and exchanges its code for a token.
    ///
    /// A code is sent once only: where its answer goes missing, the person has to begin again. With
    /// a manager use [`TokenManager::complete_login`](crate::TokenManager::complete_login), which
    /// also keeps a code from being sent twice.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidCallback`] where the callback must not be accepted; its
    /// [`callback_problem`](Error::callback_problem) says why, and nothing is sent then. Otherwise
    /// those of a grant.
    ///
    /// # Cancel safety
    ///
    /// **Not cancel safe**: the code may be spent, and the token that it brought is lost. Spawn it,
    /// as [`TokenManager`](crate::manager) does.
    pub async fn complete_login(
        &self,
        pending: PendingLogin,
        callback: impl Into<Callback>,
    ) -> Result<Token, Error> {
        let Inner { token_url: url, scope, .. } = &*self.0;
        let (settings, now) = (self.login_settings(), self.0.clock.now());
        let verified = pending.verify(&callback.into(), settings, self.0.issuer.as_deref(), now)?;
        let redirect_uri = self.0.redirect_uri.as_deref().unwrap_or_default();
        self.call(CodeExchange { url, verified, redirect_uri, scope: *scope }, None).await
    }

    /// Takes over a token object that was handed out elsewhere, as JSON: a bare one, or an answer
    /// that holds it as `oAuth`, as the registration of a user does.
    ///
    /// Its age is judged by this machine's clock, for want of another. One that is older than its
    /// span is expired if it can be refreshed, and else has the benefit of the doubt.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidResponse`] for what is no token.
    pub fn import(&self, json: impl AsRef<[u8]>) -> Result<Token, Error> {
        token::read_imported(json.as_ref()).map(|answer| self.import_response(answer))
    }

    /// Takes over the answer of a [`BasicClient`](crate::basic::BasicClient), for apps that move
    /// from there.
    #[must_use]
    pub fn import_response(&self, answer: BasicTokenResponse) -> Token {
        Token::imported(answer, &self.0.clock)
    }

    /// A client of `oauth2` with the settings of this one: for a part of an app that stays with
    /// `oauth2`.
    ///
    /// It has the credentials, the token URL and the auth type; the revocation URL where the API
    /// version has one; and the authorize URL and the redirect URI where they are set. The secret
    /// is copied into a type of `oauth2`, which does not wipe it.
    ///
    /// ```
    /// use hurdlr_oauth2::Hurdlr;
    /// use oauth2::CsrfToken;
    ///
    /// let hurdlr = Hurdlr::builder("my-app", "its secret".into())
    ///     .environment("http://localhost:8080")
    ///     .authorize_url("https://connect.example.com/authorize")
    ///     .redirect_uri("https://app.example.com/callback")
    ///     .build()?;
    ///
    /// let client = hurdlr.basic_client();
    /// let (url, _state) = client.authorize_url(CsrfToken::new_random)?.url();
    /// assert!(url.as_str().contains("app.example.com"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn basic_client(
        &self,
    ) -> BasicClient<EndpointMaybeSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointSet>
    {
        let inner = &*self.0;
        let client_secret = inner.credentials.client_secret.expose_secret().to_owned();
        let client = BasicClient::new(ClientId::new(inner.credentials.client_id.clone()))
            .set_client_secret(ClientSecret::new(client_secret))
            .set_auth_type(inner.version.auth_type())
            .set_token_uri(TokenUrl::from_url(inner.token_url.clone()))
            .set_auth_uri_option(inner.authorize_url.clone().map(AuthUrl::from_url))
            .set_revocation_url_option(inner.revocation_url.clone().map(RevocationUrl::from_url));
        // The builder has found that it is a URL.
        match inner.redirect_uri.clone().map(RedirectUrl::new) {
            Some(Ok(redirect_uri)) => client.set_redirect_uri(redirect_uri),
            Some(Err(_)) | None => client,
        }
    }

    #[cfg(feature = "axum")]
    pub(crate) fn redirect_uri(&self) -> Option<&str> {
        self.0.redirect_uri.as_deref()
    }

    pub(crate) fn clock(&self) -> &SharedClock {
        &self.0.clock
    }

    pub(crate) fn rng(&self) -> &SharedRng {
        &self.0.rng
    }

    /// The part that the keys of this client's users in a [store](crate::store) have in common.
    #[must_use]
    pub fn realm(&self) -> Realm {
        Realm::new(self.0.version, self.0.base_url.as_str(), self.0.credentials.client_id.as_str())
    }

    /// A grant for [`call`](Self::call), to a user or to the partner itself:
    /// [`ErrorKind::Unsupported`] where the version has none for the partner.
    pub(crate) fn grant_operation<'a>(
        &'a self,
        user: Option<&'a UserId>,
    ) -> Result<ClientCredentials<'a>, Error> {
        let inner = &*self.0;
        if user.is_none() && inner.version.contract().user_id_required {
            return Err(self.unsupported("tokens of the partner itself"));
        }
        Ok(ClientCredentials { url: &inner.token_url, user, scope: inner.scope })
    }

    /// A refresh for [`call`](Self::call): [`ErrorKind::LoginRequired`] without a refresh token.
    pub(crate) fn refresh_operation<'a>(&'a self, token: &'a Token) -> Result<Refresh<'a>, Error> {
        let refresh_token = token.refresh_token().ok_or_else(|| {
            Error::new(ErrorKind::LoginRequired, "the token came without a refresh token")
        })?;
        // Relaxed, since nothing else depends on it: one more refresh with the header is refused,
        // and repeated without.
        let carries_bearer = self.0.bearer_on_refresh.load(Ordering::Relaxed);
        Ok(Refresh { url: &self.0.token_url, token, refresh_token, carries_bearer })
    }

    /// A revocation for [`call`](Self::call): [`ErrorKind::Unsupported`] where the version has
    /// none.
    pub(crate) fn revocation_operation<'a>(
        &'a self,
        token: &'a Token,
    ) -> Result<Revocation<'a>, Error> {
        let url = self.0.revocation_url.as_ref().ok_or_else(|| self.unsupported("revocation"))?;
        // The hints of RFC 7009 section 2.1.
        let (token, hint) = match token.refresh_token() {
            Some(refresh_token) => (refresh_token, "refresh_token"),
            None => (token.access_token(), "access_token"),
        };
        Ok(Revocation { url, token, hint })
    }

    /// Sends a request until it succeeds or must not be sent again, and until `deadline` at the
    /// latest.
    ///
    /// With a deadline, which a manager has, a pause that the provider names is not waited for: the
    /// manager does it for all processes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the request, whose answer may hold the only refresh token that
    /// lives.
    pub(crate) async fn call<O: Operation>(
        &self,
        mut operation: O,
        deadline: Option<Duration>,
    ) -> Result<O::Output, Error> {
        let inner = &*self.0;
        let started = inner.clock.now();
        let mut attempts = Attempts::new(&inner.retry, &inner.rng, O::TYPE, deadline);
        let mut last: Option<Failure> = None;
        loop {
            let elapsed = inner.clock.now().since(started);
            let Some(left) = attempts.begin(elapsed) else {
                return Err(last.unwrap_or_else(Failure::out_of_time).into_error(&attempts));
            };
            let failure = match self.call_once(&operation, attempts.sent(), left).await {
                Ok(output) => {
                    if last.as_ref().is_some_and(Failure::is_second_proof) {
                        // Relaxed, as where it is read.
                        inner.bearer_on_refresh.store(false, Ordering::Relaxed);
                    }
                    return Ok(output);
                }
                Err(failure) => failure,
            };
            let elapsed = inner.clock.now().since(started);
            let pause = failure.error.retry_after();
            let Some(delay) = attempts.next_delay(failure.class, pause, elapsed) else {
                return Err(failure.into_error(&attempts));
            };
            let (error, delay_ms) = (failure.error.for_log(), millis(delay));
            tracing::debug!(%error, delay_ms, "retrying");
            if !delay.is_zero() {
                inner.clock.sleep(delay).await;
            }
            if failure.class == FailureClass::RetryWithoutBearer {
                operation.drop_bearer();
            }
            last = Some(failure);
        }
    }

    /// Sends a request once, within a span that names everything but the secrets.
    async fn call_once<O: Operation>(
        &self,
        operation: &O,
        attempt: u32,
        left: Duration,
    ) -> Result<O::Output, Failure> {
        let span = tracing::debug_span!(
            "token_request",
            grant = O::TYPE.name(),
            user = operation.user().map(field::debug),
            attempt,
            status = field::Empty,
            duration_ms = field::Empty,
        );
        let inner = &*self.0;
        let sent_at = inner.clock.now();
        async {
            let form = inner.credentials.form(operation.fields(), operation.bearer());
            let authorization = form.headers.get(AUTHORIZATION).cloned();
            let limit = left.min(inner.request_timeout);
            let answer = inner.http.post(operation.url().clone(), form, limit).await;
            let now = inner.clock.now();
            let span = tracing::Span::current();
            span.record("duration_ms", now.millis_since(sent_at));
            if let Ok(answer) = &answer {
                span.record("status", answer.status.as_u16());
            }
            let mut secrets = operation.secrets();
            secrets.push(inner.credentials.client_secret.expose_secret());
            let authorization = authorization.as_ref().and_then(|value| value.to_str().ok());
            // Behind its scheme.
            secrets.extend(authorization.and_then(|text| Some(text.split_once(' ')?.1)));
            let receipt = Receipt {
                request: O::TYPE,
                carried_bearer: operation.bearer().is_some(),
                secrets: &secrets,
                sent_at,
                now,
                clock: &inner.clock,
            };
            let output =
                answer.map_err(failure::unsent).and_then(|answer| operation.read(answer, &receipt));
            if let Err(failure) = &output {
                tracing::debug!(error = %failure.error.for_log(), "the request failed");
            }
            output
        }
        .instrument(span)
        .await
    }
}

impl fmt::Debug for Hurdlr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hurdlr")
            .field("client_id", &self.client_id())
            .field("version", &self.0.version)
            .field("token_url", &self.0.token_url.as_str())
            .finish_non_exhaustive()
    }
}
