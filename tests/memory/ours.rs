//! The grants by this crate, alone and by a manager over sealed stores.

use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{KeyRing, PostgresStore, SealingKey, SqliteStore, TokenStore};
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::{ApiVersion, Hurdlr, HurdlrBuilder, Token, TokenManager, UserId};
use url::form_urlencoded;
use watched_heap::unwatched;
use zeroize::Zeroizing;

use crate::SEED;
use crate::measure::{Case, Measure, NEW, OLD};
use crate::postgres::Server;
use crate::provider::{Provider, Site, TOKEN_LIFE, Transport, USER};

pub(crate) const MEASURES: &[(&str, Measure)] = &[
    ("refresh", refresh),
    ("refresh_without_bearer", refresh_without_bearer),
    ("refresh_v6", refresh_v6),
    ("client_credentials", client_credentials),
    ("login", login),
    ("managed_refresh_sqlite", managed_refresh_sqlite),
    ("managed_refresh_postgres", managed_refresh_postgres),
];

/// Answers that are not read as they came.
pub(crate) const ODD_ANSWERS: &[(&str, Measure)] = &[
    ("client_credentials_escaped", escaped_answer),
    ("client_credentials_in_string", answer_in_a_string),
    ("client_credentials_compressed", compressed_answer),
    ("client_credentials_in_pieces", answer_in_pieces),
    ("login_cut", cut_answer),
    ("refresh_refused", refusal_with_secrets),
];

pub(crate) const REDIRECT_URI: &str = "https://app.example.com/callback";

/// Started by the first measure that needs it. What is static is never dropped, so `main` stops it.
static SERVER: Mutex<Option<Server>> = Mutex::new(None);

pub(crate) fn stop_server() {
    drop(SERVER.lock().unwrap().take());
}

fn user() -> UserId {
    UserId::new(USER).unwrap()
}

fn client(site: &Site, clock: &ManualClock) -> Hurdlr {
    builder(site, clock).build().unwrap()
}

fn builder(site: &Site, clock: &ManualClock) -> HurdlrBuilder {
    let mut builder = Hurdlr::builder(&site.client_id, site.client_secret.as_str().into())
        .environment(site.base_url.clone())
        .authorize_url(site.authorize_url.clone())
        .redirect_uri(REDIRECT_URI)
        .clock(clock.clone());
    if let Some(certificate) = &site.certificate {
        let root = hurdlr_oauth2::reqwest::Certificate::from_der(certificate).unwrap();
        builder = builder.reqwest(|client| {
            match site.transport {
                #[cfg(feature = "native-tls")]
                Transport::NativeTls => client.tls_backend_native(),
                _ => client,
            }
            .tls_certs_only([root])
        });
    }
    builder
}

/// A token of a person who has just logged in.
async fn logged_in(provider: &mut Provider, clock: &ManualClock) -> Token {
    let hurdlr = client(&provider.site, clock);
    log_in(provider, &hurdlr).await
}

async fn log_in(provider: &mut Provider, hurdlr: &Hurdlr) -> Token {
    let (url, pending) = hurdlr.begin_login().unwrap();
    let callback = provider.consent(&url);
    hurdlr.complete_login(pending, &callback).await.unwrap()
}

fn refresh(case: &mut Case) {
    refreshed(case, |builder| builder);
}

fn refresh_without_bearer(case: &mut Case) {
    refreshed(case, |builder| builder.bearer_on_refresh(false));
}

/// API v6 takes the client's credentials in a header.
fn refresh_v6(case: &mut Case) {
    let Site { client_id, client_secret, .. } = &case.provider.site;
    let secret: String = form_urlencoded::byte_serialize(client_secret.as_bytes()).collect();
    case.secrets.tell("Basic credentials", &format!("{client_id}:{secret}"));
    refreshed(case, |builder| builder.api_version(ApiVersion::V6));
}

fn refreshed(case: &mut Case, configure: fn(HurdlrBuilder) -> HurdlrBuilder) {
    let clock = ManualClock::new();
    let old = case.prepared(async |provider| {
        let hurdlr = configure(builder(&provider.site, &clock)).build().unwrap();
        log_in(provider, &hurdlr).await
    });
    case.secrets.tell_token(OLD, &old);
    case.watched(async |provider, secrets| {
        let hurdlr = configure(builder(&provider.site, &clock)).build().unwrap();
        let token = hurdlr.refresh(&old).await.unwrap();
        secrets.tell_token(NEW, &token);
        drop(old);
    });
}

fn client_credentials(case: &mut Case) {
    let clock = ManualClock::new();
    case.watched(async |provider, secrets| {
        let hurdlr = client(&provider.site, &clock);
        let token = hurdlr.client_credentials(&user()).await.unwrap();
        secrets.tell_token(NEW, &token);
    });
}

/// Tokens as a provider could draw them, with signs that some JSON writers escape.
fn drawn_tokens() -> [String; 2] {
    let mut random = fastrand::Rng::with_seed(SEED.wrapping_add(1));
    [(); 2].map(|()| format!("{:032x}/+{:032x}==", random.u128(..), random.u128(..)))
}

/// An answer with these tokens.
fn written([access_token, refresh_token]: &[String; 2]) -> String {
    format!(
        r#"{{"access_token":"{access_token}","refresh_token":"{refresh_token}","expires_in":3600}}"#
    )
}

/// In the spelling of a writer that escapes what HTML would.
fn escaped(answer: &str) -> String {
    answer.replace('/', r"\/").replace('=', r"\u003d")
}

fn answered(case: &mut Case, body: String) {
    let clock = ManualClock::new();
    let [access_token, refresh_token] = drawn_tokens();
    case.secrets.tell(NEW[0], &access_token);
    case.secrets.tell(NEW[1], &refresh_token);
    case.provider.answer_next(200, body);
    case.watched(async |provider, _| {
        let hurdlr = client(&provider.site, &clock);
        let token = hurdlr.client_credentials(&user()).await.unwrap();
        assert_eq!(token.access_token().expose_secret(), access_token);
        assert_eq!(token.refresh_token().unwrap().expose_secret(), refresh_token);
    });
}

fn escaped_answer(case: &mut Case) {
    answered(case, escaped(&written(&drawn_tokens())));
}

fn answer_in_a_string(case: &mut Case) {
    answered(case, serde_json::to_string(&written(&drawn_tokens())).unwrap());
}

/// The code of a login is sent once, so nothing comes behind the refresh token that is rescued.
fn cut_answer(case: &mut Case) {
    let clock = ManualClock::new();
    let tokens = drawn_tokens();
    case.secrets.tell(NEW[0], &tokens[0]);
    case.secrets.tell(NEW[1], &tokens[1]);
    case.watched(async |provider, secrets| {
        let hurdlr = client(&provider.site, &clock);
        let (url, pending) = hurdlr.begin_login().unwrap();
        let callback = unwatched(|| {
            let callback = provider.consent(&url);
            secrets.tell_code(&callback);
            let answer = escaped(&written(&tokens));
            provider.answer_next(200, answer[..answer.len() - 3].to_owned());
            callback
        });
        drop(hurdlr.complete_login(pending, &callback).await.unwrap_err());
    });
}

fn answer_in_pieces(case: &mut Case) {
    case.provider.drip_next();
    client_credentials(case);
}

fn compressed_answer(case: &mut Case) {
    case.provider.compress_next();
    client_credentials(case);
}

fn refusal_with_secrets(case: &mut Case) {
    let clock = ManualClock::new();
    let old = case.prepared(async |provider| logged_in(provider, &clock).await);
    case.secrets.tell_token(OLD, &old);
    let answer = serde_json::json!({
        "error": "invalid_client",
        "error_description": format!(
            "nobody has the secret {} and the token {}",
            case.provider.site.client_secret,
            old.refresh_token().unwrap().expose_secret(),
        ),
    });
    case.provider.answer_next(400, answer.to_string());
    case.watched(async |provider, _| {
        drop(client(&provider.site, &clock).refresh(&old).await.unwrap_err());
        drop(old);
    });
}

fn login(case: &mut Case) {
    let clock = ManualClock::new();
    case.watched(async |provider, secrets| {
        let hurdlr = client(&provider.site, &clock);
        let (url, pending) = hurdlr.begin_login().unwrap();
        // An app keeps the login between its two halves, in a cookie or a session.
        let kept = pending.to_secret();
        drop(pending);
        let callback = unwatched(|| {
            let (_, verifier) = kept.expose_secret().rsplit_once('.').unwrap();
            secrets.tell("PKCE verifier", verifier);
            let callback = provider.consent(&url);
            secrets.tell_code(&callback);
            callback
        });
        let pending = hurdlr_oauth2::PendingLogin::from_secret(&kept).unwrap();
        let token = hurdlr.complete_login(pending, &callback).await.unwrap();
        secrets.tell_token(NEW, &token);
    });
}

fn managed_refresh_sqlite(case: &mut Case) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("tokens.db").display());
    managed_refresh(case, async |keys| {
        let store = SqliteStore::at(&url).open_sealed(keys).await.unwrap();
        store.migrate().await.unwrap();
        store
    });
}

fn managed_refresh_postgres(case: &mut Case) {
    let url = SERVER.lock().unwrap().get_or_insert_with(Server::start).url();
    managed_refresh(case, async |keys| {
        let store = PostgresStore::at(&url).open_sealed(keys).await.unwrap();
        store.migrate().await.unwrap();
        store
    });
}

/// A process begins with a user in the store, and serves them before and after a refresh.
fn managed_refresh<S: TokenStore>(case: &mut Case, open: impl AsyncFn(KeyRing) -> S) {
    let clock = ManualClock::new();
    let mut key = [0; 32];
    fastrand::Rng::with_seed(!*SEED).fill(&mut key);
    let key = Zeroizing::new(BASE64_STANDARD.encode(key));
    let keys = || {
        let key = SealingKey::from_base64(&key.as_str().into()).unwrap();
        KeyRing::new(key)
    };
    case.secrets.tell("sealing key", &key);
    case.secrets.tell_bytes("sealing key", &BASE64_STANDARD.decode(&*key).unwrap());
    case.prepared(async |provider| {
        let token = logged_in(provider, &clock).await;
        let manager = TokenManager::builder(client(&provider.site, &clock), open(keys()).await);
        let manager = manager.build().unwrap();
        manager.adopt(&user(), token).await.unwrap();
        assert_eq!(manager.shutdown().await, []);
    });
    case.watched(async |provider, secrets| {
        let manager = TokenManager::builder(client(&provider.site, &clock), open(keys()).await);
        let manager = manager.build().unwrap();
        let handle = manager.user(&user());
        secrets.tell_token(OLD, &handle.token().await.unwrap());
        clock.advance(TOKEN_LIFE + Duration::from_secs(60));
        secrets.tell_token(NEW, &handle.token().await.unwrap());
        assert_eq!(handle.refreshes(), Some(1));
        assert_eq!(manager.shutdown().await, []);
    });
}
