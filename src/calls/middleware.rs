//! Calls by `reqwest`: a middleware that authorizes them.

use std::cell::Cell;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, StatusCode};
use reqwest::{Request, Response, redirect};
use reqwest_middleware::{ClientBuilder, Middleware, Next};
use url::Url;

use super::authorizer::{Authorizer, Exchange};
use super::partner::{Partner, PartnerUser};
use super::policy::{CallPolicy, ResolvedPolicy};
use crate::client::transport;
use crate::error::Error;
use crate::manager::{TokenManager, UserHandle};
use crate::wire::endpoint::Origin;

/// A `reqwest` client whose calls carry a user's token: one for all users by
/// [`TokenManager::middleware`], or one for a single user by [`UserHandle::middleware`].
///
/// Make one client when the app starts, and share it: each has connections and TLS roots of its
/// own. On loopback, a call by a client that is made for it takes 3.6 ms, and by the shared one
/// 0.14 ms (`edges.client_per_call_ms` and `edges.shared_client_ms` of the benchmarks).
///
/// * A call to the provider's origin, or to another one of the [`CallPolicy`], gets the token, in a
///   header that is marked sensitive. An `Authorization` that the call has already is left alone.
/// * When the API answers 401, the manager learns which token was refused, and the call is sent
///   once more with the newer or refreshed one, unchanged otherwise, if its body can be sent again.
///   Else the 401 is returned once the token is replaced, so that the next call succeeds.
/// * When it answers 429, the call waits and is repeated, as the [`CallPolicy`] says.
/// * A redirect within the origin is followed. One that leads elsewhere, or to a URL with user
///   info, is handed to the caller as it came. Behind a redirect, a 401 or 429 is healed for safe
///   methods only (RFC 9110 section 9.2.1): another request may have been acted on before it was
///   redirected.
///
/// Bodies that stream are not buffered, and so are sent once. Dropping a call cancels no refresh.
///
/// The timeout of a request (`RequestBuilder::timeout`) bounds the whole call: the wait for a
/// token, pauses and all attempts. A call whose time is over while it waits for a token fails with
/// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut), and during an attempt with `reqwest`'s
/// error. The client's timeouts (`ClientBuilder::timeout` and `read_timeout`) bound each attempt
/// alone, since a middleware cannot read them.
///
/// Without a token a call fails before it is sent, and without a newer one after a 401 it fails
/// too. [`Error::of`] finds the reason in the error, such as
/// [`ErrorKind::LoginRequired`](crate::ErrorKind::LoginRequired). So a 401 that is returned says
/// that the user has a living token, which the API refuses for this call.
///
/// ```
/// use hurdlr_oauth2::store::MemoryStore;
/// use hurdlr_oauth2::testing::FakeHurdlr;
/// use hurdlr_oauth2::{Error, Hurdlr, TokenManager, UserId};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fake = FakeHurdlr::start().await?;
/// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
///     .environment(fake.base_url())
///     .build()?;
/// let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
///
/// let api = manager.middleware().client(|builder| builder)?.build(); // once, for all users
///
/// let customer = manager.enterprise_user(&UserId::new("customer-4711")?);
/// let answer = api.get(fake.resource_url()).with_extension(customer).send().await?;
/// assert_eq!(answer.status(), 200);
///
/// // Nobody has logged in as this user.
/// let nobody = manager.user(&UserId::new("nobody")?);
/// let api = nobody.middleware().client(|builder| builder)?.build();
/// let error = api.get(fake.resource_url()).send().await.unwrap_err();
/// assert!(Error::of(&error).is_some_and(Error::needs_login));
/// # Ok(())
/// # }
/// ```
#[must_use = "it does nothing until a client is made with it"]
#[derive(Clone, Debug)]
pub struct TokenMiddleware {
    authorizer: Authorizer,
}

impl UserHandle {
    /// Calls by `reqwest` that are made for this user alone (feature `middleware`): for an app of
    /// one user, or where each user's client keeps cookies or a cache. Keep the client for as long
    /// as the user. Where there are many, share [one client](TokenManager::middleware).
    ///
    /// A call that has the handle or the [`UserId`](crate::UserId) of another user as an extension
    /// fails with [`ErrorKind::Config`](crate::ErrorKind::Config).
    pub fn middleware(&self) -> TokenMiddleware {
        TokenMiddleware { authorizer: Authorizer::of_user(self) }
    }
}

impl TokenManager {
    /// Calls by `reqwest` for all users with one client (feature `middleware`): each call has its
    /// [`UserHandle`] as an extension. Without one, a call that would be authorized fails with
    /// [`ErrorKind::Config`](crate::ErrorKind::Config). So does any call with the handle of another
    /// manager: nothing is sent.
    ///
    /// All users share this client, so it must keep no user's answers for another one. Add no cache
    /// whose key lacks the user, and set no `ClientBuilder::cookie_store`: a session cookie of one
    /// user would go along with the calls of the next, beside their token. An app that needs either
    /// makes one client per user by [`UserHandle::middleware`], each with a store of its own.
    ///
    /// ```
    /// # use hurdlr_oauth2::store::MemoryStore;
    /// # use hurdlr_oauth2::testing::FakeHurdlr;
    /// # use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let fake = FakeHurdlr::start().await?;
    /// # let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
    /// #     .environment(fake.base_url())
    /// #     .build()?;
    /// # let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
    /// let api = manager.middleware().client(|builder| builder)?.build();
    /// for id in ["ann", "bob"] {
    ///     let user = manager.enterprise_user(&UserId::new(id)?);
    ///     let answer = api.get(fake.resource_url()).with_extension(user).send().await?;
    ///     assert!(answer.text().await?.contains(id));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Code that takes a client and names no user gets one that names them, on the same
    /// connections:
    ///
    /// ```
    /// use hurdlr_oauth2::manager::UserHandle;
    /// use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Extension};
    ///
    /// fn of_user(shared: &ClientWithMiddleware, user: UserHandle) -> ClientWithMiddleware {
    ///     ClientBuilder::from_client(shared.clone()).with_init(Extension(user)).build()
    /// }
    /// ```
    pub fn middleware(&self) -> TokenMiddleware {
        TokenMiddleware { authorizer: Authorizer::of_each_call(self) }
    }
}

impl Partner {
    /// Partner-level calls by `reqwest` of many users (feature `middleware`): each call
    /// has its [`UserId`](crate::UserId) as an extension. Without one it fails with
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), and so does a call that has a
    /// [`UserHandle`], since that asks for a user's token.
    pub fn middleware(&self) -> TokenMiddleware {
        TokenMiddleware { authorizer: Authorizer::of_partner(self) }
    }
}

impl PartnerUser {
    /// Partner-level calls by `reqwest` that are made for this user (feature `middleware`). A call
    /// that names another user fails with [`ErrorKind::Config`](crate::ErrorKind::Config).
    pub fn middleware(&self) -> TokenMiddleware {
        TokenMiddleware { authorizer: Authorizer::of_partner_user(self) }
    }
}

impl TokenMiddleware {
    /// Sets which calls are authorized, and what is done about a 429.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) names the setting that cannot be used.
    pub fn policy(self, policy: CallPolicy) -> Result<Self, Error> {
        Ok(Self { authorizer: self.authorizer.with_policy(policy)? })
    }

    /// A client with this middleware, to which others can be added: those see each attempt.
    ///
    /// The client is made here because its redirect policy is part of the promise. `reqwest` takes
    /// the token off when it follows a redirect to another origin, and puts it on again when that
    /// one redirects to itself. So whatever policy the builder has is replaced: calls that are
    /// authorized are followed within their origin only, all others as `reqwest` does it.
    ///
    /// `configure` gets a builder that asks for rustls by name, with the feature of that name. On
    /// top of what it sets come these: certificates are verified, TLS keys and what is sent are not
    /// logged, and where an origin of the policy is plain `http` on a loopback host, no call goes
    /// through a proxy, and `localhost` is this machine. A `connector_layer`, a `unix_socket` and
    /// `tls_backend_preconfigured` decide by themselves where and how tokens travel.
    ///
    /// Cookies that `configure` has the client keep, and what a cache middleware keeps, are for all
    /// calls of the client. Both are for the client of one user only, see
    /// [`TokenManager::middleware`]. It cannot be refused here: a builder does not tell what was
    /// set.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) where `reqwest` cannot build the client.
    pub fn client(
        self,
        configure: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Result<ClientBuilder, Error> {
        let policy = &self.authorizer.policy;
        let client = configure(transport::client_builder());
        let client = transport::protected(client, policy.admit_plain_http());
        let client = client.redirect(redirects(Arc::clone(policy))).build();
        let client = client.map_err(|source| {
            Error::config("the HTTP client cannot be built").caused_by(source.without_url())
        })?;
        Ok(ClientBuilder::new(client).with(Authorize { authorizer: self.authorizer }))
    }
}

tokio::task_local! {
    /// Whether this attempt was redirected. `reqwest` asks the redirect policy in the task of the
    /// call, but does not say which call it is.
    static IS_REDIRECTED: Cell<bool>;
}

fn redirects(policy: Arc<ResolvedPolicy>) -> redirect::Policy {
    let usual = redirect::Policy::default();
    redirect::Policy::custom(move |attempt| {
        // It has no value in calls of safe methods, and in those that the middleware lets pass.
        let _ = IS_REDIRECTED.try_with(|is_redirected| is_redirected.set(true));
        let first = attempt.previous().first().and_then(Origin::of_url);
        if policy.admits(first.as_ref()) && first != Origin::of_url(attempt.url()) {
            return attempt.stop();
        }
        usual.redirect(attempt)
    })
}

/// The middleware itself. Nobody else has it, since any other client might follow a redirect with
/// the token.
struct Authorize {
    authorizer: Authorizer,
}

impl Middleware for Authorize {
    /// Written out, so that a call has one box, and that a small one.
    fn handle<'own, 'call, 'next, 'all>(
        &'own self,
        request: Request,
        extensions: &'call mut Extensions,
        next: Next<'next>,
    ) -> Sending<'all>
    where
        'own: 'all,
        'call: 'all,
        'next: 'all,
    {
        let origin = Origin::of_url(request.url());
        match self.authorizer.begin(
            origin.as_ref(),
            request.method(),
            request.headers(),
            extensions,
        ) {
            Ok(Some(mut call)) => {
                call.timeout = request.timeout().copied();
                let request = Some(request);
                let mut chain =
                    Chain { request, sent_to: None, may_be_done: false, extensions, next };
                Box::pin(async move { self.authorizer.make(&call, &mut chain).await })
            }
            Ok(None) => next.run(request, extensions),
            Err(error) => Box::pin(ready(Err(failed(error)))),
        }
    }
}

type Sending<'a> = Pin<Box<dyn Future<Output = reqwest_middleware::Result<Response>> + Send + 'a>>;

fn failed(error: Error) -> reqwest_middleware::Error {
    reqwest_middleware::Error::middleware(error)
}

/// The rest of the middlewares, and the request for as long as it can be sent.
struct Chain<'a> {
    request: Option<Request>,
    /// Where it went, if it cannot be sent again.
    sent_to: Option<Box<Url>>,
    /// Whether the last attempt was of a method that is not safe, and was redirected: then it may
    /// have been acted on.
    may_be_done: bool,
    extensions: &'a mut Extensions,
    next: Next<'a>,
}

impl Chain<'_> {
    /// A copy of the request, or the request itself if there can be none.
    fn next_request(&mut self) -> reqwest_middleware::Result<Request> {
        if let Some(copy) = self.request.as_ref().and_then(Request::try_clone) {
            return Ok(copy);
        }
        let request = self.request.take();
        let request =
            request.ok_or_else(|| failed(Error::config("the call cannot be sent again")))?;
        self.sent_to = Some(Box::new(request.url().clone()));
        Ok(request)
    }
}

impl Exchange for Chain<'_> {
    type Answer = Response;
    type Error = reqwest_middleware::Error;

    fn can_repeat(&self) -> bool {
        self.request.is_some() && !self.may_be_done
    }

    fn send(
        &mut self,
        timeout: Option<Duration>,
        authorize: impl FnOnce(&mut HeaderMap) + Send,
    ) -> impl Future<Output = reqwest_middleware::Result<Response>> + Send {
        let sending = self.next_request().map(|mut request| {
            authorize(request.headers_mut());
            if timeout.is_some() {
                *request.timeout_mut() = timeout;
            }
            let is_safe = request.method().is_safe();
            (self.next.clone().run(request, self.extensions), is_safe)
        });
        let may_be_done = &mut self.may_be_done;
        async move {
            let (sending, is_safe) = sending?;
            if is_safe {
                return sending.await;
            }
            let noting = async {
                let answer = sending.await;
                *may_be_done = IS_REDIRECTED.with(Cell::get);
                answer
            };
            IS_REDIRECTED.scope(Cell::new(false), noting).await
        }
    }

    fn status(answer: &Response) -> StatusCode {
        answer.status()
    }

    fn headers(answer: &Response) -> &HeaderMap {
        answer.headers()
    }

    fn is_of_api(&self, answer: &Response) -> bool {
        let sent_to = self.request.as_ref().map(Request::url).or(self.sent_to.as_deref());
        sent_to.is_some_and(|url| Origin::of_url(url) == Origin::of_url(answer.url()))
    }

    fn failed(error: Error) -> reqwest_middleware::Error {
        failed(error)
    }
}
