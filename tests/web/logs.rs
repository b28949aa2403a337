//! What the login routes log.

use hurdlr_oauth2::UserId;
use hurdlr_oauth2::testing::{StoreCall, StoreFault};
use tracing::Level;
use tracing::subscriber::set_default;

use crate::app::{App, Browser};
use crate::trace::{Trace, Value};

/// A disconnect that is refused, or fails, is no login that was not completed.
#[tokio::test]
async fn refused_disconnect_is_logged_as_such() {
    let (app, trace) = (App::new(), Trace::default());
    let _guard = set_default(trace.subscriber());
    let mut ann = Browser::of("ann");
    let asked = ann.send(&app, "GET", "/hurdlr/connect", &[("sec-fetch-site", "cross-site")]).await;
    assert_eq!((asked.status, trace.messages(Level::INFO).len()), (200, 0));
    let refused = ann.disconnect(&app, &[("sec-fetch-site", "cross-site")]).await;
    assert_eq!(refused.status, 403);
    app.site.store.plan(|call| (call == StoreCall::Forget).then_some(StoreFault::Before));
    let callback = ann.begin(&app, "ann").await;
    assert_eq!(ann.get(&app, &callback).await.status, 303);
    let failed = ann.disconnect(&app, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(failed.status, 503);
    app.site.store.recover();
    ann.get(&app, &callback).await;
    assert_eq!(
        trace.messages(Level::INFO),
        [
            "refused a disconnect that no page of the app asked for",
            "connected",
            "could not disconnect a user",
            "a login was not completed",
        ]
    );
    let user = UserId::new("ann").unwrap().log_id();
    for message in ["could not disconnect a user", "a login was not completed"] {
        assert_eq!(trace.line(message).fields["user"], Value::Text(user.clone()), "{message}");
    }
}
