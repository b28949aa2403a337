//! A relay before a PostgreSQL server, which counts what is sent and loses what is answered.

#![allow(dead_code, reason = "each test binary uses its own part of this one")]
#![allow(clippy::unwrap_used, reason = "a failed expectation is the test's failure")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const SOCKET: &str = ".s.PGSQL.5432";

pub(crate) struct Wire {
    folder: TempDir,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    flights: AtomicUsize,
    closes_at_once: AtomicBool,
    loses_next_answer: AtomicBool,
    withholds_answers: AtomicBool,
    /// The answer of a connection behind which it is closed; none if 0.
    closes_after: AtomicUsize,
}

impl Wire {
    /// A relay to the server that listens in this folder.
    pub(crate) fn before(server: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let counts = Arc::new(Counts::default());
        let (server, shared) = (format!("{server}/{SOCKET}"), Arc::clone(&counts));
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                shared.connections.fetch_add(1, SeqCst);
                if !shared.closes_at_once.load(SeqCst) {
                    let server = UnixStream::connect(&server).await.unwrap();
                    tokio::spawn(Arc::clone(&shared).relay(client, server));
                }
            }
        });
        Self { folder, counts }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://test@localhost/postgres?host={}", self.folder.path().display())
    }

    /// How many connections there were so far.
    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(SeqCst)
    }

    /// How often a client has sent something so far, to wait for an answer.
    pub(crate) fn flights(&self) -> usize {
        self.counts.flights.load(SeqCst)
    }

    /// Closes new connections, as a proxy without a server does.
    pub(crate) fn close_at_once(&self) {
        self.counts.closes_at_once.store(true, SeqCst);
    }

    /// Closes each connection behind so many answers.
    pub(crate) fn close_after(&self, answers: usize) {
        self.counts.closes_after.store(answers, SeqCst);
    }

    /// Closes a connection in place of the next answer, which the server has given.
    pub(crate) fn lose_next_answer(&self) {
        self.counts.loses_next_answer.store(true, SeqCst);
    }

    pub(crate) fn withhold_answers(&self, withhold: bool) {
        self.counts.withholds_answers.store(withhold, SeqCst);
    }
}

impl Counts {
    async fn relay(self: Arc<Self>, mut client: UnixStream, mut server: UnixStream) {
        let (mut request, mut answer) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut answers = 0;
        loop {
            tokio::select! {
                sent = client.read(&mut request) => match sent {
                    Ok(0) | Err(_) => return,
                    Ok(sent) => {
                        self.flights.fetch_add(1, SeqCst);
                        server.write_all(&request[..sent]).await.unwrap();
                    }
                },
                got = server.read(&mut answer) => match got {
                    Ok(0) | Err(_) => return,
                    Ok(_) if self.loses_next_answer.swap(false, SeqCst) => return,
                    Ok(_) if self.withholds_answers.load(SeqCst) => {}
                    Ok(got) => {
                        // The server is ready for another statement.
                        answers += usize::from(answer[..got].ends_with(b"Z\0\0\0\x05I"));
                        let closes = answers > 0 && answers == self.closes_after.load(SeqCst);
                        if closes {
                            // Before the client can answer.
                            refuse_more(&client);
                        }
                        if client.write_all(&answer[..got]).await.is_err() || closes {
                            return;
                        }
                    }
                },
            }
        }
    }
}

/// Makes each further write of the peer fail.
fn refuse_more(stream: &UnixStream) {
    use std::os::fd::AsFd;

    let stream = stream.as_fd().try_clone_to_owned().unwrap();
    let stream = std::os::unix::net::UnixStream::from(stream);
    stream.shutdown(std::net::Shutdown::Read).unwrap();
}
