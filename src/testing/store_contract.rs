//! The contract of [`TokenStore`] as tests, to prove your own store by.
//!
//! Each promise is a function of its own, so that a test can be named for it; [`prove`] runs all of
//! them. A broken promise panics and says which it was. All users are made up and of a client id
//! drawn at random, so that a store in use can be proven too, but nothing is cleaned up: use a
//! database for tests.
//!
//! Leases run out for real here, by the store's own clock. That takes a few seconds, and the
//! functions need tokio's real time, not its paused one.
//!
//! ```
//! use hurdlr_oauth2::store::MemoryStore;
//! use hurdlr_oauth2::testing::store_contract;
//!
//! # #[tokio::main]
//! # async fn main() {
//! store_contract::prove(MemoryStore::new()).await; // or your own
//! # }
//! ```

#![allow(
    clippy::missing_panics_doc,
    clippy::expect_used,
    reason = "a broken promise is a panic, as the module says"
)]

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretBox};
use tokio::task::JoinSet;

use super::{FaultyStore, StoreCall, StoreFault, seed_row};
use crate::error::Error;
use crate::store::{
    Claim, Claimed, DueCursor, Realm, Release, Rewrite, Row, RowKind, Save, StoreKey, StoredToken,
    TokenStore, Version,
};
use crate::wire::endpoint::ApiVersion;
use crate::wire::user::UserId;

/// A lease that runs out while a test waits. Above what a file's lock may cost.
const SHORT: Duration = Duration::from_millis(400);

/// A span that no test outlives.
const LONG: Duration = Duration::from_secs(600);

/// How long a test waits for the store's clock.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many tasks call the store at once.
const CROWD: usize = 16;

/// A release that says nothing.
const QUIET: Release = Release { not_before: Duration::ZERO, refused: false, in_flight: false };

const PAUSE: Release = Release { not_before: LONG, ..QUIET };

const REFUSAL: Release = Release { refused: true, ..QUIET };

/// Proves every promise, the last with 1,000 users.
pub async fn prove<S: TokenStore>(store: S) {
    let store = &Arc::new(store);
    first_claim_makes_the_row(store).await;
    claim_needs_the_known_version(store).await;
    ungranted_claim_changes_nothing(store).await;
    one_of_many_creations_is_granted(store).await;
    one_of_many_claims_is_granted(store).await;
    holder_may_claim_again(store).await;
    unreleased_lease_leaves_in_flight(store).await;
    release_ends_the_lease(store).await;
    release_never_shortens_not_before(store).await;
    release_without_lease_refuses_nothing(store).await;
    release_needs_the_version(store).await;
    refused_row_is_not_claimed(store).await;
    save_needs_the_consumed_version(store).await;
    save_sets_the_given_revision(store).await;
    one_of_many_saves_is_done(store).await;
    save_needs_no_lease(store).await;
    old_save_brings_nobody_back(store).await;
    login_leaves_nothing_of_earlier_one(store).await;
    one_of_many_logins_is_saved(store).await;
    forget_removes_the_row(store).await;
    forget_needs_the_given_version(store).await;
    token_ages_by_the_stores_clock(store).await;
    payload_is_kept_byte_for_byte(store).await;
    odd_user_ids_are_kept_apart(store).await;
    kinds_and_realms_are_kept_apart(store).await;
    read_answers_in_key_order(store).await;
    state_is_redeemed_once(store).await;
    state_is_forgotten_after_its_time(store).await;
    due_lists_the_longest_due_first(store).await;
    due_goes_on_from_a_cursor(store).await;
    due_leaves_out_unclaimable_rows(store).await;
    scan_meets_every_token_once(store).await;
    rewrite_changes_the_payload_only(store).await;
    many_rows_are_rewritten_at_once(store).await;
    lost_answers_can_be_repeated(store).await;
    many_users_are_kept(store, 1_000).await;
}

/// A claim with `create` makes an absent row without a token, under that incarnation and revision
/// 0, and has its lease. Without `create` it makes nothing.
pub async fn first_claim_makes_the_row<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    for known in [None, Some(version(7, 3))] {
        let ask = Claim { holder: 1, lease: LONG, known, create: None };
        let claimed = store.claim(&key, ask).await.expect("claim");
        assert!(!claimed.granted && claimed.row.is_none(), "no row, and none to be made");
        assert!(read(store, &key).await.is_none(), "a claim without `create` makes no row");
    }
    for known in [None, Some(version(7, 3))] {
        let key = some_key();
        let ask = Claim { holder: 1, lease: LONG, known, create: Some(4711) };
        let claimed = store.claim(&key, ask).await.expect("claim");
        assert!(claimed.granted, "a claim that makes the row is granted");
        let returned = claimed.row.expect("a claim returns the row it made");
        let kept = read(store, &key).await.expect("the row was made");
        for row in [returned, kept] {
            assert_eq!(row.version, version(4711, 0), "the row that was made");
            assert!(row.token.is_none(), "the row that was made has no token");
            assert!(!row.refused && !row.in_flight && row.not_before.is_none(), "{row:?}");
            assert_lease(&row, LONG);
        }
    }
    // A row that is there is claimed, not made.
    let key = some_key();
    put(store, &key, 7, "one").await;
    let ask = Claim { holder: 1, lease: LONG, known: Some(version(7, 1)), create: Some(8) };
    let claimed = store.claim(&key, ask).await.expect("claim");
    let row = claimed.row.expect("the row");
    assert!(claimed.granted, "a claim of the version that is there");
    assert_eq!((row.version, text(&row)), (version(7, 1), "one"));
}

/// A claim is granted at the known version only, and one that knows none where there is no token.
pub async fn claim_needs_the_known_version<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let others = [version(7, 0), version(7, 2), version(8, 1), version(0, 1)];
    for other in others.map(Some).into_iter().chain([None]) {
        let claimed = claim(store, &key, 1, LONG, other).await;
        assert!(!claimed.granted, "a claim of {other:?} at 7, 1");
        let row = claimed.row.expect("the row as it is");
        assert_eq!((row.version, text(&row)), (version(7, 1), "one"));
        assert_eq!(row.leased_for, None, "a claim that is not granted has no lease");
    }
    let claimed = claim(store, &key, 1, LONG, Some(version(7, 1))).await;
    assert!(claimed.granted, "a claim of the version that is there");
    let row = claimed.row.expect("the row");
    assert_eq!(text(&row), "one", "a claim returns the token");
    assert_lease(&row, LONG);

    // Before the first grant has been saved, both ways of asking are right.
    let key = some_key();
    assert!(claim(store, &key, 1, LONG, None).await.granted);
    release(store, &key, version(1, 0), 1, QUIET).await;
    assert!(claim(store, &key, 2, LONG, None).await.granted, "a row without a token");
    release(store, &key, version(1, 0), 2, QUIET).await;
    assert!(!claim(store, &key, 3, LONG, Some(version(1, 1))).await.granted);
    assert!(claim(store, &key, 3, LONG, Some(version(1, 0))).await.granted);
}

/// A claim that is not granted writes nothing: no lease, no mark, not even of a lease that ran out.
pub async fn ungranted_claim_changes_nothing<S: TokenStore>(store: &Arc<S>) {
    let at = version(7, 1);
    let key = some_key();
    put(store, &key, 7, "one").await;
    assert!(claim(store, &key, 1, SHORT, Some(at)).await.granted);
    wait(store, &key, "the lease ends", |row| row.leased_for.is_none()).await;
    // Such a claim would be marked, were it granted.
    let others = [Some(version(7, 2)), Some(version(8, 1)), None];
    for (holder, known) in others.into_iter().flat_map(|known| [(1, known), (2, known)]) {
        let claimed = claim(store, &key, holder, LONG, known).await;
        let row = read(store, &key).await.expect("the row");
        for row in [claimed.row.expect("the row"), row] {
            assert!(!claimed.granted && row.leased_for.is_none(), "another version");
            assert!(!row.in_flight, "only a lease that is granted is marked");
            assert_eq!((row.version, text(&row)), (at, "one"));
        }
    }

    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    let leased = read(store, &key).await.expect("the row");
    assert!(!claim(store, &key, 2, 9 * LONG, Some(at)).await.granted, "another holds the lease");
    let row = read(store, &key).await.expect("the row");
    assert!(row.leased_for <= leased.leased_for && row.leased_for.is_some(), "the lease stays");

    release(store, &key, at, 1, PAUSE).await;
    let paused = read(store, &key).await.expect("the row");
    assert!(!claim(store, &key, 2, LONG, Some(at)).await.granted, "the row is paused");
    let row = read(store, &key).await.expect("the row");
    assert!(row.leased_for.is_none() && row.not_before <= paused.not_before);
    assert_eq!((row.refused, row.in_flight), (paused.refused, paused.in_flight));
}

/// One of many claims at once for a user without a row is granted, and all get the row.
pub async fn one_of_many_creations_is_granted<S: TokenStore>(store: &Arc<S>) {
    for _ in 0..8 {
        let key = some_key();
        let claims = crowd(|place| {
            let (store, key) = (store.clone(), key.clone());
            async move { claim(&store, &key, 1 + place as u64, LONG, None).await }
        })
        .await;
        assert_one_granted(&claims);
        let rows: HashSet<_> = claims
            .iter()
            .map(|claimed| claimed.row.as_ref().expect("all get the row").version)
            .collect();
        assert_eq!(rows.len(), 1, "all get the same row");
    }
}

/// One of many claims at once of one version is granted, and all get the row.
pub async fn one_of_many_claims_is_granted<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    for revision in 1..8 {
        let known = version(7, revision);
        let claims = crowd(|place| {
            let (store, key) = (store.clone(), key.clone());
            async move { claim(&store, &key, 1 + place as u64, LONG, Some(known)).await }
        })
        .await;
        assert_one_granted(&claims);
        for claimed in &claims {
            let row = claimed.row.as_ref().expect("all get the row");
            assert_eq!(row.version, known);
            assert!(!row.in_flight, "no lease ran out");
            assert_lease(row, LONG);
        }
        assert!(save(store, &key, known, "next").await);
    }
}

/// The holder of a lease may claim again. That starts the lease anew, and marks the row.
pub async fn holder_may_claim_again<S: TokenStore>(store: &Arc<S>) {
    let at = Some(version(7, 1));
    for lease in [LONG, SHORT] {
        let key = some_key();
        put(store, &key, 7, "one").await;
        assert!(claim(store, &key, 1, lease, at).await.granted);
        if lease == SHORT {
            let row = wait(store, &key, "the lease ends", |row| row.leased_for.is_none()).await;
            assert!(!row.in_flight, "that is for the next claim to say");
        }
        let again = claim(store, &key, 1, 2 * LONG, at).await;
        assert!(again.granted, "the holder of the lease can claim again");
        let row = again.row.expect("the row");
        assert!(row.leased_for > Some(LONG), "the lease starts anew");
        assert!(row.in_flight, "the earlier attempt was not released, whoever made it");
        assert!(!claim(store, &key, 2, LONG, at).await.granted, "another cannot");
        assert!(read(store, &key).await.expect("the row").in_flight);
    }
}

/// A lease ends by the store's clock. One that was not released leaves `in_flight` set, for the
/// next holder and until there is a new token.
pub async fn unreleased_lease_leaves_in_flight<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let at = Some(version(7, 1));
    let first = claim(store, &key, 1, SHORT, at).await;
    assert!(first.granted);
    let left = first.row.expect("the row").leased_for;
    assert!(left.is_some() && left <= Some(SHORT), "{left:?} is left");

    let claimed = claim_in_time(store, &key, 2, at).await;
    let row = claimed.row.expect("the row");
    assert!(row.in_flight, "the first holder may have sent the refresh token");
    assert_lease(&row, LONG);

    // The mark stays although this holder released.
    release(store, &key, version(7, 1), 2, QUIET).await;
    let third = claim(store, &key, 3, LONG, at).await;
    assert!(third.granted && third.row.expect("the row").in_flight);
    assert!(save(store, &key, version(7, 1), "two").await);
    let row = read(store, &key).await.expect("the row");
    assert!(!row.in_flight, "the mark goes with the token it is about");

    // So does the lease of a row that a claim made.
    let key = some_key();
    assert!(claim(store, &key, 1, SHORT, None).await.granted);
    let claimed = claim_in_time(store, &key, 2, None).await;
    assert!(claimed.row.expect("the row").in_flight);
}

/// A release ends the lease of its holder, also one that ran out and that nobody took, and the row
/// can be claimed once `not_before` has passed.
pub async fn release_ends_the_lease<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let at = version(7, 1);
    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    release(store, &key, at, 1, QUIET).await;
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.leased_for, row.not_before), (None, None));
    let claimed = claim(store, &key, 2, SHORT, Some(at)).await;
    assert!(claimed.granted, "a released row is free");
    assert!(!claimed.row.expect("the row").in_flight, "the lease was released");

    wait(store, &key, "the lease ends", |row| row.leased_for.is_none()).await;
    release(store, &key, at, 2, QUIET).await;
    let claimed = claim(store, &key, 3, LONG, Some(at)).await;
    assert!(!claimed.row.expect("the row").in_flight, "a late release is one");

    release(store, &key, at, 3, Release { in_flight: true, ..PAUSE }).await;
    let row = read(store, &key).await.expect("the row");
    assert!(row.in_flight && !row.refused && row.leased_for.is_none());
    let not_before = row.not_before;
    assert!(not_before > Some(LONG / 2) && not_before <= Some(LONG), "{not_before:?}");
    for holder in [3, 4] {
        let claimed = claim(store, &key, holder, LONG, Some(at)).await;
        assert!(!claimed.granted, "nobody, before not_before has passed");
    }
    assert!(save(store, &key, at, "two").await, "a save needs no pause to end");
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.not_before, row.in_flight), (None, false), "a new token clears both");

    let at = at.next();
    assert!(claim(store, &key, 3, LONG, Some(at)).await.granted);
    release(store, &key, at, 3, Release { not_before: SHORT, ..QUIET }).await;
    assert!(!claim_in_time(store, &key, 4, Some(at)).await.row.expect("the row").in_flight);
}

/// `not_before` is moved on by whoever releases, and never back.
pub async fn release_never_shortens_not_before<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let at = version(7, 1);
    let not_before = async || read(store, &key).await.expect("the row").not_before;
    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    for (holder, asked) in
        [(2, LONG), (1, LONG / 4), (1, 2 * LONG), (2, SHORT), (1, Duration::ZERO)]
    {
        let before = not_before().await.unwrap_or_default();
        release(store, &key, at, holder, Release { not_before: asked, ..QUIET }).await;
        let after = not_before().await.expect("a pause");
        let wanted = before.max(asked);
        assert!(after <= wanted && after + LONG / 4 > wanted, "{after:?} of {wanted:?}");
    }
}

/// A release by a holder that lost the lease leaves that alone and refuses nothing: the new holder
/// is about to learn for itself. `in_flight` and `not_before` count all the same.
pub async fn release_without_lease_refuses_nothing<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let at = version(7, 1);
    let all = Release { not_before: LONG, refused: true, in_flight: true };
    release(store, &key, at, 1, REFUSAL).await;
    let row = read(store, &key).await.expect("the row");
    assert!(!row.refused && !row.in_flight && row.not_before.is_none(), "nobody holds it: {row:?}");
    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    release(store, &key, at, 2, REFUSAL).await;
    let row = read(store, &key).await.expect("the row");
    assert!(!row.refused && !row.in_flight, "another holds it: {row:?}");
    assert_lease(&row, LONG);
    release(store, &key, at, 2, all).await;
    let row = read(store, &key).await.expect("the row");
    assert!(!row.refused, "another holds the lease");
    assert_lease(&row, LONG);
    assert!(row.in_flight && row.not_before > Some(LONG / 2), "these count from anybody");
    release(store, &key, at, 1, REFUSAL).await;
    assert!(read(store, &key).await.expect("the row").refused, "the holder's refusal counts");
}

/// A release at another version changes nothing, and makes no row.
pub async fn release_needs_the_version<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    let all = Release { not_before: LONG, refused: true, in_flight: true };
    release(store, &key, version(7, 1), 1, all).await;
    assert!(read(store, &key).await.is_none(), "a release makes no row");

    put(store, &key, 7, "one").await;
    assert!(claim(store, &key, 1, LONG, Some(version(7, 1))).await.granted);
    for other in [version(7, 0), version(7, 2), version(8, 1)] {
        release(store, &key, other, 1, all).await;
    }
    let row = read(store, &key).await.expect("the row");
    assert_lease(&row, LONG);
    assert!(!row.refused && !row.in_flight && row.not_before.is_none(), "{row:?}");
}

/// A row whose refresh token was refused is claimed by nobody, until it has a new token: by a save
/// at its revision, of a holder that was paused, or by a put.
pub async fn refused_row_is_not_claimed<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let at = version(7, 1);
    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    release(store, &key, at, 1, REFUSAL).await;
    let row = read(store, &key).await.expect("a refused row is kept");
    assert!(row.refused && row.leased_for.is_none());
    assert_eq!(text(&row), "one", "with its token");
    for holder in [1, 2] {
        let claimed = claim(store, &key, holder, LONG, Some(at)).await;
        assert!(!claimed.granted, "a refused row is not claimed");
        let row = claimed.row.expect("the row");
        assert!(row.refused && row.leased_for.is_none() && !row.in_flight);
    }

    assert!(save(store, &key, at, "two").await, "the token of a paused holder counts");
    let row = read(store, &key).await.expect("the row");
    assert!(!row.refused, "the new token was not refused");
    let at = at.next();
    assert!(claim(store, &key, 2, LONG, Some(at)).await.granted);
    release(store, &key, at, 2, REFUSAL).await;
    put(store, &key, 8, "three").await;
    let claimed = claim(store, &key, 3, LONG, Some(version(8, 1))).await;
    assert!(claimed.granted, "after a login there is a new token");

    // A row that has no token yet is refused in the same way.
    let key = some_key();
    assert!(claim(store, &key, 1, LONG, None).await.granted);
    release(store, &key, version(1, 0), 1, REFUSAL).await;
    assert!(!claim(store, &key, 2, LONG, None).await.granted);
}

/// A save replaces the token at the version it consumed and no other, and clears lease and marks.
pub async fn save_needs_the_consumed_version<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    assert!(!save(store, &key, version(7, 1), "x").await, "no row");
    assert!(read(store, &key).await.is_none(), "a save makes no row");

    put(store, &key, 7, "one").await;
    for other in [version(7, 0), version(7, 2), version(8, 1), version(0, 1)] {
        assert!(!save(store, &key, other, "x").await, "{other:?} at 7, 1");
    }
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(7, 1), "one"));

    assert!(claim(store, &key, 1, LONG, Some(row.version)).await.granted);
    release(store, &key, row.version, 2, Release { in_flight: true, ..PAUSE }).await;
    assert!(save(store, &key, row.version, "two").await);
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(7, 2), "two"));
    assert_eq!((row.leased_for, row.not_before), (None, None));
    assert!(!row.in_flight && !row.refused, "a save clears the marks");
    assert!(!save(store, &key, version(7, 1), "x").await, "not again");

    // The first token of a row that a claim made.
    let key = some_key();
    let made = claim(store, &key, 1, LONG, None).await.row.expect("the row");
    assert!(save(store, &key, made.version, "first").await);
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (made.version.next(), "first"));
}

/// A saved row is at the revision that the save names, which need not be the next.
pub async fn save_sets_the_given_revision<S: TokenStore>(store: &Arc<S>) {
    let most = (1 << 63) - 1;
    let key = some_key();
    put(store, &key, most, "one").await;
    let claimed = claim(store, &key, most, LONG, Some(version(most, 1))).await;
    assert!(claimed.granted, "2⁶³ - 1 is a holder and an incarnation");
    for (consumed, revision) in [(1, 2), (2, 9), (9, most)] {
        let consumed = version(most, consumed);
        let saved = store
            .save(
                &key,
                Save { over: consumed, version: version(most, revision), token: token("new") },
            )
            .await;
        assert!(saved.expect("save"), "{consumed:?} is there");
        let row = read(store, &key).await.expect("the row");
        assert_eq!((row.version, text(&row)), (version(most, revision), "new"));
    }
}

/// One of many saves at once over one version is done.
pub async fn one_of_many_saves_is_done<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    for revision in 1..4 {
        let saves = crowd(|place| {
            let (store, key) = (store.clone(), key.clone());
            async move { save(&store, &key, version(7, revision), &format!("by {place}")).await }
        })
        .await;
        let done: Vec<_> = (0..CROWD).filter(|place| saves[*place]).collect();
        assert_eq!(done.len(), 1, "of {CROWD} saves at once, those of {done:?}");
        let row = read(store, &key).await.expect("the row");
        assert_eq!(text(&row), format!("by {}", done[0]));
        assert_eq!(row.version, version(7, revision + 1));
    }
}

/// A holder that was paused for longer than its lease may hold the only refresh token that lives:
/// its save is done, and the later holder's is not.
pub async fn save_needs_no_lease<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let at = version(7, 1);
    assert!(claim(store, &key, 1, SHORT, Some(at)).await.granted);
    claim_in_time(store, &key, 2, Some(at)).await;
    assert!(save(store, &key, at, "of the first").await, "a save must not ask for the lease");
    assert!(!save(store, &key, at, "of the second").await);
    let row = read(store, &key).await.expect("the row");
    assert_eq!(text(&row), "of the first");
    assert_eq!(row.leased_for, None, "a save ends any lease");
}

/// A save of an earlier incarnation is not done, whether the user is gone or has come back since.
pub async fn old_save_brings_nobody_back<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let old = version(7, 1);
    assert!(claim(store, &key, 1, LONG, Some(old)).await.granted);
    assert!(store.forget(&key, None).await.expect("forget"));
    assert!(!save(store, &key, old, "old").await, "the user was forgotten");
    assert!(read(store, &key).await.is_none(), "and stays so");

    // The same revision, of another incarnation.
    put(store, &key, 8, "new").await;
    assert!(!save(store, &key, old, "old").await, "the user is back");
    release(store, &key, old, 1, Release { refused: true, ..PAUSE }).await;
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(8, 1), "new"));
    assert!(!row.refused && row.not_before.is_none());
    assert_eq!(row.leased_for, None, "a lease does not outlive its incarnation");
}

/// A save under another incarnation leaves nothing of the earlier one: no lease, pause or mark.
pub async fn login_leaves_nothing_of_earlier_one<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    assert!(save(store, &key, version(7, 1), "two").await);
    let at = version(7, 2);
    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    release(store, &key, at, 1, Release { refused: true, in_flight: true, ..PAUSE }).await;
    let login = |over| store.save(&key, Save { over, version: version(8, 1), token: token("new") });
    assert!(!login(version(7, 1)).await.expect("save"), "it was refreshed since");
    assert!(login(at).await.expect("save"));
    assert!(!login(at).await.expect("save"), "not again");
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(8, 1), "new"));
    assert_eq!((row.leased_for, row.not_before), (None, None));
    assert!(!row.refused && !row.in_flight);
    assert!(!save(store, &key, at, "old").await);

    // Over a row without a token, whose lease lives.
    let key = some_key();
    assert!(claim(store, &key, 1, LONG, None).await.granted);
    let saved = store
        .save(&key, Save { over: version(1, 0), version: version(8, 1), token: token("new") })
        .await;
    assert!(saved.expect("save"));
    assert!(claim(store, &key, 2, LONG, Some(version(8, 1))).await.granted);
}

/// One of many logins at once over one version is saved, and the others know.
pub async fn one_of_many_logins_is_saved<S: TokenStore>(store: &Arc<S>) {
    for revision in [0, 1] {
        let key = some_key();
        assert!(claim(store, &key, 99, LONG, None).await.granted);
        if revision > 0 {
            assert!(save(store, &key, version(99, 0), "one").await);
        }
        let saves = crowd(|place| {
            let (store, key) = (store.clone(), key.clone());
            let login = version(place as u64, 1);
            async move {
                let saved = store
                    .save(
                        &key,
                        Save { over: version(99, revision), version: login, token: token("new") },
                    )
                    .await;
                saved.expect("save")
            }
        })
        .await;
        let there: Vec<_> = (0..CROWD).filter(|place| saves[*place]).collect();
        assert_eq!(there.len(), 1, "of {CROWD} logins at once, those of {there:?}");
        let row = read(store, &key).await.expect("the row");
        assert_eq!(row.version, version(there[0] as u64, 1));
    }
}

/// A forgotten user has no row, and a second `forget` says so.
pub async fn forget_removes_the_row<S: TokenStore>(store: &Arc<S>) {
    let [key, other] = [some_key(), some_key()];
    let forget = async |key| store.forget(key, None).await.expect("forget");
    assert!(!forget(&key).await, "nobody is there");
    put(store, &key, 7, "one").await;
    put(store, &other, 7, "one").await;
    assert!(claim(store, &key, 1, LONG, Some(version(7, 1))).await.granted);
    assert!(forget(&key).await, "whoever holds the lease");
    assert!(read(store, &key).await.is_none());
    assert!(read(store, &other).await.is_some(), "no other was forgotten");
    assert!(!forget(&key).await);
    let claimed = claim(store, &key, 2, LONG, None).await;
    assert!(claimed.granted, "a forgotten user can come back");
    assert!(!claimed.row.expect("the row").in_flight, "and has nothing of the earlier row");
    assert!(forget(&key).await, "without a token");
}

/// A `forget` with a version removes a row at that version only.
pub async fn forget_needs_the_given_version<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    let forget = async |version| store.forget(&key, Some(version)).await.expect("forget");
    assert!(!forget(version(7, 1)).await, "nobody is there");
    put(store, &key, 7, "one").await;
    for other in [version(7, 0), version(7, 2), version(8, 1)] {
        assert!(!forget(other).await, "{other:?} at 7, 1");
    }
    assert!(claim(store, &key, 1, LONG, Some(version(7, 1))).await.granted);
    assert!(read(store, &key).await.is_some(), "the row is still there");
    assert!(forget(version(7, 1)).await, "whoever holds the lease");
    assert!(read(store, &key).await.is_none());
    assert!(claim(store, &key, 1, LONG, None).await.granted);
    assert!(forget(version(1, 0)).await, "without a token");
}

/// A token is handed out as old as it was, and older by what has passed on the store's clock; when
/// it is due comes nearer by as much.
pub async fn token_ages_by_the_stores_clock<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    let (age, due_in) = (Duration::from_micros(100_000_001), LONG);
    let aged = StoredToken { age, due_in, ..token("one") };
    let begun = Instant::now();
    seed_row(store, &key, version(7, 1), aged).await;
    let judge = |row: Row| {
        // The store counts in whole milliseconds, maybe, and by another clock.
        let slack = Duration::from_secs(1);
        let token = row.token.expect("the token");
        assert!(token.age >= age, "{:?} old, and so younger than it came", token.age);
        assert!(token.age <= age + begun.elapsed() + slack, "{:?}", token.age);
        assert!(token.due_in <= due_in, "due in {:?}, later than it came", token.due_in);
        let passed = token.age.saturating_sub(age);
        assert!(
            (token.due_in + passed).abs_diff(due_in) < slack,
            "{passed:?} passed, but it is due in {:?}",
            token.due_in
        );
        passed
    };
    judge(read(store, &key).await.expect("the row"));
    wait_until("the token ages", || async {
        let row = read(store, &key).await.expect("the row");
        (judge(row) > SHORT).then_some(())
    })
    .await;
    let claimed = claim(store, &key, 1, LONG, Some(version(7, 1))).await;
    assert!(judge(claimed.row.expect("the row")) > SHORT, "in a claim too");

    let token = StoredToken { age, due_in: Duration::ZERO, ..token("one") };
    assert!(
        store
            .save(&key, Save { over: version(7, 1), version: version(7, 2), token })
            .await
            .expect("save")
    );
    let row = read(store, &key).await.expect("the row");
    let token = row.token.expect("the token");
    assert_eq!(token.due_in, Duration::ZERO, "never below zero");
    assert!(token.age < age + SHORT + PATIENCE, "a save brings its own age");
}

/// A payload may have any bytes: none, zeros, what is no text, and 64 KiB.
pub async fn payload_is_kept_byte_for_byte<S: TokenStore>(store: &Arc<S>) {
    let all: Vec<u8> = (0..=255).collect();
    for payload in [vec![], vec![0], vec![0xff, 0xfe], all.clone(), all.repeat(256)] {
        let key = some_key();
        let payload_of = || SecretBox::new(Box::new(payload.clone()));
        let token = || StoredToken { payload: payload_of(), ..token("") };
        seed_row(store, &key, version(7, 1), token()).await;
        assert!(
            store
                .save(&key, Save { over: version(7, 1), version: version(7, 2), token: token() })
                .await
                .expect("save")
        );
        let row = read(store, &key).await.expect("the row");
        let kept = row.token.expect("an empty payload is a token too");
        assert!(
            *kept.payload.expose_secret() == payload,
            "{} bytes became other {} bytes",
            payload.len(),
            kept.payload.expose_secret().len()
        );
    }
}

/// All that [`UserId`] allows is an id of its own: no case, space, form or width makes two one.
pub async fn odd_user_ids_are_kept_apart<S: TokenStore>(store: &Arc<S>) {
    let longest = ["é".repeat(128), "\u{10FFFF}".repeat(64), "x".repeat(256)];
    let ids = [
        "a",
        "A",
        "á",
        "a\u{301}",
        "à",
        "ａ",
        "a a",
        "a  a",
        "a\u{a0}a",
        "\u{200b}",
        "\u{feff}",
        "ß",
        "ss",
        "SS",
        "ẞ",
        "ı",
        "i",
        "İ",
        "I",
        "ﬁ",
        "fi",
        "\u{212b}",
        "\u{c5}",
        "A\u{30a}",
        "名前",
        "𝒜",
        "👩‍👩‍👧",
        "👩",
        "\u{fffd}",
        "\u{10FFFF}",
        "\u{e000}",
        "a\u{2028}a",
        "\u{202e}txt",
        "עברית",
        "%",
        "_",
        "%_",
        "*",
        "?",
        "a%b",
        "\\",
        "\\\\",
        "\\u0061",
        "'",
        "''",
        "\"",
        "`",
        ";",
        "--",
        "/*",
        "'; DROP TABLE hurdlr_tokens; --",
        "{}",
        "[]",
        "[\"a\"]",
        "{\"a\":1}",
        "null",
        "NULL",
        "true",
        "0",
        "00",
        "0.0",
        "-0",
        "1e3",
        "1000",
        "$1",
        "?1",
        ":a",
        "@a",
        "a:b",
        "a|b",
        "a,b",
        "a/b",
        "../a",
        "a\\0",
        "%00",
        "&amp;",
        "<a>",
    ]
    .into_iter()
    .chain(longest.iter().map(String::as_str));
    let realm = some_realm();
    let keys: Vec<_> = ids
        .map(|id| StoreKey::new(realm.clone(), RowKind::Login, UserId::new(id).expect("an id")))
        .collect();
    for (place, key) in keys.iter().enumerate() {
        let subject = key.subject().as_str();
        let claimed = claim(store, key, 1, LONG, None).await;
        assert!(claimed.granted, "{subject:?} was taken for another");
        put(store, key, place as u64, subject).await;
    }
    let rows = store.read(&keys).await.expect("read");
    for (place, (key, row)) in keys.iter().zip(rows).enumerate() {
        let subject = key.subject().as_str();
        let row = row.expect("read").unwrap_or_else(|| panic!("{subject:?} is not there"));
        assert_eq!((row.version.incarnation, text(&row)), (place as u64, subject));
    }
    let due: HashSet<_> = due(store, &realm, keys.len()).await.into_iter().collect();
    assert_eq!(due, keys.iter().cloned().collect(), "due says who it is");
}

/// One id as a user of another kind, API version, environment or client is another user.
pub async fn kinds_and_realms_are_kept_apart<S: TokenStore>(store: &Arc<S>) {
    let (id, user) = (fastrand::u64(..), UserId::new("ann").expect("an id"));
    let realm = |version, environment: &str, client: &str| {
        Arc::new(Realm::new(version, environment, format!("{client}{id}")))
    };
    let at = "https://one.example.com";
    let one = realm(ApiVersion::V4, at, "client");
    let realms = [
        one.clone(),
        realm(ApiVersion::V5, at, "client"),
        realm(ApiVersion::V6, at, "client"),
        realm(ApiVersion::V4, "https://one.example.com/", "client"),
        realm(ApiVersion::V4, "https://One.example.com", "client"),
        realm(ApiVersion::V4, at, "Client"),
        realm(ApiVersion::V4, "https://one.example.comc", "lient"),
    ];
    let mut keys: Vec<_> = realms
        .iter()
        .map(|realm| StoreKey::new(realm.clone(), RowKind::Login, user.clone()))
        .collect();
    for kind in
        [RowKind::Enterprise, RowKind::Partner, RowKind::PendingRevocation, RowKind::KeepAliveLock]
    {
        keys.push(StoreKey::new(one.clone(), kind, user.clone()));
    }
    let walk = keys.len() - 1;
    for (place, key) in keys.iter().enumerate() {
        let claimed = claim(store, key, 1 + place as u64, LONG, None).await;
        assert!(claimed.granted, "{place} was taken for another");
    }
    for (place, key) in keys.iter().enumerate().take(walk) {
        put(store, key, 100 + place as u64, "one").await;
    }
    for (place, row) in store.read(&keys).await.expect("read").into_iter().enumerate() {
        let row = row.expect("read").expect("each is there");
        let is = row.version.incarnation;
        assert_eq!(is, if place == walk { 1 } else { 100 } + place as u64);
    }
    let mut found = due(store, &one, 10).await;
    found.sort_by_key(StoreKey::kind);
    assert_eq!(found, [&keys[..1], &keys[realms.len()..walk]].concat(), "of one realm");
    assert!(store.forget(&keys[0], None).await.expect("forget"));
    let rest = store.read(&keys).await.expect("read");
    assert_eq!(rest.into_iter().filter_map(|row| row.expect("read")).count(), walk);
}

/// A read of many keys answers each in its place, known or not, and one asked for twice both times.
pub async fn read_answers_in_key_order<S: TokenStore>(store: &Arc<S>) {
    assert!(store.read(&[]).await.expect("read").is_empty());
    let keys: Vec<_> = (0..9).map(|_| some_key()).collect();
    for (place, key) in keys.iter().enumerate().filter(|(place, _)| place % 3 != 1) {
        put(store, key, place as u64, "one").await;
    }
    let asked: Vec<_> = [8, 0, 1, 5, 5, 4, 2, 0].map(|place| keys[place].clone()).into();
    let rows = store.read(&asked).await.expect("read");
    let places: Vec<_> =
        rows.into_iter().map(|row| Some(row.expect("read")?.version.incarnation)).collect();
    assert_eq!(places, [Some(8), Some(0), None, Some(5), Some(5), None, Some(2), Some(0)]);
}

/// One of many who redeem one login's state at once is the first, and nobody later is.
pub async fn state_is_redeemed_once<S: TokenStore>(store: &Arc<S>) {
    for _ in 0..8 {
        let [state, other] = [some_state(), some_state()];
        let firsts = crowd(|_| {
            let store = store.clone();
            async move { store.redeem(&state, LONG).await.expect("redeem") }
        })
        .await;
        let firsts = firsts.into_iter().filter(|first| *first).count();
        assert_eq!(firsts, 1, "of {CROWD} at once");
        assert!(!store.redeem(&state, LONG).await.expect("redeem"), "later");
        assert!(store.redeem(&other, LONG).await.expect("redeem"), "another");
    }
}

/// A state is remembered for its time, and not for longer, however often it is asked for.
pub async fn state_is_forgotten_after_its_time<S: TokenStore>(store: &Arc<S>) {
    let [state, other] = [some_state(), some_state()];
    assert!(store.redeem(&state, LONG).await.expect("redeem"));
    assert!(store.redeem(&other, SHORT).await.expect("redeem"));
    // These tries do not prolong it.
    wait_until("the other is forgotten", || async {
        let first = store.redeem(&other, SHORT).await.expect("redeem");
        first.then_some(())
    })
    .await;
    assert!(!store.redeem(&state, LONG).await.expect("redeem"));
}

/// The rows that are due come by how long they are, as many as were asked for.
pub async fn due_lists_the_longest_due_first<S: TokenStore>(store: &Arc<S>) {
    let realm = some_realm();
    let mut keys = Vec::new();
    for place in 0..5 {
        // Names and kinds are in another order.
        let kind = [RowKind::PendingRevocation, RowKind::Enterprise, RowKind::Partner][place % 3];
        let key = key_of(&realm, kind, &format!("user {}", place * 7 % 5));
        put(store, &key, 7, "one").await;
        // So that no clock is too coarse to tell the next from this one.
        let apart = Duration::from_millis(50);
        wait(store, &key, "time passes", |row| {
            row.token.as_ref().is_some_and(|token| token.age > apart)
        })
        .await;
        keys.push(key);
    }
    assert_eq!(due(store, &realm, 10).await, keys, "the longest due first");
    assert_eq!(due(store, &realm, 3).await, keys[..3], "the first three");
    assert!(due(store, &realm, 0).await.is_empty());
    assert!(due(store, &some_realm(), 10).await.is_empty(), "of another realm");

    let first = read(store, &keys[0]).await.expect("the row");
    assert!(save(store, &keys[0], first.version, "two").await);
    let found = due(store, &realm, 10).await;
    assert_eq!(found[..4], keys[1..], "a row with a new token goes to the end");
}

/// With a cursor, only rows come that are after it: each once in a walk, also among rows that
/// became due in the same instant, and whatever became of the rows before.
pub async fn due_goes_on_from_a_cursor<S: TokenStore>(store: &Arc<S>) {
    let realm = some_realm();
    // Some of them at the same time.
    let keys = crowd(|place| {
        let (store, realm) = (store.clone(), realm.clone());
        let kind = [RowKind::Login, RowKind::Enterprise, RowKind::Partner][place % 3];
        async move {
            let key = key_of(&realm, kind, &format!("user {}", place * 7 % CROWD));
            put(&store, &key, 7, "one").await;
            key
        }
    })
    .await;
    let walk = due(store, &realm, 100).await;
    assert_eq!(walk.len(), CROWD);
    assert_eq!(walk.iter().collect::<HashSet<_>>(), keys.iter().collect());
    for page in [1, 2, 3, CROWD - 1, CROWD, 100] {
        assert_eq!(due_all(store, &realm, page).await, walk, "{page} at a time");
    }

    // The rows of a page are renewed, leased, removed or left as they are before the next page.
    let at = version(7, 1);
    let (mut met, mut after): (Vec<StoreKey>, Option<DueCursor>) = (Vec::new(), None);
    for page in 0..CROWD / 4 {
        let rows = store.due(&realm, after.as_ref(), 4).await.expect("due");
        assert_eq!(rows.len(), 4, "page {page} after {met:?}");
        after = rows.last().map(|row| row.cursor.clone());
        let keys: Vec<_> = rows.into_iter().map(|row| row.key.expect("a key")).collect();
        let later = StoredToken { due_in: LONG, ..token("two") };
        assert!(
            store
                .save(&keys[0], Save { over: at, version: at.next(), token: later })
                .await
                .expect("save")
        );
        assert!(claim(store, &keys[1], 1, LONG, Some(at)).await.granted);
        assert!(store.forget(&keys[3], None).await.expect("forget"));
        met.extend(keys);
    }
    assert_eq!(met, walk, "each once, in the same order");
    assert!(store.due(&realm, after.as_ref(), 4).await.expect("due").is_empty(), "no more");
}

/// Rows without a token or with one that is not due, and leased, paused and refused rows are left
/// out.
pub async fn due_leaves_out_unclaimable_rows<S: TokenStore>(store: &Arc<S>) {
    let realm = some_realm();
    let key = |name| key_of(&realm, RowKind::Login, name);
    let at = version(7, 1);
    for name in ["due", "leased", "paused", "refused"] {
        put(store, &key(name), 7, "one").await;
    }
    let later = StoredToken { due_in: LONG, ..token("one") };
    seed_row(store, &key("later"), version(7, 1), later).await;
    assert!(claim(store, &key("empty"), 1, SHORT, None).await.granted);
    let walk = key_of(&realm, RowKind::KeepAliveLock, "walk");
    assert!(claim(store, &walk, 1, SHORT, None).await.granted);
    assert!(claim(store, &key("leased"), 1, LONG, Some(at)).await.granted);
    for (name, release) in [("paused", PAUSE), ("refused", REFUSAL)] {
        assert!(claim(store, &key(name), 1, LONG, Some(at)).await.granted);
        self::release(store, &key(name), at, 1, release).await;
    }
    wait(store, &walk, "the leases end", |row| row.leased_for.is_none()).await;
    assert_eq!(due(store, &realm, 10).await, [key("due")]);

    release(store, &key("leased"), at, 1, QUIET).await;
    let found: HashSet<_> = due(store, &realm, 10).await.into_iter().collect();
    assert_eq!(found, [key("due"), key("leased")].into(), "after a release");
}

/// A walk, page by page, meets every row of the realm that has a token once, and goes on from a row
/// that has gone since.
pub async fn scan_meets_every_token_once<S: TokenStore>(store: &Arc<S>) {
    let realm = some_realm();
    let mut keys = HashSet::new();
    for place in 0..9_u64 {
        for kind in
            [RowKind::Login, RowKind::Enterprise, RowKind::Partner, RowKind::PendingRevocation]
        {
            let key = key_of(&realm, kind, &format!("user {place}"));
            put(store, &key, place, &format!("{kind:?} {place}")).await;
            keys.insert(key);
        }
    }
    put(store, &key_of(&some_realm(), RowKind::Login, "user 1"), 7, "of another realm").await;
    for kind in [RowKind::Login, RowKind::KeepAliveLock] {
        let empty = key_of(&realm, kind, "empty");
        assert!(claim(store, &empty, 1, LONG, None).await.granted);
    }
    // A refused row is met like any other.
    let refused = key_of(&realm, RowKind::Login, "user 3");
    assert!(claim(store, &refused, 1, LONG, Some(version(3, 1))).await.granted);
    release(store, &refused, version(3, 1), 1, REFUSAL).await;

    let mut met = Vec::new();
    for page in [1, 2, 4, 18, 100] {
        met = scan_all(store, &realm, page).await;
        for (key, row) in &met {
            let place = row.version.incarnation;
            assert_eq!(key.subject().as_str(), format!("user {place}"));
            assert_eq!(text(row), format!("{:?} {place}", key.kind()));
            assert_eq!(row.refused, *key == refused, "a scan tells what a read does");
        }
        assert_eq!(met.len(), keys.len(), "each once, {page} at a time");
        let met: HashSet<_> = met.iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(met, keys, "{page} at a time");
    }
    assert!(store.scan(&realm, None, 0).await.expect("scan").is_empty());

    let gone = &met[4].0;
    assert!(store.forget(gone, None).await.expect("forget"));
    let rest = store.scan(&realm, Some(gone), 100).await.expect("scan");
    let rest: Vec<_> = rest.iter().map(|(key, _)| key).collect();
    let expected: Vec<_> = met[5..].iter().map(|(key, _)| key).collect();
    assert_eq!(rest, expected, "the walk goes on in its order");
}

async fn rewrite<S: TokenStore>(
    store: &Arc<S>,
    key: &StoreKey,
    version: Version,
    old: &str,
    new: &str,
) -> Result<bool, Error> {
    let [old, new] = [old, new].map(|text| token(text).payload);
    let done = store.rewrite(vec![Rewrite { key: key.clone(), version, old, new }]).await?;
    assert_eq!(done.len(), 1, "one answer per row");
    Ok(done[0])
}

/// A rewrite needs version and payload, and changes the payload: the revision stays, so does a
/// lease with all that hangs on it, and its holder saves as if nothing had been.
pub async fn rewrite_changes_the_payload_only<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    let rewrite = async |at, old, new| rewrite(store, &key, at, old, new).await.expect("rewrite");
    let at = version(7, 1);
    assert!(!rewrite(at, "one", "other").await, "there is no row");
    assert!(read(store, &key).await.is_none(), "a rewrite makes no row");
    let aged = StoredToken { age: LONG, due_in: LONG, ..token("one") };
    seed_row(store, &key, version(7, 1), aged).await;
    for (at, old) in [
        (version(7, 0), "one"),
        (version(7, 2), "one"),
        (version(8, 1), "one"),
        (at, "on"),
        (at, "one "),
        (at, ""),
    ] {
        assert!(!rewrite(at, old, "other").await, "{at:?}, {old:?}");
    }
    assert_eq!(text(&read(store, &key).await.expect("the row")), "one");

    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    assert!(rewrite(at, "one", "other").await);
    assert!(!rewrite(at, "one", "again").await, "its payload is another now");
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (at, "other"));
    assert_lease(&row, LONG);
    assert!(!row.refused && !row.in_flight && row.not_before.is_none());
    let kept = row.token.expect("the token");
    assert!(kept.age >= LONG && kept.age < LONG + PATIENCE, "{:?} old", kept.age);
    assert!(kept.due_in <= LONG && kept.due_in > LONG / 2, "due in {:?}", kept.due_in);
    assert!(save(store, &key, at, "two").await, "a refresh in flight is not disturbed");
    assert!(!rewrite(at, "other", "late").await);
    assert_eq!(text(&read(store, &key).await.expect("the row")), "two");

    let empty = some_key();
    let made = claim(store, &empty, 1, LONG, None).await.row.expect("the row");
    let done = self::rewrite(store, &empty, made.version, "", "new").await.expect("rewrite");
    assert!(!done, "no token is not an empty one");
}

/// Many rows are rewritten at once, of several realms and kinds; each answer is its row's own.
pub async fn many_rows_are_rewritten_at_once<S: TokenStore>(store: &Arc<S>) {
    assert!(store.rewrite(Vec::new()).await.expect("rewrite").is_empty());
    let keys: Vec<_> = (0..40).map(|_| some_key()).collect();
    for key in &keys {
        put(store, key, 7, "one").await;
    }
    let rewrites: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(place, key)| Rewrite {
            key: key.clone(),
            version: version(7, if place % 3 == 1 { 2 } else { 1 }),
            old: token(if place % 3 == 2 { "two" } else { "one" }).payload,
            new: token(&format!("new {place}")).payload,
        })
        .collect();
    let done = store.rewrite(rewrites).await.expect("rewrite");
    for (place, (key, is_done)) in keys.iter().zip(done).enumerate() {
        assert_eq!(is_done, place % 3 == 0, "{place}");
        let expected = if is_done { format!("new {place}") } else { "one".into() };
        assert_eq!(text(&read(store, key).await.expect("the row")), expected);
    }
}

/// A call whose answer was lost can be repeated: a second `forget`, `redeem`, `save` or `rewrite`
/// then says no, which a read of the row explains.
pub async fn lost_answers_can_be_repeated<S: TokenStore>(store: &Arc<S>) {
    let faulty = &Arc::new(FaultyStore::new(store.clone()));
    for fault in [StoreFault::Before, StoreFault::After] {
        let lose = |call: StoreCall| {
            let mut lost = false;
            faulty.plan(move |asked| {
                (asked == call && !std::mem::replace(&mut lost, true)).then_some(fault)
            });
        };
        let done = fault == StoreFault::After;
        let key = some_key();

        lose(StoreCall::Claim);
        faulty.claim(&key, ask(1, LONG, None)).await.expect_err("lost");
        assert_eq!(read(faulty, &key).await.is_some(), done, "{fault:?}");
        let claimed = claim(faulty, &key, 1, LONG, None).await;
        assert!(claimed.granted, "a repeated claim");
        let made = claimed.row.expect("the row");
        assert_eq!(made.in_flight, done, "the lost claim was not released");

        lose(StoreCall::Save);
        faulty
            .save(
                &key,
                Save { over: made.version, version: made.version.next(), token: token("one") },
            )
            .await
            .expect_err("lost");
        let again = save(faulty, &key, made.version, "one").await;
        assert_eq!(again, !done, "a repeated save");
        let row = read(faulty, &key).await.expect("the row");
        assert_eq!((row.version, text(&row)), (made.version.next(), "one"));

        for call in [StoreCall::Read, StoreCall::Due, StoreCall::Scan] {
            lose(call);
            let keys = std::slice::from_ref(&key);
            match call {
                StoreCall::Read => drop(faulty.read(keys).await.expect_err("lost")),
                StoreCall::Due => drop(faulty.due(key.realm(), None, 1).await.expect_err("lost")),
                _ => drop(faulty.scan(key.realm(), None, 1).await.expect_err("lost")),
            }
            assert_eq!(due(faulty, key.realm(), 2).await, keys);
            assert_eq!(scan_all(faulty, key.realm(), 2).await.len(), 1);
        }

        lose(StoreCall::Rewrite);
        let rewritten = rewrite(faulty, &key, row.version, "one", "other").await;
        rewritten.expect_err("lost");
        let again = rewrite(faulty, &key, row.version, "one", "other").await;
        assert_eq!(again.expect("rewrite"), !done, "a repeated rewrite");
        assert_eq!(text(&read(faulty, &key).await.expect("the row")), "other");

        lose(StoreCall::Save);
        let login =
            |over| faulty.save(&key, Save { over, version: version(9, 1), token: token("two") });
        login(row.version).await.expect_err("lost");
        assert_eq!(login(row.version).await.expect("save"), !done, "a repeated login");
        let at = version(9, 1);
        assert!(claim(faulty, &key, 2, LONG, Some(at)).await.granted);

        lose(StoreCall::Release);
        faulty.release(&key, at, 2, PAUSE).await.expect_err("lost");
        release(faulty, &key, at, 2, PAUSE).await;
        let row = read(faulty, &key).await.expect("the row");
        assert!(row.leased_for.is_none() && row.not_before.is_some());

        lose(StoreCall::Forget);
        faulty.forget(&key, None).await.expect_err("lost");
        assert_eq!(faulty.forget(&key, None).await.expect("forget"), !done);
        assert!(read(faulty, &key).await.is_none());

        let state = some_state();
        lose(StoreCall::Redeem);
        faulty.redeem(&state, LONG).await.expect_err("lost");
        assert_eq!(faulty.redeem(&state, LONG).await.expect("redeem"), !done);
    }
}

/// `count` users are kept, read back many at a time, and walked by who is due.
pub async fn many_users_are_kept<S: TokenStore>(store: &Arc<S>, count: usize) {
    let realm = some_realm();
    let key = |place: usize| key_of(&realm, RowKind::Enterprise, &format!("user {place}"));
    let late = |place: usize| place % 1_000 == 7;
    let mut tasks = JoinSet::new();
    for worker in 0..CROWD {
        let (store, realm) = (store.clone(), realm.clone());
        tasks.spawn(async move {
            for place in (worker..count).step_by(CROWD) {
                let subject = format!("user {place}");
                let key = key_of(&realm, RowKind::Enterprise, &subject);
                let token = StoredToken {
                    due_in: if late(place) { Duration::ZERO } else { LONG },
                    ..token(&subject)
                };
                seed_row(&store, &key, version(place as u64, 1), token).await;
            }
        });
    }
    all(tasks).await;

    let places: Vec<_> = (0..count).collect();
    for places in places.chunks(2_500) {
        let keys: Vec<_> = places.iter().map(|place| key(*place)).collect();
        let rows = store.read(&keys).await.expect("read");
        assert_eq!(rows.len(), keys.len());
        for (place, row) in places.iter().zip(rows) {
            let row = row.expect("read");
            let row = row.unwrap_or_else(|| panic!("user {place} of {count} is not there"));
            assert_eq!(row.version, version(*place as u64, 1));
            assert_eq!(text(&row), format!("user {place}"));
        }
    }
    let found: HashSet<_> = due(store, &realm, count).await.into_iter().collect();
    let expected: HashSet<_> = (0..count).filter(|place| late(*place)).map(key).collect();
    assert_eq!(found.len(), expected.len(), "so many are due");
    assert!(found == expected, "others are due");

    let met = scan_all(store, &realm, 1_000.max(count / 20)).await;
    assert_eq!(met.len(), count, "a scan meets so many");
    let met: HashSet<_> = met.into_iter().map(|(_, row)| row.version.incarnation).collect();
    assert_eq!(met.len(), count, "and each of them once");
}

fn some_realm() -> Arc<Realm> {
    let client_id = format!("contract-{:016x}", fastrand::u64(..));
    Arc::new(Realm::new(ApiVersion::V4, "https://store.example.com", client_id))
}

fn key_of(realm: &Arc<Realm>, kind: RowKind, subject: &str) -> StoreKey {
    let subject = UserId::new(subject).expect("an id");
    StoreKey::new(realm.clone(), kind, subject)
}

fn some_key() -> StoreKey {
    key_of(&some_realm(), RowKind::Login, "ann")
}

fn some_state() -> [u8; 32] {
    std::array::from_fn(|_| fastrand::u8(..))
}

fn version(incarnation: u64, revision: u64) -> Version {
    Version { incarnation, revision }
}

/// A token that is due.
fn token(text: &str) -> StoredToken {
    StoredToken {
        payload: SecretBox::new(Box::new(text.into())),
        age: Duration::ZERO,
        due_in: Duration::ZERO,
    }
}

fn text(row: &Row) -> &str {
    let token = row.token.as_ref().expect("the row has a token");
    std::str::from_utf8(token.payload.expose_secret()).expect("a payload that was put as text")
}

/// Where the user is not known, the row is made under the holder's number.
fn ask(holder: u64, lease: Duration, known: Option<Version>) -> Claim {
    Claim { holder, lease, known, create: known.is_none().then_some(holder) }
}

async fn claim<S: TokenStore>(
    store: &S,
    key: &StoreKey,
    holder: u64,
    lease: Duration,
    known: Option<Version>,
) -> Claimed {
    store.claim(key, ask(holder, lease, known)).await.expect("claim")
}

/// Claims until it is granted, by the store's clock.
async fn claim_in_time<S: TokenStore>(
    store: &S,
    key: &StoreKey,
    holder: u64,
    known: Option<Version>,
) -> Claimed {
    wait_until("a claim is granted", || async {
        Some(claim(store, key, holder, LONG, known).await).filter(|claimed| claimed.granted)
    })
    .await
}

async fn read<S: TokenStore>(store: &S, key: &StoreKey) -> Option<Row> {
    let mut rows = store.read(std::slice::from_ref(key)).await.expect("read");
    assert_eq!(rows.len(), 1, "a read answers each key");
    rows.pop().and_then(|row| row.expect("read"))
}

async fn save<S: TokenStore>(store: &S, key: &StoreKey, at: Version, text: &str) -> bool {
    store.save(key, Save { over: at, version: at.next(), token: token(text) }).await.expect("save")
}

async fn put<S: TokenStore>(store: &S, key: &StoreKey, incarnation: u64, text: &str) {
    seed_row(store, key, version(incarnation, 1), token(text)).await;
}

async fn release<S: TokenStore>(
    store: &S,
    key: &StoreKey,
    at: Version,
    holder: u64,
    release: Release,
) {
    store.release(key, at, holder, release).await.expect("release");
}

/// A whole walk, `page` at a time.
async fn scan_all<S: TokenStore>(
    store: &S,
    realm: &Arc<Realm>,
    page: usize,
) -> Vec<(StoreKey, Row)> {
    let mut met: Vec<(StoreKey, Row)> = Vec::new();
    loop {
        let after = met.last().map(|(key, _)| key);
        let rows = store.scan(realm, after, page).await.expect("scan");
        assert!(rows.len() <= page, "{} of a page of {page}", rows.len());
        assert!(rows.iter().all(|(key, _)| Some(key) != after), "only rows after {after:?}");
        let is_last = rows.len() < page;
        met.extend(rows.into_iter().map(|(key, row)| (key, row.expect("a row"))));
        if is_last {
            return met;
        }
    }
}

/// A whole walk over the due rows, `page` at a time.
async fn due_all<S: TokenStore>(store: &S, realm: &Arc<Realm>, page: usize) -> Vec<StoreKey> {
    let (mut met, mut after): (_, Option<DueCursor>) = (Vec::new(), None);
    loop {
        let rows = store.due(realm, after.as_ref(), page).await.expect("due");
        assert!(rows.len() <= page, "{} of a page of {page}", rows.len());
        let is_after = rows.iter().all(|row| Some(&row.cursor) != after.as_ref());
        assert!(is_after, "only rows after {after:?}");
        let is_last = rows.len() < page;
        after = rows.last().map(|row| row.cursor.clone());
        met.extend(rows.into_iter().map(|row| row.key.expect("a key")));
        if is_last {
            return met;
        }
    }
}

async fn due<S: TokenStore>(store: &S, realm: &Arc<Realm>, limit: usize) -> Vec<StoreKey> {
    let rows = store.due(realm, None, limit).await.expect("due");
    rows.into_iter().map(|row| row.key.expect("a key")).collect()
}

fn assert_lease(row: &Row, lease: Duration) {
    let left = row.leased_for;
    assert!(
        left > Some(lease / 2) && left <= Some(lease),
        "of a lease of {lease:?}, {left:?} is left"
    );
}

fn assert_one_granted(claims: &[Claimed]) {
    let granted = claims.iter().filter(|claimed| claimed.granted).count();
    assert_eq!(granted, 1, "of {} claims at once", claims.len());
}

/// Has all of a crowd do something at once.
async fn crowd<T, F>(act: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for place in 0..CROWD {
        let act = act(place);
        tasks.spawn(async move { (place, act.await) });
    }
    let mut done = all(tasks).await;
    done.sort_unstable_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn all<T: Send + 'static>(mut tasks: JoinSet<T>) -> Vec<T> {
    let mut done = Vec::new();
    while let Some(task) = tasks.join_next().await {
        match task {
            Ok(outcome) => done.push(outcome),
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
    done
}

async fn wait<S: TokenStore>(
    store: &S,
    key: &StoreKey,
    what: &str,
    is_so: impl Fn(&Row) -> bool,
) -> Row {
    wait_until(what, || async { read(store, key).await.filter(|row| is_so(row)) }).await
}

/// Polls the store, since only it knows what time it is.
async fn wait_until<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
