//! What a sealed store promises, beyond what every store does.

use std::error::Error as _;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hurdlr_oauth2::manager::Disconnected;
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretBox, SecretSlice, SecretString};
use hurdlr_oauth2::store::{
    Bound, Claim, KeyRing, MemoryStore, OpenError, Realm, Release, ResealOutcome, Rewrite, Row,
    RowKind, Save, Sealed, SealingKey, StoreKey, StoredToken, TokenStore, UserHashKey, Version,
};
use hurdlr_oauth2::testing::{FakeHurdlr, FaultyStore, StoreCall, StoreFault, seed_row};
use hurdlr_oauth2::{ApiVersion, Error, ErrorKind, Hurdlr, TokenManager, UserId};
use proptest::prelude::*;

const LONG: Duration = Duration::from_secs(600);

fn key(byte: u8) -> SealingKey {
    SealingKey::from_bytes(&SecretSlice::from(vec![byte; 32])).unwrap()
}

fn ring(byte: u8) -> KeyRing {
    KeyRing::new(key(byte))
}

fn hash_key() -> UserHashKey {
    UserHashKey::from_bytes(&SecretSlice::from(vec![9; 32])).unwrap()
}

fn realm() -> Arc<Realm> {
    Arc::new(Realm::new(ApiVersion::V4, "https://api.example.com/", "client"))
}

fn user(subject: &str) -> StoreKey {
    StoreKey::new(realm(), RowKind::Login, UserId::new(subject).unwrap())
}

fn at(revision: u64) -> Version {
    Version { incarnation: 7, revision }
}

fn token(payload: impl Into<Vec<u8>>) -> StoredToken {
    StoredToken {
        payload: SecretBox::new(Box::new(payload.into())),
        age: Duration::ZERO,
        due_in: Duration::ZERO,
    }
}

async fn put(store: &impl TokenStore, key: &StoreKey, payload: impl Into<Vec<u8>>) {
    seed_row(store, key, Version { incarnation: 7, revision: 1 }, token(payload)).await;
}

async fn try_read(store: &impl TokenStore, key: &StoreKey) -> Result<Option<Row>, Error> {
    store.read(std::slice::from_ref(key)).await?.pop().unwrap()
}

async fn row(store: &impl TokenStore, key: &StoreKey) -> Row {
    try_read(store, key).await.unwrap().unwrap()
}

async fn payload(store: &impl TokenStore, key: &StoreKey) -> Vec<u8> {
    row(store, key).await.token.unwrap().payload.expose_secret().clone()
}

fn problem_of(error: &Error) -> OpenError {
    assert_eq!(error.kind(), ErrorKind::Store, "{error}");
    assert!(!error.is_temporary(), "nothing gets better by itself");
    let problem = *error.source().unwrap().downcast_ref::<OpenError>().unwrap();
    assert!(error.to_string().contains(&problem.to_string()), "the text says which: {error}");
    problem
}

async fn problem(store: &impl TokenStore, key: &StoreKey) -> OpenError {
    problem_of(&try_read(store, key).await.unwrap_err())
}

async fn due(store: &impl TokenStore, realm: &Arc<Realm>, limit: usize) -> Vec<StoreKey> {
    let rows = store.due(realm, None, limit).await.unwrap();
    rows.into_iter().map(|row| row.key.unwrap()).collect()
}

/// Every row's payload is under the first key, which this sees by opening it with no other.
async fn is_under(inner: &MemoryStore, byte: u8, key: &StoreKey) -> bool {
    try_read(&Sealed::new(inner.clone(), ring(byte)), key).await.is_ok()
}

/// Whether `bytes` hold `text`.
fn hold(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn inner_store_keeps_nothing_of_tokens() {
    let inner = MemoryStore::new();
    let sealed = Sealed::new(inner.clone(), ring(1));
    let ann = user("ann");
    put(&sealed, &ann, "secret-of-ann").await;
    assert_eq!(payload(&sealed, &ann).await, b"secret-of-ann");
    let first = payload(&inner, &ann).await;
    assert!(!hold(&first, "secret"));

    assert!(
        sealed
            .save(&ann, Save { over: at(1), version: at(2), token: token("secret-of-ann") })
            .await
            .unwrap()
    );
    let second = payload(&inner, &ann).await;
    assert!(!hold(&second, "secret"));
    // The same text under another nonce shares nothing: not even a block of the stream.
    let tail = |bytes: &[u8]| bytes[bytes.len() - 28..bytes.len() - 16].to_vec();
    assert_ne!(tail(&first), tail(&second));
}

#[tokio::test]
async fn a_value_sealed_twice_has_two_nonces() {
    let inner = MemoryStore::new();
    let sealed = Sealed::new(inner.clone(), ring(1));
    let ann = user("ann");
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1_000 {
        put(&sealed, &ann, "one").await;
        seen.insert(payload(&inner, &ann).await[9..33].to_vec());
        inner.forget(&ann, None).await.unwrap();
    }
    assert_eq!(seen.len(), 1_000);
}

#[tokio::test]
async fn value_moved_to_another_row_is_refused() {
    let inner = MemoryStore::new();
    let sealed = Sealed::new(inner.clone(), ring(1));
    let ann = user("ann");
    put(&sealed, &ann, "one").await;
    let sealed_payload = payload(&inner, &ann).await;
    let realm = |version, environment: &str, client: &str| {
        Arc::new(Realm::new(version, environment, client))
    };
    let (environment, login) = ("https://api.example.com/", RowKind::Login);
    let id = ann.subject().clone();
    for (other, bound) in [
        (user("bob"), Bound::User),
        (user("ann."), Bound::User),
        (StoreKey::new(ann.realm().clone(), RowKind::Enterprise, id.clone()), Bound::Kind),
        (
            StoreKey::new(realm(ApiVersion::V5, environment, "client"), login, id.clone()),
            Bound::ApiVersion,
        ),
        (
            StoreKey::new(
                realm(ApiVersion::V4, "https://api.example.com", "client"),
                login,
                id.clone(),
            ),
            Bound::Environment,
        ),
        (
            StoreKey::new(realm(ApiVersion::V4, environment, "other"), login, id.clone()),
            Bound::ClientId,
        ),
        // The same texts, cut elsewhere.
        (
            StoreKey::new(realm(ApiVersion::V4, "https://api.example.com/c", "lient"), login, id),
            Bound::Environment,
        ),
    ] {
        let moved = token(sealed_payload.as_slice());
        seed_row(&inner, &other, Version { incarnation: 7, revision: 1 }, moved).await;
        assert_eq!(problem(&sealed, &other).await, OpenError::Moved(bound), "{other:?}");
    }
    let error = try_read(&sealed, &user("bob")).await.unwrap_err();
    assert!(!format!("{error:?} {error}").contains("bob"), "{error:?}");
}

#[tokio::test]
async fn value_under_another_revision_is_refused() {
    let inner = MemoryStore::new();
    let sealed = Sealed::new(inner.clone(), ring(1));
    let ann = user("ann");
    put(&sealed, &ann, "one").await;
    let first = payload(&inner, &ann).await;
    assert!(
        sealed.save(&ann, Save { over: at(1), version: at(2), token: token("two") }).await.unwrap()
    );
    assert!(
        inner
            .save(&ann, Save { over: at(2), version: at(3), token: token(first.as_slice()) })
            .await
            .unwrap()
    );
    let bound = Bound::Revision { sealed: 1, row: 3 };
    assert_eq!(problem(&sealed, &ann).await, OpenError::Moved(bound));

    seed_row(&inner, &ann, Version { incarnation: 8, revision: 1 }, token(first)).await;
    assert_eq!(problem(&sealed, &ann).await, OpenError::Moved(Bound::Incarnation));
}

#[tokio::test]
async fn whole_row_put_back_goes_unnoticed() {
    let inner = MemoryStore::new();
    let sealed = Sealed::new(inner.clone(), ring(1));
    let ann = user("ann");
    put(&sealed, &ann, "one").await;
    let first = payload(&inner, &ann).await;
    assert!(
        sealed.save(&ann, Save { over: at(1), version: at(2), token: token("two") }).await.unwrap()
    );
    inner.forget(&ann, None).await.unwrap();
    seed_row(&inner, &ann, Version { incarnation: 7, revision: 1 }, token(first)).await;
    assert_eq!(payload(&sealed, &ann).await, b"one", "as the docs say");
}

#[tokio::test]
async fn row_of_missing_key_names_it() {
    let inner = MemoryStore::new();
    let ann = user("ann");
    put(&Sealed::new(inner.clone(), ring(1)), &ann, "one").await;
    let other = Sealed::new(inner.clone(), KeyRing::new(key(2)).with_opening_key(key(3)));
    assert_eq!(problem(&other, &ann).await, OpenError::UnknownKey(key(1).id()));
    let error = try_read(&other, &ann).await.unwrap_err();
    assert!(error.to_string().contains(&key(1).id().to_string()), "{error}");
}

#[tokio::test]
async fn value_not_sealed_right_says_so() {
    let inner = MemoryStore::new();
    let sealed = Sealed::new(inner.clone(), ring(1));
    let ann = user("ann");
    put(&sealed, &ann, "one").await;
    let whole = payload(&inner, &ann).await;
    let lay = async |bytes: &[u8]| {
        inner.forget(&ann, None).await.unwrap();
        put(&inner, &ann, bytes).await;
        problem(&sealed, &ann).await
    };
    for length in 1..whole.len() {
        assert_eq!(lay(&whole[..length]).await, OpenError::Cut, "{length} bytes");
    }
    assert_eq!(lay(&[&whole[..], b"x"].concat()).await, OpenError::Cut);
    assert_eq!(lay(b"").await, OpenError::NotSealed);
    assert_eq!(lay(br#"{"access_token":"a"}"#).await, OpenError::NotSealed);
    assert_eq!(lay(&[&[2], &whole[1..]].concat()).await, OpenError::UnknownFormat(2));
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(lay(&changed).await, OpenError::Changed);
    // What it says of itself is believed only when it is proven.
    let mut renamed = whole.clone();
    let place = whole.windows(3).position(|window| window == b"ann").unwrap();
    renamed[place..place + 3].copy_from_slice(b"bob");
    assert_eq!(lay(&renamed).await, OpenError::Changed);
    inner.forget(&user("bob"), None).await.unwrap();
    put(&inner, &user("bob"), renamed).await;
    assert_eq!(problem(&sealed, &user("bob")).await, OpenError::Changed);
}

fn run<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn any_key() -> impl Strategy<Value = StoreKey> {
    let kinds = prop_oneof![Just(RowKind::Login), Just(RowKind::Enterprise)];
    let versions = prop_oneof![Just(ApiVersion::V4), Just(ApiVersion::V5)];
    (versions, ".{0,40}", ".{0,40}", kinds, "\\PC{1,60}").prop_filter_map(
        "an id",
        |(version, environment, client, kind, subject)| {
            let realm = Arc::new(Realm::new(version, environment, client));
            Some(StoreKey::new(realm, kind, UserId::new(subject).ok()?))
        },
    )
}

proptest! {
    #[test]
    fn what_is_sealed_is_opened_again(
        key in any_key(),
        bytes in prop::collection::vec(any::<u8>(), 0..2_000),
        incarnation in 0..1_u64 << 63,
        hashes in any::<bool>(),
    ) {
        run(async {
            let inner = MemoryStore::new();
            let mut sealed = Sealed::new(inner.clone(), ring(1));
            if hashes {
                sealed = sealed.hash_users(hash_key());
            }
            seed_row(&sealed, &key, Version { incarnation, revision: 1 }, token(bytes.clone())).await;
            assert_eq!(payload(&sealed, &key).await, bytes);
            assert_eq!(due(&sealed, key.realm(), 10).await, std::slice::from_ref(&key));
            let walked = sealed.scan(key.realm(), None, 10).await.unwrap();
            assert_eq!(walked[0].0, key);
            assert!(sealed.forget(&key, None).await.unwrap());
        });
    }

    #[test]
    fn any_bytes_at_all_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        run(async {
            let inner = MemoryStore::new();
            put(&inner, &user("ann"), [&[1], &bytes[..]].concat()).await;
            problem(&Sealed::new(inner, ring(1)), &user("ann")).await;
        });
    }
}

proptest! {
    // Each tries every bit.
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_flipped_bit_is_refused(
        key in any_key(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        run(async {
            let inner = MemoryStore::new();
            let sealed = Sealed::new(inner.clone(), ring(1));
            put(&sealed, &key, bytes).await;
            let whole = payload(&inner, &key).await;
            for bit in 0..8 * whole.len() {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                inner.forget(&key, None).await.unwrap();
                put(&inner, &key, flipped).await;
                problem(&sealed, &key).await;
            }
        });
    }
}

#[tokio::test]
async fn key_is_changed_under_running_fleet() {
    let inner = MemoryStore::new();
    let [ann, bob] = ["ann", "bob"].map(user);
    let old = Sealed::new(inner.clone(), ring(1));
    for key in [&ann, &bob] {
        put(&old, key, "one").await;
    }
    // 1. All open both, and still seal with the old one.
    let both = Sealed::new(inner.clone(), KeyRing::new(key(1)).with_opening_key(key(2)));
    assert!(
        both.save(&ann, Save { over: at(1), version: at(2), token: token("two") }).await.unwrap()
    );
    assert_eq!(payload(&old, &ann).await, b"two", "who has not heard of it yet reads on");
    // 2. The new one seals; those of step 1 can read it.
    let new = Sealed::new(inner.clone(), KeyRing::new(key(2)).with_opening_key(key(1)));
    assert_eq!(payload(&new, &ann).await, b"two", "old rows are read with their key");
    assert!(
        new.save(&ann, Save { over: at(2), version: at(3), token: token("three") }).await.unwrap()
    );
    assert_eq!(payload(&both, &ann).await, b"three");
    assert!(is_under(&inner, 2, &ann).await, "the next save is under the new key");
    assert!(!is_under(&inner, 2, &bob).await);
    // 3. The rest.
    let mut walk = new.reseal(realm());
    let mut resealed = Vec::new();
    while let Some(row) = walk.next().await {
        let row = row.unwrap();
        if matches!(row.outcome, ResealOutcome::Resealed) {
            resealed.push(row.key);
        }
    }
    assert_eq!(resealed, std::slice::from_ref(&bob));
    assert_eq!((walk.current(), walk.left()), (2, 0));
    // 4. Without the old key.
    let only = Sealed::new(inner.clone(), ring(2));
    for (key, version, text) in [(&ann, at(3), "three"), (&bob, at(1), "one")] {
        let row = row(&only, key).await;
        assert_eq!(row.version, version, "resealing keeps the revision");
        assert_eq!(row.token.unwrap().payload.expose_secret(), text.as_bytes());
    }
}

async fn claimed(store: &impl TokenStore, key: &StoreKey, holder: u64) -> bool {
    let claim = Claim { holder, lease: LONG, known: Some(at(1)), create: None };
    store.claim(key, claim).await.is_ok_and(|claimed| claimed.granted)
}

#[tokio::test]
async fn reseal_during_refresh_costs_no_save() {
    let inner = MemoryStore::new();
    let ann = user("ann");
    let old = Sealed::new(inner.clone(), ring(1));
    put(&old, &ann, "one").await;
    assert!(claimed(&old, &ann, 1).await);

    let new = Sealed::new(inner.clone(), KeyRing::new(key(2)).with_opening_key(key(1)));
    let row_resealed = new.reseal(realm()).next().await.unwrap().unwrap();
    assert!(matches!(row_resealed.outcome, ResealOutcome::Resealed));
    let leased = row(&new, &ann).await;
    assert!(leased.leased_for.is_some(), "the lease stays");
    assert!(is_under(&inner, 2, &ann).await);
    assert!(
        old.save(&ann, Save { over: at(1), version: at(2), token: token("two") }).await.unwrap(),
        "the save is done"
    );
    assert_eq!(payload(&new, &ann).await, b"two");
}

#[tokio::test]
async fn reseal_after_save_leaves_the_saved() {
    let inner = MemoryStore::new();
    let faulty = FaultyStore::new(inner.clone());
    let ann = user("ann");
    let old = Sealed::new(inner.clone(), ring(1));
    put(&old, &ann, "one").await;

    // Between the walk's look at the row and its change of it, somebody saves.
    let saving = Mutex::new(Some((old.clone(), ann.clone())));
    faulty.plan(move |call| {
        if call == StoreCall::Rewrite
            && let Some((old, ann)) = saving.lock().unwrap().take()
        {
            let saved = std::thread::spawn(move || {
                run(async {
                    old.save(&ann, Save { over: at(1), version: at(2), token: token("two") }).await
                })
            });
            assert!(saved.join().unwrap().unwrap());
        }
        None
    });
    let new = Sealed::new(faulty, KeyRing::new(key(2)).with_opening_key(key(1)));
    let mut walk = new.reseal(realm());
    let row = walk.next().await.unwrap().unwrap();
    assert!(matches!(row.outcome, ResealOutcome::Overtaken), "{row:?}");
    assert!(walk.next().await.is_none());
    assert_eq!((walk.current(), walk.left()), (0, 1), "so the old key cannot go yet");
    assert_eq!(payload(&new, &ann).await, b"two");

    let mut again = new.reseal(realm());
    while let Some(row) = again.next().await {
        row.unwrap();
    }
    assert_eq!((again.current(), again.left()), (1, 0));
}

/// The rows of two pages of a reseal.
const MANY: u16 = 550;

async fn many_under_the_old_key(inner: &MemoryStore) -> Vec<StoreKey> {
    let users: Vec<_> = (0..MANY).map(|number| user(&format!("{number:03}"))).collect();
    let old = Sealed::new(inner.clone(), ring(1));
    for key in &users {
        put(&old, key, "one").await;
    }
    users
}

#[tokio::test]
async fn reseal_goes_on_where_store_failed() {
    let inner = MemoryStore::new();
    let faulty = FaultyStore::new(inner.clone());
    let users = many_under_the_old_key(&inner).await;
    let mut calls = 0;
    // The first scan; the first rewrite; the first rewrite, which is done; the scan of the next
    // page; and its rewrite, which is done.
    faulty.plan(move |_| {
        calls += 1;
        match calls {
            1 | 3 | 7 => Some(StoreFault::Before),
            5 | 10 => Some(StoreFault::After),
            _ => None,
        }
    });
    let new = Sealed::new(faulty, KeyRing::new(key(2)).with_opening_key(key(1)));
    let mut walk = new.reseal(realm());
    let (mut met, mut failed) = (Vec::new(), 0);
    while let Some(row) = walk.next().await {
        match row {
            Ok(row) => met.push(row.key),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Store);
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 5);
    assert_eq!(met, users, "each is met once");
    assert_eq!((walk.current(), walk.left()), (u64::from(MANY), 0));
    for key in &users {
        assert!(is_under(&inner, 2, key).await, "{}", key.subject().as_str());
    }
}

/// A page of rows is one scan and one rewrite, whatever a round trip takes.
#[tokio::test]
async fn reseal_works_in_batches() {
    let inner = MemoryStore::new();
    many_under_the_old_key(&inner).await;
    let faulty = FaultyStore::new(inner);
    let new = Sealed::new(faulty.clone(), KeyRing::new(key(2)).with_opening_key(key(1)));
    let mut walk = new.reseal(realm());
    while let Some(row) = walk.next().await {
        assert!(matches!(row.unwrap().outcome, ResealOutcome::Resealed));
    }
    let (scan, rewrite) = (StoreCall::Scan, StoreCall::Rewrite);
    assert_eq!(faulty.calls(), [scan, rewrite, scan, rewrite], "{MANY} rows");
}

/// The next page is read while a page is changed.
#[tokio::test(start_paused = true)]
async fn reseal_reads_ahead_of_its_changes() {
    let inner = MemoryStore::new();
    many_under_the_old_key(&inner).await;
    let faulty = FaultyStore::new(inner);
    faulty.delay(Duration::from_secs(5));
    let new = Sealed::new(faulty, KeyRing::new(key(2)).with_opening_key(key(1)));
    let begun = tokio::time::Instant::now();
    let mut walk = new.reseal(realm());
    while let Some(row) = walk.next().await {
        row.unwrap();
    }
    // A scan, then a rewrite beside a scan, then a rewrite.
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
}

/// A call that is dropped, wherever it was, leaves no row out.
#[tokio::test(start_paused = true)]
async fn dropped_reseal_steps_are_repeated() {
    let inner = MemoryStore::new();
    let users = many_under_the_old_key(&inner).await;
    let faulty = FaultyStore::new(inner);
    faulty.delay(Duration::from_secs(5));
    let new = Sealed::new(faulty, KeyRing::new(key(2)).with_opening_key(key(1)));
    let mut walk = new.reseal(realm());
    for seconds in [3, 8, 13, 18] {
        let span = Duration::from_secs(seconds);
        assert!(tokio::time::timeout(span, walk.next()).await.is_err(), "{seconds} s");
    }
    let mut met = Vec::new();
    while let Some(row) = walk.next().await {
        met.push(row.unwrap().key);
    }
    assert_eq!(met, users);
    assert_eq!((walk.current(), walk.left()), (u64::from(MANY), 0));
}

#[tokio::test]
async fn reseal_goes_on_where_another_ended() {
    let inner = MemoryStore::new();
    let users = many_under_the_old_key(&inner).await;
    let new = Sealed::new(inner, KeyRing::new(key(2)).with_opening_key(key(1)));
    let mut walk = new.reseal(realm());
    let mut last = None;
    for _ in 0..120 {
        last = Some(walk.next().await.unwrap().unwrap().key);
    }
    drop(walk);
    let mut rest = new.reseal(realm()).after(last.unwrap());
    let mut met = Vec::new();
    while let Some(row) = rest.next().await {
        met.push(row.unwrap().key);
    }
    assert_eq!(met, users[120..]);
}

#[tokio::test]
async fn reseal_counts_values_it_cannot_open() {
    let inner = MemoryStore::new();
    let [ann, bob, eve] = ["ann", "bob", "eve"].map(user);
    put(&Sealed::new(inner.clone(), ring(1)), &ann, "one").await;
    put(&Sealed::new(inner.clone(), ring(5)), &bob, "one").await;
    put(&inner, &eve, "{}").await;
    let new = Sealed::new(inner.clone(), KeyRing::new(key(2)).with_opening_key(key(1)));
    let mut walk = new.reseal(realm());
    let mut problems = Vec::new();
    while let Some(row) = walk.next().await {
        if let ResealOutcome::Unreadable(error) = row.unwrap().outcome {
            problems.push(problem_of(&error));
        }
    }
    assert_eq!(problems, [OpenError::UnknownKey(key(5).id()), OpenError::NotSealed]);
    assert_eq!((walk.current(), walk.left()), (1, 2));
    assert_eq!(payload(&inner, &eve).await, b"{}", "it is left as it is");

    // Moving from plaintext, for those who say so.
    let mut walk = new.reseal(realm()).include_plaintext();
    while walk.next().await.is_some() {}
    assert_eq!((walk.current(), walk.left()), (2, 1));
    assert_eq!(payload(&new, &eve).await, b"{}");
    assert_ne!(payload(&inner, &eve).await, b"{}");
}

#[tokio::test]
async fn hashed_user_ids_are_nowhere_in_rows() {
    let inner = MemoryStore::new();
    let sealed = Sealed::new(inner.clone(), ring(1)).hash_users(hash_key());
    let ann = user("ann-of-the-hills");
    put(&sealed, &ann, "one").await;
    assert!(try_read(&inner, &ann).await.unwrap().is_none());
    let stored = sealed.stored_key(&ann);
    assert_ne!(stored.subject(), ann.subject());
    let bytes = payload(&inner, &stored).await;
    assert!(!hold(&bytes, "ann-of"));
    assert!(hold(&bytes, stored.subject().as_str()));
    assert_eq!(payload(&sealed, &ann).await, b"one");
    assert_eq!(due(&sealed, &realm(), 5).await, std::slice::from_ref(&ann));
    assert_eq!(sealed.scan(&realm(), None, 5).await.unwrap()[0].0, ann);

    // The hash does not change with the sealing key.
    let new = Sealed::new(inner.clone(), KeyRing::new(key(2)).with_opening_key(key(1)))
        .hash_users(hash_key());
    let met = new.reseal(realm()).next().await.unwrap().unwrap();
    assert_eq!(met.key, stored, "a walk says nothing that the table does not");
    let only = Sealed::new(inner, ring(2)).hash_users(hash_key());
    assert_eq!(payload(&only, &ann).await, b"one");
    assert_eq!(due(&only, &realm(), 5).await, [ann]);
}

#[tokio::test]
async fn hash_is_never_taken_for_user_id() {
    let inner = MemoryStore::new();
    let hashing = Sealed::new(inner.clone(), ring(1)).hash_users(hash_key());
    put(&hashing, &user("ann"), "one").await;
    // A process that was not told of the hash key finds somebody due, and must not ask the
    // provider for them.
    let plain = Sealed::new(inner.clone(), ring(1));
    let due = due(&plain, &realm(), 5).await;
    assert_eq!(problem(&plain, &due[0]).await, OpenError::OtherUserHash);
    let other = UserHashKey::from_bytes(&SecretSlice::from(vec![8; 32])).unwrap();
    let other = Sealed::new(inner, ring(1)).hash_users(other);
    assert!(try_read(&other, &user("ann")).await.unwrap().is_none());
    let row = other.due(&realm(), None, 5).await.unwrap().remove(0);
    assert_eq!(problem_of(&row.key.unwrap_err()), OpenError::OtherUserHash);
}

#[tokio::test]
async fn due_rows_without_a_name_are_passed() {
    let inner = MemoryStore::new();
    let strange = Sealed::new(inner.clone(), ring(5)).hash_users(hash_key());
    let calls = FaultyStore::new(inner);
    let sealed = Sealed::new(calls.clone(), ring(1)).hash_users(hash_key());
    let [ann, bob] = ["ann", "bob"].map(user);
    for number in 0..20 {
        put(&strange, &user(&format!("{number}")), "one").await;
        if number == 10 {
            put(&sealed, &ann, "one").await;
        }
    }
    put(&sealed, &bob, "one").await;
    for page in [1, 2, 5, 22, 100] {
        let (mut named, mut nameless, mut after) = (Vec::new(), 0, None);
        loop {
            let before = calls.calls().len();
            let rows = sealed.due(&realm(), after.as_ref(), page).await.unwrap();
            let asked = calls.calls().split_off(before);
            assert_eq!(asked, [StoreCall::Due, StoreCall::Read], "one page inside for one outside");
            let is_last = rows.len() < page;
            after = rows.last().map(|row| row.cursor.clone());
            for row in rows {
                match row.key {
                    Ok(key) => named.push(key),
                    Err(error) => {
                        assert_eq!(problem_of(&error), OpenError::UnknownKey(key(5).id()));
                        nameless += 1;
                    }
                }
            }
            if is_last {
                break;
            }
        }
        named.sort();
        assert_eq!(named, [ann.clone(), bob.clone()], "{page} at a time");
        assert_eq!(nameless, 20);
    }
    assert!(sealed.due(&realm(), None, 0).await.unwrap().is_empty());
}

/// A row that is removed between the look at who is due and the look at the rows.
#[tokio::test]
async fn page_of_due_rows_stays_long() {
    let inner = MemoryStore::new();
    let faulty = FaultyStore::new(inner.clone());
    let sealed = Sealed::new(faulty.clone(), ring(1)).hash_users(hash_key());
    let users = ["ann", "bob", "eve"].map(user);
    for key in &users {
        put(&sealed, key, "one").await;
    }
    let (gone, inside) = (sealed.stored_key(&users[0]), inner.clone());
    faulty.plan(move |call| {
        if call == StoreCall::Read {
            let (gone, inside) = (gone.clone(), inside.clone());
            let removed =
                std::thread::spawn(move || run(async { inside.forget(&gone, None).await }));
            removed.join().unwrap().unwrap();
        }
        None
    });
    let rows = sealed.due(&realm(), None, 3).await.unwrap();
    assert_eq!(rows.len(), 3, "fewer would be the last");
    let errors: Vec<_> = rows.into_iter().filter_map(|row| row.key.err()).collect();
    assert!(errors.len() == 1 && errors[0].is_temporary(), "{errors:?}");
}

/// One row that cannot be opened is an error of its own item, in a read and in a scan, with which a
/// walk goes on and by whose key the row can be removed.
#[tokio::test]
async fn unopened_rows_cost_only_themselves() {
    for hashes in [false, true] {
        let inner = MemoryStore::new();
        let with = |byte| {
            let sealed = Sealed::new(inner.clone(), ring(byte));
            if hashes { sealed.hash_users(hash_key()) } else { sealed }
        };
        let (strange, sealed) = (with(5), with(1));
        let users: Vec<_> = (0..12).map(|number| user(&format!("user {number}"))).collect();
        for (number, key) in users.iter().enumerate() {
            put(if number % 3 == 0 { &strange } else { &sealed }, key, "one").await;
        }
        let rows = sealed.read(&users).await.unwrap();
        for (number, row) in rows.into_iter().enumerate() {
            assert_eq!(row.is_err(), number % 3 == 0, "{number}");
        }
        for page in [1, 2, 3, 12, 100] {
            let (mut opened, mut unopened, mut after) = (Vec::new(), Vec::new(), None);
            loop {
                let rows = sealed.scan(&realm(), after.as_ref(), page).await.unwrap();
                let is_last = rows.len() < page;
                after = rows.last().map(|(key, _)| key.clone());
                for (key, row) in rows {
                    match row {
                        Ok(_) => opened.push(key),
                        Err(error) => {
                            problem_of(&error);
                            unopened.push(key);
                        }
                    }
                }
                if is_last {
                    break;
                }
            }
            assert_eq!((opened.len(), unopened.len()), (8, 4), "{page} at a time");
            let stored: Vec<_> = unopened.iter().map(|key| sealed.stored_key(key)).collect();
            for (number, key) in users.iter().enumerate() {
                assert_eq!(opened.contains(key), number % 3 != 0);
                assert_eq!(stored.contains(&sealed.stored_key(key)), number % 3 == 0);
            }
            if page == 100 {
                for key in unopened {
                    assert!(sealed.forget(&key, None).await.unwrap());
                }
            }
        }
        assert_eq!(sealed.scan(&realm(), None, 100).await.unwrap().len(), 8);
    }
}

/// A token is sealed for the revision that its save names.
#[tokio::test]
async fn save_is_sealed_for_its_revision() {
    let inner = MemoryStore::new();
    let sealed = Sealed::new(inner, ring(1));
    let ann = user("ann");
    put(&sealed, &ann, "one").await;
    assert!(
        sealed.save(&ann, Save { over: at(1), version: at(9), token: token("two") }).await.unwrap()
    );
    assert_eq!(payload(&sealed, &ann).await, b"two");
}

#[tokio::test]
async fn process_without_key_holds_no_lease() {
    let inner = MemoryStore::new();
    let ann = user("ann");
    let has = Sealed::new(inner.clone(), ring(1));
    let lacks = Sealed::new(inner.clone(), ring(2));
    put(&has, &ann, "one").await;
    assert!(!claimed(&lacks, &ann, 1).await);
    assert!(claimed(&has, &ann, 2).await);
    assert!(!row(&has, &ann).await.in_flight, "nobody sent anything");

    // A mark that was there stays.
    let silent = Release { in_flight: true, ..Release::default() };
    has.release(&ann, at(1), 2, silent).await.unwrap();
    assert!(!claimed(&lacks, &ann, 1).await);
    let row = row(&has, &ann).await;
    assert!(row.in_flight && row.leased_for.is_none());
}

#[tokio::test]
async fn unopened_row_stops_neither_token_nor_removal() {
    let fake = FakeHurdlr::in_memory();
    let hurdlr = || {
        Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .http_client(fake.http_client())
            .build()
            .unwrap()
    };
    let inner = MemoryStore::new();
    let sealed = Sealed::new(inner.clone(), ring(1));
    let manager = TokenManager::builder(hurdlr(), sealed.clone()).build().unwrap();
    let id = UserId::new("ann").unwrap();
    let ann = manager.enterprise_user(&id);
    ann.token().await.unwrap();

    let key = StoreKey::new(Arc::new(hurdlr().realm()), RowKind::Enterprise, id.clone());
    let found = row(&inner, &key).await;
    let old = found.token.unwrap().payload;
    let mut damaged = old.expose_secret().clone();
    *damaged.last_mut().unwrap() ^= 1;
    let new = SecretBox::new(Box::new(damaged.clone()));
    let rewrite = Rewrite { key: key.clone(), version: found.version, old, new };
    assert_eq!(inner.rewrite(vec![rewrite]).await.unwrap(), [true]);

    ann.token().await.unwrap();
    let fresh = TokenManager::builder(hurdlr(), sealed).build().unwrap();
    let error = fresh.enterprise_user(&id).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(error.to_string().contains("changed"), "{error}");
    assert_eq!(fake.count().total(), 1, "nothing was sent for it");
    assert_eq!(payload(&inner, &key).await, damaged);

    let outcome = fresh.enterprise_user(&id).disconnect().await.unwrap();
    assert!(matches!(outcome, Disconnected::Unrevoked { .. }), "{outcome:?}");
    assert!(inner.read(&[key]).await.unwrap().remove(0).unwrap().is_none());
}

#[test]
fn keys_come_as_bytes_or_any_base64() {
    let bytes: Vec<u8> = (0..32).map(|byte| 0xff - byte).collect();
    let id = SealingKey::from_bytes(&SecretSlice::from(bytes)).unwrap().id();
    for text in [
        "//79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA=",
        "//79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA",
        "__79_Pv6-fj39vX08_Lx8O_u7ezr6uno5-bl5OPi4eA",
        " //79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA=\n",
    ] {
        assert_eq!(SealingKey::from_base64(&text.into()).unwrap().id(), id, "{text:?}");
        UserHashKey::from_base64(&text.into()).unwrap();
    }
    assert_ne!(id, key(1).id());
}

#[test]
fn wrong_key_is_refused_unshown() {
    fn refused(outcome: Result<impl Debug, Error>, says: &str) {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let text = format!("{error} {error:?}");
        assert!(error.to_string().contains(says), "{text}");
        assert!(error.source().is_none(), "a decoder's error quotes what it was given");
        assert!(!text.contains("hunter") && !text.contains("aHVudGVy"), "{text}");
    }
    for length in [0, 6, 16, 31, 33, 64] {
        let bytes = b"hunter".iter().copied().cycle().take(length).collect::<Vec<_>>();
        refused(SealingKey::from_bytes(&bytes.clone().into()), &format!("{length} bytes"));
        refused(UserHashKey::from_bytes(&bytes.into()), &format!("{length} bytes"));
    }
    for (text, says) in [
        ("", "0 bytes"),
        ("aHVudGVy", "6 bytes"),
        ("aHVudGVy!", "not base64"),
        ("aHVudGVyaHVudGVyaHVudGVyaHVudGVyaHVudGVyaH=", "not base64"),
        ("hunter hunter hunter hunter hunter hunter hu", "not base64"),
    ] {
        let text = SecretString::from(text);
        refused(SealingKey::from_base64(&text), says);
        refused(UserHashKey::from_base64(&text), says);
    }
}

#[tokio::test]
async fn debug_shows_no_key_or_token() {
    let text = "aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMiEhISE=";
    let key = SealingKey::from_base64(&text.into()).unwrap();
    let hash = UserHashKey::from_base64(&text.into()).unwrap();
    let ring = KeyRing::new(key.clone()).with_opening_key(key.clone());
    let sealed = Sealed::new(MemoryStore::new(), ring.clone()).hash_users(hash.clone());
    put(&sealed, &user("ann"), "hunter2").await;
    let found = row(&sealed, &user("ann")).await;
    let mut walk = sealed.reseal(realm());
    let met = walk.next().await;
    let shown = format!("{key:?} {hash:?} {ring:#?} {sealed:?} {found:?} {walk:?} {met:?}");
    for secret in ["hunter", "aHVu", "68, 75", "104, 117"] {
        assert!(!shown.contains(secret), "{secret} is in {shown}");
    }
    assert!(shown.contains(&key.id().to_string()), "which key it is can be told");
}
