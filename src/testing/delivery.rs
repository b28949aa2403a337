//! How an answer leaves: whole, in drops, broken off, or not at all.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    response::Response,
};
use http::{StatusCode, header::CONTENT_LENGTH};
use http_body::Frame;
use tokio::time::Sleep;

use super::answer::Answer;

pub(super) enum Delivery {
    Whole(Answer),
    /// The headers promise the whole body; half of it comes, then the connection breaks.
    BrokenOff(Answer),
    /// A few bytes at a time, after a pause each.
    Drops {
        answer: Answer,
        bytes: usize,
        every: Duration,
    },
    /// The connection breaks instead.
    Disconnect(Disconnect),
}

/// Marks a response that must not be sent: the connection is to be cut in its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Disconnect {
    /// Nothing was sent, like where nobody listens.
    Refused,
    /// After the request was sent.
    Reset,
}

impl Delivery {
    /// The status the client gets to see.
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Whole(answer) | Self::BrokenOff(answer) | Self::Drops { answer, .. } => {
                Some(answer.status)
            }
            Self::Disconnect(_) => None,
        }
    }

    pub(super) fn into_response(self) -> Response {
        match self {
            Self::Whole(answer) => answer.into_response(),
            Self::BrokenOff(answer) => {
                let half = answer.body.len() / 2;
                slow(answer, |body| SlowBody {
                    pause: Pause::None,
                    ending: Ending::Broken,
                    bytes: half.max(1),
                    rest: body.slice(..half),
                })
            }
            Self::Drops { answer, bytes, every } => slow(answer, |body| SlowBody {
                pause: Pause::Every(every),
                ending: Ending::Whole,
                bytes: bytes.max(1),
                rest: body,
            }),
            Self::Disconnect(disconnect) => {
                let mut response = Response::default();
                response.extensions_mut().insert(disconnect);
                response
            }
        }
    }
}

/// The length is promised in full, whatever the body then does.
fn slow(answer: Answer, body: impl FnOnce(Bytes) -> SlowBody) -> Response {
    let whole = answer.body.clone();
    let mut response = answer.into_response();
    response.headers_mut().insert(CONTENT_LENGTH, whole.len().into());
    *response.body_mut() = Body::new(body(whole));
    response
}

/// A body that takes its time, or never ends.
struct SlowBody {
    rest: Bytes,
    bytes: usize,
    pause: Pause,
    ending: Ending,
}

enum Pause {
    None,
    Every(Duration),
    Running(Duration, Pin<Box<Sleep>>),
}

enum Ending {
    Whole,
    Broken,
    /// Broken as well, but polled once more first, so that the server flushes what it has.
    Breaking,
}

impl HttpBody for SlowBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            return match this.ending {
                Ending::Whole => Poll::Ready(None),
                Ending::Broken => {
                    this.ending = Ending::Breaking;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Ending::Breaking => Poll::Ready(Some(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the answer broke off",
                )))),
            };
        }
        loop {
            match &mut this.pause {
                Pause::None => break,
                Pause::Every(every) => {
                    let every = *every;
                    this.pause = Pause::Running(every, Box::pin(tokio::time::sleep(every)));
                }
                Pause::Running(every, sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    this.pause = Pause::Every(*every);
                    break;
                }
            }
        }
        let next = this.rest.split_to(this.bytes.min(this.rest.len()));
        Poll::Ready(Some(Ok(Frame::data(next))))
    }
}
