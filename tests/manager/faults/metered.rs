//! What the feature `metrics` counts.

use std::collections::BTreeMap;

use hurdlr_oauth2::ApiVersion;
use hurdlr_oauth2::testing::Fault;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::time::sleep;

use crate::faults::site::*;

/// A metric as it was recorded.
#[derive(Debug)]
pub(crate) struct Metric {
    name: String,
    labels: BTreeMap<String, String>,
    is_described: bool,
    value: DebugValue,
}

impl Metric {
    fn is(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        let has = |label: &(&str, &str)| self.labels.get(label.0).is_some_and(|it| it == label.1);
        self.name == name && labels.iter().all(has)
    }

    /// The sum of a counter or gauge, the number of a histogram's values.
    #[allow(clippy::cast_precision_loss, reason = "nothing here counts to 2^53")]
    fn sum(&self) -> f64 {
        match &self.value {
            DebugValue::Counter(count) => *count as f64,
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(values) => values.len() as f64,
        }
    }

    fn longest(&self) -> f64 {
        match &self.value {
            DebugValue::Histogram(values) => {
                values.iter().fold(0.0, |longest, value| value.into_inner().max(longest))
            }
            _ => panic!("{self:?} is no histogram"),
        }
    }
}

/// All that was recorded since the last look.
pub(crate) struct Metrics(Vec<Metric>);

impl Metrics {
    pub(crate) fn look(snapshotter: &Snapshotter) -> Self {
        let snapshot = snapshotter.snapshot().into_vec().into_iter();
        let metrics = snapshot.map(|(key, _, description, value)| Metric {
            name: key.key().name().to_owned(),
            labels: key
                .key()
                .labels()
                .map(|label| (label.key().to_owned(), label.value().to_owned()))
                .collect(),
            is_described: description.is_some(),
            value,
        });
        Self(metrics.filter(|metric| metric.name.starts_with("hurdlr_")).collect())
    }

    fn all<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Metric> {
        self.0.iter().filter(move |metric| metric.is(name, labels))
    }

    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.all(name, labels).map(Metric::sum).fold(0.0, |sum, value| sum + value)
    }

    fn longest(&self, name: &str) -> f64 {
        self.all(name, &[]).map(Metric::longest).fold(0.0, f64::max)
    }
}

/// Runs a test on a paused clock, with a recorder of its own.
pub(crate) fn recorded<F: Future>(test: impl FnOnce(Snapshotter) -> F) {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || runtime.block_on(test(snapshotter)));
}

#[track_caller]
pub(crate) fn assert_count(actual: f64, expected: u32) {
    assert!((actual - f64::from(expected)).abs() < 0.5, "{actual} instead of {expected}");
}

pub(crate) const REFRESHES: &str = "hurdlr_refreshes_total";
pub(crate) const ADOPTIONS: &str = "hurdlr_adoptions_total";
const PROVIDER: &str = "hurdlr_provider_seconds";
const STORE: &str = "hurdlr_store_seconds";
const EXPIRING: &str = "hurdlr_users_expiring";

/// A token that is read from the store is an adoption, and no refresh.
#[test]
fn stored_tokens_are_no_refreshes() {
    recorded(|snapshotter| async move {
        let site = Site::new();
        let users = ids("user", 10);
        site.all_logged_in(&users).await;
        let restarted = site.manager();
        for user in &users {
            soon(&restarted.user(user)).await.unwrap();
        }
        let metrics = Metrics::look(&snapshotter);
        assert_count(metrics.sum(REFRESHES, &[]), 0);
        assert_count(metrics.sum(ADOPTIONS, &[("user", "login")]), 10);
    });
}

/// A token that a peer has refreshed is an adoption, and one refresh in all.
#[test]
fn peers_tokens_are_no_refreshes() {
    recorded(|snapshotter| async move {
        let site = Site::new();
        let (here, elsewhere) = (site.logged_in(&ann()).await, site.manager());
        soon(&elsewhere.user(&ann())).await.unwrap();
        site.advance(HOUR);
        Metrics::look(&snapshotter);
        soon(&here.user(&ann())).await.unwrap();
        soon(&elsewhere.user(&ann())).await.unwrap();
        let metrics = Metrics::look(&snapshotter);
        assert_count(metrics.sum(REFRESHES, &[]), 1);
        let refreshed = [("outcome", "refreshed"), ("user", "login")];
        assert_count(metrics.sum(REFRESHES, &refreshed), 1);
        assert_count(metrics.sum(ADOPTIONS, &[("user", "login")]), 1);
    });
}

/// A user who never logged in is no refresh, and so is one who still has to.
#[test]
fn needed_logins_are_no_refreshes() {
    recorded(|snapshotter| async move {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        site.fake.revoke_everything("ann");
        site.advance(HOUR);
        for _ in 0..60 {
            manager.user(&ann()).token().await.unwrap_err();
            manager.user(&id("nobody")).token().await.unwrap_err();
            sleep(SECOND).await;
        }
        let metrics = Metrics::look(&snapshotter);
        assert_count(metrics.sum(REFRESHES, &[]), 1);
        let refused = [("outcome", "login_required"), ("user", "login")];
        assert_count(metrics.sum(REFRESHES, &refused), 1);
    });
}

/// The time that the provider takes is not the store's.
#[test]
fn slow_provider_blames_no_store() {
    recorded(|snapshotter| async move {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        site.advance(HOUR);
        site.fake.fault_next(Fault::Delay(5 * SECOND));
        manager.user(&ann()).token().await.unwrap();
        let metrics = Metrics::look(&snapshotter);
        let refreshed = [("outcome", "refreshed"), ("user", "login")];
        assert_count(metrics.sum(PROVIDER, &refreshed), 1);
        assert!(metrics.longest(PROVIDER) >= 5.0);
        assert!(metrics.longest(STORE) < 1.0);
    });
}

/// The time that the store takes is not the provider's.
#[test]
fn slow_store_blames_no_provider() {
    recorded(|snapshotter| async move {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        site.advance(HOUR);
        site.store.delay(2 * SECOND);
        manager.user(&ann()).token().await.unwrap();
        let metrics = Metrics::look(&snapshotter);
        assert!(metrics.longest(STORE) >= 4.0, "before and after the effect of each call");
        assert!(metrics.all(PROVIDER, &[]).count() > 0);
        assert!(metrics.longest(PROVIDER) < 1.0);
        for metric in metrics.all(STORE, &[]) {
            let labels: Vec<_> = metric.labels.keys().collect();
            assert_eq!(labels, ["call", "outcome"]);
        }
    });
}

/// A store that fails is told by the outcome of its calls.
#[test]
fn failing_store_has_an_outcome() {
    recorded(|snapshotter| async move {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        site.advance(HOUR);
        let outcomes = |metrics: &Metrics| -> Vec<String> {
            let called = metrics.all(STORE, &[]).filter(|metric| metric.sum() > 0.0);
            called.map(|metric| metric.labels["outcome"].clone()).collect()
        };
        Metrics::look(&snapshotter);
        site.store.go_down();
        manager.user(&ann()).token().await.unwrap_err();
        let failed = outcomes(&Metrics::look(&snapshotter));
        assert!(!failed.is_empty());
        site.store.recover();
        sleep(MINUTE).await;
        manager.user(&ann()).token().await.unwrap();
        let succeeded = outcomes(&Metrics::look(&snapshotter));
        assert!(succeeded.iter().any(|outcome| !failed.contains(outcome)), "{succeeded:?}");
    });
}

/// Every metric has a description.
#[test]
fn metrics_are_described() {
    recorded(|snapshotter| async move {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        site.advance(HOUR);
        manager.user(&ann()).token().await.unwrap();
        sleep(2 * MINUTE).await;
        let metrics = Metrics::look(&snapshotter);
        assert!(!metrics.0.is_empty());
        let plain = metrics.0.iter().filter(|metric| !metric.is_described);
        let plain: Vec<_> = plain.map(|metric| metric.name.as_str()).collect();
        assert_eq!(plain, Vec::<&str>::new());
    });
}

/// The gauge of expiring users counts those who have used up nine tenths of their token's life.
#[test]
fn expiring_users_are_gauged() {
    recorded(|snapshotter| async move {
        let site = Site::of(ApiVersion::V6);
        let manager = site.manager();
        let (early, late) = (manager.enterprise_user(&ann()), manager.enterprise_user(&id("bob")));
        soon(&early).await.unwrap();
        sleep(30 * MINUTE).await;
        soon(&late).await.unwrap();
        sleep(5 * MINUTE).await;
        let metrics = Metrics::look(&snapshotter);
        assert_eq!(metrics.all(EXPIRING, &[]).count(), 1);
        assert_count(metrics.sum(EXPIRING, &[]), 0);
        sleep(21 * MINUTE).await;
        assert_count(Metrics::look(&snapshotter).sum(EXPIRING, &[]), 1);
        sleep(6 * MINUTE).await;
        // The first token is over by now, and expires no more.
        let metrics = Metrics::look(&snapshotter);
        assert_count(metrics.sum(EXPIRING, &[]), 0);
        assert_eq!(metrics.all("hurdlr_users_ending_within_a_day", &[]).count(), 0);
    });
}

#[cfg(all(feature = "middleware", feature = "tower"))]
mod calls {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::{Request, Response, StatusCode};
    use http_body_util::Full;
    use hurdlr_oauth2::manager::UserHandle;
    use hurdlr_oauth2::reqwest::ResponseBuilderExt;
    use hurdlr_oauth2::{reqwest, reqwest_middleware};
    use tower::{Layer, ServiceExt, service_fn};

    use super::{Metrics, assert_count, recorded};
    use crate::faults::site::*;

    const HEALED: &str = "hurdlr_calls_unauthorized_healed_total";
    const WAITED: &str = "hurdlr_calls_rate_limited_waited_total";

    /// An API that answers so once, and then well.
    #[derive(Clone, Debug)]
    struct Api {
        first: StatusCode,
        calls: Arc<AtomicUsize>,
    }

    impl Api {
        fn new(first: StatusCode) -> Self {
            Self { first, calls: Arc::default() }
        }

        fn answer(&self) -> http::response::Builder {
            let is_first = self.calls.fetch_add(1, Ordering::Relaxed) == 0;
            let status = if is_first { self.first } else { StatusCode::OK };
            Response::builder().status(status).header("retry-after", "1")
        }
    }

    struct Terminal(Api);

    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Terminal {
        async fn handle(
            &self,
            request: reqwest::Request,
            _: &mut http::Extensions,
            _: reqwest_middleware::Next<'_>,
        ) -> reqwest_middleware::Result<reqwest::Response> {
            let answer = self.0.answer().url(request.url().clone());
            Ok(answer.body("").unwrap().into())
        }
    }

    async fn call_by_middleware(user: &UserHandle, url: &str, api: Api) -> StatusCode {
        let client = user.middleware().client(|builder| builder).unwrap();
        let client = client.with(Terminal(api)).build();
        client.get(url).send().await.unwrap().status()
    }

    async fn call_by_layer(user: &UserHandle, url: &str, api: Api) -> StatusCode {
        let service = service_fn(move |_: Request<Full<Bytes>>| {
            let answer = api.answer().body(Full::<Bytes>::default()).unwrap();
            async move { Ok::<_, Infallible>(answer) }
        });
        let request = Request::get(url).body(Full::default()).unwrap();
        user.layer().layer(service).oneshot(request).await.unwrap().status()
    }

    fn assert_counted(first: StatusCode, healed: u32, waited: u32) {
        for by_layer in [false, true] {
            recorded(|snapshotter| async move {
                let site = Site::new();
                let user = site.logged_in(&ann()).await.user(&ann());
                site.advance(2 * MINUTE);
                let (url, api) = (site.fake.resource_url(), Api::new(first));
                let status = if by_layer {
                    call_by_layer(&user, url.as_str(), api).await
                } else {
                    call_by_middleware(&user, url.as_str(), api).await
                };
                assert_eq!(status, StatusCode::OK);
                let metrics = Metrics::look(&snapshotter);
                assert_count(metrics.sum(HEALED, &[]), healed);
                assert_count(metrics.sum(WAITED, &[]), waited);
            });
        }
    }

    /// A call that was answered 401 and healed is counted, whichever way it is made.
    #[test]
    fn healed_calls_are_counted() {
        assert_counted(StatusCode::UNAUTHORIZED, 1, 0);
    }

    /// A call that waited after a 429 is counted, whichever way it is made.
    #[test]
    fn waiting_calls_are_counted() {
        assert_counted(StatusCode::TOO_MANY_REQUESTS, 0, 1);
    }
}
