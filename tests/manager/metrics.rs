//! What the feature `metrics` counts.

use std::collections::HashMap;
use std::time::Duration;

use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, FaultyStore, ManualClock, StoreCall, StoreFault};
use hurdlr_oauth2::{ApiVersion, Hurdlr, TokenManager, UserId};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

/// What was recorded since the last look, by name and labels: what counters and gauges gained or
/// lost, and how many values a histogram took.
fn recorded(snapshotter: &Snapshotter) -> HashMap<String, String> {
    let snapshot = snapshotter.snapshot().into_vec();
    let read = snapshot.into_iter().map(|(key, _, _, value)| {
        let labels: Vec<_> =
            key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let value = match value {
            DebugValue::Counter(count) => count.to_string(),
            DebugValue::Gauge(value) => value.to_string(),
            DebugValue::Histogram(values) => values.len().to_string(),
        };
        (format!("{}{{{}}}", key.key().name(), labels.join(",")), value)
    });
    read.collect()
}

#[test]
fn metrics_count_without_naming_users() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    metrics::with_local_recorder(&recorder, || {
        runtime.unwrap().block_on(async {
            let clock = ManualClock::new();
            let life = Duration::from_secs(3_600);
            let fake = FakeHurdlr::builder().token_life(life).in_memory();
            let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
                .environment(fake.base_url())
                .http_client(fake.http_client())
                .api_version(ApiVersion::V6)
                .clock(clock.clone())
                .build()
                .unwrap();
            let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
            let manager = TokenManager::builder(hurdlr, store.clone()).build().unwrap();
            let ann = UserId::new("ann-marker").unwrap();
            for _ in 0..3 {
                manager.enterprise_user(&ann).token().await.unwrap();
            }
            // The gauge of those about to end is set each minute.
            tokio::time::sleep(Duration::from_secs(61)).await;
            let seen = recorded(&snapshotter);
            assert_eq!(seen["hurdlr_user_lookups_total{result=miss}"], "1");
            assert_eq!(seen["hurdlr_user_lookups_total{result=hit}"], "2");
            let refreshed = "hurdlr_refreshes_total{outcome=refreshed,user=enterprise}";
            assert_eq!(seen[refreshed], "1");
            assert_eq!(seen["hurdlr_provider_seconds{outcome=refreshed,user=enterprise}"], "1");
            assert_eq!(seen["hurdlr_users_expiring{}"], "0");
            assert_eq!(seen["hurdlr_waiting_callers{}"], "0");
            assert!(seen.keys().all(|key| !key.contains("marker")));
            manager.partner().token().await.unwrap();
            let refreshed = "hurdlr_refreshes_total{outcome=refreshed,user=partner}";
            assert_eq!(recorded(&snapshotter)[refreshed], "1");

            fake.fault_next(Fault::Delay(Duration::from_secs(1)));
            store.plan(|call| (call == StoreCall::Save).then_some(StoreFault::Before));
            let user = manager.enterprise_user(&UserId::new("bob").unwrap());
            let _ = user.token_timeout(Duration::from_millis(100)).await;
            assert_eq!(recorded(&snapshotter)["hurdlr_waiting_callers{}"], "0");
            user.token().await.unwrap();
            assert_eq!(recorded(&snapshotter)["hurdlr_unsaved_tokens{}"], "1");
            store.recover();
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(recorded(&snapshotter)["hurdlr_unsaved_tokens{}"], "-1");

            let cat = manager.user(&UserId::new("cat").unwrap());
            cat.token().await.unwrap_err();
            let failed = "hurdlr_refreshes_total{outcome=login_required,user=login}";
            assert!(!recorded(&snapshotter).contains_key(failed), "nothing was sent");
        });
    });
}
