//! HTTP clients of an app's own, their types erased.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::Method;
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use url::Url;

use super::answer::Answer;
use super::error::HttpError;
use super::form::Form;

type Outcome = Result<HttpResponse, HttpError>;
type Sending<'c> = Pin<Box<dyn Future<Output = Outcome> + Send + 'c>>;

pub(super) trait CustomHttpClient: Send + Sync {
    fn send(&self, request: HttpRequest) -> Sending<'_>;
}

impl<C> CustomHttpClient for C
where
    C: for<'c> AsyncHttpClient<'c, Error: Send + Sync, Future: Send>,
    C: Send + Sync + 'static,
{
    fn send(&self, request: HttpRequest) -> Sending<'_> {
        Box::pin(
            async move { self.call(request).await.map_err(|error| HttpError::Other(error.into())) },
        )
    }
}

pub(super) async fn post(
    client: &dyn CustomHttpClient,
    url: Url,
    mut form: Form,
    limit: Duration,
) -> Result<Answer, HttpError> {
    let mut request = HttpRequest::new(std::mem::take(&mut *form.body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url.as_str().parse().map_err(|error| HttpError::Other(Box::new(error)))?;
    *request.headers_mut() = form.headers;
    match tokio::time::timeout(limit, client.send(request)).await {
        Ok(answer) => answer.map(Answer::from_response),
        Err(elapsed) => Err(HttpError::Other(elapsed.into())),
    }
}
