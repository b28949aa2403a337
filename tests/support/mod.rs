//! What several promises are tested with: clients of a provider, and a server made of bytes.

#![allow(dead_code, reason = "each test file uses its own part of this one")]
#![allow(clippy::expect_used, reason = "a failed expectation is the test's failure")]

pub(crate) mod compressed;
pub(crate) mod tls;

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hurdlr_oauth2::testing::{FakeHurdlr, ManualClock};
use hurdlr_oauth2::{Hurdlr, HurdlrBuilder, RetryPolicy, UserId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

pub(crate) const REDIRECT_URI: &str = "https://app.example.com/callback";

/// A client of `fake`, by the in-memory way, with a clock of its own to turn.
pub(crate) fn in_memory(fake: &FakeHurdlr) -> (HurdlrBuilder, ManualClock) {
    let clock = ManualClock::at(fake.now());
    let builder = of(fake).clock(clock.clone()).http_client(fake.http_client());
    (builder, clock)
}

/// A client of `fake`, over its socket.
pub(crate) fn of(fake: &FakeHurdlr) -> HurdlrBuilder {
    Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .authorize_url(fake.authorize_url())
        .redirect_uri(REDIRECT_URI)
}

/// A client of any server, that waits for nothing between its attempts.
pub(crate) fn impatient(base_url: &str) -> HurdlrBuilder {
    Hurdlr::builder("app", "app-secret".into())
        .environment(base_url)
        .authorize_url("https://connect.example.com/authorize")
        .redirect_uri(REDIRECT_URI)
        .retry(RetryPolicy::default().initial_backoff(Duration::ZERO))
}

pub(crate) fn ann() -> UserId {
    UserId::new("ann").expect("an id")
}

/// An error with everything it says of itself and of its causes, in both ways.
pub(crate) fn everything_said(error: &(dyn StdError + 'static)) -> String {
    let mut said = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let _ = write!(said, "{error}\n{error:?}\n{error:#?}\n");
        next = error.source();
    }
    said
}

/// What a [`RawServer`] does with a connection once it has read the request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Sends these bytes and closes in order.
    Bytes(Vec<u8>),
    /// Sends these bytes, then nothing more, and keeps the connection open.
    BytesAndSilence(Vec<u8>),
    /// Sends the first, then the second again and again until the client goes away.
    Endless(Vec<u8>, Vec<u8>),
}

impl Reply {
    /// A whole answer with a right length.
    pub(crate) fn answer(status: u16, headers: &str, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        Self::promising(status, headers, body.len(), body)
    }

    /// An answer that promises `length` bytes of body.
    pub(crate) fn promising(status: u16, headers: &str, length: usize, body: &[u8]) -> Self {
        Self::Bytes(answer_bytes(status, headers, length, body))
    }
}

pub(crate) fn answer_bytes(status: u16, headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status} Whatever\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A server that hides nothing: it keeps the bytes it was sent, and answers with given ones. The
/// last reply is given for ever.
pub(crate) struct RawServer {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl RawServer {
    pub(crate) async fn replying(replies: impl Into<Vec<Reply>>) -> Self {
        let mut replies = replies.into();
        replies.reverse();
        Self::answering(move || match replies.as_slice() {
            [last] => last.clone(),
            _ => replies.pop().expect("at least one reply"),
        })
        .await
    }

    /// Asks for each reply when its request has come.
    pub(crate) async fn answering(reply: impl FnMut() -> Reply + Send + 'static) -> Self {
        let reply = Arc::new(Mutex::new(reply));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let requests = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let received = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let (received, reply) = (Arc::clone(&received), Arc::clone(&reply));
                tokio::spawn(async move {
                    // A client that goes away in the middle ends its connection and no more.
                    if let Ok(request) = read_request(&mut stream).await {
                        received.lock().expect("no panic before").push(request);
                        let reply = reply.lock().expect("no panic before")();
                        let _ = answer(stream, reply).await;
                    }
                });
            }
        });
        Self { address, requests, task }
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The requests so far, as text.
    pub(crate) fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock().expect("no panic before");
        requests
            .iter()
            .map(|request| String::from_utf8(request.clone()).expect("a request of ASCII"))
            .collect()
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
    match reply {
        Reply::Bytes(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
        }
        Reply::BytesAndSilence(bytes) => stream.write_all(&bytes).await?,
        Reply::Endless(start, again) => {
            stream.write_all(&start).await?;
            loop {
                stream.write_all(&again).await?;
            }
        }
    }
    // Until the client is done, since closing before would reset the connection.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    Ok(())
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().expect("a length"));
            if request.len() >= end + 4 + length {
                return Ok(request);
            }
        }
        if stream.read_buf(&mut request).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A port of 127.0.0.1 at which nobody listens, for as long as the socket is held.
pub(crate) fn closed_port() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let port = socket.local_addr().expect("an address").port();
    (socket, port)
}
