//! The memory store: due users by the page, and many realms with the same ids.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::ApiVersion;
use hurdlr_oauth2::secrecy::SecretBox;
use hurdlr_oauth2::store::{
    MemoryStore, Realm, RowKind, StoreKey, StoredToken, TokenStore, Version,
};
use hurdlr_oauth2::testing::seed_row;

use crate::harness::Outcome;
use crate::{Size, count, median, median_ratio, user};

/// The rows of a page, as many as the manager asks for by default.
const PAGE: usize = 64;

/// The realms among which the users are divided.
const REALMS: usize = 100;

/// The time per user of a walk over all due users, over that of a tenth of them.
pub(crate) async fn due_users(size: Size) -> Outcome {
    let (many, few) = (size.capacity, size.capacity / 10);
    let realms = realms_of(1);
    let (many_keys, few_keys) = (keys(&realms, many), keys(&realms, few));
    let (many_store, few_store) = (MemoryStore::new(), MemoryStore::new());
    put(&many_store, &many_keys).await?;
    put(&few_store, &few_keys).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..size.long_rounds {
        ours.push(walk_due(&many_store, &realms, many).await?);
        theirs.push(walk_due(&few_store, &realms, few).await?);
    }
    size.figure("manager.memory_store_due_ratio", median_ratio(&ours, &theirs), "x");
    size.figure("manager.memory_store_due_ns", median(ours), "ns");
    Ok(())
}

/// The time per user to put, read and walk the same ids in many realms, over that of as many users
/// in one realm.
pub(crate) async fn realms(size: Size) -> Outcome {
    let sides = [REALMS, 1].map(realms_of);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..size.long_rounds {
        for (realms, times) in sides.iter().zip(&mut times) {
            let keys = keys(realms, size.capacity);
            let store = MemoryStore::new();
            let start = Instant::now();
            put(&store, &keys).await?;
            for page in keys.chunks(PAGE) {
                if store.read(page).await?.iter().any(|row| !matches!(row, Ok(Some(_)))) {
                    return Err("a row was not found".into());
                }
            }
            walk_due(&store, realms, keys.len()).await?;
            times.push(start.elapsed().as_secs_f64() * 1e9 / count(keys.len()));
        }
    }
    let [many, one] = times;
    size.figure("manager.memory_store_realms_ratio", median_ratio(&many, &one), "x");
    size.figure("manager.memory_store_realms_ns", median(many), "ns");
    Ok(())
}

fn realms_of(number: usize) -> Vec<Arc<Realm>> {
    let realm = |n| {
        let environment = "https://hurdlr.example.com/";
        Arc::new(Realm::new(ApiVersion::V4, environment, format!("client-{n:04}")))
    };
    (0..number).map(realm).collect()
}

/// The keys of so many users, the same ids in each realm.
fn keys(realms: &[Arc<Realm>], users: usize) -> Vec<StoreKey> {
    let ids = 0..users / realms.len();
    let key = |n, realm| StoreKey::new(Arc::clone(realm), RowKind::Login, user(n));
    ids.flat_map(|n| realms.iter().map(move |realm| key(n, realm))).collect()
}

/// Puts a due row under each key.
async fn put(store: &MemoryStore, keys: &[StoreKey]) -> Outcome {
    for key in keys {
        let payload = SecretBox::new(Box::new(vec![0; 300]));
        let token = StoredToken { payload, age: Duration::ZERO, due_in: Duration::ZERO };
        seed_row(store, key, Version { incarnation: 1, revision: 1 }, token).await;
    }
    Ok(())
}

/// Walks all due rows by the page. Returns the nanoseconds per row.
async fn walk_due(store: &MemoryStore, realms: &[Arc<Realm>], expected: usize) -> Outcome<f64> {
    let start = Instant::now();
    let mut found = 0;
    for realm in realms {
        let mut cursor = None;
        loop {
            let page = store.due(realm, cursor.as_ref(), PAGE).await?;
            found += page.len();
            if page.len() < PAGE {
                break;
            }
            cursor = page.into_iter().next_back().map(|row| row.cursor);
        }
    }
    if found != expected {
        return Err("a due row was not found".into());
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / count(expected))
}
