//! Calls of many users by one client.

use http::Request;
use http::header::AUTHORIZATION;
use hurdlr_oauth2::{ApiVersion, CallPolicy, ErrorKind, UserId};

use super::{KINDS, Stage, TestBody, answer, bearers, partner_at};
use crate::site::{Site, access};
use crate::support::RawServer;

#[tokio::test]
async fn callers_own_authorization_is_left_alone() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(401)]).await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        let request = Request::get(api.base_url()).header(AUTHORIZATION, "Bearer own");
        let answer = edge.send(request.body(TestBody::default()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 401);
        assert_eq!(bearers(&api), ["Bearer own"], "{kind:?}");
        assert_eq!(stage.site.refreshes(), 0, "{kind:?}");
    }
}

#[tokio::test]
async fn one_client_serves_many_named_users() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let bob = stage.manager.enterprise_user(&UserId::new("bob").unwrap());
        let api = RawServer::replying([answer(200)]).await;
        let edge = kind.of_manager(&stage.manager, CallPolicy::default().origin(api.base_url()));
        for user in [&stage.user, &bob] {
            let request = Request::get(api.base_url()).extension(user.clone());
            edge.clone().send(request.body(TestBody::default()).unwrap()).await.unwrap();
        }
        let tokens = [stage.old.clone(), access(&bob.token().await.unwrap())];
        assert_eq!(bearers(&api), tokens.map(|token| format!("Bearer {token}")), "{kind:?}");

        let request = Request::get(api.base_url()).body(TestBody::default()).unwrap();
        let error = edge.send(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(bearers(&api).len(), 2, "{kind:?}");
    }
}

/// No client takes a user of another manager: it would send that one's token to its own host.
#[tokio::test]
async fn another_managers_user_is_refused_unsent() {
    let bob = UserId::new("bob").unwrap();
    for kind in KINDS {
        let (stage, other) = (Stage::new().await, Site::of(ApiVersion::V6));
        let foreign = other.manager();
        let (api, elsewhere) =
            (RawServer::replying([answer(200)]).await, RawServer::replying([answer(200)]).await);
        let policy = || CallPolicy::default().origin(api.base_url());
        let edges = [
            kind.of_manager(&stage.manager, policy()),
            kind.of_user(&stage.user, policy()),
            kind.of_partner(&partner_at(&api), policy()),
        ];
        for edge in edges {
            for user in [foreign.enterprise_user(&bob), foreign.partner(), foreign.user(&bob)] {
                for url in [api.base_url(), elsewhere.base_url()] {
                    for headers in [vec![], vec![(AUTHORIZATION, "Bearer own")]] {
                        let mut request = Request::get(&url).extension(user.clone());
                        for (name, value) in headers {
                            request = request.header(name, value);
                        }
                        let request = request.extension(bob.clone()).body(TestBody::default());
                        let error = edge.clone().send(request.unwrap()).await.unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::Config, "{kind:?}");
                    }
                }
            }
        }
        assert!(api.requests().is_empty() && elsewhere.requests().is_empty(), "{kind:?}");
        assert_eq!(other.fake.count().total(), 0, "{kind:?}");

        // A clone of the manager is the same one.
        let user = stage.manager.clone().user(stage.user.id());
        for edge in [
            kind.of_manager(&stage.manager, policy()),
            kind.of_user(&stage.user, policy()),
            kind.of_manager(&stage.manager.clone(), policy()),
        ] {
            let request = Request::get(api.base_url()).extension(user.clone());
            let answer = edge.send(request.body(TestBody::default()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200, "{kind:?}");
        }
    }
}

/// A client of one user sends no call that names somebody else.
#[tokio::test]
async fn one_users_client_refuses_anybody_else() {
    let bob = UserId::new("bob").unwrap();
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(200)]).await;
        let policy = || CallPolicy::default().origin(api.base_url());
        let ann = kind.of_user(&stage.user, policy());
        let others = [stage.manager.user(&bob), stage.manager.enterprise_user(stage.user.id())];
        for other in others {
            let request = Request::get(api.base_url()).extension(other);
            let error = ann.clone().send(request.body(TestBody::default()).unwrap()).await;
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Config, "{kind:?}");
        }
        let partner = partner_at(&api);
        let ann = kind.of_partner_user(&partner.user(stage.user.id()).unwrap(), policy());
        let request = || Request::get(api.base_url());
        let all_rights = request().extension(stage.user.clone());
        for request in [request().extension(bob.clone()), all_rights] {
            let error = ann.clone().send(request.body(TestBody::default()).unwrap()).await;
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Config, "{kind:?}");
        }
        assert!(api.requests().is_empty(), "{kind:?}");
        let request = request().extension(stage.user.id().clone());
        assert_eq!(
            ann.send(request.body(TestBody::default()).unwrap()).await.unwrap().status(),
            200
        );
    }
}

/// An app that mixes up a partner's client with a user's would read somebody else's books.
#[tokio::test]
async fn id_of_another_user_is_refused() {
    let bob = UserId::new("bob").unwrap();
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(200)]).await;
        let policy = || CallPolicy::default().origin(api.base_url());
        let request = |id: &UserId| Request::get(api.base_url()).extension(id.clone());
        for edge in [kind.of_user(&stage.user, policy()), kind.of_manager(&stage.manager, policy())]
        {
            let call = |id| request(id).extension(stage.user.clone()).body(TestBody::default());
            let error = edge.clone().send(call(&bob).unwrap()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{kind:?}");
            assert!(edge.send(call(stage.user.id()).unwrap()).await.is_ok(), "{kind:?}");
        }
        let ann = kind.of_user(&stage.user, policy());
        let error = ann.send(request(&bob).body(TestBody::default()).unwrap()).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Config, "{kind:?}");
        assert_eq!(api.requests().len(), 2, "{kind:?}");
    }
}
