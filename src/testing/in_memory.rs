//! The way to the provider without a socket.

use std::{error::Error, fmt, io, pin::Pin};

use axum::{
    Router,
    body::{self, Body},
};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use tower_service::Service;

use super::delivery::Disconnect;

/// An HTTP client that hands each request to a [`FakeHurdlr`](super::FakeHurdlr) in memory.
///
/// This provider answers whatever host a request names, so that a client can be tested with
/// the URLs of production. Redirects are not followed. Faults are those of the socket, and time
/// is tokio's alone: a paused clock stands still while the provider works.
#[derive(Clone)]
pub struct InMemoryHttpClient {
    router: Router,
}

impl InMemoryHttpClient {
    pub(super) fn new(router: Router) -> Self {
        Self { router }
    }

    pub(super) async fn send(&self, request: HttpRequest) -> Result<HttpResponse, InMemoryError> {
        // A router is ready at any time.
        let call = self.router.clone().call(request.map(Body::from));
        let response = match call.await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        match response.extensions().get() {
            Some(Disconnect::Refused) => {
                return Err(InMemoryError::new(
                    io::ErrorKind::ConnectionRefused,
                    "the connection was refused",
                ));
            }
            Some(Disconnect::Reset) => {
                return Err(InMemoryError::new(
                    io::ErrorKind::ConnectionReset,
                    "the connection was closed before an answer came",
                ));
            }
            None => {}
        }
        let (mut parts, body) = response.into_parts();
        parts.extensions = http::Extensions::new();
        let body = body::to_bytes(body, usize::MAX).await.map_err(|_| {
            InMemoryError::new(io::ErrorKind::UnexpectedEof, "the answer broke off")
        })?;
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

impl<'c> AsyncHttpClient<'c> for InMemoryHttpClient {
    type Error = InMemoryError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, InMemoryError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

impl fmt::Debug for InMemoryHttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryHttpClient").finish_non_exhaustive()
    }
}

/// Why no whole answer came: its [`source`](Error::source) is the [`io::Error`] that a socket
/// would have met.
///
/// `ConnectionRefused`: nothing was sent. `ConnectionReset`: sent, and not answered.
/// `UnexpectedEof`: the answer broke off.
#[derive(Debug)]
pub struct InMemoryError(io::Error);

impl InMemoryError {
    fn new(kind: io::ErrorKind, message: &'static str) -> Self {
        Self(io::Error::new(kind, message))
    }

    /// The kind of the [`io::Error`] within.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }
}

impl fmt::Display for InMemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fake provider did not answer")
    }
}

impl Error for InMemoryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}
