//! Calls by hyper and tower: a layer that authorizes them.

use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::authorizer::{Authorizer, Exchange};
use super::partner::{Partner, PartnerUser};
use super::policy::CallPolicy;
use crate::error::Error;
use crate::manager::{TokenManager, UserHandle};
use crate::wire::endpoint::Origin;

type BoxError = Box<dyn StdError + Send + Sync>;

/// A tower [`Layer`] that puts a user's token on each call: [`UserHandle::layer`],
/// [`TokenManager::layer`].
///
/// * A call to the provider's origin, or to another one of the [`CallPolicy`], gets the token, in a
///   header that is marked sensitive. An `Authorization` that the call has already is left alone.
///   Its URI has to be absolute, as clients want it: of a mere path nobody knows whose it is.
/// * When the API answers 401, the manager learns which token was refused, and the call is sent
///   once more with the newer or refreshed one, unchanged otherwise, if its body can be sent again.
///   Else the 401 is returned once the token is replaced, so that the next call succeeds.
/// * When it answers 429, the call waits and is repeated, as the [`CallPolicy`] says.
///
/// An empty body can be sent again; [`copy_body`](Self::copy_body) says which others can. Nothing
/// is buffered. Dropping a call cancels no refresh.
///
/// A layer that follows redirects goes around this one, so that each hop is a call of its own,
/// which is authorized by where it leads to and repeated by itself. Within this one it would take
/// the token along, and a POST that was redirected after it took effect would be made again.
///
/// The service has to be `Clone`, as clients are; its errors are boxed. Without a token, or without
/// a newer one after a 401, a call fails with the reason, such as
/// [`ErrorKind::LoginRequired`](crate::ErrorKind::LoginRequired). [`Error::of`] finds it in the
/// box, by `Error::of(&*error)`. So a 401 that is returned says that the user has a living token,
/// which the API refuses for this call.
///
/// A timeout that is to bound the whole call, its waits included, goes around this layer, such as
/// tower's `Timeout`. One within it bounds each attempt.
///
/// The layered service is always ready. Each attempt waits for the service below when its token is
/// there, so a user who waits for a token holds no slot of a
/// [`ConcurrencyLimit`](https://docs.rs/tower/0.5/tower/limit/struct.ConcurrencyLimit.html) or
/// connection pool below. To shed load, put that layer around this one.
///
/// ```
/// use http::Request;
/// use http_body_util::{BodyExt, Empty};
/// use hurdlr_oauth2::store::MemoryStore;
/// use hurdlr_oauth2::testing::FakeHurdlr;
/// use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use tower::{Layer, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let fake = FakeHurdlr::start().await?;
/// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
///     .environment(fake.base_url())
///     .build()?;
/// let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
///
/// // One service for all users. Clones share its connections.
/// let api = manager.layer().layer(Client::builder(TokioExecutor::new()).build_http());
///
/// let customer = manager.enterprise_user(&UserId::new("customer-4711")?);
/// let call = Request::get(fake.resource_url().as_str()).extension(customer);
/// let answer = api.clone().oneshot(call.body(Empty::<bytes::Bytes>::new())?).await?;
/// assert_eq!(answer.status(), 200);
/// # Ok(())
/// # }
/// ```
#[must_use = "a layer does nothing until it is put on a service"]
#[derive(Clone)]
pub struct TokenLayer<C = EmptyBodies> {
    authorizer: Authorizer,
    copies: C,
}

impl UserHandle {
    /// A tower layer for calls that are made for this user alone (feature `tower`). Where there are
    /// many users, share [one service](TokenManager::layer).
    ///
    /// A call that has the handle or the [`UserId`](crate::UserId) of another user as an extension
    /// fails with [`ErrorKind::Config`](crate::ErrorKind::Config).
    pub fn layer(&self) -> TokenLayer {
        TokenLayer { authorizer: Authorizer::of_user(self), copies: EmptyBodies }
    }
}

impl TokenManager {
    /// A tower layer for the calls of all users (feature `tower`): each call has its
    /// [`UserHandle`] among its extensions. Without one, a call that would be authorized fails with
    /// [`ErrorKind::Config`](crate::ErrorKind::Config). So does any call with the handle of another
    /// manager: nothing is sent.
    ///
    /// All users share this layer, so nothing above or below it may keep one user's answers or
    /// cookies for another. A cache above it sees no `Authorization`, by which caches know that an
    /// answer is not for everybody (RFC 9111 section 3.5); below it, its key needs the user. An app
    /// that needs a cache or cookies makes one service per user by [`UserHandle::layer`], each with
    /// a store of its own.
    pub fn layer(&self) -> TokenLayer {
        TokenLayer { authorizer: Authorizer::of_each_call(self), copies: EmptyBodies }
    }
}

impl Partner {
    /// A tower layer for partner-level calls of many users (feature `tower`): each call has its
    /// [`UserId`](crate::UserId) as an extension. Without one it fails with
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), and so does a call that has a
    /// [`UserHandle`], since that asks for a user's token.
    pub fn layer(&self) -> TokenLayer {
        TokenLayer { authorizer: Authorizer::of_partner(self), copies: EmptyBodies }
    }
}

impl PartnerUser {
    /// A tower layer for partner-level calls that are made for this user (feature `tower`). A call
    /// that names another user fails with [`ErrorKind::Config`](crate::ErrorKind::Config).
    pub fn layer(&self) -> TokenLayer {
        TokenLayer { authorizer: Authorizer::of_partner_user(self), copies: EmptyBodies }
    }
}

impl<C> TokenLayer<C> {
    /// Sets which calls are authorized, and what is done about a 429.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) names the setting that cannot be used.
    pub fn policy(self, policy: CallPolicy) -> Result<Self, Error> {
        Ok(Self { authorizer: self.authorizer.with_policy(policy)?, ..self })
    }

    /// How to clone a body for a repetition, such as `|body: &Full<Bytes>| Some(body.clone())`.
    /// `None` for a body that cannot be cloned.
    pub fn copy_body<F>(self, copy: F) -> TokenLayer<F> {
        TokenLayer { authorizer: self.authorizer, copies: copy }
    }
}

impl<S: Clone, C: Clone> Layer<S> for TokenLayer<C> {
    type Service = TokenService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        let authorizer = Arc::new(self.authorizer.clone());
        TokenService { inner, authorizer, copies: self.copies.clone() }
    }
}

impl<C> fmt::Debug for TokenLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenLayer").field("authorizer", &self.authorizer).finish_non_exhaustive()
    }
}

/// A rule for the bodies that can be sent a second time: a closure, or [`EmptyBodies`].
pub trait CopyBody<B> {
    /// A copy of the body, if there can be one.
    fn copy_body(&self, body: &B) -> Option<B>;
}

/// Only bodies that are known to be empty can be sent a second time.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyBodies;

impl<B: Body + Default> CopyBody<B> for EmptyBodies {
    fn copy_body(&self, body: &B) -> Option<B> {
        body.is_end_stream().then(B::default)
    }
}

impl<B, F: Fn(&B) -> Option<B>> CopyBody<B> for F {
    fn copy_body(&self, body: &B) -> Option<B> {
        self(body)
    }
}

/// A service under a [`TokenLayer`].
#[derive(Clone)]
pub struct TokenService<S, C = EmptyBodies> {
    /// Never asked whether it is ready: its clones are, one for each call.
    inner: S,
    authorizer: Arc<Authorizer>,
    copies: C,
}

type CallFuture<R> = Pin<Box<dyn Future<Output = Result<Response<R>, BoxError>> + Send>>;

impl<S, B, R, C> Service<Request<B>> for TokenService<S, C>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    B: Send + 'static,
    R: Send + 'static,
    C: CopyBody<B> + Clone + Send + 'static,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = CallFuture<R>;

    /// Always ready. To reserve a slot below before there is a token would keep it from others.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let origin = Origin::of_uri(request.uri());
        let (headers, extensions) = (request.headers(), request.extensions());
        let call = self.authorizer.begin(origin.as_ref(), request.method(), headers, extensions);
        let (mut service, copies) = (self.inner.clone(), self.copies.clone());
        match call {
            Ok(Some(call)) => {
                let authorizer = Arc::clone(&self.authorizer);
                let mut exchange = ServiceExchange { service, copies, next: Some(request) };
                Box::pin(async move { authorizer.make(&call, &mut exchange).await })
            }
            Ok(None) => Box::pin(async move { send(&mut service, request).await }),
            Err(error) => Box::pin(ready(Err(error.into()))),
        }
    }
}

/// Waits for the service, and sends the request.
async fn send<S, B, R>(service: &mut S, request: Request<B>) -> Result<Response<R>, BoxError>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    poll_fn(|context| service.poll_ready(context)).await.map_err(Into::into)?;
    service.call(request).await.map_err(Into::into)
}

impl<S: fmt::Debug, C> fmt::Debug for TokenService<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenService")
            .field("inner", &self.inner)
            .field("authorizer", &self.authorizer)
            .finish_non_exhaustive()
    }
}

/// The attempts of one call.
struct ServiceExchange<S, B, C> {
    service: S,
    copies: C,
    /// The request of the next attempt, if there can be one.
    next: Option<Request<B>>,
}

impl<S, B, R, C> Exchange for ServiceExchange<S, B, C>
where
    S: Service<Request<B>, Response = Response<R>> + Send,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    B: Send,
    R: Send,
    C: CopyBody<B> + Send,
{
    type Answer = Response<R>;
    type Error = BoxError;

    fn can_repeat(&self) -> bool {
        self.next.is_some()
    }

    /// A timeout of the caller's is around the layer.
    async fn send(
        &mut self,
        _: Option<Duration>,
        authorize: impl FnOnce(&mut HeaderMap) + Send,
    ) -> Result<Response<R>, BoxError> {
        let Some(request) = self.next.take() else {
            return Err(Error::config("the call cannot be sent again").into());
        };
        let (mut parts, body) = request.into_parts();
        let copy = self.copies.copy_body(&body);
        self.next = copy.map(|copy| Request::from_parts(parts.clone(), copy));
        authorize(&mut parts.headers);
        send(&mut self.service, Request::from_parts(parts, body)).await
    }

    fn status(answer: &Response<R>) -> StatusCode {
        answer.status()
    }

    fn headers(answer: &Response<R>) -> &HeaderMap {
        answer.headers()
    }

    /// A layer that follows redirects is around this one.
    fn is_of_api(&self, _: &Response<R>) -> bool {
        true
    }

    fn failed(error: Error) -> BoxError {
        error.into()
    }
}
