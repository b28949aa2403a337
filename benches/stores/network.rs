//! A network between a store and its server, which counts round trips and delays bytes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::Outcome;

/// Carries bytes between a TCP address and a server's socket.
pub(crate) struct Network {
    address: SocketAddr,
    traffic: Arc<Traffic>,
    _connections: JoinSet<io::Result<()>>,
}

#[derive(Default)]
struct Traffic {
    /// Questions that began after an answer, or on a new connection.
    round_trips: AtomicUsize,
    /// Milliseconds that each byte takes, each way.
    delay: AtomicU64,
}

impl Network {
    pub(crate) async fn to(server: PathBuf) -> Outcome<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let traffic = Arc::new(Traffic::default());
        let carried = Arc::clone(&traffic);
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await?;
                client.set_nodelay(true)?;
                let server = UnixStream::connect(&server).await?;
                let traffic = Arc::clone(&carried);
                open.spawn(async move {
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let is_answered = AtomicBool::new(true);
                    let asked = || {
                        if is_answered.swap(false, Ordering::Relaxed) {
                            traffic.round_trips.fetch_add(1, Ordering::Relaxed);
                        }
                    };
                    let answered = || is_answered.store(true, Ordering::Relaxed);
                    tokio::try_join!(
                        traffic.carry(from_client, to_server, asked),
                        traffic.carry(from_server, to_client, answered),
                    )
                });
            }
        });
        Ok(Self { address, traffic, _connections: connections })
    }

    /// The URL of the server at the other end.
    pub(crate) fn url(&self) -> String {
        format!("postgres://test@{}/postgres", self.address)
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.traffic.delay.store(delay, Ordering::Relaxed);
    }

    pub(crate) fn round_trips(&self) -> usize {
        self.traffic.round_trips.load(Ordering::Relaxed)
    }
}

impl Traffic {
    /// Carries bytes one way until their end, and calls `passed` for each piece.
    async fn carry(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        passed: impl Fn(),
    ) -> io::Result<()> {
        let (sender, mut on_their_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let taking = async move {
            let mut buffer = vec![0; 16_384];
            loop {
                let read = from.read(&mut buffer).await?;
                let delay = Duration::from_millis(self.delay.load(Ordering::Relaxed));
                let arrival = Instant::now() + delay;
                if read == 0 || sender.send((arrival, buffer[..read].to_vec())).is_err() {
                    return io::Result::Ok(());
                }
                passed();
            }
        };
        let giving = async move {
            while let Some((arrival, bytes)) = on_their_way.recv().await {
                tokio::time::sleep_until(arrival).await;
                to.write_all(&bytes).await?;
            }
            to.shutdown().await
        };
        tokio::try_join!(taking, giving).map(drop)
    }
}
