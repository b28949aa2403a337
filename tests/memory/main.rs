//! The copies of secrets that are left in freed memory, of this crate and of plain `oauth2`:
//!
//! ```text
//! cargo test --all-features --test memory
//! ```
//!
//! Each measure runs from the making of a client to the end of its runtime. Every block of memory
//! that is freed in it is searched for the client secret, the code, the PKCE verifier, and the old
//! and new tokens, as they are and as the request and the answer spell them. The provider is a
//! process of its own, so that its copies are not counted.

#![allow(clippy::unwrap_used, reason = "what fails unexpectedly is the test's failure")]
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

mod measure;
mod oauth2_app;
mod ours;
#[path = "../support/postgres.rs"]
mod postgres;
mod provider;
mod sources;
mod watch;

use std::sync::LazyLock;

use libtest_mimic::{Arguments, Trial};
use measure::{Measure, Measured, figure};
use provider::Transport;
use sources::Source;
use watched_heap::{State, Switched, WatchedHeap};
use zeroizing_alloc::ZeroAlloc;

/// The system's allocator, watched, and above it the one that wipes, once it is switched on.
#[global_allocator]
static HEAP: Switched<ZeroAlloc<WatchedHeap>> = Switched::new(ZeroAlloc(WatchedHeap));

/// The most blocks that may be left, all of them hyper's or rustls's: the request's headers, and
/// rustls's two copies of the answer.
fn goal(transport: Transport) -> usize {
    match transport {
        Transport::Http => 1,
        Transport::Tls => 3,
        #[cfg(feature = "native-tls")]
        Transport::NativeTls => 1,
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    if std::env::args().nth(1).as_deref() == Some(provider::SERVE) {
        return provider::serve();
    }
    println!("seed: {}", *SEED);
    // All threads of the process are watched, so there can be one measure at a time.
    arguments.test_threads = Some(1);
    let mut trials = watch::trials();
    for transport in Transport::ALL.iter().copied() {
        for (grant, measure) in ours::MEASURES {
            let name = |promise: &str| format!("{promise}::{grant}::{transport}");
            trials.push(Trial::test(name("copies_left_are_hypers_and_rustlss"), move || {
                copies_left_are_hypers_and_rustlss(grant, transport, *measure);
                Ok(())
            }));
            trials.push(Trial::test(name("zeroizing_allocator_leaves_no_copy"), move || {
                zeroizing_allocator_leaves_no_copy(grant, transport, *measure);
                Ok(())
            }));
        }
    }
    for transport in [Transport::Http, Transport::Tls] {
        for (grant, measure) in oauth2_app::MEASURES {
            let name = format!("plain_oauth2_leaves_every_secret::{grant}::{transport}");
            trials.push(Trial::test(name, move || {
                plain_oauth2_leaves_every_secret(grant, transport, *measure);
                Ok(())
            }));
        }
    }
    for (answer, measure) in ours::ODD_ANSWERS {
        let name = format!("odd_answer_leaves_no_copy::{answer}");
        trials.push(Trial::test(name, move || {
            odd_answer_leaves_no_copy(answer, *measure);
            Ok(())
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    ours::stop_server();
    provider::stop_idle();
    conclusion.exit();
}

/// What the secrets of a run are made of. `MEMORY_SEED` repeats one.
static SEED: LazyLock<u64> = LazyLock::new(|| {
    let given = std::env::var("MEMORY_SEED").ok();
    given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap())
});

/// Of what a grant leaves in freed memory, no block is ours.
fn copies_left_are_hypers_and_rustlss(grant: &str, transport: Transport, measure: Measure) {
    let Measured { hits, .. } = measure::run(transport, measure);
    figure(&format!("{grant}.{transport}"), &hits);
    for hit in &hits {
        assert_eq!(hit.block.state, State::Freed, "a copy is held: {hit}");
        assert!(matches!(hit.source, Source::Hyper | Source::Rustls), "not theirs: {hit}");
    }
    assert!(hits.len() <= goal(transport), "{} blocks", hits.len());
}

/// The same holds for answers that are not read as they came.
fn odd_answer_leaves_no_copy(answer: &str, measure: Measure) {
    copies_left_are_hypers_and_rustlss(answer, Transport::Http, measure);
}

/// With an allocator that wipes what it frees, a grant leaves nothing.
fn zeroizing_allocator_leaves_no_copy(grant: &str, transport: Transport, measure: Measure) {
    let Measured { hits, .. } = HEAP.switched_on(|| measure::run(transport, measure));
    figure(&format!("{grant}.{transport}.zeroizing"), &hits);
    assert!(hits.is_empty(), "{hits:?}");
}

/// The measure finds what is left: of each secret there is a copy where nobody wipes.
fn plain_oauth2_leaves_every_secret(grant: &str, transport: Transport, measure: Measure) {
    let Measured { hits, secrets } = measure::run(transport, measure);
    figure(&format!("{grant}.{transport}.oauth2"), &hits);
    for name in secrets.names() {
        assert!(hits.iter().any(|hit| hit.secrets.contains(&name)), "no copy of the {name}");
    }
}
