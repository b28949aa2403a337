//! No secret is shown by an edge.

use hurdlr_oauth2::{CallPolicy, Partner, UserId};
use tower::Layer;

use super::Stage;

#[test]
fn debug_of_a_policy_shows_no_password() {
    let url = "https://user:marker@api.example.com/x?key=marker";
    let shown = format!("{:?}", CallPolicy::default().origin(url));
    assert!(shown.contains("api.example.com") && !shown.contains("marker"), "{shown}");
}

#[tokio::test]
async fn nothing_of_the_edges_shows_a_secret() {
    let stage = Stage::new().await;
    let partner =
        Partner::new("app", &"secret-marker".into(), &"http://localhost:1".into()).unwrap();
    let user = partner.user(&UserId::new("ann").unwrap()).unwrap();
    let policy = CallPolicy::default().origin("https://api.example.com/?key=secret-marker");
    let service = stage.user.layer().policy(policy).unwrap().layer(());
    let shown = format!(
        "{:?} {:?} {:?} {partner:?} {user:?} {:?} {:?}",
        stage.user.middleware(),
        stage.manager.layer(),
        service,
        user.layer(),
        partner.middleware(),
    );
    for secret in [stage.old.as_str(), "secret-marker", "c2VjcmV0", "ann"] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
}
