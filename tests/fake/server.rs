//! The server: its port and its end.

use std::io;

use hurdlr_oauth2::testing::{FakeHurdlr, Fault, Gate};

use super::{V4, socket_client};

#[tokio::test]
async fn given_port_is_used_or_an_error() {
    let fake = FakeHurdlr::start().await.unwrap();
    let port = fake.base_url().port().unwrap();
    assert_eq!(fake.base_url().as_str(), format!("http://127.0.0.1:{port}/"));
    let error = FakeHurdlr::builder().port(port).start().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn server_and_connections_end_with_last_handle() {
    let fake = FakeHurdlr::start().await.unwrap();
    let last = fake.clone();
    let address = fake.base_url().socket_addrs(|| None).unwrap()[0];
    drop(fake);
    // An idle connection that has been served once.
    let mut idle = tokio::net::TcpStream::connect(address).await.unwrap();
    {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        idle.write_all(b"GET /rest/v4/me HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert!(idle.read(&mut [0; 4096]).await.unwrap() > 0);
        drop(last);
        let mut rest = Vec::new();
        // Whether as an end or as a reset: it is over.
        let _ = idle.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn request_in_flight_ends_with_last_handle() {
    let fake = FakeHurdlr::start().await.unwrap();
    let gate = Gate::closed();
    fake.fault_next(Fault::Hold(gate.clone()));
    let request = socket_client().post(fake.base_url().join(V4).unwrap()).send();
    let task = tokio::spawn(request);
    fake.arrived(1).await;
    drop(fake);
    // The gate stays closed: only the end of the connection can end this.
    assert!(task.await.unwrap().is_err());
    drop(gate);
}
