//! Settings that are refused, and tokens that cannot be imported, with a secret in each.

use futures_util::future::join_all;
use hurdlr_oauth2::basic::{BasicErrorResponse, BasicTokenResponse};
use hurdlr_oauth2::secrecy::{SecretSlice, SecretString};
use hurdlr_oauth2::store::{KeyRing, PostgresStore, SealingKey, SqliteStore, UserHashKey};
use hurdlr_oauth2::testing::FakeHurdlr;
use hurdlr_oauth2::web::CookieKey;
use hurdlr_oauth2::{
    ApiVersion, CallPolicy, Callback, Environment, HttpClient, Hurdlr, HurdlrBuilder, Partner,
    PendingLogin, Token, TokenManager, TokenParts, UserId, store::MemoryStore,
};

use super::{CLIENT_SECRET, DATABASE_PASSWORD, Sweep, USER};
use crate::support;

/// Stands in each of them.
const MARKER: &str = "setting+marker/of=a~secret";

pub(super) async fn refuse_all(sweep: &Sweep) {
    sweep.secret("a refused setting", MARKER);
    sweep.secret("a refused setting", MARKER.as_bytes().escape_ascii().to_string());
    let fake = FakeHurdlr::in_memory();
    of_the_client(sweep, &fake);
    of_keys(sweep);
    of_logins(sweep, &fake).await;
    of_tokens(sweep, &fake);
    of_stores(sweep).await;
    of_calls(sweep, &fake);
}

fn of_the_client(sweep: &Sweep, fake: &FakeHurdlr) {
    let with = |change: fn(HurdlrBuilder) -> HurdlrBuilder| change(support::of(fake)).build();
    for (setting, result) in [
        ("environment", with(|it| it.environment("https://u:setting+marker/of=a~secret@h"))),
        ("environment", with(|it| it.environment("https://u:setting+marker%2Fof=a~secret@h"))),
        ("environment", with(|it| it.environment("https://h/?key=setting+marker/of=a~secret"))),
        ("environment", with(|it| it.environment("https://h/#setting+marker/of=a~secret"))),
        ("environment", with(|it| it.environment("http://h/setting+marker/of=a~secret?x"))),
        ("authorize_url", with(|it| it.authorize_url("https://u:setting+marker%2Fof=a~secret@h"))),
        ("authorize_url", with(|it| it.authorize_url("http://h?setting+marker/of=a~secret"))),
        ("redirect_uri", with(|it| it.redirect_uri("https://u:setting+marker%2Fof=a~secret@h#x"))),
        ("issuer", with(|it| it.issuer("https://u:setting+marker%2Fof=a~secret@h/?x#y"))),
        ("log_id_key", with(|it| it.log_id_key("setting+marker/of=a~secret".into()))),
    ] {
        sweep.result(setting, &result);
    }
    let base = fake.base_url();
    for secret in [format!("{MARKER}\n"), format!("\u{0}{MARKER}"), MARKER.repeat(4_000)] {
        let client = Hurdlr::builder("id", secret.clone().into()).environment(base.clone());
        sweep.result("client_secret", &client.build());
        let partner = Partner::new("id", &secret.clone().into(), &base.clone().into());
        sweep.result("a partner's client_secret", &partner);
        let basic = ApiVersion::V4.token_url(&secret.as_str().into());
        sweep.failed("a base URL", basic);
    }
    let url = format!("https://u:{}@h/?{MARKER}", MARKER.replace('/', "%2F"));
    sweep.shown(&Environment::from(url.as_str()));
    sweep.result("an endpoint", &HttpClient::new(&url.parse().unwrap()));
}

fn of_keys(sweep: &Sweep) {
    let texts = [MARKER, "c2V0dGluZyttYXJrZXIvb2Y9YX5zZWNyZXQ=", "c2V0dGluZyttYXJrZXIvb2Y9YX5zZWN"];
    for text in texts {
        let key = SecretString::from(text);
        sweep.failed("sealing key", SealingKey::from_base64(&key));
        sweep.failed("user hash key", UserHashKey::from_base64(&key));
        // Its length is validated with the routes.
        sweep.result("cookie key", &CookieKey::from_base64(&key));
        let bytes = SecretSlice::from(text.as_bytes().to_vec());
        sweep.failed("sealing key", SealingKey::from_bytes(&bytes));
        sweep.failed("user hash key", UserHashKey::from_bytes(&bytes));
    }
}

async fn of_logins(sweep: &Sweep, fake: &FakeHurdlr) {
    let (hurdlr, _) = support::in_memory(fake);
    let hurdlr = hurdlr.build().unwrap();
    let other = support::of(fake).redirect_uri("https://other.example.com/").build().unwrap();
    let broken = [MARKER.to_owned(), format!("1.{MARKER}.{MARKER}.{MARKER}.{MARKER}")];
    for text in broken {
        sweep.failed("a pending login", PendingLogin::from_secret(&text.into()));
    }
    for query in [
        format!("state={MARKER}&code={MARKER}"),
        format!("code={MARKER}"),
        format!("state={MARKER}&state={MARKER}"),
        format!("iss={MARKER}"),
        MARKER.to_owned(),
    ] {
        let (_, pending) = hurdlr.begin_login().unwrap();
        let callback = Callback::from_query(&query);
        sweep.text("a callback", format!("{callback:?} {:?}", callback.state().map(|_| ())));
        sweep.failed("a callback", hurdlr.complete_login(pending, callback).await);
        // With the state that is right.
        let (url, pending) = hurdlr.begin_login().unwrap();
        let state = url.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        sweep.secret("state", &state);
        let callback = Callback::from_query(&format!("{query}&state={state}"));
        sweep.failed("a callback", hurdlr.complete_login(pending, callback).await);
        // With a refusal that quotes what it refuses.
        let (url, pending) = hurdlr.begin_login().unwrap();
        let state = url.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        sweep.secret("state", &state);
        let refusal = format!("error={state}&error_description=no%20{state}");
        let callback = Callback::from_query(&format!("{refusal}&state={state}"));
        sweep.failed("a refusal", hurdlr.complete_login(pending, callback).await);
    }
    let (pending, callback) = super::provider::begin(sweep, fake, &hurdlr).await;
    sweep.failed("another client's login", other.complete_login(pending, callback).await);
}

fn of_tokens(sweep: &Sweep, fake: &FakeHurdlr) {
    let (hurdlr, _) = support::in_memory(fake);
    let hurdlr = hurdlr.build().unwrap();
    let text = MARKER;
    for json in [
        text.to_owned(),
        format!("{{\"access_token\":\"{text}\n\"}}"),
        format!(r#"{{"access_token":"{text}"#),
        format!(r#"{{"access_token":"{text}","expires_in":"{text}","created_at":"{text}"}}"#),
        format!(r#"{{"access_token":["{text}"],"refresh_token":{{"{text}":1}}}}"#),
        format!(r#"{{"access_token":"{text} with space","refresh_token":"{text}"}}"#),
        format!(r#"{{"access_token":null,"refresh_token":"{text}","{text}":"{text}"}}"#),
        format!(r#"{{"access_token":"{text}","token_type":"{text}","scope":"{text}"}}"#),
        format!(r#"{{"access_token":"{text}","token_type":"mac"}}"#),
        format!(r#"{{"error":"{text}","error_description":"{text}"}}"#),
        format!(r#"["{text}"]"#),
        format!(r#""{text}""#),
        format!("access_token={text}&refresh_token={text}"),
        format!("<html>{text}</html>"),
    ] {
        sweep.result("an import", &hurdlr.import(&json));
        sweep.result("an import of bytes", &hurdlr.import([b"\xff", json.as_bytes()].concat()));
        let answer = serde_json::from_str::<BasicTokenResponse>(&json);
        sweep.result("a token answer", &answer);
        let parts = serde_json::from_str::<BasicErrorResponse>(&json);
        if let Err(error) = parts {
            sweep.error("an error answer", &error);
        }
    }
    for text in [format!("{MARKER}\n"), format!("{MARKER} {MARKER}"), String::new()] {
        let mut parts = TokenParts::new(text.clone().into());
        sweep.result("a token of parts", &Token::from_parts(parts.clone()));
        parts.refresh_token = Some(text.clone().into());
        parts.access_token = MARKER.into();
        sweep.result("a token of parts", &Token::from_parts(parts));
    }
    for id in [format!("{USER}\n"), format!(" {USER}"), USER.repeat(100), format!("\u{0}{USER}")] {
        sweep.result("a user id", &UserId::new(id));
    }
}

async fn of_stores(sweep: &Sweep) {
    let password = DATABASE_PASSWORD;
    let mut stores = Vec::new();
    for rest in [
        "h:notaport/db",
        "h1,h2/db",
        "h/db?host=h1,h2",
        "h/db?connect_timeout=soon",
        "127.0.0.1:1/db?gssencmode=require",
        "127.0.0.1:1/db?unknown=1",
        "h/db?sslrootcert=/nowhere",
        "127.0.0.1:1/db?sslmode=sometimes",
        "[h/db",
        "127.0.0.1:1/%ff?connect_timeout=1",
        "h:1/db?host=/nowhere",
        "127.0.0.1:1/db?connect_timeout=1",
        "localhost/db?host=/nowhere/at/all",
    ] {
        for scheme in ["postgres", "postgresql", "mysql"] {
            stores.push(PostgresStore::at(format!("{scheme}://user:{password}@{rest}")));
        }
    }
    // Side by side, since a refused connection is tried again for seconds.
    join_all(stores.into_iter().map(async |store| {
        sweep.shown(&store);
        sweep.failed("a URL of PostgreSQL", store.open_plaintext().await);
    }))
    .await;
    for url in [
        format!("user:{password}@host"),
        format!("postgres://h/db?password={password}&x"),
        format!("postgres://u:5?{password}@h/db"),
        format!("postgres://h/db?password=before&{password}"),
    ] {
        sweep.failed("a URL of PostgreSQL", PostgresStore::at(url).open_plaintext().await);
    }
    for url in [
        format!("sqlite://?key={password}"),
        format!("postgres://u:{password}@h/db"),
        format!("{password}:"),
    ] {
        let ring =
            KeyRing::new(SealingKey::from_bytes(&super::SEALING_KEY.to_vec().into()).unwrap());
        let store = SqliteStore::at(url);
        sweep.shown(&store);
        sweep.failed("a URL of SQLite", store.open_sealed(ring).await);
    }
}

fn of_calls(sweep: &Sweep, fake: &FakeHurdlr) {
    let (hurdlr, _) = support::in_memory(fake);
    let manager = TokenManager::builder(hurdlr.build().unwrap(), MemoryStore::new());
    let manager = manager.build().unwrap();
    for url in [
        format!("https://u:{}@h/?{MARKER}", MARKER.replace('/', "%2F")),
        format!("http://h/?{MARKER}"),
        format!("{MARKER}@h"),
        format!("ftp://h/?{CLIENT_SECRET}"),
    ] {
        let policy = CallPolicy::default().origin(url);
        sweep.shown(&policy);
        sweep.result("an origin", &manager.middleware().policy(policy.clone()));
        sweep.result("an origin", &manager.layer().policy(policy));
    }
}
