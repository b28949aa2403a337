//! Every public type, with secrets in it, as `Debug` and `Display` show it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::response::IntoResponse;
use hurdlr_oauth2::basic::{BasicErrorResponse, BasicTokenResponse};
use hurdlr_oauth2::layer::EmptyBodies;
use hurdlr_oauth2::manager::{Disconnected, RefreshPolicy, TokenEvent, UnfinishedWork, UserStatus};
use hurdlr_oauth2::oauth2::{AsyncHttpClient, TokenResponse};
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretBox, SecretSlice};
use hurdlr_oauth2::store::{
    Bound, Claim, Claimed, DueCursor, DueRow, KeyRing, MemoryStore, OpenError, PostgresStore,
    Realm, Release, ResealOutcome, Rewrite, Row, RowKind, Save, Sealed, SealingKey, SqliteStore,
    StoreKey, StoredToken, TokenStore, UserHashKey, Version,
};
use hurdlr_oauth2::testing::{
    BodyEncoding, ErrorStyle, FakeHurdlr, Fault, FaultyStore, Gate, ManualClock, Outcome, Rotation,
    StoreCall, StoreFault, TokenBuilder,
};
use hurdlr_oauth2::web::{CookieKey, FailureReason, LoginConfig, LoginFailure};
use hurdlr_oauth2::{
    ApiVersion, CallPolicy, Callback, CallbackProblem, Clock, Environment, Error, ErrorKind,
    HttpClient, Partner, RetryPolicy, Scope, SystemClock, TokenManager, TokenParts, UserId,
};
use tower::Layer;

use super::provider::{Provider, begin, quote, user};
use super::{CLIENT_SECRET, COOKIE_KEY, DATABASE_PASSWORD, SEALING_KEY, Sweep, USER_HASH_KEY};

/// Public in its module and nowhere else: no user has a value, and what is shown of one is part of
/// another type's `Debug`, or of an error.
const WITHIN: [&str; 3] =
    ["store::sql::backend::Settings", "store::sql::fault::Fault", "store::sql::fault::FaultClass"];

/// The public types that `Debug` or `Display` shows, and those that nothing shows.
pub(super) struct Public {
    shown: BTreeSet<String>,
    silent: BTreeSet<String>,
}

impl Public {
    pub(super) fn len(&self) -> usize {
        self.shown.len() + self.silent.len()
    }
}

/// All public types, as the source has them. An alias is no type of its own.
pub(super) fn public() -> Public {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut folders) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let module = path.strip_prefix(&root).unwrap().with_extension("");
                let module = module.to_str().unwrap().replace('/', "::");
                let source = fs::read_to_string(&path).unwrap();
                files.insert(module, source.split("\nmod tests {").next().unwrap().to_owned());
            }
        }
    }
    let mut public = Public { shown: BTreeSet::new(), silent: BTreeSet::new() };
    for (module, source) in &files {
        let mut attributes = String::new();
        for line in source.lines() {
            let words: Vec<_> = line.trim_start().split(|c: char| !is_of_name(c)).collect();
            if let ["pub", "struct" | "enum" | "union", name, ..] = words[..] {
                let implements = |source: &String| {
                    ["Debug", "Display"].iter().any(|text| {
                        let start = format!("{text} for {name}");
                        source
                            .match_indices(&start)
                            .any(|(at, _)| !source[at + start.len()..].starts_with(is_of_name))
                    })
                };
                let derives = attributes.contains("Debug") || attributes.contains("error(");
                let is_shown = derives || implements(source);
                let types = if is_shown { &mut public.shown } else { &mut public.silent };
                types.insert(format!("{module}::{name}"));
            }
            match line.trim_start() {
                attribute if attribute.starts_with("#[") => attributes += attribute,
                comment if comment.starts_with("//") => {}
                _ => attributes.clear(),
            }
        }
    }
    public
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Fails unless each public type that can be shown was shown, and nothing else was named.
pub(super) fn assert_complete(public: &Public, shown: &BTreeSet<String>) {
    let within: BTreeSet<_> = WITHIN.into_iter().map(str::to_owned).collect();
    let named: BTreeSet<_> = shown.union(&within).cloned().collect();
    let missing: Vec<_> = public.shown.difference(&named).collect();
    assert!(missing.is_empty(), "the sweep shows no value of {missing:?}");
    let gone: Vec<_> = named.difference(&public.shown).collect();
    assert!(gone.is_empty(), "the sweep names what is no public type that shows itself: {gone:?}");
    assert!(shown.is_disjoint(&within), "a type of WITHIN can be had");
}

/// Shows a value of each public type. Where a type can hold a secret, the value does.
pub(super) async fn show_all(sweep: &Sweep) {
    let provider = Provider::start(sweep, ErrorStyle::Rfc6749).await;
    of_the_wire(sweep, &provider).await;
    of_tokens_and_clients(sweep, &provider).await;
    of_the_manager(sweep, &provider).await;
    of_stores(sweep).await;
    of_sealed_stores(sweep).await;
    of_calls(sweep, &provider);
    of_the_web(sweep, &provider);
    of_tests(sweep, &provider).await;
}

async fn of_the_wire(sweep: &Sweep, provider: &Provider) {
    sweep.shown(&user());
    sweep.shown(&ApiVersion::V6);
    sweep.displayed(&ApiVersion::V6);
    sweep.shown(&Scope::Write);
    sweep.shown(&Environment::from(format!("https://u:{DATABASE_PASSWORD}@h/?{CLIENT_SECRET}")));
    sweep.shown(&Realm::new(ApiVersion::V4, "https://h/", "id"));
    let hurdlr = provider.builder(ApiVersion::V4).build().unwrap();
    let token = provider.log_in(&hurdlr).await.unwrap();
    let json = serde_json::json!({
        "access_token": token.access_token().expose_secret(),
        "refresh_token": token.refresh_token().unwrap().expose_secret(),
        "created_at": 1, "expires_in": 60, CLIENT_SECRET: CLIENT_SECRET,
    });
    let answer: BasicTokenResponse = serde_json::from_value(json).unwrap();
    sweep.shown(&answer);
    sweep.shown(&Some(answer.clone()));
    sweep.shown(answer.extra_fields());
    sweep.shown(answer.access_token());
    let refusal: BasicErrorResponse =
        serde_json::from_str(r#"{"error":"invalid_grant","error_description":"dead"}"#).unwrap();
    sweep.shown(&refusal);
    sweep.displayed(&refusal);
}

async fn of_tokens_and_clients(sweep: &Sweep, provider: &Provider) {
    let builder = provider.builder(ApiVersion::V6);
    sweep.shown(&builder);
    let hurdlr = builder.build().unwrap();
    sweep.shown(&hurdlr);
    let (pending, callback) = provider.begin(&hurdlr).await;
    sweep.shown(&pending);
    sweep.shown(pending.state());
    sweep.shown(&callback);
    let token = hurdlr.complete_login(pending, callback).await.unwrap();
    sweep.shown(&token);
    let header = token.authorization_header();
    assert!(header.is_sensitive());
    sweep.shown(&header);
    let mut parts = TokenParts::new(token.access_token().clone());
    parts.refresh_token = token.refresh_token().cloned();
    sweep.shown(&parts);
    sweep.secret("access token", "built+access/token=marker");
    let built = TokenBuilder::new().access_token("built+access/token=marker".to_owned());
    sweep.shown(&built);
    sweep.shown(&built.build().unwrap());
    sweep.shown(&RetryPolicy::default());
    let endpoint = provider.fake.base_url();
    sweep.shown(&HttpClient::builder(&endpoint));
    let client = HttpClient::new(&endpoint).unwrap();
    sweep.shown(&client);
    // A certificate that nobody knows: the form is not sent.
    let mut request = http::Request::post(hurdlr.token_url().as_str());
    let headers = request.headers_mut().unwrap();
    headers.insert("authorization", token.authorization_header());
    headers.insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
    let form = format!("client_secret={CLIENT_SECRET}");
    let request = request.body(form.into_bytes()).unwrap();
    sweep.shown(&request.headers());
    let error = client.call(request).await.unwrap_err();
    sweep.shown(&error);
    sweep.displayed(&error);
    sweep.shown(&ErrorKind::Config);
    sweep.shown(&CallbackProblem::Refused);
    let error = Error::from(CallbackProblem::Refused).caused_by(error);
    sweep.shown(&error);
    sweep.displayed(&error);
    sweep.shown(&SystemClock);
    sweep.shown(&SystemClock.now());
}

async fn of_the_manager(sweep: &Sweep, provider: &Provider) {
    let hurdlr = provider.builder(ApiVersion::V6).build().unwrap();
    let builder = TokenManager::builder(hurdlr.clone(), MemoryStore::new());
    sweep.shown(&builder);
    sweep.shown(&RefreshPolicy::default());
    let manager = builder.build().unwrap();
    manager.adopt(&user(), provider.log_in(&hurdlr).await.unwrap()).await.unwrap();
    sweep.shown(&manager);
    let handle = manager.user(&user());
    sweep.shown(&handle);
    let future = handle.token();
    sweep.shown(&future);
    let token = future.await.unwrap();
    sweep.shown(&token);
    sweep.shown(&*token);
    sweep.shown(&token.into_shared());
    sweep.shown(&handle.status().await.unwrap());
    sweep.shown(&handle.subscribe());
    let walk = manager.keep_alive(Duration::from_secs(60));
    sweep.shown(&walk);
    walk.stop().await;
    let mut warm = manager.warm([user()]);
    sweep.shown(&warm);
    sweep.shown(&warm.next().await.unwrap());
    sweep.shown(&UserStatus::LoginRequired);
    sweep.shown(&TokenEvent::Forgotten);
    sweep.shown(&UnfinishedWork::Save);
    let disconnected: Disconnected = handle.disconnect().await.unwrap();
    sweep.shown(&disconnected);

    // Work that cannot be finished, as the store is away.
    let store = FaultyStore::new(MemoryStore::new());
    let manager = TokenManager::builder(hurdlr.clone(), store.clone())
        .shutdown_within(Duration::from_millis(10))
        .build()
        .unwrap();
    let token = provider.log_in(&hurdlr).await.unwrap();
    store.plan(|call| (call == StoreCall::Save).then_some(StoreFault::Before));
    sweep.result("a login that is not saved", &manager.adopt(&user(), token).await);
    let unfinished = manager.shutdown().await;
    sweep.shown(&unfinished[0]);
}

fn payload() -> SecretBox<Vec<u8>> {
    SecretBox::new(Box::new(b"payload+of/a=row is a marker".to_vec()))
}

fn stored() -> StoredToken {
    StoredToken { payload: payload(), age: Duration::ZERO, due_in: Duration::from_secs(9) }
}

fn key() -> StoreKey {
    let realm = Arc::new(Realm::new(ApiVersion::V4, "https://h/", "id"));
    StoreKey::new(realm, RowKind::Login, user())
}

const VERSION: Version = Version { incarnation: 1, revision: 2 };

fn row() -> Row {
    Row {
        version: VERSION,
        token: Some(stored()),
        leased_for: None,
        not_before: None,
        refused: false,
        in_flight: false,
    }
}

async fn of_stores(sweep: &Sweep) {
    sweep.secret("payload", payload().expose_secret());
    sweep.shown(&RowKind::Login);
    sweep.shown(&key());
    sweep.shown(&VERSION);
    sweep.shown(&stored());
    sweep.shown(&row());
    sweep.shown(&Claim { holder: 1, lease: Duration::ZERO, known: None, create: None });
    sweep.shown(&Claimed { granted: true, row: Some(row()) });
    sweep.shown(&Save { over: VERSION, version: VERSION.next(), token: stored() });
    sweep.shown(&Release::default());
    sweep.shown(&Rewrite { key: key(), version: VERSION, old: payload(), new: payload() });
    let cursor = DueCursor { due_at: 1, kind: RowKind::Login, subject: user() };
    sweep.shown(&cursor);
    sweep.shown(&DueRow { cursor, key: Ok(key()) });
    let memory = MemoryStore::new();
    hurdlr_oauth2::testing::seed_row(&memory, &key(), VERSION, stored()).await;
    sweep.shown(&memory);
    let store = FaultyStore::new(memory);
    sweep.shown(&store);
    sweep.shown(&StoreCall::Claim);
    sweep.shown(&StoreFault::After);
    let at = PostgresStore::at(format!("postgres://u:{DATABASE_PASSWORD}@h/db"));
    sweep.shown(&at);
    let options = sqlx::postgres::PgPoolOptions::new();
    let url = format!("postgres://u:{DATABASE_PASSWORD}@127.0.0.1:1/db");
    sweep.shown(&PostgresStore::on(options.connect_lazy(&url).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let at = SqliteStore::at(format!("sqlite://{}", folder.path().join("db").display()));
    sweep.shown(&at);
    let store = at.open_plaintext().await.unwrap();
    sweep.shown(&store);
    store.close().await;
}

pub(super) fn ring() -> KeyRing {
    let other = SealingKey::from_bytes(&SecretSlice::from(super::OTHER_SEALING_KEY.to_vec()));
    KeyRing::new(sealing_key()).with_opening_key(other.unwrap())
}

pub(super) fn sealing_key() -> SealingKey {
    SealingKey::from_bytes(&SecretSlice::from(SEALING_KEY.to_vec())).unwrap()
}

pub(super) fn user_hash_key() -> UserHashKey {
    UserHashKey::from_bytes(&SecretSlice::from(USER_HASH_KEY.to_vec())).unwrap()
}

async fn of_sealed_stores(sweep: &Sweep) {
    sweep.shown(&sealing_key());
    sweep.shown(&sealing_key().id());
    sweep.displayed(&sealing_key().id());
    sweep.shown(&ring());
    sweep.shown(&user_hash_key());
    let store = Sealed::new(MemoryStore::new(), ring()).hash_users(user_hash_key());
    hurdlr_oauth2::testing::seed_row(&store, &key(), VERSION, stored()).await;
    sweep.shown(&store);
    sweep.shown(&store.stored_key(&key()));
    sweep.text("a read", format!("{:?}", store.read(&[key()]).await));
    sweep.shown(&OpenError::Changed);
    sweep.displayed(&OpenError::Changed);
    sweep.shown(&Bound::User);
    sweep.displayed(&Bound::User);
    let mut reseal = store.reseal(key().realm().clone());
    let resealed = reseal.next().await.unwrap();
    sweep.shown(&reseal);
    sweep.shown(&resealed.unwrap());
    sweep.shown(&ResealOutcome::Resealed);
}

fn of_calls(sweep: &Sweep, provider: &Provider) {
    let hurdlr = provider.builder(ApiVersion::V5).build().unwrap();
    let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build().unwrap();
    let handle = manager.user(&user());
    let url = format!("https://u:{DATABASE_PASSWORD}@h/?{CLIENT_SECRET}");
    let policy = CallPolicy::default().origin("https://h/");
    sweep.shown(&CallPolicy::default().origin(url));
    let base = provider.fake.base_url();
    let partner = Partner::new("id", &CLIENT_SECRET.into(), &base.into()).unwrap();
    let partner_user = partner.user(&user()).unwrap();
    sweep.shown(&partner);
    sweep.shown(&partner_user);
    for layer in [handle.layer(), manager.layer(), partner.layer(), partner_user.layer()] {
        let layer = layer.policy(policy.clone()).unwrap();
        sweep.shown(&layer);
        sweep.shown(&layer.layer(()));
    }
    for middleware in
        [handle.middleware(), manager.middleware(), partner.middleware(), partner_user.middleware()]
    {
        sweep.shown(&middleware.policy(policy.clone()).unwrap());
    }
    sweep.shown(&EmptyBodies);
}

fn of_the_web(sweep: &Sweep, provider: &Provider) {
    let key = CookieKey::from(SecretSlice::from(COOKIE_KEY.to_vec()));
    sweep.shown(&key);
    let config = LoginConfig::new(key, async |_| Ok::<_, std::convert::Infallible>(user()));
    sweep.shown(&config);
    let hurdlr = provider.builder(ApiVersion::V4).build().unwrap();
    let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build().unwrap();
    let login = hurdlr_oauth2::web::Login::new(manager, config).unwrap();
    sweep.shown(&login);
    let reason = FailureReason::Failed(CallbackProblem::StateMismatch.into());
    sweep.shown(&reason);
    sweep.displayed(&reason);
    let failure = LoginFailure::for_tests(reason, Some(user()), true);
    sweep.shown(&failure);
    sweep.text("a page", format!("{:?}", failure.into_response()));
}

async fn of_tests(sweep: &Sweep, provider: &Provider) {
    let fake = &provider.fake;
    sweep.shown(fake);
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    sweep.secret("private key", &key[40..80]);
    sweep.shown(
        &FakeHurdlr::builder().client("id", CLIENT_SECRET.into()).tls(&key, key.clone().into()),
    );
    sweep.shown(&fake.api());
    // A provider that is no provider names its users: those of tests are made up.
    let hurdlr = provider.builder(ApiVersion::V4).build().unwrap();
    fake.clear_requests();
    hurdlr.client_credentials(&UserId::new("made-up").unwrap()).await.unwrap();
    for request in fake.requests() {
        quote(sweep, &request);
        sweep.shown(&request);
    }
    sweep.shown(&fake.count());
    let client = fake.http_client();
    sweep.shown(&client);
    let in_memory = FakeHurdlr::builder().client("id", CLIENT_SECRET.into()).in_memory();
    let (hurdlr, _) = crate::support::in_memory(&in_memory);
    let hurdlr = hurdlr.build().unwrap();
    let (pending, callback): (_, Callback) = begin(sweep, &in_memory, &hurdlr).await;
    in_memory.fault_next(Fault::DropBefore);
    sweep.failed("in memory", hurdlr.complete_login(pending, callback).await);
    in_memory.fault_next(Fault::Refuse);
    let url = format!("{}?{CLIENT_SECRET}", hurdlr.token_url());
    let request = http::Request::post(url).body(CLIENT_SECRET.as_bytes().to_vec()).unwrap();
    let error = in_memory.http_client().call(request).await.unwrap_err();
    sweep.shown(&error);
    sweep.displayed(&error);
    // What a test writes into a fault is the test's own, and shown.
    sweep.shown(&Fault::DropBefore);
    sweep.shown(&BodyEncoding::Gzip);
    sweep.shown(&Gate::closed());
    sweep.shown(&ErrorStyle::Envelope);
    sweep.shown(&Rotation::default());
    sweep.shown(&Outcome::Faulted);
    sweep.shown(&ManualClock::at(SystemTime::now()));
}
