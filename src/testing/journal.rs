//! The requests that the provider received, and their outcomes.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
};

use axum::body::Bytes;
use http::{HeaderMap, Method, StatusCode, request::Parts};
use tokio::sync::watch;

use super::lock::lock;

/// The outcome of a token request, of one for a revocation, or of a call to the API.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// Tokens were issued, whether or not a fault then kept the answer from arriving.
    Issued,
    /// The token is revoked, or was not known, which is as good (RFC 7009 section 2.2).
    Revoked,
    /// The call was served: 200, or the status by a router of the test's own.
    Served,
    /// The client is unknown, or its secret is wrong.
    InvalidClient,
    /// The code or refresh token is not good.
    InvalidGrant,
    /// A field is missing, empty or repeated, or the request is not a form at all; or there is
    /// nothing at the path of a call.
    InvalidRequest,
    /// The grant type is unknown.
    UnsupportedGrantType,
    /// The access token of a call is missing or was refused, or the `Authorization: Bearer` of a
    /// refresh was ([`check_bearer`](super::FakeHurdlrBuilder::check_bearer)).
    BearerRefused,
    /// A fault came first: the provider did not act.
    Faulted,
}

/// A token request as it arrived, one for a revocation, or a call to the API.
///
/// It holds secrets in the clear, for assertions in tests and for nothing else. `Debug` shows
/// neither headers nor body; the accessors do.
#[derive(Clone)]
pub struct RecordedRequest {
    received: Arc<Received>,
    outcome: Option<Outcome>,
    status: Option<StatusCode>,
}

struct Received {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    body: Bytes,
    user: Option<String>,
}

impl RecordedRequest {
    pub(super) fn new(parts: Parts, body: Bytes) -> Self {
        let received = Received {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().map(str::to_owned),
            headers: parts.headers,
            body,
            user: None,
        };
        Self { received: Arc::new(received), outcome: None, status: None }
    }

    /// Says whom the request is about, once the provider has looked it up.
    pub(super) fn about(mut self, user: Option<String>) -> Self {
        if let Some(received) = Arc::get_mut(&mut self.received) {
            received.user = user;
        }
        self
    }

    /// The HTTP method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.received.method
    }

    /// The path, such as `/rest/v4/auth/token`, encoded as it was sent.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.received.path
    }

    /// The query of the URL, in the clear. A well-behaved client sends none to the token endpoint
    /// (RFC 6749 section 2.3.1).
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.received.query.as_deref()
    }

    /// All headers, in the clear.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.received.headers
    }

    /// The body, in the clear.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.received.body
    }

    /// A form field, decoded and in the clear; the first one if it is repeated.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<String> {
        self.value(name).map(Cow::into_owned)
    }

    /// The names of all form fields, in the order they were sent, for a test that none was added.
    #[must_use]
    pub fn field_names(&self) -> Vec<String> {
        self.form().map(|(name, _)| name.into_owned()).collect()
    }

    /// The `grant_type`.
    #[must_use]
    pub fn grant(&self) -> Option<&str> {
        // Borrowed, so only grant types that need no decoding; all that exist need none.
        match self.value("grant_type")? {
            Cow::Borrowed(grant) => Some(grant),
            Cow::Owned(_) => None,
        }
    }

    /// The user of the request: the `userId`, or the owner of the code or token; for a call the
    /// owner of its access token, dead or alive, or else the `userId` of its headers.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.received.user.as_deref()
    }

    /// The outcome. `None`: the provider has not come to it, because the request is delayed or its
    /// sender went away during the delay.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// The status of the answer. `None`: not answered yet, or never, because of a fault.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    pub(super) fn form(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        url::form_urlencoded::parse(&self.received.body)
    }

    pub(super) fn value(&self, name: &str) -> Option<Cow<'_, str>> {
        self.form().find_map(|(key, value)| (key == name).then_some(value))
    }
}

impl fmt::Debug for RecordedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedRequest")
            .field("method", &self.received.method)
            .field("path", &self.received.path)
            .field("grant", &self.grant())
            .field("user", &self.received.user)
            .field("outcome", &self.outcome)
            .field("status", &self.status)
            .field("headers", &"[redacted]")
            .field("body", &"[redacted]")
            .finish_non_exhaustive()
    }
}

/// How many requests there were, since the start or the last
/// [`clear_requests`](super::FakeHurdlr::clear_requests): of [token
/// requests](super::FakeHurdlr::count), or of [calls to the API](super::FakeApi::count).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    total: u64,
    grants: HashMap<String, u64>,
    users: HashMap<String, u64>,
    outcomes: HashMap<Outcome, u64>,
}

impl Counts {
    /// Requests that arrived, answered or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Token requests of this `grant_type`.
    #[must_use]
    pub fn grant(&self, grant_type: &str) -> u64 {
        self.grants.get(grant_type).copied().unwrap_or(0)
    }

    /// Requests about this user.
    #[must_use]
    pub fn user(&self, user: &str) -> u64 {
        self.users.get(user).copied().unwrap_or(0)
    }

    /// Requests that ended so.
    #[must_use]
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }
}

/// The id of a request in the journal, until it is settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestId(u64);

pub(super) struct Journal {
    keeps_requests: bool,
    pages: Mutex<Pages>,
    arrived: watch::Sender<u64>,
}

#[derive(Default)]
struct Pages {
    counts: Counts,
    requests: Vec<RecordedRequest>,
    /// Entries opened before this one were cleared away.
    first: u64,
    next: u64,
}

impl Journal {
    pub(super) fn new(keeps_requests: bool) -> Self {
        Self { keeps_requests, pages: Mutex::default(), arrived: watch::Sender::new(0) }
    }

    pub(super) fn open(&self, request: &RecordedRequest) -> RequestId {
        let mut pages = lock(&self.pages);
        let id = RequestId(pages.next);
        pages.next += 1;
        pages.counts.total += 1;
        if let Some(grant) = request.grant() {
            add_one(&mut pages.counts.grants, grant);
        }
        if let Some(user) = request.user() {
            add_one(&mut pages.counts.users, user);
        }
        if self.keeps_requests {
            pages.requests.push(request.clone());
        }
        // Under the lock, so that two arrivals cannot be announced in the wrong order.
        self.arrived.send_replace(pages.counts.total);
        id
    }

    /// `status` is `None` where no answer will arrive.
    pub(super) fn settle(&self, id: RequestId, outcome: Outcome, status: Option<StatusCode>) {
        let mut pages = lock(&self.pages);
        let Some(index) = id.0.checked_sub(pages.first) else {
            return;
        };
        *pages.counts.outcomes.entry(outcome).or_default() += 1;
        let request = usize::try_from(index).ok().and_then(|index| pages.requests.get_mut(index));
        if let Some(request) = request {
            request.outcome = Some(outcome);
            request.status = status;
        }
    }

    pub(super) fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.pages).requests.clone()
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.pages).counts.clone()
    }

    pub(super) fn clear(&self) {
        let mut pages = lock(&self.pages);
        pages.counts = Counts::default();
        pages.requests.clear();
        pages.first = pages.next;
        self.arrived.send_replace(0);
    }

    pub(super) async fn arrived(&self, at_least: u64) {
        // The sender is `self`'s, so it cannot be gone.
        let _ = self.arrived.subscribe().wait_for(|&total| total >= at_least).await;
    }
}

/// Allocates for a name's first time only.
fn add_one(counters: &mut HashMap<String, u64>, name: &str) {
    if let Some(counter) = counters.get_mut(name) {
        *counter += 1;
    } else {
        counters.insert(name.to_owned(), 1);
    }
}
