//! Calls by the credentials of the app itself.

use http::Request;
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::{CallPolicy, ErrorKind, Partner, UserId};
use tower::Layer;

use super::{Hasty, KINDS, TestBody, answer, header, limited};
use crate::support::{RawServer, Reply, everything_said};

#[tokio::test]
async fn partner_calls_send_basic_and_user() {
    let secret = "secret-marker".into();
    let ann = UserId::new("ann").unwrap();
    for kind in KINDS {
        for each_call in [false, true] {
            let other = RawServer::replying([answer(200)]).await;
            let location = format!("Location: {}\r\n", other.base_url());
            let replies = [answer(401), limited("0"), Reply::answer(307, &location, "")];
            let api = RawServer::replying(replies).await;
            let clock = Hasty(ManualClock::new());
            let partner =
                Partner::new("app", &secret, &api.base_url().into()).unwrap().clock(clock);
            let user = partner.user(&ann).unwrap();
            let policy = CallPolicy::default();
            let edge = if each_call {
                kind.of_partner(&partner, policy)
            } else {
                kind.of_partner_user(&user, policy)
            };
            let request = || {
                let request = Request::get(api.base_url()).extension(ann.clone());
                request.body(TestBody::default()).unwrap()
            };
            // There is nothing to refresh.
            assert_eq!(edge.clone().send(request()).await.unwrap().status(), 401);
            assert_eq!(api.requests().len(), 1);
            let _ = edge.send(request()).await;

            let requests = api.requests();
            assert_eq!(requests.len(), 3);
            for request in requests {
                assert_eq!(header(&request, "authorization: "), "Basic YXBwOnNlY3JldC1tYXJrZXI=");
                assert_eq!(header(&request, "userid: "), "ann");
            }
            for request in other.requests() {
                assert!(!request.contains("YXBwOnNlY3JldC1tYXJrZXI") && !request.contains("ann"));
            }
        }
    }
}

#[tokio::test]
async fn credentials_unfit_for_basic_are_refused_unshown() {
    let here = "http://localhost:1".into();
    for (id, secret) in [
        ("", "s"),
        ("a:b", "s"),
        ("a\n", "s"),
        ("a", ""),
        ("a", " secret-marker"),
        ("a", "secret-marker\r\n"),
    ] {
        let error = Partner::new(id, &secret.into(), &here).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!everything_said(&error).contains("secret-marker"));
    }
    let partner = Partner::new("app", &"secret-marker".into(), &here).unwrap();
    let error = partner.user(&UserId::new("ännchen").unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

/// A log tells where credentials go, and not what they are.
#[test]
fn debug_names_origins_and_no_secret() {
    let home = "https://api.example.com".into();
    let partner = Partner::new("app", &"secret-marker".into(), &home).unwrap();
    let user = partner.user(&UserId::new("ann-marker").unwrap()).unwrap();
    let other = || CallPolicy::default().origin("https://other.example.com/?key=marker");
    let layer = partner.layer().policy(other()).unwrap();
    let middleware = user.middleware().policy(other()).unwrap();
    for (shown, origins) in [
        (format!("{partner:?}"), &["//api.example.com"][..]),
        (format!("{user:?}"), &["//api.example.com"]),
        (format!("{:?}", other()), &["//other.example.com"]),
        (format!("{layer:?}"), &["//api.example.com", "//other.example.com"]),
        (format!("{middleware:?}"), &["//api.example.com", "//other.example.com"]),
    ] {
        assert!(origins.iter().all(|origin| shown.contains(origin)), "{shown}");
        assert!(!shown.contains("marker"), "{shown}");
    }
    let service = format!("{:?}", layer.layer("the service"));
    assert!(service.contains("the service") && service.contains("Partner"), "{service}");
}
