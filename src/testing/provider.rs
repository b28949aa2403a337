//! The provider itself: its settings, its ledger and its journals.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use secrecy::SecretString;
use serde_json::{Map, Value};
use url::Url;

use super::{
    answer::{Answer, ErrorStyle, Refusal},
    clock::Clock,
    ledger::{Ledger, Rotation, Terms},
    lock::lock,
    resources::Resources,
    traffic::Traffic,
    version::{Scope, Version},
};

pub(super) type Reshape = dyn Fn(&mut Map<String, Value>) + Send + Sync;

/// Settings that can be changed while the provider runs.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) rotation: Rotation,
    pub(super) error_style: ErrorStyle,
    /// `None`: as long as the version's reference says.
    pub(super) token_life: Option<Duration>,
    pub(super) refresh_life: Option<Duration>,
    pub(super) reshape: Option<Arc<Reshape>>,
}

/// Everything the paths share.
pub(super) struct Provider {
    pub(super) base_url: Url,
    pub(super) client_id: String,
    pub(super) client_secret: SecretString,
    pub(super) redirect_uri: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) ignores_pkce: bool,
    pub(super) checks_bearer: bool,
    pub(super) clock: Clock,
    pub(super) settings: Mutex<Settings>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) resources: Resources,
    /// Token requests, and those for a revocation.
    pub(super) tokens: Traffic,
    /// Calls to the API.
    pub(super) api: Traffic,
}

impl Provider {
    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    pub(super) fn error_style(&self) -> ErrorStyle {
        lock(&self.settings).error_style
    }

    pub(super) fn terms(&self, version: Version, scope: Option<Scope>) -> Terms {
        let settings = lock(&self.settings);
        Terms {
            version,
            scope,
            now: self.clock.now(),
            token_life: settings.token_life.unwrap_or(version.token_life()),
            refresh_life: settings.refresh_life,
            rotation: settings.rotation,
            checks_pkce: version.documents_pkce() || !self.ignores_pkce,
        }
    }

    pub(super) fn refuse(&self, refusal: Refusal) -> Answer {
        refusal.into_answer(self.error_style())
    }
}
