//! The data of the API.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::{journal::RecordedRequest, lock::lock, version::Version};

pub(super) type Data = dyn Fn(&RecordedRequest) -> Value + Send + Sync;

/// The data of each path.
pub(super) struct Resources(Mutex<HashMap<String, Arc<Data>>>);

impl Default for Resources {
    /// Each version has a resource from the start, which says who the token speaks for.
    fn default() -> Self {
        let me: Arc<Data> = Arc::new(|call| {
            json!({
                "user": call.user(),
                "method": call.method().as_str(),
                "body_bytes": call.body().len(),
            })
        });
        let all = Version::ALL.map(|version| (version.resource_path().to_owned(), me.clone()));
        Self(Mutex::new(HashMap::from(all)))
    }
}

impl Resources {
    pub(super) fn insert(&self, path: &str, data: Arc<Data>) {
        lock(&self.0).insert(path.to_owned(), data);
    }

    pub(super) fn get(&self, path: &str) -> Option<Arc<Data>> {
        lock(&self.0).get(path).cloned()
    }
}
