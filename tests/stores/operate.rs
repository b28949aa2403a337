//! The operator's tool of `examples/operate.rs`, on both databases.

#[allow(dead_code, reason = "its main function is for the example itself")]
#[path = "../../examples/operate.rs"]
mod tool;

use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::secrecy::SecretSlice;
use hurdlr_oauth2::store::{
    Claim, KeyRing, PostgresStore, Release, RowKind, Sealed, SealingKey, SqliteStore, StoreKey,
    TokenStore, UserHashKey, Version,
};
use hurdlr_oauth2::testing::FakeHurdlr;
use hurdlr_oauth2::{ApiVersion, Hurdlr, TokenManager, UserId};
use tool::Tool;

use crate::postgres::Server;

const HOUR: Duration = Duration::from_secs(3_600);

fn key(byte: u8) -> SealingKey {
    SealingKey::from_bytes(&SecretSlice::from(vec![byte; 32])).unwrap()
}

fn hash_key() -> UserHashKey {
    UserHashKey::from_bytes(&SecretSlice::from(vec![9; 32])).unwrap()
}

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

/// A provider that can revoke, and a table that the app's processes share with the tool.
struct World {
    fake: FakeHurdlr,
    hurdlr: Hurdlr,
    table: Arc<dyn TokenStore>,
}

impl World {
    fn on(table: Arc<dyn TokenStore>) -> Self {
        let fake = FakeHurdlr::builder().token_life(HOUR).in_memory();
        let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .api_version(ApiVersion::V6)
            .authorize_url(fake.authorize_url())
            .redirect_uri("https://app.example.com/callback")
            .http_client(fake.http_client())
            .build()
            .unwrap();
        Self { fake, hurdlr, table }
    }

    /// A manager of the app, with a ring of its time.
    fn manager(&self, keys: KeyRing) -> TokenManager {
        let store = Sealed::new(Arc::clone(&self.table), keys);
        TokenManager::builder(self.hurdlr.clone(), store).build().unwrap()
    }

    async fn login(&self, manager: &TokenManager, id: &str) {
        let (url, pending) = self.hurdlr.begin_login().unwrap();
        let callback = self.fake.consent(&url, id).await.unwrap();
        assert!(manager.complete_login(&user(id), pending, &callback).await.unwrap());
    }

    fn tool(&self, keys: Option<KeyRing>) -> Tool {
        Tool::new(self.hurdlr.clone(), Arc::clone(&self.table), keys, None)
    }

    /// Takes a lease on a user's row, as a process does that refreshes them.
    async fn claim(&self, id: &str) -> (StoreKey, Version) {
        let key = StoreKey::new(Arc::new(self.hurdlr.realm()), RowKind::Login, user(id));
        let row = self.table.read(std::slice::from_ref(&key)).await.unwrap().remove(0);
        let version = row.unwrap().unwrap().version;
        let claim = Claim { holder: 1, lease: HOUR, known: Some(version), create: None };
        assert!(self.table.claim(&key, claim).await.unwrap().granted);
        (key, version)
    }
}

async fn run(tool: &Tool, command: &str) -> Result<String, String> {
    let command: Vec<_> = command.split(' ').collect();
    let mut out = Vec::new();
    let outcome = tool.run(&command, &mut out).await;
    let text = String::from_utf8(out).unwrap();
    outcome.map(|()| text.clone()).map_err(|error| format!("{text}{error}"))
}

/// The number beside a name in what `count` prints; zero where the name is not there.
fn number(counts: &str, name: &str) -> u64 {
    let line = counts.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |rest| rest.trim().parse().unwrap())
}

async fn does_its_work(table: Arc<dyn TokenStore>) {
    let world = World::on(table);
    let old = world.manager(KeyRing::new(key(1)));
    for id in ["ann", "bob", "cid", "dan"] {
        world.login(&old, id).await;
    }
    old.enterprise_user(&user("customer-4711")).token().await.unwrap();
    let new = world.manager(KeyRing::new(key(2)).with_opening_key(key(1)));
    world.login(&new, "eve").await;
    world.claim("bob").await;
    let (cid, version) = world.claim("cid").await;
    let refused = Release { refused: true, ..Release::default() };
    world.table.release(&cid, version, 1, refused).await.unwrap();
    let (dan, version) = world.claim("dan").await;
    let paused = Release { not_before: HOUR, ..Release::default() };
    world.table.release(&dan, version, 1, paused).await.unwrap();

    // Looking needs no key.
    let keyless = world.tool(None);
    let counts = run(&keyless, "count").await.unwrap();
    for (name, expected) in
        [("fresh", 3), ("refreshing", 1), ("refused", 1), ("paused", 1), ("total", 6)]
    {
        assert_eq!(number(&counts, name), expected, "{name} in\n{counts}");
    }
    let [first, second] = [key(1), key(2)].map(|key| key.id().to_string());
    assert_eq!((number(&counts, &first), number(&counts, &second)), (5, 1), "{counts}");
    let list = run(&keyless, "list").await.unwrap();
    let line = |user: &str| list.lines().find(|line| line.ends_with(user)).unwrap().to_owned();
    assert!(line(" customer-4711").starts_with("enterprise fresh"), "{list}");
    assert!(line(" bob").starts_with("login      refreshing"), "{list}");
    assert!(line(" eve").contains(&second), "{list}");
    let refused = run(&keyless, "list refused").await.unwrap();
    assert_eq!(refused.lines().count(), 2, "{refused}");

    let tool = world.tool(Some(KeyRing::new(key(2)).with_opening_key(key(1))));
    let shown = run(&tool, "show login cid").await.unwrap();
    assert!(shown.contains(&first) && shown.contains("log in again"), "{shown}");
    assert!(run(&tool, "show login ann").await.unwrap().contains("Connected"));
    let missing = run(&tool, "show enterprise ann").await.unwrap_err();
    assert_eq!(missing, "there is no enterprise user ann in the store");

    // A refresh under way does not keep a row from being sealed anew.
    let resealed = run(&tool, "reseal").await.unwrap();
    assert!(resealed.starts_with("5 resealed; 6 rows are under the first key."), "{resealed}");
    assert_eq!(number(&run(&keyless, "count").await.unwrap(), &second), 6);
    let blind = world.tool(Some(KeyRing::new(key(3))));
    let left = run(&blind, "reseal").await.unwrap_err();
    assert!(left.contains("6 rows are not"), "{left}");

    for command in ["forget login ann", "revoke login eve"] {
        let asked = run(&tool, command).await.unwrap();
        assert!(asked.contains("Nothing is changed."), "{asked}");
    }
    assert_eq!(number(&run(&keyless, "count").await.unwrap(), "total"), 6);
    run(&tool, "forget login ann --yes").await.unwrap();
    assert!(world.fake.tokens_alive("ann") > 0);
    let revoked = run(&tool, "revoke login eve --yes").await.unwrap();
    assert_eq!(revoked, "eve is removed; their tokens are revoked.\n");
    assert_eq!(world.fake.tokens_alive("eve"), 0);
    assert!(run(&tool, "forget login ann --yes").await.is_err());
    assert_eq!(number(&run(&keyless, "count").await.unwrap(), "total"), 4);
    assert_eq!(world.fake.count().grant("refresh_token"), 0, "nobody was refreshed");
    assert!(run(&tool, "count everything").await.unwrap_err().starts_with("usage:"));
}

/// One table serves the app's managers and the tool.
#[tokio::test]
async fn operator_works_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("tokens.db").display());
    let store = SqliteStore::at(url).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    does_its_work(Arc::new(store)).await;
}

#[tokio::test]
async fn operator_works_on_postgres() {
    let store = PostgresStore::at(Server::shared().url()).schema("operate");
    let store = store.open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    does_its_work(Arc::new(store)).await;
}

/// Where user ids are hashed the list has hashes, and a user is found by their id all the same.
#[tokio::test]
async fn operator_finds_hashed_users() {
    let world = World::on(Arc::new(hurdlr_oauth2::store::MemoryStore::new()));
    let store = Sealed::new(Arc::clone(&world.table), KeyRing::new(key(1))).hash_users(hash_key());
    let manager = TokenManager::builder(world.hurdlr.clone(), store).build().unwrap();
    world.login(&manager, "ann").await;
    let (hurdlr, table) = (world.hurdlr.clone(), Arc::clone(&world.table));
    let tool = Tool::new(hurdlr, table, Some(KeyRing::new(key(1))), Some(hash_key()));
    let list = run(&tool, "list").await.unwrap();
    assert!(!list.contains("ann"), "{list}");
    let shown = run(&tool, "show login ann").await.unwrap();
    let hash = shown.lines().find_map(|line| line.strip_prefix("in the table")).unwrap().trim();
    assert!(list.contains(hash), "{list}{shown}");
    run(&tool, "forget login ann --yes").await.unwrap();
    assert_eq!(number(&run(&tool, "count").await.unwrap(), "total"), 0);
}
