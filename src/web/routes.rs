//! The three routes: connect, callback, disconnect.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{NestedPath, Request, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use futures_util::future::join_all;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, ORIGIN, REFERRER_POLICY, SET_COOKIE,
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use tracing::field;

use super::config::LoginRoutes;
use super::failure::{FailureReason, LoginFailure, PAGE_POLICY, connect_link};
use super::login_cookie::LoginCookie;
use super::return_path::{ReturnPath, decoded};
use crate::client::login::{Callback, PendingLogin};
use crate::error::{CallbackProblem, Error};
use crate::manager::TokenManager;
use crate::wire::user::UserId;

/// The longest query that is read, in bytes. Codes of a few kilobytes have been seen.
const MAX_QUERY: usize = 16 * 1024;

/// The longest wait for the token of a user whose login failed.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn router<S: Clone + Send + Sync + 'static>(routes: Arc<LoginRoutes>) -> Router<S> {
    let connect = async |State(site), request| guarded(connect(site, request).await, FORM);
    let callback = async |State(site), request| guarded(callback(site, request).await, CODE);
    let disconnect = async |State(site), request| guarded(disconnect(site, request).await, FORM);
    // axum answers HEAD by the handler of GET. Link checkers send it, and it must do nothing.
    let get_or_post = async || not_allowed("GET, POST", FORM);
    let get_only = async || not_allowed("GET", CODE);
    let post_only = async || not_allowed("POST", FORM);
    Router::new()
        .route(
            &routes.connect_path,
            get(connect).post(connect).head(get_or_post).fallback(get_or_post),
        )
        .route(&routes.callback_path, get(callback).head(get_only).fallback(get_only))
        .route(&routes.disconnect_path, post(disconnect).fallback(post_only))
        .with_state(routes)
}

/// The referrer policy of a page with a form. Under `no-referrer` browsers send `Origin: null` with
/// it, and some send nothing else that tells an own page.
pub(super) const FORM: &str = "same-origin";

/// The referrer policy of a page whose URL holds a code.
const CODE: &str = "no-referrer";

fn not_allowed(methods: &'static str, referrer_policy: &'static str) -> Response {
    let response = (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, methods)]).into_response();
    guarded(response, referrer_policy)
}

/// Keeps a login out of caches, and its URLs out of `Referer` headers.
pub(super) fn guarded(mut response: Response, referrer_policy: &'static str) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static(referrer_policy));
    response
}

async fn connect(site: Arc<LoginRoutes>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let return_to = site.return_path(&parts.uri);
    if is_speculative(&parts.headers) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if !is_from_own_page(&parts.headers, &site.origin) {
        return site.login_failed(FailureReason::Unconfirmed, None, return_to).await;
    }
    if let Some(error) = parts.extensions.get().and_then(|nest| site.misplaced(nest)) {
        return site.login_failed(error.into(), None, return_to).await;
    }
    let headers = parts.headers.clone();
    let user = match (site.users)(parts).await {
        Ok(user) => user,
        Err(response) => return response,
    };
    let params = (site.authorize_params)(&user);
    match site.managers[0].hurdlr().begin_login_with(params) {
        Ok((url, login)) => {
            let cookies = site.cookies.keep(&headers, &LoginCookie { login, user, return_to });
            let mut response = Redirect::to(url.as_str()).into_response();
            response.headers_mut().extend(cookies.into_iter().map(|cookie| (SET_COOKIE, cookie)));
            response
        }
        Err(error) => site.login_failed(error.into(), Some(user), return_to).await,
    }
}

async fn callback(site: Arc<LoginRoutes>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    if is_speculative(&parts.headers) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let callback = site.read_callback(&parts.uri).map(|(callback, cookie)| {
        let found = site.cookies.find(&parts.headers, &cookie);
        (callback, cookie, found)
    });
    let is_cross_site = is_cross_site(&parts.headers);
    let user = match (site.users)(parts).await {
        Ok(user) => user,
        Err(_) if is_cross_site => return same_site_reload(),
        Err(response) => return response,
    };
    let (callback, cookie, found) = match callback {
        Ok(callback) => callback,
        Err(reason) => return site.login_failed(reason, Some(user), site.return_to.clone()).await,
    };
    let is_found = found.is_some();
    let (outcome, return_to) = match found {
        None => (Err(FailureReason::NotBegunHere), None),
        Some(Err(error)) => (Err(error.into()), None),
        // The destination is the first user's business.
        Some(Ok(found)) if found.user != user => (Err(FailureReason::OtherUser), None),
        Some(Ok(LoginCookie { login, return_to, .. })) => {
            (site.complete(&user, login, callback).await, Some(return_to))
        }
    };
    let is_over = is_found
        && match &outcome {
            // Another user's login is left to the one who began it.
            Err(FailureReason::OtherUser) => false,
            // Nothing was redeemed: this replica has other settings, its store failed, or it is
            // shutting down. The callback may be loaded again, from another replica.
            Err(FailureReason::Failed(error)) => {
                let is_foreign = error.callback_problem() == Some(CallbackProblem::OtherSettings);
                let is_unsent = error.is_temporary() && error.attempts() == 0;
                !(is_foreign || is_unsent)
            }
            _ => true,
        };
    let return_to = return_to.unwrap_or_else(|| site.return_to.clone());
    let mut response = match outcome {
        Ok(()) => Redirect::to(return_to.as_str()).into_response(),
        Err(reason) => site.login_failed(reason, Some(user), return_to).await,
    };
    if let Some(removal) = is_over.then(|| site.cookies.removal(&cookie)).flatten() {
        response.headers_mut().append(SET_COOKIE, removal);
    }
    response
}

async fn disconnect(site: Arc<LoginRoutes>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let return_to = site.return_path(&parts.uri);
    if !is_from_own_page(&parts.headers, &site.origin) {
        tracing::info!("refused a disconnect that no page of the app asked for");
        return site.failed(FailureReason::CrossSite, None, return_to).await;
    }
    let user = match (site.users)(parts).await {
        Ok(user) => user,
        Err(response) => return response,
    };
    // All at once: each waits for the provider, and a browser that goes away meanwhile must not
    // leave the user connected at the next one.
    let users = site.managers.iter().map(|manager| manager.user(&user));
    let outcomes = join_all(users.map(async |user| user.disconnect().await)).await;
    match outcomes.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(_) => Redirect::to(return_to.as_str()).into_response(),
        Err(error) => {
            tracing::warn!(?user, error = %error.for_log(), "could not disconnect a user");
            site.failed(error.into(), Some(user), return_to).await
        }
    }
}

/// Loads the callback again from the app's own site, where the browser sends a session under
/// `SameSite=Strict`. A redirect would not do: it counts as the other site's. The page does not
/// name its own URL, since that holds the code.
fn same_site_reload() -> Response {
    const PAGE: &str = include_str!("reload.html");
    let policy = HeaderValue::from_static(PAGE_POLICY);
    ([(CONTENT_SECURITY_POLICY, policy)], Html(PAGE)).into_response()
}

/// Whether the browser says that another site sent it here. After the reload it says that the app
/// did.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site");
    site.is_some_and(|site| site == "cross-site" || site == "same-site")
}

/// Whether a page of the app made the request, by a header that no page can write into one:
/// `Sec-Fetch-Site` or, where a browser does not send that, `Origin`.
fn is_from_own_page(headers: &HeaderMap, origin: &str) -> bool {
    let says = |name, value: &str| {
        let mut values = headers.get_all(name).iter().peekable();
        values.peek().is_some() && values.all(|it| it == value)
    };
    if headers.contains_key("sec-fetch-site") {
        says("sec-fetch-site", "same-origin")
    } else {
        says(ORIGIN.as_str(), origin)
    }
}

/// Whether nobody is about to see the answer: a browser prefetches or prerenders the page, or a
/// script fetches it. The answer to such a request is an error without a page, so that a browser
/// that comes to need the page asks again.
fn is_speculative(headers: &HeaderMap) -> bool {
    // The last four are those of older browsers and of scripts, which cannot write the first.
    const PURPOSES: [&str; 5] = ["sec-purpose", "purpose", "x-purpose", "x-sec-purpose", "x-moz"];
    let is_early = |value: &HeaderValue| {
        let value = value.as_bytes();
        value.starts_with(b"prefetch") || value.starts_with(b"preview")
    };
    let mode = headers.get("sec-fetch-mode");
    PURPOSES.iter().any(|name| headers.get_all(*name).iter().any(is_early))
        || mode.is_some_and(|mode| mode != "navigate")
}

impl LoginRoutes {
    /// The manager that a login began with completes it.
    async fn complete(
        &self,
        user: &UserId,
        login: PendingLogin,
        callback: Callback,
    ) -> Result<(), FailureReason> {
        let is_its_own = |it: &&TokenManager| it.hurdlr().login_settings() == login.settings();
        let Some(manager) = self.managers.iter().find(is_its_own) else {
            return Err(Error::callback(CallbackProblem::OtherSettings).into());
        };
        if manager.complete_login(user, login, callback).await? {
            Ok(())
        } else {
            Err(FailureReason::AlreadyUsed)
        }
    }

    /// A callback, and the name of the cookie it belongs to.
    fn read_callback(&self, uri: &Uri) -> Result<(Callback, String), FailureReason> {
        let query = uri.query().unwrap_or_default();
        if query.len() > MAX_QUERY {
            return Err(FailureReason::TooLong);
        }
        let callback = Callback::from_pairs(url::form_urlencoded::parse(query.as_bytes()));
        let cookie = self.cookies.name(callback.state()?);
        Ok((callback, cookie))
    }

    /// The destination that the request names, if a user may be sent there, or the default.
    fn return_path(&self, uri: &Uri) -> ReturnPath {
        let query = uri.query().filter(|query| query.len() <= MAX_QUERY);
        let mut pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let asked = pairs.find(|(name, _)| name == "return_to");
        let path = asked.and_then(|(_, text)| ReturnPath::parse(&text)?.below(&self.prefix));
        path.filter(|path| !self.is_login_route(path)).unwrap_or_else(|| self.return_to.clone())
    }

    /// Returning to one of the login routes would loop, be it once a proxy has decoded the path.
    fn is_login_route(&self, target: &ReturnPath) -> bool {
        let path = decoded(target.path());
        [&self.connect_path, &self.callback_path, &self.disconnect_path]
            .into_iter()
            .any(|route| path == decoded(&[&*self.prefix, route].concat()))
    }

    /// The routes are nested, and the redirect URI leads elsewhere.
    fn misplaced(&self, nest: &NestedPath) -> Option<Error> {
        let nest = nest.as_str().trim_end_matches('/');
        (!self.prefix.ends_with(nest)).then(|| {
            Error::config(format!(
                "the login routes are nested at {nest}, so that their callback is at {nest}{}: set \
                 callback_path to the path of redirect_uri without that prefix",
                self.callback_path
            ))
        })
    }

    /// The link of a login with that destination, as the browser sees it.
    pub(super) fn connect_link(&self, return_to: &ReturnPath) -> String {
        connect_link(&[&*self.prefix, &self.connect_path].concat(), return_to)
    }

    /// Logs why a login was not begun or completed, and shows it.
    async fn login_failed(
        &self,
        reason: FailureReason,
        user: Option<UserId>,
        return_to: ReturnPath,
    ) -> Response {
        let (text, user_for_log) = (reason.for_log(), user.as_ref().map(field::debug));
        match reason {
            FailureReason::Unconfirmed => tracing::debug!("asking whether to begin a login"),
            _ if reason.is_site_fault() => {
                tracing::warn!(
                    user = user_for_log,
                    reason = text,
                    "a login was not completed: this site's settings have to change"
                );
            }
            _ => tracing::info!(user = user_for_log, reason = text, "a login was not completed"),
        }
        self.failed(reason, user, return_to).await
    }

    async fn failed(
        &self,
        reason: FailureReason,
        user: Option<UserId>,
        return_to: ReturnPath,
    ) -> Response {
        let is_connected = match &user {
            Some(user) => self.is_connected(user).await,
            None => false,
        };
        let try_again = self.connect_link(&return_to);
        let failure = LoginFailure::new(reason, user, is_connected, return_to, try_again);
        (self.on_failure)(failure).await
    }

    /// Whether the user has a token all the same.
    async fn is_connected(&self, user: &UserId) -> bool {
        for manager in &self.managers {
            if manager.user(user).token_timeout(TOKEN_TIMEOUT).await.is_ok() {
                return true;
            }
        }
        false
    }
}
