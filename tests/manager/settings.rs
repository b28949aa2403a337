//! Settings that contradict each other.

use std::time::Duration;

use hurdlr_oauth2::manager::RefreshPolicy;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::{ErrorKind, Hurdlr, TokenManager};

use crate::site::Site;

#[test]
fn without_a_runtime_building_says_so() {
    let hurdlr = Hurdlr::builder("id", "secret".into()).environment("http://localhost:1");
    let builder = TokenManager::builder(hurdlr.build().unwrap(), MemoryStore::new());
    let error = builder.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("runtime"));
}

#[tokio::test]
async fn contradictions_are_named_when_building() {
    let site = Site::new();
    let builder = || TokenManager::builder(site.hurdlr(), site.store.clone());
    let policy = RefreshPolicy::default;
    let (second, never) = (Duration::from_secs(1), Duration::ZERO);
    for (policy, names) in [
        (policy().refresh_timeout(90 * second), ["refresh_timeout", "lease"]),
        (policy().lease(second), ["refresh_timeout", "lease"]),
        (policy().refresh_fraction(0.9), ["refresh_fraction", "refresh_jitter"]),
        (policy().refresh_fraction(f64::NAN), ["refresh_fraction", "between"]),
        (policy().refresh_fraction(0.0), ["refresh_fraction", "between"]),
        (policy().refresh_fraction(1.0).refresh_jitter(0.0), ["refresh_fraction", "between"]),
        (policy().refresh_jitter(f64::INFINITY), ["refresh_fraction", "refresh_jitter"]),
        (policy().refresh_jitter(-0.1), ["refresh_fraction", "refresh_jitter"]),
        (policy().max_backoff(second / 2), ["initial_backoff", "max_backoff"]),
        (policy().initial_backoff(never), ["initial_backoff", "pause"]),
        (policy().default_lifetime(never), ["default_lifetime", "dead"]),
        (policy().refresh_timeout(never), ["refresh_timeout", "sent"]),
    ] {
        let message = builder().refresh_policy(policy).build().unwrap_err().to_string();
        assert!(names.iter().all(|name| message.contains(name)), "{message}");
    }
    for policy in [
        policy().refresh_fraction(0.5).refresh_jitter(0.5),
        policy().refresh_jitter(0.0),
        policy().lease(90 * second).refresh_timeout(89 * second),
        policy().initial_backoff(second).max_backoff(second),
    ] {
        builder().refresh_policy(policy).build().unwrap();
    }
    for (builder, name) in [
        (builder().revalidate_after(never), "revalidate_after"),
        (builder().shutdown_within(never), "shutdown_within"),
    ] {
        assert!(builder.build().unwrap_err().to_string().contains(name), "{name}");
    }
    assert!(
        builder().cache_capacity(0).build().unwrap_err().to_string().contains("cache_capacity")
    );
    let message = builder().max_concurrent_refreshes(0).build().unwrap_err().to_string();
    assert!(message.contains("max_concurrent_refreshes"));
}
