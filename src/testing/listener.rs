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

use super::lock::lock;

/// The server's task and its connections; all end when this is dropped.
pub(super) struct Server {
    task: AbortHandle,
    connections: Arc<Connections>,
}

impl Server {
    /// Must be called on a tokio runtime.
    pub(super) fn spawn(listener: TcpListener, router: Router) -> Self {
        let (acceptor, connections) = Acceptor::new(listener);
        Self::serve(acceptor, connections, router)
    }

    pub(super) fn serve<L>(acceptor: L, connections: Arc<Connections>, router: Router) -> Self
    where
        L: Listener<Addr = SocketAddr>,
        ConnHandle: for<'a> Connected<IncomingStream<'a, L>>,
    {
        let service = router.into_make_service_with_connect_info::<ConnHandle>();
        let serve = axum::serve(acceptor, service);
        let task = tokio::spawn(async move {
            // It never ends by itself: accepting is tried again for ever.
            let _ = serve.await;
        });
        Self { task: task.abort_handle(), connections }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // axum gives each connection its own task, which would keep answering.
        self.connections.cut_all();
    }
}

/// Remembers the open connections.
#[derive(Default)]
pub(super) struct Connections(Mutex<ConnectionsInner>);

#[derive(Default)]
struct ConnectionsInner {
    open: Vec<Weak<ConnState>>,
    closed: bool,
}

impl Connections {
    fn add(&self, conn: &ConnHandle) {
        let mut connections = lock(&self.0);
        if connections.closed {
            conn.cut();
        }
        if connections.open.len() == connections.open.capacity() {
            connections.open.retain(|conn| conn.strong_count() > 0);
        }
        connections.open.push(Arc::downgrade(&conn.0));
    }

    fn cut_all(&self) {
        let mut connections = lock(&self.0);
        connections.closed = true;
        for conn in connections.open.drain(..).filter_map(|conn| conn.upgrade()) {
            ConnHandle(conn).cut();
        }
    }
}

/// A handle to one connection, by which a request can cut the connection it came on.
#[derive(Clone, Debug)]
pub(super) struct ConnHandle(Arc<ConnState>);

#[derive(Debug, Default)]
struct ConnState {
    cut: AtomicBool,
    /// The task that waits for bytes from the client: an idle connection has to learn that it is
    /// cut.
    reader: Mutex<Option<Waker>>,
}

impl ConnHandle {
    /// From now on nothing passes in either direction. The server then finds the connection
    /// broken, and closes it without having sent what it holds.
    pub(super) fn cut(&self) {
        // Release, and acquire where it is read: who sees the cut sees all that led to it.
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

impl Connected<IncomingStream<'_, Acceptor>> for ConnHandle {
    fn connect_info(stream: IncomingStream<'_, Acceptor>) -> Self {
        stream.io().conn()
    }
}

/// Hands out connections as [`Wire`]s.
pub(super) struct Acceptor {
    listener: TcpListener,
    connections: Arc<Connections>,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener) -> (Self, Arc<Connections>) {
        let connections = Arc::new(Connections::default());
        (Self { listener, connections: Arc::clone(&connections) }, connections)
    }
}

impl Listener for Acceptor {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        // axum's own implementation waits and tries again when accepting fails.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // An answer in drops should leave drop by drop. Where the option cannot be set, the
        // system gathers them; that is no reason to refuse a client.
        let _ = stream.set_nodelay(true);
        let conn = ConnHandle(Arc::default());
        self.connections.add(&conn);
        (Wire { stream, conn }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A TCP stream that can be cut.
pub(super) struct Wire {
    stream: TcpStream,
    conn: ConnHandle,
}

impl Wire {
    pub(super) fn conn(&self) -> ConnHandle {
        self.conn.clone()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // First the waker, then the look: the other way round a cut in between would be missed.
        self.conn.wake_on_cut(cx.waker());
        self.conn.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.conn.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.conn.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.conn.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
