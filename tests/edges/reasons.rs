//! The reason of a call that gets no token reaches the caller.

use std::error::Error as StdError;
use std::io;

use http::{Method, Request};
use hurdlr_oauth2::testing::{Fault, StoreCall, StoreFault};
use hurdlr_oauth2::{CallPolicy, Error, ErrorKind, reqwest_middleware};

use super::support::RawServer;
use super::{BoxError, Content, KINDS, Stage, TestBody, answer};

/// Where there is no newer token, the 401 alone would not say what to do: the call fails with the
/// reason, whether or not its body can be sent again.
#[tokio::test]
async fn unhealed_refusal_fails_with_its_reason() {
    type Trouble = fn(&Stage);
    let troubles: [(Trouble, ErrorKind); 3] = [
        (|stage| stage.site.fake.revoke_everything("ann"), ErrorKind::LoginRequired),
        (|stage| stage.site.fail(StoreCall::Claim, StoreFault::Before), ErrorKind::Store),
        (|stage| stage.site.fake.fault_plan(|_| Some(Fault::Refuse)), ErrorKind::Unavailable),
    ];
    for kind in KINDS {
        for (trouble, expected) in troubles {
            for content in [Content::None, Content::Whole, Content::Single] {
                let name = format!("{kind:?}, {expected:?}, {content:?}");
                let stage = Stage::new().await;
                trouble(&stage);
                let api = RawServer::replying([answer(401)]).await;
                let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
                let request = Request::post(api.base_url()).body(TestBody::of(content)).unwrap();
                let error = edge.send(request).await.unwrap_err();
                assert_eq!(error.kind(), expected, "{name}");
                assert_eq!(api.requests().len(), 1, "{name}");
            }
        }
    }
}

/// A 401 that the caller gets says that the user has a living token: that of a call whose body
/// cannot be sent again comes once the token is replaced.
#[tokio::test]
async fn refusal_handed_out_follows_the_replacement() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(401)]).await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        let status = edge.call(Method::POST, &api.base_url(), Content::Single).await;
        assert_eq!(status, 401, "{kind:?}");
        assert!(stage.user.try_token().is_some(), "{kind:?}");
        assert_eq!(stage.site.refreshes(), 1, "{kind:?}");
    }
}

/// The error is found in itself, in that of a call, and among the sources of another one.
#[test]
fn error_is_found_within_others() {
    #[derive(Debug, thiserror::Error)]
    #[error("an error of the app")]
    struct Outer(#[source] reqwest_middleware::Error);

    let boxed: BoxError = Error::store("down").into();
    let called = || reqwest_middleware::Error::middleware(Error::store("down"));
    let errors: [&(dyn StdError + 'static); 3] = [&*boxed, &called(), &Outer(called())];
    for error in errors {
        assert_eq!(Error::of(error).map(Error::kind), Some(ErrorKind::Store), "{error:?}");
    }
    assert!(Error::of(&io::Error::other("reset")).is_none());
}
