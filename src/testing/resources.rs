//! The data of the API, and the test's own service behind it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::Router;
use serde_json::{Value, json};

use super::{journal::RecordedRequest, lock::lock, version::Version};

pub(super) type Data = dyn Fn(&RecordedRequest) -> Value + Send + Sync;

/// The data of each path, and the router of all others.
pub(super) struct Resources {
    data: Mutex<HashMap<String, Arc<Data>>>,
    router: Mutex<Option<Router>>,
}

impl Default for Resources {
    /// Each version has two resources from the start: who the token speaks for, and expenses.
    fn default() -> Self {
        let me: Arc<Data> = Arc::new(|call| {
            json!({
                "user": call.user(),
                "method": call.method().as_str(),
                "body_bytes": call.body().len(),
            })
        });
        let expenses: Arc<Data> = Arc::new(|call| expenses(call.user().unwrap_or_default()));
        let all = Version::ALL.into_iter().flat_map(|version| {
            [
                (version.resource_path().to_owned(), Arc::clone(&me)),
                (version.expenses_path().to_owned(), Arc::clone(&expenses)),
            ]
        });
        Self { data: Mutex::new(all.collect()), router: Mutex::default() }
    }
}

/// The expenses of a user. The reference's field names are not known here; the amounts differ from
/// user to user, so that an app which shows one user's to another is found out.
fn expenses(user: &str) -> Value {
    let own = user.bytes().fold(0, |sum: u32, byte| sum + u32::from(byte)) % 100;
    let amount = |cents: u32| f64::from(cents + own) / 100.0;
    let expense = |date: &str, vendor: &str, cents: u32| {
        let amount = amount(cents);
        json!({ "date": date, "vendor": vendor, "amount": amount, "owner": user })
    };
    json!([
        expense("2026-11-03", "Office supplies", 4_890),
        expense("2026-11-12", "Train tickets", 12_635),
        expense("2026-11-21", "Hosting", 1_900),
    ])
}

impl Resources {
    pub(super) fn insert(&self, path: &str, data: Arc<Data>) {
        lock(&self.data).insert(path.to_owned(), data);
    }

    pub(super) fn get(&self, path: &str) -> Option<Arc<Data>> {
        lock(&self.data).get(path).cloned()
    }

    pub(super) fn set_router(&self, router: Router) {
        *lock(&self.router) = Some(router);
    }

    pub(super) fn router(&self) -> Option<Router> {
        lock(&self.router).clone()
    }
}
