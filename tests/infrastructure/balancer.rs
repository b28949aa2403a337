//! HAProxy in front of two servers. Its admin socket moves clients from one to the other, as an
//! operator or a failover tool does.

use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::cluster::{free_port, until, write_private};
use crate::postgres::{Daemon, folder};

const INSTALL: &str = "HAProxy is missing, so this test cannot run. Install it by `tests/install`, \
                       or: apt-get install --yes haproxy";

pub(crate) struct Balancer {
    _daemon: Daemon,
    folder: TempDir,
    port: u16,
}

impl Balancer {
    /// Clients go to the first of the servers `one` and `two`.
    pub(crate) async fn start(one: SocketAddr, two: SocketAddr) -> Self {
        let port = free_port();
        let config = format!(
            "global\n\
             stats socket unix@admin mode 600 level admin\n\
             defaults\n\
             mode tcp\n\
             timeout connect 2s\n\
             timeout client 1h\n\
             timeout server 1h\n\
             listen postgres\n\
             bind 127.0.0.1:{port}\n\
             server one {one}\n\
             server two {two} disabled\n"
        );
        Self::start_by(&config, port).await
    }

    /// By a configuration that listens on a port.
    pub(crate) async fn start_by(config: &str, port: u16) -> Self {
        let program = Path::new("/usr/sbin/haproxy");
        assert!(program.exists(), "{INSTALL}");
        let folder = folder();
        let config = write_private(folder.path(), "config", config);
        let args = ["-db".as_ref(), "-f".as_ref(), config.as_os_str()];
        let daemon = Daemon::start(folder.path(), ["TERM", ":"], program, args);
        let balancer = Self { _daemon: daemon, folder, port };
        until("HAProxy", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        balancer
    }

    /// The URL of the server that clients are led to, for its superuser.
    pub(crate) fn url(&self) -> String {
        format!("postgres://test@127.0.0.1:{}/postgres", self.port)
    }

    /// Leads all clients to the second server.
    pub(crate) async fn switch(&self) {
        self.leave_first().await;
        self.order("set server postgres/two state ready").await;
    }

    /// Takes the first server away from all clients.
    pub(crate) async fn leave_first(&self) {
        self.order("set server postgres/one state maint").await;
        self.order("shutdown sessions server postgres/one").await;
    }

    async fn order(&self, order: &str) {
        let mut admin = UnixStream::connect(self.folder.path().join("admin")).await.unwrap();
        admin.write_all(format!("{order}\n").as_bytes()).await.unwrap();
        let mut said = String::new();
        admin.read_to_string(&mut said).await.unwrap();
        assert!(said.trim().is_empty(), "{order}: {said}");
    }
}
