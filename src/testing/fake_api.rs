//! `FakeApi`: the handle to the API of a `FakeHurdlr`.

use std::{fmt, sync::Arc};

use axum::Router;
use serde_json::Value;
use url::Url;

use super::{
    fault::Fault,
    journal::{Counts, RecordedRequest},
    provider::Provider,
};

/// The API that a provider's access tokens are for: its data, its faults, and the calls it
/// received. By [`FakeHurdlr::api`](super::FakeHurdlr::api).
///
/// Every path that is not an endpoint of OAuth is one of the API. A call needs a living access
/// token as `Authorization: Bearer`, of the version that the path begins with, or it is answered
/// 401. A token of scope `read` gets 403 for every other method than GET, HEAD, OPTIONS and TRACE.
/// v5 takes the client by Basic as well, for the user whom the header `userId` names.
///
/// `/rest/v4/me` and `/rest/v4/expenses` are there from the start, under `/rest/v5` and `/v6` as
/// well. A test adds others by [`resource`](Self::resource), one path each, or by a
/// [`router`](Self::router). All other paths are 404. The field names of the expenses are this
/// crate's own: the reference's are not known to it.
///
/// ```
/// use hurdlr_oauth2::testing::{FakeHurdlr, Fault};
/// use serde_json::json;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use hurdlr_oauth2::{Hurdlr, UserId, secrecy::ExposeSecret};
/// let fake = FakeHurdlr::start().await?;
/// let expenses = fake.api().resource("/rest/v4/expenses", |call| {
///     json!([{ "owner": call.user(), "amount": 12.5 }])
/// });
///
/// // The next two calls, whoever makes them:
/// for _ in 0..2 {
///     fake.api().fault_next(Fault::rate_limited_for(Duration::from_secs(1)));
/// }
/// // Every later call of one user:
/// fake.api().fault_plan(|call| (call.user() == Some("bob")).then_some(Fault::Forbidden));
/// # let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
/// #     .environment(fake.base_url())
/// #     .build()?;
/// # let token = hurdlr.client_credentials(&UserId::new("ann")?).await?;
/// # let access_token = token.access_token().expose_secret();
///
/// let http = reqwest::Client::new();
/// for status in [429, 429, 200] {
///     let answer = http.get(expenses.clone()).bearer_auth(access_token).send().await?;
///     assert_eq!(answer.status(), status);
/// }
/// let call = &fake.api().requests()[2];
/// assert_eq!((call.path(), call.user()), ("/rest/v4/expenses", Some("ann")));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct FakeApi<'a>(pub(super) &'a Provider);

impl FakeApi<'_> {
    /// Serves what `data` returns as JSON to every call of this path, whatever its method and
    /// query; [`RecordedRequest::user`] is the user the call's token belongs to. Data of the same
    /// path are replaced; an endpoint of OAuth is not. Returns the resource's URL.
    ///
    /// `data` may call the provider's handle; a clone of it within `data` keeps the provider alive.
    pub fn resource(
        &self,
        path: &str,
        data: impl Fn(&RecordedRequest) -> Value + Send + Sync + 'static,
    ) -> Url {
        let mut url = self.0.base_url.clone();
        url.set_path(path);
        // The path is written like that of a request: with a slash at its start, and encoded.
        self.0.resources.insert(url.path(), Arc::new(data));
        url
    }

    /// Serves all paths without [data](Self::resource) by a router of the test's own, behind the
    /// provider's tokens: it gets the calls that are authorized. Each has its [`RecordedRequest`]
    /// as an extension, which names the user.
    ///
    /// ```
    /// use axum::extract::Path;
    /// use axum::routing::get;
    /// use axum::{Extension, Router};
    /// use hurdlr_oauth2::testing::{FakeHurdlr, RecordedRequest};
    /// use serde_json::json;
    ///
    /// type Call = Extension<RecordedRequest>;
    ///
    /// async fn expense(Path(id): Path<u32>, Extension(call): Call) -> String {
    ///     json!({ "id": id, "owner": call.user() }).to_string()
    /// }
    ///
    /// let fake = FakeHurdlr::in_memory();
    /// fake.api().router(Router::new().route("/rest/v4/expenses/{id}", get(expense)));
    /// ```
    pub fn router(&self, router: Router) {
        self.0.resources.set_router(router);
    }

    /// Queues a fault: each call takes one, in order of arrival, whether or not its token is
    /// alive.
    ///
    /// An API answers [`Fault::Unauthorized`], [`Fault::Forbidden`] and
    /// [`Fault::rate_limited_for`] by itself; all other faults work too.
    pub fn fault_next(&self, fault: Fault) {
        self.0.api.faults.push(fault);
    }

    /// Asks `plan` for the fault of each call that finds the queue empty, like
    /// [`FakeHurdlr::fault_plan`](super::FakeHurdlr::fault_plan).
    pub fn fault_plan(
        &self,
        plan: impl Fn(&RecordedRequest) -> Option<Fault> + Send + Sync + 'static,
    ) {
        self.0.api.faults.set_plan(Arc::new(plan));
    }

    /// Forgets queue and plan. Calls that already took a fault keep it.
    pub fn clear_faults(&self) {
        self.0.api.faults.clear();
    }

    /// The calls since the start or [`clear_requests`](Self::clear_requests), in order of arrival.
    /// Empty where [recording](super::FakeHurdlrBuilder::record) is off.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.0.api.journal.requests()
    }

    /// Forgets the calls and sets all counts to zero. A call in flight is not counted when it
    /// ends.
    pub fn clear_requests(&self) {
        self.0.api.journal.clear();
    }

    /// How many calls there were.
    #[must_use]
    pub fn count(&self) -> Counts {
        self.0.api.journal.counts()
    }

    /// Waits until so many calls have arrived, answered or not, since the start or
    /// [`clear_requests`](Self::clear_requests).
    pub async fn arrived(&self, calls: u64) {
        self.0.api.journal.arrived(calls).await;
    }
}

impl fmt::Debug for FakeApi<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeApi")
            .field("base_url", &self.0.base_url.as_str())
            .finish_non_exhaustive()
    }
}
