//! The record of all requests.

use http::{StatusCode, header};
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, Gate, Outcome};

use super::{V4, call, form, grant, refresh};

#[tokio::test]
async fn requests_are_recorded_whole_in_order() {
    let fake = FakeHurdlr::in_memory();
    let token = grant(&fake, "ann b").await;
    refresh(&fake, &token.get("refresh_token")).await;
    grant(&fake, "").await;
    let requests = fake.requests();
    let first = &requests[0];
    assert_eq!((first.method().as_str(), first.path()), ("POST", "/rest/v4/auth/token"));
    assert_eq!(first.headers()[header::CONTENT_TYPE], "application/x-www-form-urlencoded");
    assert!(first.body().ends_with(b"grant_type=client_credentials&userId=ann+b"));
    assert_eq!(first.field("userId").as_deref(), Some("ann b"));
    assert_eq!(first.field("nothing"), None);
    assert_eq!(first.field_names(), ["client_id", "client_secret", "grant_type", "userId"]);
    assert_eq!(first.grant(), Some("client_credentials"));
    assert_eq!(first.status(), Some(StatusCode::OK));
    assert_eq!(requests[1].field("refresh_token"), Some(token.get("refresh_token")));
    assert_eq!(requests[1].user(), Some("ann b"), "a refresh token's owner is known");
    assert_eq!(requests[2].outcome(), Some(Outcome::InvalidRequest));
    assert_eq!(requests[2].user(), None);
}

#[tokio::test]
async fn requests_count_by_grant_user_and_outcome() {
    for record in [true, false] {
        let fake = FakeHurdlr::builder().record(record).in_memory();
        let token = grant(&fake, "ann").await.get("refresh_token");
        refresh(&fake, &token).await;
        refresh(&fake, &token).await;
        grant(&fake, "bob").await;
        let counts = fake.count();
        assert_eq!(counts.total(), 4);
        assert_eq!((counts.grant("client_credentials"), counts.grant("refresh_token")), (2, 2));
        assert_eq!((counts.user("ann"), counts.user("bob"), counts.user("eve")), (3, 1, 0));
        assert_eq!(counts.outcome(Outcome::Issued), 3);
        assert_eq!(counts.outcome(Outcome::InvalidGrant), 1);
        assert_eq!(fake.requests().len(), if record { 4 } else { 0 });
        fake.clear_requests();
        assert_eq!((fake.count().total(), fake.requests().len()), (0, 0));
        grant(&fake, "bob").await;
        assert_eq!(fake.count().outcome(Outcome::Issued), 1);
    }
}

#[tokio::test]
async fn request_cleared_in_flight_stays_uncounted() {
    let fake = FakeHurdlr::in_memory();
    let gate = Gate::closed();
    fake.fault_next(Fault::Hold(gate.clone()));
    tokio::join!(grant(&fake, "ann"), async {
        fake.arrived(1).await;
        fake.clear_requests();
        grant(&fake, "bob").await;
        gate.open();
    });
    assert_eq!(fake.requests().len(), 1);
    assert_eq!(fake.requests()[0].user(), Some("bob"));
    assert_eq!(fake.count().outcome(Outcome::Issued), 1);
}

#[tokio::test]
async fn debug_shows_no_secret() {
    let fake = FakeHurdlr::builder().client("id", "top-secret-value".into()).in_memory();
    let token = grant(&fake, "ann").await;
    let mut request = form(&fake, V4, &[("refresh_token", &token.get("refresh_token"))]);
    request.headers_mut().insert(header::AUTHORIZATION, "Bearer hidden-value".parse().unwrap());
    call(&fake, request).await.unwrap();
    let shown = format!(
        "{fake:?} {fake:#?} {:?} {:?} {:?} {:?}",
        fake.requests(),
        fake.http_client(),
        FakeHurdlr::builder().client("id", "top-secret-value".into()),
        fake.count(),
    );
    for secret in [
        "top-secret-value",
        "hidden-value",
        &token.get("refresh_token"),
        &token.get("access_token"),
    ] {
        assert!(!shown.contains(secret));
    }
    assert!(shown.contains("client_credentials"), "what is no secret is shown");
}
