//! The three routes, each with what it answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, ORIGIN, REFERRER_POLICY, SET_COOKIE,
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use tokio::runtime::Handle;
use tracing::Instrument;

use super::config::Login;
use super::failure::{FailureReason, LoginFailure, PAGE_POLICY};
use super::pending::Begun;
use super::return_target::{self, ReturnTarget};
use crate::login::Callback;
use crate::user::UserId;

/// How much of a callback is looked at. Codes of a few kilobytes have been seen.
const LONGEST_QUERY: usize = 16 * 1024;

pub(super) fn of<S: Clone + Send + Sync + 'static>(login: Login) -> Router<S> {
    let login = Arc::new(login);
    // A GET does something here. A HEAD, as link checkers send it, must not.
    let get_alone = async || not_allowed("GET");
    let post_alone = async || not_allowed("POST");
    let connect = async |State(site), request| guarded(connect(site, request).await);
    let callback = async |State(site), request| guarded(callback(site, request).await);
    let disconnect = async |State(site), request| guarded(disconnect(site, request).await);
    Router::new()
        .route(&login.connect_path, get(connect).head(get_alone).fallback(get_alone))
        .route(&login.callback_path, get(callback).head(get_alone).fallback(get_alone))
        .route(&login.disconnect_path, post(disconnect).fallback(post_alone))
        .with_state(login)
}

fn not_allowed(method: &'static str) -> Response {
    guarded((StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, method)]).into_response())
}

/// Nothing of a login stays in a cache, and its URLs, which hold a code, go nowhere as `Referer`.
fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

async fn connect(site: Arc<Login>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let return_to = site.return_target(&parts.uri);
    let headers = parts.headers.clone();
    let user = match (site.users)(parts).await {
        Ok(user) => user,
        Err(response) => return response,
    };
    match site.manager.hurdlr().begin_login() {
        Ok((url, login)) => {
            let (ended, kept) = site.keep(&headers, &Begun { login, user, return_to });
            let mut response = (kept, Redirect::to(url.as_str())).into_response();
            for cookie in ended {
                response.headers_mut().append(SET_COOKIE, cookie);
            }
            response
        }
        Err(error) => site.failed(error.into(), Some(user), return_to).await,
    }
}

async fn callback(site: Arc<Login>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let callback = site.read(&parts.uri).map(|(callback, cookie)| {
        let begun = site.find(&parts.headers, &cookie);
        (callback, cookie, begun)
    });
    let came_from_elsewhere = came_from_elsewhere(&parts.headers);
    let user = match (site.users)(parts).await {
        Ok(user) => user,
        Err(_) if came_from_elsewhere => return bounce(),
        Err(response) => return response,
    };
    let (callback, cookie, begun) = match callback {
        Ok(callback) => callback,
        Err(reason) => return site.failed(reason, Some(user), site.return_to.clone()).await,
    };
    let is_there = begun.is_some();
    let begun = begun.unwrap_or(Err(FailureReason::NotBegunHere));
    let return_to = begun.as_ref().map_or(&site.return_to, |begun| &begun.return_to).clone();
    let outcome = match begun {
        Ok(begun) if begun.user != user => Err(FailureReason::OtherUser),
        Ok(Begun { login, user, .. }) => {
            // The state is redeemed before its code is sent, once across all processes.
            let manager = site.manager.clone();
            Unstoppable::new(async move {
                if !manager.redeem(&login).await? {
                    return Err(FailureReason::AlreadyUsed);
                }
                let token = manager.hurdlr().complete_login(login, callback).await?;
                manager.adopt_uncancellable(&user, token)?.await;
                Ok(())
            })
            .await
        }
        Err(reason) => Err(reason),
    };
    // Another user's is left to the one who began.
    let is_over = is_there && !matches!(outcome, Err(FailureReason::OtherUser));
    let mut response = match outcome {
        Ok(()) => Redirect::to(return_to.as_str()).into_response(),
        Err(reason) => site.failed(reason, Some(user), return_to).await,
    };
    if let Some(end) = is_over.then(|| site.end(&cookie)).flatten() {
        response.headers_mut().append(SET_COOKIE, end);
    }
    response
}

async fn disconnect(site: Arc<Login>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let return_to = site.return_target(&parts.uri);
    if !is_of_our_page(&parts.headers, &site.origin) {
        return site.failed(FailureReason::CrossSite, None, return_to).await;
    }
    let user = match (site.users)(parts).await {
        Ok(user) => user,
        Err(response) => return response,
    };
    match site.manager.user(&user).disconnect().await {
        // What waits to be revoked is seen to by the manager.
        Ok(_) => Redirect::to(return_to.as_str()).into_response(),
        Err(error) => site.failed(error.into(), Some(user), return_to).await,
    }
}

/// Work that is gone on with in a task of its own if nobody waits for it any more. A callback spends
/// its code: a browser that goes away, or loads it again, must not take the token along.
struct Unstoppable<F: Future<Output: Send> + Send + 'static>(Option<Pin<Box<F>>>);

impl<F: Future<Output: Send> + Send + 'static> Unstoppable<F> {
    fn new(work: F) -> Self {
        Self(Some(Box::pin(work)))
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for Unstoppable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let output = ready!(work.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Unstoppable<F> {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(work.in_current_span());
        }
    }
}

/// Loads the callback again from our own site, where the browser sends a session under
/// `SameSite=Strict`. A redirect would not do: it counts as the other site's. The page does not name
/// its own URL, since that holds the code.
fn bounce() -> Response {
    const PAGE: &str = include_str!("bounce.html");
    let policy = HeaderValue::from_static(PAGE_POLICY);
    ([(CONTENT_SECURITY_POLICY, policy)], Html(PAGE)).into_response()
}

/// Whether the browser says that another site sent it here. After the bounce it says that we did.
fn came_from_elsewhere(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site");
    site.is_some_and(|site| site == "cross-site" || site == "same-site")
}

/// Whether a page of the app made the request, by what no page can write into one: `Sec-Fetch-Site`
/// or, where a browser does not send that, `Origin`.
fn is_of_our_page(headers: &HeaderMap, origin: &str) -> bool {
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

impl Login {
    /// A callback, and the name of the cookie it belongs to.
    fn read(&self, uri: &Uri) -> Result<(Callback, String), FailureReason> {
        let query = uri.query().unwrap_or_default();
        if query.len() > LONGEST_QUERY {
            return Err(FailureReason::TooLong);
        }
        let callback = Callback::from_pairs(url::form_urlencoded::parse(query.as_bytes()));
        let cookie = self.cookie_name(callback.state()?);
        Ok((callback, cookie))
    }

    /// What the request asks for, if a user may be sent there.
    fn return_target(&self, uri: &Uri) -> ReturnTarget {
        let query = uri.query().filter(|query| query.len() <= LONGEST_QUERY);
        let mut pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let asked = pairs.find(|(name, _)| name == "return_to");
        let target = asked.and_then(|(_, text)| return_target::read(&text));
        target.filter(|target| !self.is_ours(target)).unwrap_or_else(|| self.return_to.clone())
    }

    /// A login that ends where it begins would never end.
    fn is_ours(&self, target: &ReturnTarget) -> bool {
        let path = target.as_str().split(['?', '#']).next();
        [&self.connect_path, &self.callback_path, &self.disconnect_path]
            .into_iter()
            .any(|ours| path == Some(ours))
    }

    async fn failed(
        &self,
        reason: FailureReason,
        user: Option<UserId>,
        return_to: ReturnTarget,
    ) -> Response {
        tracing::info!(?user, reason = reason.for_log(), "a login was not completed");
        let is_connected = match &user {
            Some(user) => self.is_connected(user).await,
            None => false,
        };
        let failure = LoginFailure::new(reason, user, is_connected, return_to, &self.connect_path);
        (self.on_failure)(failure).await
    }

    /// Whether the user has a token all the same.
    async fn is_connected(&self, user: &UserId) -> bool {
        const PATIENCE: Duration = Duration::from_secs(2);
        self.manager.user(user).token_timeout(PATIENCE).await.is_ok()
    }
}
