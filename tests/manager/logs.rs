//! The log lines of the manager, and the links of its spans.

use hurdlr_oauth2::manager::TokenEvent;
use hurdlr_oauth2::testing::{Fault, Gate};
use hurdlr_oauth2::{ApiVersion, UserId};
#[cfg(feature = "sealed")]
use hurdlr_oauth2::{
    TokenManager,
    secrecy::SecretSlice,
    store::{KeyRing, Sealed, SealingKey, UserHashKey},
};
use tracing::{Instrument, Level, info_span};

use crate::logged::listen;
use crate::site::{HOUR, SECOND, Site};
use crate::trace::{Trace, Value};

/// A refresh outlives the caller who starts it, so it is a root, and follows from each request that
/// waits for it.
#[tokio::test(start_paused = true)]
async fn refresh_follows_from_waiting_requests() {
    let trace = Trace::default();
    let _guard = listen(trace.subscriber());
    let site = Site::new();
    let user = site.manager().enterprise_user(&UserId::new("ann").unwrap());
    let gate = Gate::closed();
    site.fake.fault_next(Fault::Hold(gate.clone()));
    let first = user.token().instrument(info_span!("first_request"));
    let second = user.token().instrument(info_span!("second_request"));
    let open = async {
        tokio::task::yield_now().await;
        gate.open();
    };
    let (one, two, ()) = tokio::join!(first, second, open);
    one.and(two).unwrap();
    assert_eq!(trace.links(), [("refresh", "first_request"), ("refresh", "second_request")]);
    let parents = trace.parents();
    assert!(parents.contains(&("refresh", None)), "{parents:?}");
    assert!(parents.contains(&("token_request", Some("refresh"))), "{parents:?}");
    let fields = trace.fields();
    let of_user = |it: &&(String, String, Value)| it.0 == "refresh" && it.1 == "user";
    let (_, _, shown) = fields.iter().find(of_user).unwrap();
    assert_eq!(*shown, Value::Text(UserId::new("ann").unwrap().log_id()));
}

/// A log in JSON can be searched by numbers.
#[tokio::test(start_paused = true)]
async fn numbers_are_logged_as_numbers() {
    let trace = Trace::default();
    let _guard = listen(trace.subscriber());
    let site = Site::new();
    let ann = UserId::new("ann").unwrap();
    let manager = site.logged_in(&ann).await;
    site.fake.fault_plan(|_| Some(Fault::Refuse));
    site.advance(HOUR);
    manager.user(&ann).token().await.unwrap_err();
    site.fake.clear_faults();
    site.advance(HOUR);
    manager.user(&ann).token().await.unwrap();
    let fields = trace.fields();
    for (place, name) in [
        ("refresh failed", "next_try_ms"),
        ("retrying", "delay_ms"),
        ("token_request", "duration_ms"),
        ("token_request", "status"),
        ("token_request", "attempt"),
    ] {
        let mut named = fields.iter().filter(|it| it.0 == place && it.1 == name).peekable();
        assert!(named.peek().is_some(), "{place} has no {name}");
        assert!(named.all(|it| matches!(it.2, Value::Number(_))), "{name} of {place}");
    }
    for (place, name, value) in fields {
        let is_number = matches!(&value, Value::Text(text) if text.parse::<f64>().is_ok());
        assert!(!is_number, "{name} of {place} is {value:?}");
    }
}

/// An operator sees who came and who left.
#[tokio::test(start_paused = true)]
async fn logins_and_departures_are_logged() {
    let trace = Trace::default();
    let _guard = listen(trace.subscriber());
    let site = Site::of(ApiVersion::V6);
    let ids = ["ann", "bob"].map(|id| UserId::new(id).unwrap());
    let [ann, bob] = &ids;
    let manager = site.logged_in(ann).await;
    let mut events = manager.user(ann).subscribe();
    assert!(manager.import_if_absent(bob, site.login(bob).await).await.unwrap());
    assert!(!manager.import_if_absent(bob, site.login(bob).await).await.unwrap());
    manager.user(ann).disconnect().await.unwrap();
    assert_eq!(events.next().await, TokenEvent::Forgotten);
    manager.user(bob).forget().await.unwrap();
    let told = trace.messages(Level::INFO);
    assert_eq!(told, ["connected", "connected", "disconnected", "forgotten"]);
    for (message, user) in [("connected", ann), ("disconnected", ann), ("forgotten", bob)] {
        assert_eq!(trace.line(message).fields["user"], Value::Text(user.log_id()), "{message}");
    }
    let by: Vec<_> = trace.lines().iter().filter_map(|it| it.fields.get("by").cloned()).collect();
    assert_eq!(by, ["login", "import"].map(|by| Value::Text(by.to_owned())));
    assert_eq!(trace.line("disconnected").fields["revoked"], Value::Bool(true));
}

/// A walk says how many it renewed, and how many it could not even name.
#[tokio::test(start_paused = true)]
#[cfg(feature = "sealed")]
async fn walk_counts_renewed_and_unreadable() {
    let trace = Trace::default();
    let _guard = listen(trace.subscriber());
    let site = Site::new();
    let bytes = |byte| SecretSlice::from(vec![byte; 32]);
    let [lost, kept] = [1, 2].map(|byte| {
        let ring = KeyRing::new(SealingKey::from_bytes(&bytes(byte)).unwrap());
        let hash_key = UserHashKey::from_bytes(&bytes(3)).unwrap();
        let store = Sealed::new(site.store.clone(), ring).hash_users(hash_key);
        TokenManager::builder(site.hurdlr(), store).build().unwrap()
    });
    for (manager, users) in [(&lost, ["a1", "a2"]), (&kept, ["b1", "b2"])] {
        for user in users.map(|user| UserId::new(user).unwrap()) {
            manager.enterprise_user(&user).token().await.unwrap();
        }
    }
    site.advance(HOUR * 52 / 60);
    let walk = kept.keep_alive(HOUR);
    tokio::time::sleep(SECOND).await;
    walk.stop().await;
    assert_eq!(trace.line("walked over the due users").fields["renewed"], Value::Number(2));
    let skipped = trace.line("skipped due users whose ids cannot be decrypted");
    assert_eq!(skipped.fields["unreadable"], Value::Number(2));
}
