//! Faults on demand, between a client and the provider.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::body::Bytes;
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, LOCATION, RETRY_AFTER},
};
use tokio::sync::watch;

use super::{
    answer::{Answer, Refusal},
    body_encoding::BodyEncoding,
    delivery::{Delivery, Disconnect},
    journal::RecordedRequest,
    ledger::TokenStatus,
    lock::lock,
};

/// The length of an [`Fault::Oversized`] answer: 1 MiB.
const OVERSIZED: usize = 1024 * 1024;

/// One thing that goes wrong with one token request, or with one call to the API.
///
/// "Acts" means that the provider does what it was asked: it issues, rotates, revokes, serves. A
/// fault that does not act leaves its state untouched, and the request's outcome is
/// [`Faulted`](super::Outcome::Faulted).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The connection is refused, so nothing is sent. In memory only: a socket that was accepted
    /// cannot be refused any more, so there it is [`DropBefore`](Self::DropBefore). The attempt is
    /// recorded and counted all the same.
    Refuse,
    /// The connection is closed without acting and without an answer.
    DropBefore,
    /// Acts, then closes the connection without an answer.
    DropAfter,
    /// Waits, then acts and answers. A client that goes away meanwhile cancels it.
    Delay(Duration),
    /// Acts at once, answers later.
    DelayAfter(Duration),
    /// Like `Delay`, until the gate is opened.
    Hold(Gate),
    /// Like `DelayAfter`, until the gate is opened.
    HoldAfter(Gate),
    /// 401 in the provider's error style, as for an access token that is dead, without acting.
    Unauthorized,
    /// 403 in the provider's error style, as for an access token that does not permit the call,
    /// without acting.
    Forbidden,
    /// 429 in the provider's error style, without acting.
    RateLimited {
        /// The `Retry-After` header as it is sent: seconds or an HTTP date, or what a test likes.
        retry_after: Option<String>,
    },
    /// Another status with a body of the test's choice, without acting.
    Status {
        /// The HTTP status.
        status: u16,
        /// The `Content-Type`; empty for none.
        content_type: String,
        /// The body.
        body: String,
        /// The `Retry-After` header as it is sent.
        retry_after: Option<String>,
    },
    /// A proxy's HTML page, without acting.
    Html {
        /// The HTTP status.
        status: u16,
    },
    /// Acts, then promises the whole answer, sends half of it and closes the connection.
    Truncated,
    /// Acts, then answers rightly, but followed by white space up to 1 MiB.
    Oversized,
    /// Acts, then answers rightly, but slowly.
    Dripping {
        /// How many bytes at a time; 0 is taken for 1.
        bytes: usize,
        /// The pause before each of them.
        every: Duration,
    },
    /// Acts, then answers rightly under this `Content-Type`; empty for none.
    ContentType(String),
    /// Acts, then answers rightly, but in another encoding than plain UTF-8.
    Encoded(BodyEncoding),
    /// A redirect, without acting.
    Redirect {
        /// The HTTP status, such as 307.
        status: u16,
        /// The `Location` header as it is sent.
        location: String,
    },
    /// An answer of the test's own, without acting.
    Answer {
        /// The HTTP status.
        status: u16,
        /// The `Content-Type`; empty for none.
        content_type: String,
        /// The body.
        body: Vec<u8>,
    },
    /// Acts, then gives an answer of the test's own.
    AnswerAfter {
        /// The HTTP status.
        status: u16,
        /// The `Content-Type`; empty for none.
        content_type: String,
        /// The body.
        body: Vec<u8>,
    },
}

impl Fault {
    /// [`RateLimited`](Self::RateLimited) with `Retry-After` in whole seconds.
    #[must_use]
    pub fn rate_limited_for(span: Duration) -> Self {
        Self::RateLimited { retry_after: Some(span.as_secs().to_string()) }
    }

    /// [`RateLimited`](Self::RateLimited) with `Retry-After` as an HTTP date.
    ///
    /// Dates before 1970 become 1970: HTTP cannot write them.
    #[must_use]
    pub fn rate_limited_until(time: SystemTime) -> Self {
        let time = time.max(SystemTime::UNIX_EPOCH);
        Self::RateLimited { retry_after: Some(httpdate::fmt_http_date(time)) }
    }

    /// [`RateLimited`](Self::RateLimited) without a `Retry-After`.
    #[must_use]
    pub fn rate_limited() -> Self {
        Self::RateLimited { retry_after: None }
    }

    /// [`Status`](Self::Status) with a body in plain text, as servers have it that fail early.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Status {
            status,
            content_type: "text/plain".to_owned(),
            body: "The server cannot answer".to_owned(),
            retry_after: None,
        }
    }

    /// 503 with `Retry-After` in whole seconds.
    #[must_use]
    pub fn unavailable_for(span: Duration) -> Self {
        Self::Status {
            status: 503,
            content_type: "text/plain".to_owned(),
            body: "The server is being mended".to_owned(),
            retry_after: Some(span.as_secs().to_string()),
        }
    }

    /// [`AnswerAfter`](Self::AnswerAfter) with a bare 503, as a proxy gives up on a server that has
    /// acted.
    #[must_use]
    pub fn unavailable_after() -> Self {
        Self::AnswerAfter {
            status: 503,
            content_type: "text/plain".to_owned(),
            body: b"upstream request timeout".to_vec(),
        }
    }

    /// [`Html`](Self::Html).
    #[must_use]
    pub fn html(status: u16) -> Self {
        Self::Html { status }
    }

    /// [`Dripping`](Self::Dripping), one byte at a time.
    #[must_use]
    pub fn dripping(every: Duration) -> Self {
        Self::Dripping { bytes: 1, every }
    }

    /// [`Redirect`](Self::Redirect).
    #[must_use]
    pub fn redirect(status: u16, location: impl Into<String>) -> Self {
        Self::Redirect { status, location: location.into() }
    }

    /// [`Answer`](Self::Answer) as JSON.
    #[must_use]
    pub fn answer(status: u16, json: impl Into<Vec<u8>>) -> Self {
        Self::Answer { status, content_type: "application/json".to_owned(), body: json.into() }
    }

    /// [`AnswerAfter`](Self::AnswerAfter) as JSON.
    #[must_use]
    pub fn answer_after(status: u16, json: impl Into<Vec<u8>>) -> Self {
        Self::AnswerAfter { status, content_type: "application/json".to_owned(), body: json.into() }
    }

    /// Passes the time before the provider acts.
    pub(super) async fn before(&self) {
        match self {
            Self::Delay(span) => tokio::time::sleep(*span).await,
            Self::Hold(gate) => gate.passed().await,
            _ => {}
        }
    }

    /// The delivery in place of acting, if this fault does not act. `refuse` words a refusal in the
    /// provider's error style.
    pub(super) fn instead(&self, refuse: impl FnOnce(Refusal) -> Answer) -> Option<Delivery> {
        let answer = match self {
            Self::Refuse => return Some(Delivery::Disconnect(Disconnect::Refused)),
            Self::DropBefore => return Some(Delivery::Disconnect(Disconnect::Reset)),
            Self::Unauthorized => refuse(Refusal::dead_access_token(TokenStatus::Dead)),
            Self::Forbidden => refuse(Refusal::forbidden()),
            Self::RateLimited { retry_after } => {
                with_header(refuse(Refusal::rate_limited()), RETRY_AFTER, retry_after.as_deref())
            }
            Self::Status { status, content_type, body, retry_after } => {
                let answer = hand_written(*status, content_type, body.clone());
                with_header(answer, RETRY_AFTER, retry_after.as_deref())
            }
            Self::Html { status } => {
                hand_written(*status, "text/html; charset=utf-8", PROXY_PAGE.to_owned())
            }
            Self::Redirect { status, location } => {
                let answer = hand_written(*status, "text/plain", String::new());
                with_header(answer, LOCATION, Some(location))
            }
            Self::Answer { status, content_type, body } => {
                hand_written(*status, content_type, body.clone())
            }
            _ => return None,
        };
        Some(Delivery::Whole(answer))
    }

    /// The delivery of the answer after the provider has acted.
    pub(super) fn deliver(&self, mut answer: Answer) -> Delivery {
        match self {
            Self::DropAfter => Delivery::Disconnect(Disconnect::Reset),
            Self::Truncated => Delivery::BrokenOff(answer),
            Self::Oversized => {
                let mut body = Vec::with_capacity(OVERSIZED);
                body.extend_from_slice(&answer.body);
                body.resize(OVERSIZED.max(body.len()), b' ');
                answer.body = body.into();
                Delivery::Whole(answer)
            }
            Self::Dripping { bytes, every } => {
                Delivery::Drops { answer, bytes: *bytes, every: *every }
            }
            Self::ContentType(content_type) => {
                answer.headers.remove(CONTENT_TYPE);
                let content_type = Some(content_type.as_str()).filter(|it| !it.is_empty());
                Delivery::Whole(with_header(answer, CONTENT_TYPE, content_type))
            }
            Self::Encoded(encoding) => Delivery::Whole(encoding.apply(answer)),
            Self::AnswerAfter { status, content_type, body } => {
                Delivery::Whole(hand_written(*status, content_type, body.clone()))
            }
            _ => Delivery::Whole(answer),
        }
    }

    /// Passes the time between acting and answering.
    pub(super) async fn after(&self) {
        match self {
            Self::DelayAfter(span) => tokio::time::sleep(*span).await,
            Self::HoldAfter(gate) => gate.passed().await,
            _ => {}
        }
    }
}

/// Holds requests back until a test opens it, so that no test needs to guess how long to wait.
///
/// ```
/// use hurdlr_oauth2::testing::{FakeHurdlr, Fault, Gate};
///
/// # async fn example() {
/// let fake = FakeHurdlr::in_memory();
/// let gate = Gate::closed();
/// fake.fault_next(Fault::HoldAfter(gate.clone()));
/// // A refresh is started in another task; then:
/// fake.arrived(1).await;
/// gate.open();
/// # }
/// ```
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    /// A gate that nobody passes yet.
    #[must_use]
    pub fn closed() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Lets all pass who wait, and all who come.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn passed(&self) {
        // The sender is `self`'s, so it cannot be gone.
        let _ = self.0.subscribe().wait_for(|&open| open).await;
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("open", &*self.0.borrow()).finish()
    }
}

type Plan = dyn Fn(&RecordedRequest) -> Option<Fault> + Send + Sync;

/// Faults to come: a queue first, then a plan.
#[derive(Default)]
pub(super) struct Faults(Mutex<Schedule>);

#[derive(Default)]
struct Schedule {
    queue: VecDeque<Fault>,
    plan: Option<Arc<Plan>>,
}

impl Faults {
    pub(super) fn push(&self, fault: Fault) {
        lock(&self.0).queue.push_back(fault);
    }

    pub(super) fn set_plan(&self, plan: Arc<Plan>) {
        lock(&self.0).plan = Some(plan);
    }

    pub(super) fn clear(&self) {
        *lock(&self.0) = Schedule::default();
    }

    pub(super) fn next(&self, request: &RecordedRequest) -> Option<Fault> {
        let plan = {
            let mut schedule = lock(&self.0);
            if let Some(fault) = schedule.queue.pop_front() {
                return Some(fault);
            }
            schedule.plan.clone()
        };
        // Outside the lock: the plan may ask the provider, and may queue faults itself.
        plan.and_then(|plan| plan(request))
    }
}

/// A page as load balancers send it.
const PROXY_PAGE: &str = "<html>\n<head><title>Bad Gateway</title></head>\n\
    <body>\n<center><h1>Bad Gateway</h1></center>\n<hr><center>nginx</center>\n</body>\n</html>\n";

fn hand_written(status: u16, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let Ok(status) = StatusCode::from_u16(status) else {
        return misuse(&format!("{status} is no HTTP status"));
    };
    let mut answer = Answer::text(status, body);
    answer.headers.remove(CONTENT_TYPE);
    with_header(answer, CONTENT_TYPE, Some(content_type).filter(|it| !it.is_empty()))
}

fn with_header(answer: Answer, name: HeaderName, value: Option<&str>) -> Answer {
    match value.map(HeaderValue::from_str) {
        None => answer,
        Some(Ok(value)) => answer.with(name, value),
        Some(Err(_)) => misuse(&format!("a fault names a {name} that no header can hold")),
    }
}

/// The provider has nobody to report a badly written fault to but the client under test.
fn misuse(why: &str) -> Answer {
    Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("FakeHurdlr cannot do this: {why}\n"))
}
