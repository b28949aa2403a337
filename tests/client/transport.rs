//! What can go wrong on a real socket ends in a typed error, and secrets go to one host only.

use std::error::Error as _;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use hurdlr_oauth2::basic::BasicTokenResponse;
use hurdlr_oauth2::http::{Request, StatusCode};
use hurdlr_oauth2::oauth2::{AsyncHttpClient, TokenResponse};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault};
use hurdlr_oauth2::{Error, ErrorKind, HttpClient, HttpError, Hurdlr, RetryPolicy, Token, reqwest};

use crate::support::{self, RawServer, Reply, compressed};

const JSON: &str = "Content-Type: application/json\r\n";
const TOKEN: &str = include_str!("../fixtures/v4_token.json");
const ACCESS: &str = "00f6b2b68eb9459eab681d19aa86c6154e225068f3074d1d9b639316d5380a4c.91d620872c3b438ba33f4baaca124624";
const KIB: usize = 1024;

/// Somebody else's host, that must not be spoken to.
struct Stranger(TcpListener);

impl Stranger {
    fn listen() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn url(&self) -> String {
        format!("http://{}/elsewhere", self.0.local_addr().unwrap())
    }

    /// The system completes a connection before anybody accepts it, so one that was ever begun is
    /// seen here.
    fn assert_left_alone(&self) {
        let accepted = self.0.accept().map(|(_, from)| from);
        assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

fn once(server: &RawServer) -> Hurdlr {
    support::impatient(&server.base_url()).retry(RetryPolicy::never()).build().unwrap()
}

async fn granted(hurdlr: &Hurdlr) -> Result<Token, Error> {
    hurdlr.client_credentials(&support::ann()).await
}

/// A refresh, whose request carries the most secrets.
async fn refreshed(hurdlr: &Hurdlr) -> Result<Token, Error> {
    let token = r#"{"access_token":"old-access","refresh_token":"old-refresh"}"#;
    hurdlr.refresh(&hurdlr.import(token).unwrap()).await
}

async fn logged_in(hurdlr: &Hurdlr) -> Result<Token, Error> {
    let (_, pending) = hurdlr.begin_login().unwrap();
    let state = pending.state().expose_secret().to_owned();
    let callback = vec![("code", "the-code"), ("state", state.as_str())];
    hurdlr.complete_login(pending, callback).await
}

fn cause(error: &Error) -> &HttpError {
    let source = error.source().expect("a cause");
    source.downcast_ref().expect("a cause of the transport's")
}

#[tokio::test]
async fn redirect_sends_no_other_host_anything() {
    let stranger = Stranger::listen();
    let mut replies = Vec::new();
    let mut statuses = Vec::new();
    for status in [300, 301, 302, 303, 305, 307, 308] {
        for location in [stranger.url(), "/rest/v4/auth/token?again".to_owned()] {
            let headers = format!("Location: {location}\r\n");
            for body in ["", "marker", TOKEN] {
                statuses.push(status);
                replies.extend(vec![Reply::answer(status, &headers, body); 3]);
            }
        }
    }
    let server = RawServer::replying(replies).await;
    let hurdlr = support::impatient(&server.base_url())
        .request_timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    for (row, status) in statuses.into_iter().enumerate() {
        for error in [
            granted(&hurdlr).await.unwrap_err(),
            refreshed(&hurdlr).await.unwrap_err(),
            logged_in(&hurdlr).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidResponse);
            assert_eq!(error.status().unwrap().as_u16(), status);
            assert_eq!(error.attempts(), 1);
            let said = support::everything_said(&error);
            assert!(!said.contains("marker") && !said.contains("elsewhere"), "{said}");
        }
        assert_eq!(server.requests().len(), 3 * (row + 1));
    }
    stranger.assert_left_alone();
}

#[tokio::test]
async fn redirect_policy_of_app_is_unused() {
    let stranger = Stranger::listen();
    let headers = format!("Location: {}\r\n", stranger.url());
    let server = RawServer::replying([Reply::answer(307, &headers, "")]).await;
    let hurdlr = support::impatient(&server.base_url())
        .reqwest(|builder| builder.redirect(reqwest::redirect::Policy::limited(10)))
        .build()
        .unwrap();
    let error = refreshed(&hurdlr).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::TEMPORARY_REDIRECT));
    stranger.assert_left_alone();
}

#[tokio::test]
async fn endless_body_is_left_at_64_kib() {
    let junk = vec![b'x'; 4 * KIB];
    let chunk = [b"1000\r\n", junk.as_slice(), b"\r\n"].concat();
    for (headers, again) in [
        ("Content-Length: 1000000000000\r\n", &junk),
        ("Connection: close\r\n", &junk),
        ("Transfer-Encoding: chunked\r\n", &chunk),
    ] {
        for status in [200, 400, 500] {
            let head = format!("HTTP/1.1 {status} Whatever\r\n{headers}\r\n");
            let reply = Reply::Endless(head.into_bytes(), again.clone());
            let server = RawServer::replying([reply]).await;
            let error = granted(&once(&server)).await.unwrap_err();
            assert_eq!(error.status().unwrap().as_u16(), status);
            if status != 500 {
                assert_eq!(error.kind(), ErrorKind::InvalidResponse);
            }
            assert!(matches!(cause(&error), HttpError::TooLong), "{error:?}");
        }
    }
}

#[tokio::test]
async fn body_bound_is_exactly_64_kib() {
    // The padding is a field nobody reads.
    let rest = &TOKEN[1..];
    let exact = |length: usize| {
        let padding = "x".repeat(length - rest.len() - r#"{"pad":"","#.len());
        format!(r#"{{"pad":"{padding}",{rest}"#)
    };
    let body = exact(64 * KIB);
    assert_eq!(body.len(), 64 * KIB);
    let server = RawServer::replying([Reply::answer(200, JSON, body)]).await;
    let token = granted(&once(&server)).await.unwrap();
    assert_eq!(token.access_token().expose_secret(), ACCESS);

    let body = exact(64 * KIB + 1);
    assert_eq!(body.len(), 64 * KIB + 1);
    let server = RawServer::replying([Reply::answer(200, JSON, body)]).await;
    let error = granted(&once(&server)).await.unwrap_err();
    assert!(matches!(cause(&error), HttpError::TooLong), "{error:?}");

    // The same holds for a client of the app's own.
    for (length, fits) in [(64 * KIB, true), (64 * KIB + 1, false), (64 * KIB + 2, false)] {
        let fake = FakeHurdlr::in_memory();
        let (builder, _) = support::in_memory(&fake);
        let hurdlr = builder.retry(RetryPolicy::never()).build().unwrap();
        fake.fault_next(Fault::answer(200, exact(length)));
        match granted(&hurdlr).await {
            Ok(token) => assert!(fits, "{length}: {token:?}"),
            Err(error) => {
                assert!(!fits && matches!(cause(&error), HttpError::TooLong), "{error:?}");
            }
        }
    }
}

#[tokio::test]
async fn unusable_body_is_named_not_quoted() {
    use ErrorKind::{InvalidResponse, Rejected, Unavailable};
    let html = "<html><body>marker</body></html>";
    let mistyped = r#"{"access_token":["marker"],"scope":"marker"}"#;
    let unusable = r#"{"access_token":"mark\u0000er marker","token_type":"Bearer"}"#;
    let broken = r#"{"access_token":"marker"#;
    let rows = [
        (200, html, InvalidResponse),
        (200, "", InvalidResponse),
        (200, broken, InvalidResponse),
        (200, mistyped, InvalidResponse),
        (200, unusable, InvalidResponse),
        (200, r#""marker""#, InvalidResponse),
        (200, r#"["marker"]"#, InvalidResponse),
        (200, r#"{"message":"marker"}"#, InvalidResponse),
        (204, "", InvalidResponse),
        (400, html, InvalidResponse),
        (400, "", InvalidResponse),
        (400, broken, InvalidResponse),
        (403, html, InvalidResponse),
        (404, html, InvalidResponse),
        (400, TOKEN, InvalidResponse),
        (500, html, Unavailable),
        (502, html, Unavailable),
        (503, "", Unavailable),
        (504, broken, Unavailable),
        (429, html, ErrorKind::RateLimited),
        (400, r#"{"error":"invalid_request","marker":"marker"}"#, Rejected),
    ];
    let reply =
        |&(status, body, _): &(u16, &str, ErrorKind)| vec![Reply::answer(status, JSON, body); 3];
    let server = RawServer::replying(rows.iter().flat_map(reply).collect::<Vec<_>>()).await;
    let hurdlr = once(&server);
    for (status, body, kind) in rows {
        for error in [
            granted(&hurdlr).await.unwrap_err(),
            refreshed(&hurdlr).await.unwrap_err(),
            logged_in(&hurdlr).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), kind, "{status} {body}");
            assert_eq!(error.status().unwrap().as_u16(), status, "{body}");
            let said = support::everything_said(&error);
            for secret in ["marker", "mark", ACCESS, "old-refresh", "old-access", "the-code"] {
                assert!(!said.contains(secret), "{said}");
            }
        }
    }
}

#[tokio::test]
async fn answer_without_http_is_no_answer() {
    for bytes in ["", "marker", "HTTP/1.1 marker\r\n\r\n", "SSH-2.0-marker\r\n"] {
        let server = RawServer::replying([Reply::Bytes(bytes.into())]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{bytes}");
        assert_eq!((error.status(), error.is_unanswered()), (None, true));
        assert!(matches!(cause(&error), HttpError::Broken(_)), "{error:?}");
        assert!(!support::everything_said(&error).contains("marker"));
    }
}

/// A header line that a firewall or an old server malforms must not lose the token below it.
#[tokio::test]
async fn malformed_header_hides_no_token() {
    let lines: [&[u8]; 7] = [
        b"X-Odd : 1",
        b"X Odd: 1",
        b"this is no header",
        b"X-Odd: one\r\n two",
        b"Set-Cookie: odd=a\x01b",
        b"X-Odd: \xff",
        b": 1",
    ];
    for line in lines {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", TOKEN.len());
        let bytes = [head.as_bytes(), line, b"\r\n\r\n", TOKEN.as_bytes()].concat();
        let server = RawServer::replying([Reply::Bytes(bytes)]).await;
        let token = refreshed(&once(&server)).await;
        let line = String::from_utf8_lossy(line);
        assert_eq!(token.expect(&line).access_token().expose_secret(), ACCESS);
    }
    // The length counts, however it is written.
    let bytes = format!("HTTP/1.1 200 OK\r\nContent-Length : {}\r\n\r\n{TOKEN}", TOKEN.len());
    let server = RawServer::replying([Reply::BytesAndSilence(bytes.into())]).await;
    refreshed(&once(&server)).await.unwrap();
}

#[tokio::test]
async fn any_success_status_brings_its_token() {
    let mut replies = Vec::new();
    for status in [200, 201, 202, 203, 206, 299] {
        for headers in [
            "",
            JSON,
            "Content-Type: text/html\r\n",
            "Content-Type: application/x-www-form-urlencoded\r\n",
            "Content-Type: \r\n",
        ] {
            replies.extend(vec![Reply::answer(status, headers, TOKEN); 3]);
        }
    }
    let expected = replies.len();
    let server = RawServer::replying(replies).await;
    let hurdlr = once(&server);
    while server.requests().len() < expected {
        for token in [
            granted(&hurdlr).await.unwrap(),
            refreshed(&hurdlr).await.unwrap(),
            logged_in(&hurdlr).await.unwrap(),
        ] {
            assert_eq!(token.access_token().expose_secret(), ACCESS);
        }
    }
}

#[tokio::test]
async fn success_with_error_body_is_a_failure() {
    let dead = r#"{"error":"invalid_grant","error_description":"gone"}"#;
    for status in [200, 201] {
        let server = RawServer::replying([Reply::answer(status, JSON, dead)]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert_eq!(error.code(), Some("invalid_grant"));
        assert_eq!(error.description(), Some("gone"));
        assert_eq!(error.status().unwrap().as_u16(), status);
        let error = granted(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
    }
}

#[tokio::test]
async fn token_beside_defect_is_rescued_unshown() {
    let body = r#"{"access_token":"new-access","refresh_token":"new-refresh","token_type":"mac"}"#;
    let after = r#"{"refresh_token":"new-refresh","access_token":"new-acc"#;
    for (reply, why) in [
        (Reply::answer(200, JSON, body), "another token type"),
        (Reply::answer(201, "", body), "another token type, 201"),
        (Reply::answer(200, JSON, after), "broken JSON"),
        (Reply::promising(200, JSON, after.len() + 20, after.as_bytes()), "cut off"),
        (Reply::answer(200, JSON, r#"{"refresh_token":"new-refresh"}"#), "no access token"),
        (
            Reply::answer(
                200,
                JSON,
                r#"{"refresh_token":"new-refresh","access_token":"new\u0000access"}"#,
            ),
            "an access token no header can carry",
        ),
    ] {
        let server = RawServer::replying([reply]).await;
        let hurdlr = support::impatient(&server.base_url()).build().unwrap();
        for error in [refreshed(&hurdlr).await.unwrap_err(), logged_in(&hurdlr).await.unwrap_err()]
        {
            assert_eq!(error.kind(), ErrorKind::InvalidResponse, "{why}");
            let rescued = error.rescued_refresh_token().expect(why);
            assert_eq!(rescued.expose_secret(), "new-refresh");
            assert_eq!(error.attempts(), 1, "{why}: the old one may be dead");
            let said = support::everything_said(&error);
            for secret in ["new-refresh", "new-acc", "new\\0access"] {
                assert!(!said.contains(secret), "{why}: {said}");
            }
        }
    }
}

#[tokio::test]
async fn body_cut_within_token_is_no_answer() {
    for cut in [
        r#"{"access_token":"marker-access""#,
        r#"{"access_token":"marker-access","refresh_token":"marker-ref"#,
    ] {
        let reply = Reply::promising(200, JSON, 300, cut.as_bytes());
        let server = RawServer::replying([reply]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidResponse);
        assert!(error.rescued_refresh_token().is_none() && error.is_unanswered());
        assert!(matches!(cause(&error), HttpError::Broken(_)), "{error:?}");
        assert!(!support::everything_said(&error).contains("marker"));
    }
}

#[tokio::test]
async fn whole_token_survives_a_wrong_length() {
    let longer = Reply::promising(200, JSON, TOKEN.len() + 100, TOKEN.as_bytes());
    let chunked_without_end = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{TOKEN}\r\n",
        TOKEN.len()
    );
    for reply in [longer, Reply::Bytes(chunked_without_end.into())] {
        let server = RawServer::replying([reply]).await;
        let token = refreshed(&once(&server)).await.unwrap();
        assert_eq!(token.access_token().expose_secret(), ACCESS);
    }
}

#[tokio::test]
async fn refresh_token_of_endless_answer_is_rescued() {
    let endless = Reply::answer(200, JSON, TOKEN.to_owned() + &" ".repeat(100 * KIB));
    let error = refreshed(&once(&RawServer::replying([endless]).await)).await.unwrap_err();
    assert!(matches!(cause(&error), HttpError::TooLong), "{error:?}");
    assert!(error.rescued_refresh_token().is_some());

    // All of the first 64 KiB is read, however they come in.
    let refresh_token = r#""refresh_token":"new-refresh","#;
    let padding = " ".repeat(64 * KIB - 1 - refresh_token.len());
    let endless = Reply::answer(200, JSON, format!("{{{padding}{refresh_token}{padding}"));
    let error = refreshed(&once(&RawServer::replying([endless]).await)).await.unwrap_err();
    assert!(matches!(cause(&error), HttpError::TooLong), "{error:?}");
    assert_eq!(error.rescued_refresh_token().unwrap().expose_secret(), "new-refresh");
}

#[tokio::test]
async fn token_beside_failure_is_rescued_unless_sent() {
    for status in [500, 400, 302] {
        let server = RawServer::replying([Reply::answer(status, JSON, TOKEN)]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidResponse, "{status}");
        assert!(error.rescued_refresh_token().is_some(), "{status}");
    }
    let echo = r#"{"error":"invalid_grant","refresh_token":"old-refresh"}"#;
    for status in [200, 400] {
        let server = RawServer::replying([Reply::answer(status, JSON, echo)]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired, "{status}");
        assert!(error.rescued_refresh_token().is_none(), "{status}");
    }
}

/// Frameworks answer with a message for each field that is wrong, or with the fields that were
/// sent, masked. Taken for a refresh token, such a text would replace the living one.
#[tokio::test]
async fn message_about_a_field_is_no_token() {
    for body in [
        r#"{"refresh_token":"must not be blank"}"#,
        r#"{"refresh_token":"invalid"}"#,
        r#"{"error":"invalid_request","refresh_token":"[FILTERED]"}"#,
        r#"{"result":"FAILURE","data":{"refresh_token":"old-***"},"error":[]}"#,
    ] {
        for status in [400, 422, 500, 503] {
            let server = RawServer::replying([Reply::answer(status, JSON, body)]).await;
            for error in [
                refreshed(&once(&server)).await.unwrap_err(),
                logged_in(&once(&server)).await.unwrap_err(),
            ] {
                assert!(error.rescued_refresh_token().is_none(), "{status} {body}");
                assert!(!error.needs_login(), "{status} {body}: {error:?}");
            }
        }
    }
}

#[tokio::test]
async fn late_answer_is_given_up() {
    let half = support::answer_bytes(200, JSON, TOKEN.len(), &TOKEN.as_bytes()[..150]);
    for (reply, status) in [
        (Reply::BytesAndSilence(Vec::new()), None),
        (Reply::BytesAndSilence(b"HTTP/1.1 200 OK\r\n".to_vec()), None),
        (Reply::BytesAndSilence(half), Some(StatusCode::OK)),
    ] {
        let server = RawServer::replying([reply]).await;
        let hurdlr = support::impatient(&server.base_url())
            .retry(RetryPolicy::never())
            .request_timeout(Duration::from_secs(1))
            .build()
            .unwrap();
        // Without it, a client without a bound of its own would hang this test.
        let guard = tokio::time::timeout(Duration::from_secs(20), refreshed(&hurdlr));
        let error = guard.await.expect("an end").unwrap_err();
        assert_eq!(error.status(), status);
        assert!(error.is_unanswered());
        assert!(matches!(cause(&error), HttpError::TimedOut(_)), "{error:?}");
    }
}

#[tokio::test]
async fn dripping_answer_is_bounded_as_a_whole() {
    let fake = FakeHurdlr::start().await.unwrap();
    fake.fault_next(Fault::dripping(Duration::from_millis(20)));
    let hurdlr = support::of(&fake)
        .retry(RetryPolicy::never())
        .request_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let error = granted(&hurdlr).await.unwrap_err();
    assert!(matches!(cause(&error), HttpError::TimedOut(_)), "{error:?}");
}

#[tokio::test]
async fn dropped_connection_means_no_answer() {
    let fake = FakeHurdlr::start().await.unwrap();
    let hurdlr = support::of(&fake).retry(RetryPolicy::never()).build().unwrap();
    for fault in [Fault::DropBefore, Fault::DropAfter] {
        fake.fault_next(fault);
        let error = granted(&hurdlr).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.is_unanswered());
        assert!(matches!(cause(&error), HttpError::Broken(_)), "{error:?}");
    }
    assert_eq!(fake.count().total(), 2, "and none was repeated unasked");
}

#[tokio::test]
async fn plain_http_is_for_loopback_only() {
    for url in [
        "http://api.example.com",
        "http://10.0.0.1",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "http://[2001:db8::1]",
    ] {
        let error = support::impatient(url).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{url}");
        let error = HttpClient::new(&url.parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{url}");
    }
    for url in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
        assert!(support::impatient(url).build().is_ok(), "{url}");
        assert!(HttpClient::new(&url.parse().unwrap()).is_ok(), "{url}");
    }
}

#[cfg(any(feature = "rustls", feature = "native-tls"))]
#[tokio::test]
async fn failed_tls_handshake_sends_nothing() {
    use tokio::io::AsyncReadExt;

    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let hurdlr = support::impatient(&url).retry(RetryPolicy::never()).build().unwrap();
    let plain_server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut received = vec![0; 4 * KIB];
        let length = stream.read(&mut received).await.unwrap();
        let answer = support::answer_bytes(400, "", 0, b"");
        tokio::io::AsyncWriteExt::write_all(&mut stream, &answer).await.unwrap();
        received.truncate(length);
        stream.read_to_end(&mut received).await.unwrap_or_default();
        String::from_utf8_lossy(&received).into_owned()
    };
    let (result, received) = tokio::join!(refreshed(&hurdlr), plain_server);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!error.is_unanswered());
    assert!(matches!(cause(&error), HttpError::NotSent(_)), "{error:?}");
    assert!(!received.is_empty());
    for secret in ["POST", "app-secret", "old-refresh", "old-access"] {
        assert!(!received.contains(secret));
    }
}

#[tokio::test]
async fn proxy_of_app_spares_loopback() {
    let proxy = RawServer::replying([Reply::answer(200, JSON, "{}")]).await;
    let server = RawServer::replying([Reply::answer(200, JSON, TOKEN)]).await;
    let proxy_url = proxy.base_url();
    let hurdlr = support::impatient(&server.base_url())
        .reqwest(|builder| builder.proxy(reqwest::Proxy::all(proxy_url).unwrap()))
        .build()
        .unwrap();
    refreshed(&hurdlr).await.unwrap();
    assert_eq!((proxy.requests().len(), server.requests().len()), (0, 1));
}

/// Passes wherever it runs; what counts is that it does so in an environment that names a proxy.
#[tokio::test]
async fn a_loopback_host_is_reached_directly() {
    let server = RawServer::replying([Reply::answer(200, JSON, TOKEN)]).await;
    let hurdlr = support::impatient(&server.base_url()).build().unwrap();
    refreshed(&hurdlr).await.unwrap();
    let client = HttpClient::new(&server.base_url().parse().unwrap()).unwrap();
    let request = Request::post(server.base_url()).body(Vec::new()).unwrap();
    assert_eq!(client.call(request).await.unwrap().status(), StatusCode::OK);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn proxy_of_environment_spares_loopback() {
    let proxy = RawServer::replying([Reply::answer(200, JSON, "{}")]).await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "transport::a_loopback_host_is_reached_directly"]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        child.env(name, proxy.base_url());
        child.env(name.to_lowercase(), proxy.base_url());
    }
    let output = child
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        // With it set, a server ignores HTTP_PROXY, and nothing would be proved.
        .env_remove("REQUEST_METHOD")
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    assert_eq!(proxy.requests(), [""; 0]);
}

#[tokio::test]
async fn what_else_a_caller_sets_is_kept() {
    let server = RawServer::replying([Reply::answer(200, JSON, TOKEN)]).await;
    let hurdlr = support::impatient(&server.base_url())
        .reqwest(|builder| builder.user_agent("my-app/7"))
        .build()
        .unwrap();
    granted(&hurdlr).await.unwrap();
    let request = server.requests().remove(0);
    assert!(request.contains("\r\nuser-agent: my-app/7\r\n"), "{request}");
}

#[tokio::test]
async fn timeout_of_app_is_unused() {
    let server = RawServer::replying([Reply::answer(200, JSON, TOKEN)]).await;
    let hurdlr = support::impatient(&server.base_url())
        .reqwest(|builder| builder.timeout(Duration::from_nanos(1)))
        .build()
        .unwrap();
    granted(&hurdlr).await.unwrap();
}

/// A pause between two bytes is not the end of an answer.
#[tokio::test]
async fn read_timeout_of_app_is_unused() {
    let fake = FakeHurdlr::start().await.unwrap();
    fake.fault_next(Fault::DelayAfter(Duration::from_millis(300)));
    let hurdlr = support::of(&fake)
        .retry(RetryPolicy::never())
        .reqwest(|builder| builder.read_timeout(Duration::from_millis(20)))
        .build()
        .unwrap();
    granted(&hurdlr).await.unwrap();
}

/// Plain http to `localhost` stays on this machine, whatever a resolver says.
#[tokio::test]
async fn localhost_is_this_machine_for_any_resolver() {
    let server = RawServer::replying([Reply::answer(200, JSON, TOKEN)]).await;
    let hurdlr = support::impatient(&format!("http://localhost:{}", server.port()))
        .retry(RetryPolicy::never())
        .reqwest(|builder| builder.resolve("localhost", ([192, 0, 2, 1], 0).into()))
        .build()
        .unwrap();
    granted(&hurdlr).await.unwrap();
}

/// The app's roots, as a test of its own may have them, are another matter than no verification.
#[cfg(feature = "rustls")]
#[tokio::test]
async fn certificate_is_verified_and_by_rustls() {
    let (url, certificate) = support::tls::serve(TOKEN).await;
    let build = |set: fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder| {
        support::impatient(&url).retry(RetryPolicy::never()).reqwest(set).build().unwrap()
    };
    for hurdlr in [
        build(|builder| builder),
        build(|builder| builder.tls_danger_accept_invalid_certs(true)),
        build(|builder| builder.tls_danger_accept_invalid_hostnames(true)),
    ] {
        let error = refreshed(&hurdlr).await.unwrap_err();
        assert!(matches!(cause(&error), HttpError::NotSent(_)), "{error:?}");
        assert!(support::tls::is_of_rustls(&error), "{error:?}");
    }
    let root = reqwest::Certificate::from_der(&certificate).unwrap();
    let hurdlr =
        support::impatient(&url).reqwest(|builder| builder.tls_certs_only([root])).build().unwrap();
    granted(&hurdlr).await.unwrap();
}

#[test]
fn debug_shows_no_password_of_a_url() {
    use hurdlr_oauth2::{Environment, Hurdlr};

    let url = "https://user:marker@api.example.com/base?key=marker#marker";
    let proxy = || reqwest::Proxy::all("http://user:marker@proxy.example.com:8080").unwrap();
    let builder = Hurdlr::builder("id", "secret".into())
        .environment(url)
        .authorize_url(url)
        .redirect_uri(url)
        .issuer(url)
        .reqwest(|builder| builder.proxy(proxy()));
    let environment = Environment::from(url);
    let hurdlr = support::impatient("http://localhost:1")
        .reqwest(|builder| builder.proxy(proxy()))
        .build()
        .unwrap();
    let client = HttpClient::new(&"http://localhost:1".parse().unwrap()).unwrap();
    let error = support::impatient(url).build().unwrap_err();
    let said = format!("{builder:?} {environment:?} {hurdlr:?} {client:?} {error:?} {error}");
    assert!(!said.contains("marker"), "{said}");
    assert!(said.contains("api.example.com/base"), "{said}");
    assert!(!format!("{:?}", Environment::from("marker")).contains("marker"));
}

#[tokio::test]
async fn unreachable_host_is_given_up_unsent() {
    // Its queue is full: the system leaves further connections without an answer.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _queued = tokio::net::TcpStream::connect(address).await.unwrap();

    let hurdlr = support::impatient(&format!("http://{address}"))
        .retry(RetryPolicy::never())
        .reqwest(|builder| builder.connect_timeout(Duration::from_secs(3_600)))
        .connect_timeout(Duration::from_millis(100))
        .request_timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    let error = refreshed(&hurdlr).await.unwrap_err();
    assert!(matches!(cause(&error), HttpError::NotSent(_)), "{error:?}");
    assert!(!error.is_unanswered());
}

#[tokio::test]
async fn client_of_one_origin_reaches_no_other() {
    let stranger = Stranger::listen();
    let server = RawServer::replying([Reply::answer(200, JSON, TOKEN)]).await;
    let client = HttpClient::new(&server.base_url().parse().unwrap()).unwrap();
    let (port, stranger_url) = (server.port(), stranger.url());
    for url in [
        stranger_url.as_str(),
        &format!("http://localhost:{port}/"),
        &format!("https://127.0.0.1:{port}/"),
        "http://127.0.0.1/",
    ] {
        let request = Request::post(url).body(b"secret".to_vec()).unwrap();
        let error = client.call(request).await.unwrap_err();
        assert!(matches!(error, HttpError::ForeignOrigin), "{error:?}");
    }
    stranger.assert_left_alone();
    assert!(server.requests().is_empty());

    let same = format!("{}/any/path", server.base_url());
    let request = Request::post(same).body(b"secret".to_vec()).unwrap();
    assert_eq!(client.call(request).await.unwrap().body(), TOKEN.as_bytes());
}

#[tokio::test]
async fn transport_for_oauth2_keeps_same_bounds() {
    let stranger = Stranger::listen();
    let location = format!("Location: {}\r\n", stranger.url());
    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    let server = RawServer::replying([
        Reply::answer(307, &location, ""),
        Reply::Endless(head, vec![b'x'; KIB]),
        Reply::promising(200, JSON, TOKEN.len() + 1, TOKEN.as_bytes()),
        Reply::promising(200, JSON, TOKEN.len(), &TOKEN.as_bytes()[..100]),
        Reply::answer(201, "Content-Type: text/html\r\n", TOKEN),
    ])
    .await;
    let client = HttpClient::new(&server.base_url().parse().unwrap()).unwrap();
    let call = || client.call(Request::post(server.base_url()).body(Vec::new()).unwrap());

    // RFC 6749 section 3.2.
    let get = Request::get(server.base_url()).body(Vec::new()).unwrap();
    assert!(matches!(client.call(get).await, Err(HttpError::Other(_))));
    assert!(server.requests().is_empty());

    let redirect = call().await.unwrap();
    assert_eq!(redirect.status(), StatusCode::TEMPORARY_REDIRECT);
    assert!(!redirect.headers().contains_key("location"));
    assert!(matches!(call().await, Err(HttpError::TooLong)));
    let whole = call().await.unwrap();
    assert_eq!((whole.status(), whole.body().as_slice()), (StatusCode::OK, TOKEN.as_bytes()));
    assert!(matches!(call().await, Err(HttpError::Broken(_))));
    let created = call().await.unwrap();
    assert_eq!(created.status(), StatusCode::OK);
    assert!(!created.headers().contains_key("content-type"));
    let user_agent = concat!("\r\nuser-agent: hurdlr-oauth2/", env!("CARGO_PKG_VERSION"), "\r\n");
    for request in server.requests() {
        assert!(request.contains(user_agent), "{request}");
        assert!(request.contains("\r\naccept-encoding: identity\r\n"), "{request}");
    }
    stranger.assert_left_alone();
}

/// `oauth2` takes any answer but a 200 for a refusal, so one under a success has another status.
#[tokio::test]
async fn refusal_keeps_its_status_for_oauth2() {
    for (status, seen) in [(200, 400), (201, 400), (400, 400), (401, 401), (429, 429), (503, 503)] {
        let refusal = Reply::answer(status, JSON, r#"{"error":"invalid_client"}"#);
        let server = RawServer::replying([refusal]).await;
        let client = HttpClient::new(&server.base_url().parse().unwrap()).unwrap();
        let request = Request::post(server.base_url()).body(Vec::new()).unwrap();
        assert_eq!(client.call(request).await.unwrap().status().as_u16(), seen, "{status}");
    }
}

/// A body, with the headers it comes under.
type Body = (&'static str, Vec<u8>);

fn plain(body: impl Into<Vec<u8>>) -> Body {
    (JSON, body.into())
}

fn utf16(text: &str, order: fn(u16) -> [u8; 2], mark: &[u8]) -> Body {
    plain([mark, &text.encode_utf16().flat_map(order).collect::<Vec<_>>()].concat())
}

/// Ways in which a JSON object is sent that is not clean JSON, of a token or an error.
fn unclean(object: &str) -> Vec<Body> {
    let open = object.strip_suffix('}').unwrap();
    vec![
        plain(format!("\u{feff}{object}")),
        plain(format!("\r\n \u{feff}\u{feff} {object}")),
        utf16(object, u16::to_le_bytes, b"\xff\xfe"),
        utf16(object, u16::to_be_bytes, b"\xfe\xff"),
        utf16(object, u16::to_le_bytes, b""),
        utf16(object, u16::to_be_bytes, b""),
        plain([open.as_bytes(), b",\"note\":\"caf\xe9 \x80\",\"scope\":\"\xe9\"}"].concat()),
        plain([open.as_bytes(), b",\"error_description\":\"caf\xe9\"}"].concat()),
        plain(format!("{object}\n<!-- served by node 7 -->")),
        plain(format!("{object}{object}")),
        plain(format!("{object}\0\0\0")),
        plain(format!("{object});")),
        plain(format!(")]}}',\n{object}")),
        plain(format!("while(1);{object}")),
        plain(format!("callback({object})")),
        plain(format!("<br />\n<b>Warning</b>: undefined index in x.php<br />\n{object}")),
        plain(format!("{open},\"error_description\":\"two\nlines\tand a tab\"}}")),
        plain(format!("{open},\"error_description\":\"it\\'s \\x41 \\u12\"}}")),
        plain(format!("{open},\"error_description\":\"\\ud800 \\udc00\"}}")),
        plain(format!("{open},\"scope\":\"\\ud83d\"}}")),
        plain(format!("{open},}}")),
        plain(format!("{open},\"list\":[1,2,],\"none\":NaN,\"far\":-Infinity}}")),
        plain(format!("{open},\"expires_in\":1e999}}")),
        plain(format!("{open},\"scope\":\"a\",\"scope\":\"b\"}}")),
        plain(serde_json::to_string(object).unwrap()),
    ]
}

#[tokio::test]
async fn unclean_json_is_read() {
    let gzip = "Content-Encoding: gzip\r\n";
    let deflate = "Content-Encoding: deflate\r\n";
    let mut tokens = unclean(std::str::from_utf8(compressed::TOKEN).unwrap());
    tokens.extend([
        (gzip, compressed::TOKEN_GZIP.to_vec()),
        ("Content-Encoding: X-GZip\r\n", compressed::TOKEN_GZIP.to_vec()),
        ("", compressed::TOKEN_GZIP.to_vec()),
        (deflate, compressed::TOKEN_ZLIB.to_vec()),
        (deflate, compressed::TOKEN_DEFLATE.to_vec()),
        // A proxy unpacked it and left the header.
        (gzip, compressed::TOKEN.to_vec()),
        (deflate, compressed::TOKEN.to_vec()),
        ("Content-Encoding: br\r\n", compressed::TOKEN.to_vec()),
        ("Content-Encoding: identity\r\n", compressed::TOKEN.to_vec()),
    ]);
    for (headers, body) in tokens {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let server = RawServer::replying([Reply::answer(200, headers, body)]).await;
        let token = refreshed(&once(&server)).await.expect(&shown);
        assert_eq!(token.access_token().expose_secret(), "new-access", "{shown}");
        assert_eq!(token.refresh_token().unwrap().expose_secret(), "new-refresh", "{shown}");
        // And so it is for an app that uses `oauth2`.
        let client = HttpClient::new(&server.base_url().parse().unwrap()).unwrap();
        let request = Request::post(server.base_url()).body(Vec::new()).unwrap();
        let answer = client.call(request).await.unwrap();
        let read: BasicTokenResponse = serde_json::from_slice(answer.body()).expect(&shown);
        assert_eq!(read.access_token().secret(), "new-access");
    }
    let mut dead = unclean(std::str::from_utf8(compressed::DEAD).unwrap());
    dead.push((gzip, compressed::DEAD_GZIP.to_vec()));
    for (headers, body) in dead {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let server = RawServer::replying([Reply::answer(400, headers, body)]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired, "{shown}");
        assert_eq!(error.code(), Some("invalid_grant"), "{shown}");
    }
    for (headers, body) in unclean(r#"{"refresh_token":"new-refresh","token_type":"mac"}"#) {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let server = RawServer::replying([Reply::answer(200, headers, body)]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        let rescued = error.rescued_refresh_token().expect(&shown);
        assert_eq!(rescued.expose_secret(), "new-refresh");
    }
}

/// JSON has escapes of UTF-16 (RFC 8259 section 7): two for each character beyond its first plane.
#[test]
fn escapes_are_read_as_their_characters() {
    let hurdlr = support::impatient("http://localhost:1").build().unwrap();
    for (escaped, expected) in [
        (r"\u0041\u00e9\uFFFD", "A\u{e9}\u{fffd}"),
        (r"\ud7ff\ue000", "\u{d7ff}\u{e000}"),
        (r"\ud800\udc00", "\u{10000}"),
        (r"\uD801\uDC37.", "\u{10437}."),
        (r"\ud83d\ude00\ud83d\ude01", "\u{1f600}\u{1f601}"),
        (r"\udbff\udfff", "\u{10ffff}"),
        // Halves of a pair.
        (r"\ud83d", "\u{fffd}"),
        (r"\ud83d.", "\u{fffd}."),
        (r"\ud83d\u0041", "\u{fffd}A"),
        (r"\ud83d\/\ude00", "\u{fffd}/\u{fffd}"),
        (r"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}"),
        (r"\ude00\ud83d", "\u{fffd}\u{fffd}"),
        (r"A\ude00", "A\u{fffd}"),
        // Some characters cannot stand for themselves within a string; the others are no escapes.
        (r#"\"\\\u0022\u005c\/"#, r#""\"\/"#),
        (r"\u+041\u12\x41", "u+041u12x41"),
    ] {
        let object = format!(r#"{{"access_token":"a","refresh_token":"{escaped}"}}"#);
        for json in [serde_json::to_string(&object).unwrap(), object] {
            let token = hurdlr.import(&json).expect(&json);
            assert_eq!(token.refresh_token().unwrap().expose_secret(), expected, "{json}");
        }
    }
}

/// A number in a spelling that JSON does not know is read, rounded down, and another word is none.
#[test]
fn numbers_have_other_spellings() {
    let hurdlr = support::impatient("http://localhost:1").build().unwrap();
    for (word, seconds) in [
        ("60", Some(60)),
        ("+60", Some(60)),
        ("0060", Some(60)),
        ("60.", Some(60)),
        ("+.605e2", Some(60)),
        ("6.e1", Some(60)),
        ("0x3c", None),
        ("6_0", None),
        ("NaN", None),
        ("-Infinity", None),
        ("soon", None),
    ] {
        let json = format!(r#"{{"access_token":"a","expires_in":{word},}}"#);
        let token = hurdlr.import(&json).expect(&json);
        assert_eq!(token.expires_in(), seconds.map(Duration::from_secs), "{word}");
    }
}

/// A page may quote an object, and a list may hold somebody else's.
#[tokio::test]
async fn object_within_a_page_is_no_answer() {
    let token = std::str::from_utf8(compressed::TOKEN).unwrap();
    for body in [
        format!("<!DOCTYPE html><pre>{token}</pre>"),
        format!("<HTML>\n<body>{token}</body></HTML>"),
        format!("[{token}]"),
        format!("  [1, {token}"),
    ] {
        let server = RawServer::replying([Reply::answer(200, JSON, &body)]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidResponse, "{body}");
        assert!(error.rescued_refresh_token().is_none(), "{body}");
    }
}

#[tokio::test]
async fn compressed_answer_is_bounded_and_named() {
    let gzip = "Content-Encoding: gzip\r\n";
    let bomb = Reply::answer(200, gzip, compressed::BOMB_GZIP);
    let error = refreshed(&once(&RawServer::replying([bomb]).await)).await.unwrap_err();
    assert!(matches!(cause(&error), HttpError::TooLong), "{error:?}");
    assert_eq!(error.rescued_refresh_token().unwrap().expose_secret(), "new-refresh");

    for (headers, body) in [
        ("Content-Encoding: br\r\n", &b"\x0b\x02\x80"[..]),
        ("Content-Encoding: zstd\r\n", b"\x28\xb5\x2f\xfd"),
        (gzip, b"\x1f\x8b\x08\xffbroken"),
    ] {
        let server = RawServer::replying([Reply::answer(200, headers, body)]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidResponse);
        assert!(error.is_unanswered());
        assert!(matches!(cause(&error), HttpError::Compressed(_)), "{error:?}");
    }
    // Nobody says that these are.
    for headers in ["", "Content-Encoding: identity\r\n"] {
        let server = RawServer::replying([Reply::answer(200, headers, b"\x0b\x02\x80")]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidResponse);
        assert!(!format!("{error:?}").contains("Compressed"), "{error:?}");
    }
}

/// A refresh token that was changed by the repair would replace the one that lives.
#[tokio::test]
async fn refresh_token_with_control_character_is_refused() {
    for token in ["new\nrefresh", "new\n\nrefresh", "new\nré"] {
        let body = format!("{{\"refresh_token\":\"{token}\",\"token_type\":\"mac\"}}");
        let server = RawServer::replying([Reply::answer(200, JSON, body)]).await;
        let error = refreshed(&once(&server)).await.unwrap_err();
        assert!(error.rescued_refresh_token().is_none(), "{token:?}");
    }
}

/// A line's end behind a token is none of it.
#[tokio::test]
async fn line_end_behind_token_is_left_out() {
    let body = r#"{"access_token":"access\r\n","refresh_token":"\trefresh\n","expires_in":60}"#;
    let server = RawServer::replying([Reply::answer(200, JSON, body)]).await;
    let token = refreshed(&once(&server)).await.unwrap();
    assert_eq!(token.access_token().expose_secret(), "access");
    assert_eq!(token.refresh_token().unwrap().expose_secret(), "refresh");
    let body = r#"{"access_token":"","refresh_token":"refresh\n"}"#;
    let server = RawServer::replying([Reply::answer(200, JSON, body)]).await;
    let error = refreshed(&once(&server)).await.unwrap_err();
    assert_eq!(error.rescued_refresh_token().unwrap().expose_secret(), "refresh");
}

#[tokio::test]
async fn pause_beside_a_rescued_token_is_kept() {
    let headers = format!("{JSON}retry-after: 600\r\n");
    let server =
        RawServer::replying([Reply::answer(200, &headers, r#"{"refresh_token":"r"}"#)]).await;
    let error = refreshed(&once(&server)).await.unwrap_err();
    assert!(error.rescued_refresh_token().is_some());
    assert_eq!(error.retry_after(), Some(Duration::from_mins(10)));
}

#[cfg(feature = "rustls")]
#[test]
fn debug_shows_no_password_of_proxies() {
    let proxy = reqwest::Proxy::all("http://user:marker@proxy.example.com:8080").unwrap();
    // Not of a loopback host, which is reached without a proxy.
    let hurdlr = support::impatient("https://api.example.com")
        .reqwest(|builder| builder.proxy(proxy))
        .build()
        .unwrap();
    let url = "http://user:marker@localhost:1/?key=marker".parse().unwrap();
    let said = format!("{hurdlr:?} {:?}", HttpClient::new(&url).unwrap());
    assert!(!said.contains("marker"), "{said}");
}

#[tokio::test]
async fn refusal_behind_wrong_length_reaches_oauth2() {
    let refusal = r#"{"error":"invalid_grant"}"#;
    let server =
        RawServer::replying([Reply::promising(400, JSON, refusal.len() + 1, refusal.as_bytes())])
            .await;
    let client = HttpClient::new(&server.base_url().parse().unwrap()).unwrap();
    let request = Request::post(server.base_url()).body(Vec::new()).unwrap();
    let refused = client.call(request).await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(refused.body(), refusal.as_bytes());
}
