//! A TLS server whose certificate nobody knows.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the test's failure")]

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{self, ServerConfig, pki_types::PrivateKeyDer};

/// Answers every request with `body`. Returns its URL and its certificate.
pub(crate) async fn serve(body: &'static str) -> (String, Vec<u8>) {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await.ok()?;
                let answer = super::answer_bytes(200, "", body.len(), body.as_bytes());
                stream.write_all(&answer).await.ok()
            });
        }
    });
    (url, issued.cert.der().to_vec())
}

/// Whether an error of rustls is among the causes.
pub(crate) fn is_of_rustls(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| cause(*error)).any(<dyn Error>::is::<rustls::Error>)
}

/// The next cause. An `io::Error` gives its inner error's source as its own, and not the inner one.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|inner| inner as _),
        None => error.source(),
    }
}
