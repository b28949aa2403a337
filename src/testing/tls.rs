//! The socket side over TLS.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
    server::TlsStream,
};

use super::listener::{Acceptor, ConnHandle, Server, Wire};

/// A certificate chain and its key, as they were given.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) certificate_pem: String,
    pub(super) key_pem: SecretString,
}

/// Shows nothing: a file of PEM often has the certificate and the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// `InvalidInput` where they cannot be used.
    pub(super) fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let chain = CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| invalid("the certificate of FakeHurdlr is not PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.expose_secret().as_bytes())
            .map_err(|_| invalid("the private key of FakeHurdlr is not PEM"))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

impl Server {
    /// Like [`spawn`](Self::spawn), over TLS.
    pub(super) fn spawn_tls(listener: TcpListener, router: Router, tls: TlsAcceptor) -> Self {
        let (acceptor, connections) = Acceptor::new(listener);
        Self::serve(TlsListener::new(acceptor, tls), connections, router)
    }
}

/// Hands out connections whose handshake is done. Others are not kept waiting by one that is not.
pub(super) struct TlsListener {
    tcp: Acceptor,
    acceptor: TlsAcceptor,
    handshakes: JoinSet<io::Result<(TlsStream<Wire>, SocketAddr)>>,
}

impl TlsListener {
    pub(super) fn new(tcp: Acceptor, acceptor: TlsAcceptor) -> Self {
        Self { tcp, acceptor, handshakes: JoinSet::new() }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<Wire>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TlsStream<Wire>, SocketAddr) {
        loop {
            tokio::select! {
                (wire, address) = self.tcp.accept() => {
                    let accepted = self.acceptor.accept(wire);
                    self.handshakes.spawn(async move { Ok((accepted.await?, address)) });
                }
                // A client that does not trust the certificate has gone, and is nobody's concern.
                // A pattern for the others alone would end the wait for all other handshakes.
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Ok(connection)) = done {
                        return connection;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for ConnHandle {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        stream.io().get_ref().0.conn()
    }
}
