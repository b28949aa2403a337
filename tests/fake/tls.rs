//! The server over https.

use std::io;
use std::time::Duration;

use hurdlr_oauth2::testing::{FakeHurdlr, Fault, Outcome};
use hurdlr_oauth2::{ErrorKind, Hurdlr, RetryPolicy, UserId};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::CALLBACK;

/// A certificate of `localhost`, its key, and the root for a client.
fn identity() -> (String, String, reqwest::Certificate) {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let root = reqwest::Certificate::from_der(issued.cert.der()).unwrap();
    (issued.cert.pem(), issued.signing_key.serialize_pem(), root)
}

async fn started() -> (FakeHurdlr, reqwest::Certificate) {
    let (certificate, key, root) = identity();
    let fake = FakeHurdlr::builder().tls(certificate, key.into()).start().await.unwrap();
    (fake, root)
}

fn client(fake: &FakeHurdlr, root: &reqwest::Certificate) -> Hurdlr {
    let root = root.clone();
    Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .authorize_url(fake.authorize_url())
        .redirect_uri(CALLBACK)
        .retry(RetryPolicy::never())
        .reqwest(move |client| client.tls_certs_only([root.clone()]))
        .build()
        .unwrap()
}

#[tokio::test]
async fn login_and_call_go_over_https() {
    let (fake, root) = started().await;
    let port = fake.base_url().port().unwrap();
    assert_eq!(fake.base_url().as_str(), format!("https://localhost:{port}/"));
    let hurdlr = client(&fake, &root);
    let (url, pending) = hurdlr.begin_login().unwrap();
    assert_eq!(url.scheme(), "https");
    let callback = fake.consent(&url, "ann").await.unwrap();
    let token = hurdlr.complete_login(pending, &callback).await.unwrap();
    let token = hurdlr.refresh(&token).await.unwrap();
    let api = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
    let call = api.get(fake.resource_url()).bearer_auth(token.access_token().expose_secret());
    let answer: Value =
        serde_json::from_str(&call.send().await.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(answer["user"], "ann");
}

#[tokio::test]
async fn unknown_root_gets_nothing() {
    let (fake, _) = started().await;
    let (_, _, other_root) = identity();
    let error = client(&fake, &other_root)
        .client_credentials(&UserId::new("ann").unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!error.is_unanswered(), "nothing was sent");
    assert_eq!(fake.count().total(), 0);
}

/// The connection breaks below TLS, and a client that stands still holds nobody up.
#[tokio::test]
async fn connection_faults_work_under_tls() {
    let (fake, root) = started().await;
    let address = ("127.0.0.1", fake.base_url().port().unwrap());
    let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let (hurdlr, ann) = (client(&fake, &root), UserId::new("ann").unwrap());
    for (fault, outcome) in
        [(Fault::DropBefore, Outcome::Faulted), (Fault::DropAfter, Outcome::Issued)]
    {
        fake.clear_requests();
        fake.fault_next(fault);
        let error = hurdlr.client_credentials(&ann).await.unwrap_err();
        assert!(error.is_unanswered());
        assert_eq!(fake.count().outcome(outcome), 1);
    }
    hurdlr.client_credentials(&ann).await.unwrap();
}

/// A handshake that fails while another one is under way leaves that one alone.
#[tokio::test]
async fn failed_handshake_holds_up_no_other() {
    let (fake, root) = started().await;
    let address = ("127.0.0.1", fake.base_url().port().unwrap());
    let relay = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("https://localhost:{}/", relay.local_addr().unwrap().port());
    let call = tokio::spawn(async move {
        let client = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
        client.get(url).send().await
    });
    let (mut client, _) = relay.accept().await.unwrap();
    let mut server = TcpStream::connect(address).await.unwrap();
    // The server has begun with this handshake, and waits for the client's end of it.
    let mut hello = vec![0; 1 << 14];
    let length = client.read(&mut hello).await.unwrap();
    server.write_all(&hello[..length]).await.unwrap();
    server.readable().await.unwrap();

    let mut other = TcpStream::connect(address).await.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    other.read_to_end(&mut Vec::new()).await.unwrap();

    tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
    let answer = tokio::time::timeout(Duration::from_secs(10), call).await;
    assert_eq!(answer.expect("an answer").unwrap().unwrap().status(), 404);
}

#[tokio::test]
async fn unusable_certificate_is_an_error() {
    let ((certificate, key, _), (_, other_key, _)) = (identity(), identity());
    for (certificate, key) in [
        (&*certificate, "no key"),
        ("no certificate", &*key),
        ("", &*key),
        (&*certificate, &*certificate),
        (&*certificate, &*other_key),
    ] {
        let builder = FakeHurdlr::builder().tls(certificate, key.into());
        assert!(!format!("{builder:?}").contains("PRIVATE KEY"));
        let error = builder.start().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }
}
