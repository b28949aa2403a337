//! Calls by hyper and tower: a layer that authorises them.

use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Context, Poll};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http::{Uri, Version};
use http_body::Body;
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use crate::edge::{Call, CallPolicy, Credential, Edge, Wire};
use crate::error::Error;
use crate::manager::{TokenManager, UserHandle};
use crate::partner::{Partner, PartnerUser};

type BoxError = Box<dyn StdError + Send + Sync>;

/// A tower [`Layer`] that puts a user's token on each call: [`UserHandle::layer`],
/// [`TokenManager::layer`].
///
/// * A call to the provider's origin, or to another one of the [`CallPolicy`], gets the token, in a
///   header that is marked sensitive. An `Authorization` that the call has already is left alone. Its
///   URI has to be absolute, as clients want it: of a mere path nobody knows whose it is.
/// * When the API answers 401, the manager learns which token was refused, and the call is sent once
///   more with the newer or refreshed one, if its body can be sent again. Else the 401 is returned,
///   and the token renewed for the next call.
/// * When it answers 429, the call waits and is repeated, as the [`CallPolicy`] says.
///
/// An empty body can be sent again; [`copy_body`](Self::copy_body) says which others can. Nothing is
/// buffered. Dropping a call cancels no refresh.
///
/// A layer that follows redirects goes around this one, so that each hop is judged by where it leads
/// to. Within this one it would take the token along.
///
/// The service has to be `Clone`, as clients are; its errors are boxed. Without a token a call fails
/// with this crate's [`Error`] in that box, before it is sent.
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
/// let customer = manager.enterprise_user(&UserId::new("customer-4711")?);
/// let api = customer.layer().layer(Client::builder(TokioExecutor::new()).build_http());
/// let call = Request::get(fake.resource_url().as_str()).body(Empty::<bytes::Bytes>::new())?;
/// let answer = api.oneshot(call).await?;
/// assert_eq!(answer.status(), 200);
/// # Ok(())
/// # }
/// ```
#[must_use = "a layer does nothing until it is put on a service"]
#[derive(Clone)]
pub struct TokenLayer<C = EmptyBodies> {
    edge: Edge,
    copies: C,
}

impl UserHandle {
    /// A tower layer for calls that are made for this user (feature `tower`). A call that has the
    /// handle of another user as an extension fails with
    /// [`ErrorKind::Config`](crate::ErrorKind::Config).
    pub fn layer(&self) -> TokenLayer {
        TokenLayer { edge: Edge::of_user(self), copies: EmptyBodies }
    }
}

impl TokenManager {
    /// A tower layer for the calls of many users (feature `tower`): each call has its [`UserHandle`]
    /// among its extensions. Without one, a call that would be authorised fails
    /// with [`ErrorKind::Config`](crate::ErrorKind::Config). So does any call with the handle of
    /// another manager: nothing is sent.
    pub fn layer(&self) -> TokenLayer {
        TokenLayer { edge: Edge::of_each_call(self), copies: EmptyBodies }
    }
}

impl Partner {
    /// A tower layer for partner-level calls of many users (feature `tower`): each call
    /// has its [`UserId`](crate::UserId) as an extension. Without one it fails with
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), and so does a call that has a [`UserHandle`],
    /// since that asks for a user's token.
    pub fn layer(&self) -> TokenLayer {
        TokenLayer { edge: self.edge(), copies: EmptyBodies }
    }
}

impl PartnerUser {
    /// A tower layer for partner-level calls that are made for this user (feature `tower`). A call
    /// that names another user fails with [`ErrorKind::Config`](crate::ErrorKind::Config).
    pub fn layer(&self) -> TokenLayer {
        TokenLayer { edge: self.edge(), copies: EmptyBodies }
    }
}

impl<C> TokenLayer<C> {
    /// Which calls are authorised, and what is done about a 429; an
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) names what cannot be used.
    pub fn policy(self, policy: CallPolicy) -> Result<Self, Error> {
        Ok(Self { edge: self.edge.with_policy(policy)?, ..self })
    }

    /// How a body is had a second time, such as `|body: &Full<Bytes>| Some(body.clone())`. None for
    /// one that cannot be.
    pub fn copy_body<F>(self, copy: F) -> TokenLayer<F> {
        TokenLayer { edge: self.edge, copies: copy }
    }
}

impl<S: Clone, C: Clone> Layer<S> for TokenLayer<C> {
    type Service = TokenService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        let another = Mutex::new(inner.clone());
        let shared = Arc::new(Shared { edge: self.edge.clone(), another });
        TokenService { inner, shared, copies: self.copies.clone() }
    }
}

impl<C> fmt::Debug for TokenLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenLayer").field("edge", &self.edge).finish_non_exhaustive()
    }
}

/// Which bodies can be sent a second time: a closure, or [`EmptyBodies`].
pub trait CopyBody<B> {
    /// The same body again, if it can be had.
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

/// What a [`TokenLayer`] makes of a service.
#[derive(Clone)]
pub struct TokenService<S, C = EmptyBodies> {
    inner: S,
    shared: Arc<Shared<S>>,
    copies: C,
}

struct Shared<S> {
    edge: Edge,
    /// To clone for a second attempt. Cloning a service can cost as much as all else that is done
    /// here, and most calls need none.
    another: Mutex<S>,
}

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
    type Future = TokenCall<S, B, C>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let edge = &self.shared.edge;
        let admitted = edge.rules.admits_uri(request.uri());
        let begun = edge.begin(admitted, request.method(), request.headers(), request.extensions());
        let call = match begun {
            Ok(Some(call)) => call,
            Ok(None) => {
                let future = self.inner.call(request);
                return TokenCall { stage: Stage::First { future, rest: None } };
            }
            Err(error) => {
                let future = Box::pin(ready(Err(error.into())));
                return TokenCall { stage: Stage::Further { future } };
            }
        };
        let copies = self.copies.clone();
        let Some(credential) = edge.credential_at_once(&call) else {
            // It is this one that is ready, and no clone of it.
            let clone = self.inner.clone();
            let service = mem::replace(&mut self.inner, clone);
            let stack = Stack { service, copies, spare: None };
            let mut attempts = Attempts { first: Some(request), stack };
            let shared = Arc::clone(&self.shared);
            let future = Box::pin(async move { shared.edge.make(&call, &mut attempts).await });
            return TokenCall { stage: Stage::Further { future } };
        };
        let spare = Spare::of(&request, &copies);
        edge.authorise(&call, &credential, request.headers_mut());
        let future = self.inner.call(request);
        let shared = Arc::clone(&self.shared);
        let rest = Some(Rest { shared, call, credential, spare, copies });
        TokenCall { stage: Stage::First { future, rest } }
    }
}

impl<S: fmt::Debug, C> fmt::Debug for TokenService<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenService")
            .field("inner", &self.inner)
            .field("edge", &self.shared.edge)
            .finish_non_exhaustive()
    }
}

/// All there is of a request, for another attempt.
struct Spare<B> {
    method: Method,
    uri: Uri,
    version: Version,
    /// A map is two allocations, of which a call that succeeds at once would have no use.
    headers: SmallVec<[(HeaderName, HeaderValue); 4]>,
    extensions: Extensions,
    body: B,
}

impl<B> Spare<B> {
    /// None where there is no other body.
    fn of(request: &Request<B>, copies: &impl CopyBody<B>) -> Option<Self> {
        let body = copies.copy_body(request.body())?;
        let headers = request.headers().iter();
        Some(Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: headers.map(|(name, value)| (name.clone(), value.clone())).collect(),
            extensions: request.extensions().clone(),
            body,
        })
    }

    fn into_request(self) -> Request<B> {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = HeaderMap::with_capacity(self.headers.len() + 1);
        request
            .headers_mut()
            .extend(self.headers.into_iter().map(|(name, value)| (Some(name), value)));
        *request.extensions_mut() = self.extensions;
        request
    }
}

/// The service below, and the request for as long as it can be sent again.
struct Stack<S, B, C> {
    service: S,
    copies: C,
    spare: Option<Spare<B>>,
}

/// What is sent through a [`Stack`], till there is an answer for the caller.
struct Attempts<S, B, C> {
    /// None once it was sent.
    first: Option<Request<B>>,
    stack: Stack<S, B, C>,
}

impl<S, B, R, C> Wire for Attempts<S, B, C>
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
        self.stack.spare.is_some()
    }

    async fn send(
        &mut self,
        authorise: impl FnOnce(&mut HeaderMap) + Send,
    ) -> Result<Response<R>, BoxError> {
        let spare = || self.stack.spare.take().map(Spare::into_request);
        let Some(mut request) = self.first.take().or_else(spare) else {
            return Err(Error::config("the call cannot be sent again").into());
        };
        self.stack.spare = Spare::of(&request, &self.stack.copies);
        authorise(request.headers_mut());
        poll_fn(|context| self.stack.service.poll_ready(context)).await.map_err(Into::into)?;
        let answer = self.stack.service.call(request);
        answer.await.map_err(Into::into)
    }

    fn status(answer: &Response<R>) -> StatusCode {
        answer.status()
    }

    fn headers(answer: &Response<R>) -> &HeaderMap {
        answer.headers()
    }

    /// What follows redirects is around the layer.
    fn is_of_api(&self, _: &Response<R>) -> bool {
        true
    }

    fn failed(error: Error) -> BoxError {
        error.into()
    }
}

/// How the rest of a call goes on after its first attempt.
struct Rest<S, B, C> {
    shared: Arc<Shared<S>>,
    call: Call,
    credential: Credential,
    spare: Option<Spare<B>>,
    copies: C,
}

type Boxed<R> = Pin<Box<dyn Future<Output = Result<R, BoxError>> + Send>>;

pin_project! {
    /// The future of a [`TokenService`]. It takes no memory of its own for a call that has a token
    /// at once and needs no second attempt.
    #[must_use = "futures do nothing unless awaited"]
    pub struct TokenCall<S, B, C>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        stage: Stage<S, B, C>,
    }
}

pin_project! {
    #[project = Project]
    enum Stage<S, B, C>
    where
        S: Service<Request<B>>,
    {
        First { #[pin] future: S::Future, rest: Option<Rest<S, B, C>> },
        Further { future: Boxed<S::Response> },
    }
}

impl<S: Service<Request<B>>, B, C> fmt::Debug for TokenCall<S, B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCall").finish_non_exhaustive()
    }
}

impl<S, B, R, C> Future for TokenCall<S, B, C>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    B: Send + 'static,
    R: Send + 'static,
    C: CopyBody<B> + Send + 'static,
{
    type Output = Result<Response<R>, BoxError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        let (rest, answer) = match stage.as_mut().project() {
            Project::First { future, rest } => {
                let answer = task::ready!(future.poll(context)).map_err(Into::into)?;
                if !Call::judges(answer.status()) {
                    return Poll::Ready(Ok(answer));
                }
                match rest.take() {
                    Some(rest) => (rest, answer),
                    None => return Poll::Ready(Ok(answer)),
                }
            }
            Project::Further { future } => return future.as_mut().poll(context),
        };
        let Rest { shared, call, credential, spare, copies } = rest;
        let service = shared.another.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stack = Stack { service, copies, spare };
        let mut attempts = Attempts { first: None, stack };
        let mut future: Boxed<_> =
            Box::pin(
                async move { shared.edge.finish(&call, &mut attempts, credential, answer).await },
            );
        let polled = future.as_mut().poll(context);
        stage.set(Stage::Further { future });
        polled
    }
}
