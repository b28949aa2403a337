//! The bytes that a store has in the place of a sealed record.
//!
//! - Nothing opens but what the key sealed for that row: any other record is an error of kind
//!   `Store` that is not temporary and says why, by an `OpenError`.
//! - What is sealed opens unchanged, and the store has nothing of it in clear.
//! - A record that was cut, made longer, changed in any bit, or moved to another row, revision or
//!   incarnation does not open, and the error says which it was.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::secrecy::{ExposeSecret, SecretBox, SecretSlice};
use hurdlr_oauth2::store::{
    Bound, KeyRing, MemoryStore, OpenError, Realm, RowKind, Sealed, SealingKey, StoreKey,
    StoredToken, TokenStore, UserHashKey, Version,
};
use hurdlr_oauth2::testing::seed_row;
use hurdlr_oauth2::{ApiVersion, ErrorKind, UserId};

use super::provider::{CLIENT_ID, ENVIRONMENT, block_on, everything_said, on_runtime};

/// A record that the key sealed for [`row_of`] Ann at [`VERSION`], and what is in it.
const GENUINE: &[u8] = include_bytes!("../corpus/sealed_record/genuine");
const PAYLOAD: &[u8] = b"payload-of-the-genuine-record";

const VERSION: Version = Version { incarnation: 7, revision: 1 };

/// The shortest payload that can be told from chance.
const SHORTEST_TOLD: usize = 8;

pub fn check(data: &[u8]) {
    on_runtime(|| {
        let inner = MemoryStore::new();
        let sealed = Sealed::new(inner.clone(), ring());
        let ann = row_of("ann");

        put(&inner, &ann, VERSION, data);
        let opened = read(&sealed, &ann);
        if data == GENUINE {
            assert_eq!(opened, Ok(PAYLOAD.to_vec()));
        } else {
            assert!(opened.is_err(), "a forged record was opened");
        }

        put(&sealed, &ann, VERSION, data);
        let record = read_inner(&inner, &ann);
        assert_eq!(read(&sealed, &ann).as_deref(), Ok(data));
        let is_told = data.len() >= SHORTEST_TOLD;
        assert!(!is_told || !encrypted(&record).windows(data.len()).any(|it| it == data));
        assert_damage_is_told(&inner, &sealed, &record, data);
        assert_move_is_told(&inner, &sealed, &record);
        assert_hashed_users(data);
    });
}

fn ring() -> KeyRing {
    KeyRing::new(SealingKey::from_bytes(&SecretSlice::from(vec![1; 32])).unwrap())
}

fn row_of(user: &str) -> StoreKey {
    let realm = Realm::new(ApiVersion::V4, ENVIRONMENT, CLIENT_ID);
    StoreKey::new(Arc::new(realm), RowKind::Login, UserId::new(user).unwrap())
}

fn put(store: &impl TokenStore, key: &StoreKey, version: Version, payload: &[u8]) {
    let payload = SecretBox::new(Box::new(payload.to_vec()));
    let token = StoredToken { payload, age: Duration::ZERO, due_in: Duration::ZERO };
    block_on(seed_row(store, key, version, token));
}

fn read_inner(store: &MemoryStore, key: &StoreKey) -> Vec<u8> {
    let row = block_on(store.read(std::slice::from_ref(key))).unwrap().remove(0).unwrap().unwrap();
    row.token.unwrap().payload.expose_secret().clone()
}

/// The part of a record behind its place, which is in clear.
fn encrypted(record: &[u8]) -> &[u8] {
    let (head, rest) = record.split_at(41);
    let place = u32::from_be_bytes(head[33..37].try_into().unwrap());
    &rest[usize::try_from(place).unwrap()..]
}

/// The payload of a row, or why it does not open.
fn read(store: &Sealed<MemoryStore>, key: &StoreKey) -> Result<Vec<u8>, OpenError> {
    match block_on(store.read(std::slice::from_ref(key))).unwrap().remove(0) {
        Ok(row) => Ok(row.unwrap().token.unwrap().payload.expose_secret().clone()),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Store);
            assert!(!error.is_temporary() && everything_said(&error).len() < 2_000);
            Err(*error.source().and_then(|it| it.downcast_ref()).expect("a reason"))
        }
    }
}

/// Damages a record at a place that its payload names, in every way.
fn assert_damage_is_told(
    inner: &MemoryStore,
    sealed: &Sealed<MemoryStore>,
    record: &[u8],
    data: &[u8],
) {
    let ann = row_of("ann");
    let damaged = |bytes: &[u8]| {
        put(inner, &ann, VERSION, bytes);
        read(sealed, &ann).expect_err("a damaged record was opened")
    };
    let number = data
        .iter()
        .fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let place = number % record.len();

    let cut = damaged(&record[..place]);
    assert_eq!(cut, if place == 0 { OpenError::NotSealed } else { OpenError::Cut });
    assert_eq!(damaged(&[record, &[0]].concat()), OpenError::Cut);
    let mut flipped = record.to_vec();
    flipped[place] ^= 1 << (number / record.len() % 8);
    let problem = damaged(&flipped);
    match place {
        // An opening brace is that of a token in plaintext.
        0 => assert!(matches!(problem, OpenError::UnknownFormat(_) | OpenError::NotSealed)),
        1..9 => assert!(matches!(problem, OpenError::UnknownKey(_)), "{problem:?}"),
        33..41 => assert_eq!(problem, OpenError::Cut),
        _ => assert_eq!(problem, OpenError::Changed),
    }
}

fn assert_move_is_told(inner: &MemoryStore, sealed: &Sealed<MemoryStore>, record: &[u8]) {
    let moved = |key: &StoreKey, version: Version| {
        put(inner, key, version, record);
        read(sealed, key).expect_err("a moved record was opened")
    };
    let bound = Bound::Revision { sealed: 1, row: 2 };
    assert_eq!(moved(&row_of("ann"), VERSION.next()), OpenError::Moved(bound));
    let other = Version { incarnation: 8, ..VERSION };
    assert_eq!(moved(&row_of("ann"), other), OpenError::Moved(Bound::Incarnation));
    assert_eq!(moved(&row_of("bob"), VERSION), OpenError::Moved(Bound::User));
}

/// Where user ids are hashed, the user travels within the record.
fn assert_hashed_users(payload: &[u8]) {
    let key = UserHashKey::from_bytes(&SecretSlice::from(vec![2; 32])).unwrap();
    let inner = MemoryStore::new();
    let hashed = Sealed::new(inner.clone(), ring()).hash_users(key);
    let ann = row_of("ann");
    put(&hashed, &ann, VERSION, payload);
    assert_eq!(read(&hashed, &ann).as_deref(), Ok(payload));
    let realm = ann.realm().clone();
    let rows = block_on(hashed.scan(&realm, None, 9)).unwrap();
    assert!(rows.iter().all(|(key, row)| *key == ann && row.is_ok()) && rows.len() == 1);

    let plain = Sealed::new(inner, ring());
    assert_eq!(read(&plain, &hashed.stored_key(&ann)), Err(OpenError::OtherUserHash));
}
