//! A TCP proxy between a store and its server that does what bad networks do.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What the network is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Weather {
    #[default]
    Clear,
    /// Each byte takes this long, each way.
    Delay(Duration),
    /// So many bytes pass per second, each way and on each connection.
    Throttled(u32),
    /// Whatever is sent is lost. A connection on which something was lost stays silent for ever,
    /// and so does one that is opened meanwhile.
    Blackhole,
}

/// What becomes of a connection whose answer was withheld.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Afterwards {
    Silence,
    Cut,
}

pub(crate) struct Proxy {
    address: SocketAddr,
    network: Arc<Network>,
    _connections: JoinSet<()>,
}

struct Network {
    server: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Counts how often all connections were cut.
    cuts: watch::Sender<u64>,
    /// So many answers are still to be withheld.
    withheld: AtomicUsize,
    cut_after_withholding: AtomicBool,
}

/// The way of the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

impl Proxy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let network = Arc::new(Network {
            server,
            weather: watch::Sender::new(Weather::Clear),
            cuts: watch::Sender::new(0),
            withheld: AtomicUsize::new(0),
            cut_after_withholding: AtomicBool::new(false),
        });
        let mut connections = JoinSet::new();
        let accepting = Arc::clone(&network);
        connections.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                open.spawn(Arc::clone(&accepting).carry(client));
                while open.try_join_next().is_some() {}
            }
        });
        Self { address, network, _connections: connections }
    }

    /// The URL of the server through this proxy, for its superuser.
    pub(crate) fn url(&self) -> String {
        format!("postgres://test@{}/postgres", self.address)
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.network.weather.send_replace(weather);
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.network.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Withholds the next `count` answers: the server has done what it was asked, and nobody learns
    /// of it.
    pub(crate) fn withhold(&self, count: usize, then: Afterwards) {
        self.network.cut_after_withholding.store(then == Afterwards::Cut, Ordering::Relaxed);
        self.network.withheld.store(count, Ordering::Relaxed);
    }

    /// How many answers are still to be withheld.
    pub(crate) fn to_withhold(&self) -> usize {
        self.network.withheld.load(Ordering::Relaxed)
    }
}

impl Network {
    /// Carries the bytes of a connection until it ends or is cut.
    async fn carry(self: Arc<Self>, client: TcpStream) {
        let mut cuts = self.cuts.subscribe();
        let carried = async {
            // Packets to connect are lost as all others are.
            if *self.weather.borrow() == Weather::Blackhole {
                return std::future::pending().await;
            }
            let server = TcpStream::connect(self.server).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let is_dead = AtomicBool::new(false);
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            // The end of either way is the end of the connection.
            tokio::select! {
                ended = self.pump(Way::ToServer, from_client, to_server, &is_dead) => ended,
                ended = self.pump(Way::ToClient, from_server, to_client, &is_dead) => ended,
            }
        };
        tokio::select! {
            _ = carried => {}
            _ = cuts.changed() => {}
        }
    }

    async fn pump(
        &self,
        way: Way,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        is_dead: &AtomicBool,
    ) -> io::Result<()> {
        // Bytes on their way, and when they arrive.
        let (sender, mut sent) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let taking = async move {
            let mut buffer = vec![0; 16_384];
            loop {
                let weather = *self.weather.borrow();
                let most = match weather {
                    Weather::Throttled(_) => 256,
                    _ => buffer.len(),
                };
                let read = from.read(&mut buffer[..most]).await?;
                if read == 0 {
                    if is_dead.load(Ordering::Relaxed) {
                        // Nor does the end of the connection come through.
                        return std::future::pending().await;
                    }
                    return Ok(());
                }
                // The weather may have changed meanwhile.
                let weather = *self.weather.borrow();
                if weather == Weather::Blackhole {
                    is_dead.store(true, Ordering::Relaxed);
                }
                if way == Way::ToClient && self.withholds() {
                    if self.cut_after_withholding.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    is_dead.store(true, Ordering::Relaxed);
                }
                if is_dead.load(Ordering::Relaxed) {
                    continue;
                }
                let mut arrival = Instant::now();
                match weather {
                    Weather::Delay(delay) => arrival += delay,
                    Weather::Throttled(bytes_per_second) => {
                        let read = u32::try_from(read).unwrap();
                        let span = Duration::from_secs(1) * read / bytes_per_second;
                        tokio::time::sleep(span).await;
                    }
                    Weather::Clear | Weather::Blackhole => {}
                }
                if sender.send((arrival, buffer[..read].to_vec())).is_err() {
                    return Ok(());
                }
            }
        };
        let giving = async {
            while let Some((arrival, bytes)) = sent.recv().await {
                tokio::time::sleep_until(arrival).await;
                to.write_all(&bytes).await?;
            }
            Ok(())
        };
        // Bytes taken before the end arrive all the same.
        tokio::try_join!(taking, giving).map(drop)
    }

    /// Takes one from the number of answers to withhold, if there is one.
    fn withholds(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        self.withheld.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }
}
