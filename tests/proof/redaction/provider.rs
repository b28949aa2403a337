//! A provider over https, all of whose secrets the sweep knows.

use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{ErrorStyle, FakeHurdlr, RecordedRequest};
use hurdlr_oauth2::{
    ApiVersion, Callback, Error, Hurdlr, HurdlrBuilder, PendingLogin, RetryPolicy, Token, UserId,
    reqwest,
};

use super::{CLIENT_SECRET, LOG_ID_KEY, Sweep, USER};
use crate::support::REDIRECT_URI;

pub(super) const LIFE: Duration = Duration::from_secs(3_600);

pub(super) struct Provider {
    pub(super) fake: FakeHurdlr,
    sweep: Sweep,
    root: reqwest::Certificate,
}

impl Provider {
    pub(super) async fn start(sweep: &Sweep, style: ErrorStyle) -> Self {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let root = reqwest::Certificate::from_der(issued.cert.der()).unwrap();
        let key = issued.signing_key.serialize_pem();
        let fake = FakeHurdlr::builder()
            .client("watched-client", CLIENT_SECRET.into())
            .token_life(LIFE)
            .error_style(style)
            .tls(issued.cert.pem(), key.into())
            .start()
            .await
            .unwrap();
        watch(&fake, sweep);
        Self { fake, sweep: sweep.clone(), root }
    }

    /// A client that would have `reqwest` log every byte.
    pub(super) fn builder(&self, version: ApiVersion) -> HurdlrBuilder {
        self.builder_by(CLIENT_SECRET, version)
    }

    pub(super) fn builder_by(&self, secret: &str, version: ApiVersion) -> HurdlrBuilder {
        let root = self.root.clone();
        Hurdlr::builder("watched-client", secret.into())
            .environment(self.fake.base_url())
            .authorize_url(self.fake.authorize_url())
            .redirect_uri(REDIRECT_URI)
            .api_version(version)
            .log_id_key(LOG_ID_KEY.into())
            .retry(RetryPolicy::never())
            // No connection is left that a fault has cut.
            .reqwest(move |client| {
                client.tls_certs_only([root]).pool_max_idle_per_host(0).connection_verbose(true)
            })
    }

    pub(super) fn trusted(&self, client: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        client.tls_certs_only([self.root.clone()]).connection_verbose(true)
    }

    /// A login that the person has allowed.
    pub(super) async fn begin(&self, hurdlr: &Hurdlr) -> (PendingLogin, Callback) {
        begin(&self.sweep, &self.fake, hurdlr).await
    }

    pub(super) async fn log_in(&self, hurdlr: &Hurdlr) -> Result<Token, Error> {
        let (pending, callback) = self.begin(hurdlr).await;
        hurdlr.complete_login(pending, callback).await
    }
}

/// Has the sweep know all tokens that are issued, if nobody reshapes them.
pub(super) fn watch(fake: &FakeHurdlr, sweep: &Sweep) {
    let sweep = sweep.clone();
    fake.reshape(move |answer| {
        for name in ["access_token", "refresh_token"] {
            if let Some(token) = answer.get(name).and_then(|token| token.as_str()) {
                sweep.secret(name, token);
            }
        }
    });
}

pub(super) async fn begin(
    sweep: &Sweep,
    fake: &FakeHurdlr,
    hurdlr: &Hurdlr,
) -> (PendingLogin, Callback) {
    let (url, pending) = hurdlr.begin_login().unwrap();
    let back = fake.consent(&url, USER).await.unwrap();
    for (name, value) in back.query_pairs() {
        sweep.secret(&name, &*value);
    }
    let kept = pending.to_secret();
    sweep.secret("pending login", kept.expose_secret());
    (pending, Callback::from(&back))
}

/// Has the sweep know all secrets of a request, and returns them as a provider might quote them.
pub(super) fn quote(sweep: &Sweep, request: &RecordedRequest) -> String {
    let mut quote = String::new();
    for name in ["client_secret", "code", "code_verifier", "refresh_token", "token", "userId"] {
        let Some(value) = request.field(name) else { continue };
        if name != "userId" {
            sweep.secret(name, &value);
        }
        quote.extend([name, " ", &value, ", "]);
    }
    if let Some(header) = request.headers().get("authorization") {
        let header = header.to_str().unwrap();
        let (scheme, credentials) = header.split_once(' ').unwrap();
        sweep.secret(scheme, credentials);
        quote.extend(["authorization ", header, ", "]);
    }
    quote + &String::from_utf8_lossy(request.body())
}

pub(super) fn user() -> UserId {
    UserId::new(USER).unwrap()
}
