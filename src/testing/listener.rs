//! The socket side: connections that can be cut while a request is being answered.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use axum::{
    Router,
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use super::provider::lock;

/// The server's task and its connections; all end when this is dropped.
pub(super) struct Server {
    task: AbortHandle,
    lines: Arc<Lines>,
}

impl Server {
    /// Must be called on a tokio runtime.
    pub(super) fn spawn(listener: TcpListener, router: Router) -> Self {
        let (doorway, lines) = Doorway::new(listener);
        Self::serve(doorway, lines, router)
    }

    /// As `spawn`, over TLS.
    #[cfg(feature = "rustls")]
    pub(super) fn spawn_tls(
        listener: TcpListener,
        router: Router,
        acceptor: tokio_rustls::TlsAcceptor,
    ) -> Self {
        let (doorway, lines) = Doorway::new(listener);
        Self::serve(super::tls::TlsDoorway::new(doorway, acceptor), lines, router)
    }

    fn serve<L>(doorway: L, lines: Arc<Lines>, router: Router) -> Self
    where
        L: Listener<Addr = SocketAddr>,
        Line: for<'a> Connected<IncomingStream<'a, L>>,
    {
        let service = router.into_make_service_with_connect_info::<Line>();
        let serve = axum::serve(doorway, service);
        let task = tokio::spawn(async move {
            // It never ends by itself: accepting is tried again for ever.
            let _ = serve.await;
        });
        Self { task: task.abort_handle(), lines }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // axum gives each connection its own task, which would keep answering.
        self.lines.cut_all();
    }
}

/// Remembers the open connections.
#[derive(Default)]
struct Lines(Mutex<LinesInner>);

#[derive(Default)]
struct LinesInner {
    open: Vec<Weak<LineState>>,
    closed: bool,
}

impl Lines {
    fn add(&self, line: &Line) {
        let mut lines = lock(&self.0);
        if lines.closed {
            line.cut();
        }
        if lines.open.len() == lines.open.capacity() {
            lines.open.retain(|line| line.strong_count() > 0);
        }
        lines.open.push(Arc::downgrade(&line.0));
    }

    fn cut_all(&self) {
        let mut lines = lock(&self.0);
        lines.closed = true;
        for line in lines.open.drain(..).filter_map(|line| line.upgrade()) {
            Line(line).cut();
        }
    }
}

/// A handle to one connection, by which a request can cut the connection it came on.
#[derive(Clone, Debug)]
pub(super) struct Line(Arc<LineState>);

#[derive(Debug, Default)]
struct LineState {
    cut: AtomicBool,
    /// Who waits for bytes from the client: an idle connection has to learn that it is cut.
    reader: Mutex<Option<Waker>>,
}

impl Line {
    /// From now on nothing passes in either direction. The server then finds the connection
    /// broken, and closes it without having sent what it holds.
    pub(super) fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        if let Some(reader) = lock(&self.0.reader).take() {
            reader.wake();
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.0.cut.load(Ordering::Acquire) {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        }
    }

    fn wake_on_cut(&self, waker: &Waker) {
        let mut reader = lock(&self.0.reader);
        if !reader.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *reader = Some(waker.clone());
        }
    }
}

impl Connected<IncomingStream<'_, Doorway>> for Line {
    fn connect_info(stream: IncomingStream<'_, Doorway>) -> Self {
        stream.io().line()
    }
}

/// Hands out connections as [`Wire`]s.
pub(super) struct Doorway {
    listener: TcpListener,
    lines: Arc<Lines>,
}

impl Doorway {
    fn new(listener: TcpListener) -> (Self, Arc<Lines>) {
        let lines = Arc::new(Lines::default());
        (Self { listener, lines: Arc::clone(&lines) }, lines)
    }
}

impl Listener for Doorway {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        // axum's own implementation waits and tries again when accepting fails.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // An answer in drops should leave drop by drop. Where the option cannot be set, the
        // system gathers them; that is no reason to refuse a client.
        let _ = stream.set_nodelay(true);
        let line = Line(Arc::default());
        self.lines.add(&line);
        (Wire { stream, line }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A TCP stream that can be cut.
pub(super) struct Wire {
    stream: TcpStream,
    line: Line,
}

impl Wire {
    pub(super) fn line(&self) -> Line {
        self.line.clone()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // First the waker, then the look: the other way round a cut in between would be missed.
        self.line.wake_on_cut(cx.waker());
        self.line.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.line.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.line.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.line.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
