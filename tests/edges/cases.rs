//! Both edges on one table of cases.

use hurdlr_oauth2::CallPolicy;
use hurdlr_oauth2::manager::TokenEvent;

use super::{Content, KINDS, Stage, answer, bearers, limited};
use crate::site::SECOND;
use crate::support::{RawServer, Reply};

/// By which token an attempt is authorised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Old,
    New,
}
use Which::{New, Old};

/// A wait whose length backoff decides.
const BACKOFF: u64 = u64::MAX;

/// The name of the case; the method, with its body and what is configured; the answers of the API,
/// the last of them for ever; and what becomes of that: the status, the attempts, and the waits in
/// seconds.
type Case =
    (&'static str, &'static str, &'static [&'static str], u16, &'static [Which], &'static [u64]);

const TABLE: &[Case] = &[
    ("success", "GET", &["200"], 200, &[Old], &[]),
    ("a refused token is replaced", "GET", &["401", "200"], 200, &[Old, New], &[]),
    ("a body goes out again", "POST whole", &["401", "200"], 200, &[Old, New], &[]),
    ("unless it cannot", "POST single", &["401", "200"], 401, &[Old], &[]),
    ("refused again", "GET", &["401"], 401, &[Old, New], &[]),
    ("another refusal", "GET", &["403"], 403, &[Old], &[]),
    ("a failure", "GET", &["503"], 503, &[Old], &[]),
    ("a pause in seconds", "GET", &["429 7", "200"], 200, &[Old, Old], &[7]),
    (
        "a pause as a date",
        "PUT whole",
        &["429 Sun, 06 Nov 1994 08:49:44 GMT", "200"],
        200,
        &[Old, Old],
        &[7],
    ),
    ("a pause of no length", "GET", &["429", "200"], 200, &[Old, Old], &[BACKOFF]),
    ("no end of pauses", "GET", &["429 7"], 429, &[Old, Old, Old, Old], &[7, 7, 7]),
    ("a pause that is too long", "GET", &["429 61", "200"], 429, &[Old], &[]),
    ("no pause for a POST", "POST whole", &["429 7", "200"], 429, &[Old], &[]),
    ("unless configured", "POST whole always", &["429 7", "200"], 200, &[Old, Old], &[7]),
    ("and if it can be sent", "POST single always", &["429 7", "200"], 429, &[Old], &[]),
    ("refused, then paused", "GET", &["401", "429 7", "200"], 200, &[Old, New, New], &[7]),
];

fn scripted(reply: &str) -> Reply {
    match reply.split_once(' ') {
        Some(("429", retry_after)) => limited(retry_after),
        _ => answer(reply.parse().unwrap()),
    }
}

#[tokio::test]
async fn both_edges_pass_one_table_of_cases() {
    for kind in KINDS {
        for (name, call, replies, status, attempts, pauses) in TABLE {
            let name = format!("{kind:?}: {name}");
            let stage = Stage::new().await;
            let api =
                RawServer::replying(replies.iter().map(|it| scripted(it)).collect::<Vec<_>>());
            let api = api.await;
            let policy = CallPolicy::default().origin(api.base_url());
            let policy = policy.repeat_every_method(call.ends_with("always"));
            let edge = kind.of_user(&stage.user, policy);
            let content = match call {
                call if call.contains("whole") => Content::Whole,
                call if call.contains("single") => Content::Single,
                _ => Content::None,
            };
            let method = call.split(' ').next().unwrap().parse().unwrap();

            let mut changes = stage.user.subscribe();
            assert_eq!(edge.call(method, &api.base_url(), content).await, *status, "{name}");
            let refreshes = u64::from(replies.contains(&"401"));
            if refreshes > 0 {
                // In the background, where nobody waits for it.
                assert_eq!(changes.next().await, TokenEvent::NewToken, "{name}");
            }
            assert_eq!(stage.site.refreshes(), refreshes, "{name}");

            let old = format!("Bearer {}", stage.old);
            let sent = bearers(&api);
            let which: Vec<_> =
                sent.iter().map(|sent| if *sent == old { Old } else { New }).collect();
            assert_eq!(which, *attempts, "{name}");
            assert!(sent.iter().all(|sent| sent.starts_with("Bearer ")), "{name}");
            let whole = api.requests().iter().all(|request| request.ends_with(content.text()));
            assert!(whole, "{name}");

            let waits = stage.waits();
            assert_eq!(waits.len(), pauses.len(), "{name}: {waits:?}");
            for (wait, pause) in waits.iter().zip(*pauses) {
                match *pause {
                    BACKOFF => assert!(*wait < SECOND, "{name}: {wait:?}"),
                    seconds => assert_eq!(wait.as_secs(), seconds, "{name}"),
                }
            }
        }
    }
}
