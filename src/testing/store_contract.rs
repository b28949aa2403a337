//! What every [`TokenStore`] promises, as tests: prove your own store by them.
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

use super::{FaultyStore, StoreCall, StoreFault};
use crate::endpoint::ApiVersion;
use crate::store::{
    Claim, Claimed, Put, Realm, Release, Row, RowKind, StoreKey, StoredToken, TokenStore, Version,
};
use crate::user::UserId;

/// A lease that runs out while a test waits. Above what a file's lock may cost.
const SHORT: Duration = Duration::from_millis(400);

/// A span that no test outlives.
const LONG: Duration = Duration::from_secs(600);

/// How long a test waits for what a store's clock is to bring about.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many ask at once.
const CROWD: usize = 16;

/// Proves every promise, the last with 1,000 users.
pub async fn prove<S: TokenStore>(store: S) {
    let store = &Arc::new(store);
    a_first_claim_makes_the_row(store).await;
    a_claim_needs_the_version_it_expects(store).await;
    a_claim_for_a_user_without_a_token_is_not_granted_once_there_is_one(store).await;
    one_of_many_first_claims_is_granted(store).await;
    one_of_many_claims_of_a_version_is_granted(store).await;
    a_holder_can_claim_again(store).await;
    a_lease_ends_by_itself_and_leaves_in_flight(store).await;
    a_release_frees_the_row_after_not_before(store).await;
    a_release_of_another_lease_or_version_changes_nothing(store).await;
    a_refused_row_is_not_claimed_until_it_has_a_new_token(store).await;
    a_save_needs_incarnation_and_revision(store).await;
    one_of_many_saves_of_a_version_is_done(store).await;
    a_save_is_done_after_the_lease_was_lost(store).await;
    an_old_save_does_not_bring_a_user_back(store).await;
    a_put_replaces_all_of_another_stay(store).await;
    a_put_if_absent_leaves_a_token_alone(store).await;
    a_repeated_put_changes_nothing(store).await;
    one_of_many_puts_if_absent_is_there(store).await;
    forget_removes_the_row(store).await;
    a_token_ages_by_the_stores_clock(store).await;
    a_payload_is_kept_byte_for_byte(store).await;
    odd_user_ids_are_kept_apart(store).await;
    users_of_other_kinds_and_realms_are_others(store).await;
    a_read_answers_in_the_order_of_its_keys(store).await;
    a_state_is_redeemed_once(store).await;
    a_state_is_forgotten_after_its_time(store).await;
    due_finds_the_longest_due_first(store).await;
    due_leaves_out_who_cannot_be_refreshed(store).await;
    a_scan_meets_every_token_once(store).await;
    a_rewrite_changes_the_payload_and_nothing_else(store).await;
    a_call_whose_answer_was_lost_can_be_repeated(store).await;
    many_users_are_kept(store, 1_000).await;
}

/// A claim for an unknown user makes a row without a token, under the incarnation it brings, and
/// has its lease. Where a version was expected, it makes nothing.
pub async fn a_first_claim_makes_the_row<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    let claimed = claim(store, &key, 1, LONG, Some(version(7, 3))).await;
    assert!(
        !claimed.granted && claimed.row.is_none(),
        "a claim that expects a version is not granted without a row"
    );
    assert!(read(store, &key).await.is_none(), "a claim that expects a version makes no row");

    let ask = Claim { incarnation: 4711, ..ask(1, LONG, None) };
    let claimed = store.claim(&key, ask).await.expect("claim");
    assert!(claimed.granted, "a first claim is granted");
    let row = claimed.row.expect("a first claim returns the row it made");
    assert_eq!(row.version, version(4711, 0), "the row that was made");
    assert!(row.token.is_none(), "the row that was made has no token");
    assert!(!row.refused && !row.in_flight, "and no mark");
    assert_lease(&row, LONG);
    assert_eq!(row.not_before, None);
    let row = read(store, &key).await.expect("the row was made");
    assert_eq!(row.version, version(4711, 0));
    assert_lease(&row, LONG);
}

/// A claim is granted at the very version it expects: other revisions and incarnations get the row
/// as it is, and no lease.
pub async fn a_claim_needs_the_version_it_expects<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    for other in [version(7, 0), version(7, 2), version(8, 1), version(0, 1)] {
        let claimed = claim(store, &key, 1, LONG, Some(other)).await;
        assert!(!claimed.granted, "a claim of {other:?} at 7, 1");
        let row = claimed.row.expect("the row as it is");
        assert_eq!(row.version, version(7, 1));
        assert_eq!(text(&row), "one");
        assert_eq!(row.leased_for, None, "who was not granted has no lease");
    }
    let claimed = claim(store, &key, 1, LONG, Some(version(7, 1))).await;
    assert!(claimed.granted, "a claim of the version that is there");
    let row = claimed.row.expect("the row");
    assert_eq!(text(&row), "one", "a claim returns the token");
    assert_lease(&row, LONG);
}

/// A claim that expects no token is for rows without one: a token that is there is returned.
pub async fn a_claim_for_a_user_without_a_token_is_not_granted_once_there_is_one<S: TokenStore>(
    store: &Arc<S>,
) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let claimed = claim(store, &key, 1, LONG, None).await;
    assert!(!claimed.granted, "there is a token");
    let row = claimed.row.expect("the row as it is");
    assert_eq!((row.version, text(&row)), (version(7, 1), "one"));
    assert_eq!(row.leased_for, None);
}

/// Of many claims at once for a user who is not there, one is granted, and all get its row.
pub async fn one_of_many_first_claims_is_granted<S: TokenStore>(store: &Arc<S>) {
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

/// Of many claims at once of one version, one is granted, and all get the row.
pub async fn one_of_many_claims_of_a_version_is_granted<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    for revision in 1..8 {
        let expected = version(7, revision);
        let claims = crowd(|place| {
            let (store, key) = (store.clone(), key.clone());
            async move { claim(&store, &key, 1 + place as u64, LONG, Some(expected)).await }
        })
        .await;
        assert_one_granted(&claims);
        for claimed in &claims {
            let row = claimed.row.as_ref().expect("all get the row");
            assert_eq!(row.version, expected);
            assert!(!row.in_flight, "no lease ran out");
            assert_lease(row, LONG);
        }
        assert!(save(store, &key, expected, "next").await);
    }
}

/// A claim under the lease id that holds the lease prolongs it, and marks nothing.
pub async fn a_holder_can_claim_again<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let at = Some(version(7, 1));
    assert!(claim(store, &key, 1, LONG, at).await.granted);
    let again = claim(store, &key, 1, 2 * LONG, at).await;
    assert!(again.granted, "who holds the lease can claim again");
    let row = again.row.expect("the row");
    assert!(row.leased_for > Some(LONG), "the lease starts anew");
    assert!(!row.in_flight, "nobody fell silent");
    assert!(!claim(store, &key, 2, LONG, at).await.granted, "another cannot");

    // Not even a lease of one's own that ran out leaves a mark.
    let key = some_key();
    put(store, &key, 7, "one").await;
    assert!(claim(store, &key, 1, SHORT, at).await.granted);
    let row = wait(store, &key, "the lease ends", |row| row.leased_for.is_none()).await;
    assert!(!row.in_flight, "that is for the next claim to say");
    let again = claim(store, &key, 1, LONG, at).await;
    assert!(again.granted && !again.row.expect("the row").in_flight);
}

/// A lease that nobody released ends by the store's clock. Whoever claims then is told that the
/// earlier holder fell silent, until there is a new token.
pub async fn a_lease_ends_by_itself_and_leaves_in_flight<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let at = Some(version(7, 1));
    let first = claim(store, &key, 1, SHORT, at).await;
    assert!(first.granted);
    let left = first.row.expect("the row").leased_for;
    assert!(left.is_some() && left <= Some(SHORT), "{left:?} is left");

    let claimed = wait_until("another can claim", || async {
        let claimed = claim(store, &key, 2, LONG, at).await;
        claimed.granted.then_some(claimed)
    })
    .await;
    let row = claimed.row.expect("the row");
    assert!(row.in_flight, "the first holder may have sent the token");
    assert_lease(&row, LONG);

    // The mark stays although this holder says how it went.
    store.release(&key, version(7, 1), 2, Release::default()).await.expect("release");
    let third = claim(store, &key, 3, LONG, at).await;
    assert!(third.granted && third.row.expect("the row").in_flight);
    assert!(save(store, &key, version(7, 1), "two").await);
    let row = read(store, &key).await.expect("the row");
    assert!(!row.in_flight, "the mark goes with the token it is about");

    // A first claim's holder falls silent as any other.
    let key = some_key();
    assert!(claim(store, &key, 1, SHORT, None).await.granted);
    let claimed = wait_until("another can claim", || async {
        let claimed = claim(store, &key, 2, LONG, None).await;
        claimed.granted.then_some(claimed)
    })
    .await;
    assert!(claimed.row.expect("the row").in_flight);
}

/// A released row can be claimed after `not_before` has passed, at once where that is zero, and
/// carries no mark of it.
pub async fn a_release_frees_the_row_after_not_before<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let (at, pause) = (version(7, 1), SHORT);
    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    release(store, &key, at, 1, Release::default()).await;
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.leased_for, row.not_before), (None, None));
    let claimed = claim(store, &key, 2, LONG, Some(at)).await;
    assert!(claimed.granted, "a released row is free");
    assert!(!claimed.row.expect("the row").in_flight, "who released did not fall silent");

    let long = Release { not_before: LONG, ..Release::default() };
    release(store, &key, at, 2, long).await;
    let row = read(store, &key).await.expect("the row");
    assert_eq!(row.leased_for, None);
    assert!(
        row.not_before > Some(LONG / 2) && row.not_before <= Some(LONG),
        "not_before is {:?}",
        row.not_before
    );
    for lease_id in [2, 3] {
        let claimed = claim(store, &key, lease_id, LONG, Some(at)).await;
        assert!(!claimed.granted, "nobody, before not_before has passed");
    }
    assert!(save(store, &key, at, "two").await, "a save needs no pause");
    let row = read(store, &key).await.expect("the row");
    assert_eq!(row.not_before, None, "a new token ends the pause");

    let at = at.next();
    assert!(claim(store, &key, 3, LONG, Some(at)).await.granted);
    let short = Release { not_before: pause, ..Release::default() };
    release(store, &key, at, 3, short).await;
    wait_until("not_before passes", || async {
        claim(store, &key, 4, LONG, Some(at)).await.granted.then_some(())
    })
    .await;
}

/// A release does nothing to a lease it does not hold, to another version, or to nobody's row.
pub async fn a_release_of_another_lease_or_version_changes_nothing<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    let at = version(7, 1);
    let pause = Release { not_before: LONG, refused: false };
    let refusal = Release { not_before: LONG, refused: true };
    release(store, &key, at, 1, refusal).await;
    assert!(read(store, &key).await.is_none(), "a release makes no row");

    put(store, &key, 7, "one").await;
    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    release(store, &key, at, 2, pause).await;
    for other in [version(7, 0), version(7, 2), version(8, 1)] {
        release(store, &key, other, 1, refusal).await;
    }
    let row = read(store, &key).await.expect("the row");
    assert_lease(&row, LONG);
    assert_eq!(row.not_before, None);
    assert!(!row.refused);

    // What the provider said of this revision holds, whoever was told.
    release(store, &key, at, 2, refusal).await;
    let row = read(store, &key).await.expect("the row");
    assert!(row.refused, "a refusal counts without the lease");
    assert_lease(&row, LONG);
    assert_eq!(row.not_before, None, "only the holder makes a pause");
}

/// A row whose refresh token was refused is claimed by nobody. A save at its revision, of a holder
/// who was paused, clears the mark, and so does a put.
pub async fn a_refused_row_is_not_claimed_until_it_has_a_new_token<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let refusal = Release { refused: true, ..Release::default() };
    let at = version(7, 1);
    assert!(claim(store, &key, 1, LONG, Some(at)).await.granted);
    release(store, &key, at, 1, refusal).await;
    let row = read(store, &key).await.expect("a refused row is kept");
    assert!(row.refused && row.leased_for.is_none());
    assert_eq!(text(&row), "one", "with its token");
    for lease_id in [1, 2] {
        let claimed = claim(store, &key, lease_id, LONG, Some(at)).await;
        assert!(!claimed.granted, "a refused row is not claimed");
        assert!(claimed.row.expect("the row").refused);
    }

    assert!(save(store, &key, at, "two").await, "a paused holder wins");
    let row = read(store, &key).await.expect("the row");
    assert!(!row.refused, "the new token was not refused");
    let at = at.next();
    assert!(claim(store, &key, 2, LONG, Some(at)).await.granted);
    release(store, &key, at, 2, refusal).await;
    put(store, &key, 8, "three").await;
    let claimed = claim(store, &key, 3, LONG, Some(version(8, 1))).await;
    assert!(claimed.granted, "after a put there is a new token");

    // The same of a row that has no token yet.
    let key = some_key();
    assert!(claim(store, &key, 1, LONG, None).await.granted);
    release(store, &key, version(1, 0), 1, refusal).await;
    assert!(!claim(store, &key, 2, LONG, None).await.granted);
}

/// A save is done at the very version it consumed, makes the next, and ends lease and marks.
pub async fn a_save_needs_incarnation_and_revision<S: TokenStore>(store: &Arc<S>) {
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
    assert!(save(store, &key, row.version, "two").await);
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(7, 2), "two"));
    assert_eq!((row.leased_for, row.not_before), (None, None));
    assert!(!save(store, &key, version(7, 1), "x").await, "not again");

    // The first token of a row that a claim made.
    let key = some_key();
    let made = claim(store, &key, 1, LONG, None).await.row.expect("the row");
    assert!(save(store, &key, made.version, "first").await);
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (made.version.next(), "first"));

    // The largest numbers there are.
    let key = some_key();
    let most = (1 << 63) - 1;
    put(store, &key, most, "one").await;
    let claimed = claim(store, &key, most, LONG, Some(version(most, 1))).await;
    assert!(claimed.granted, "2⁶³ - 1 is a lease id and an incarnation");
    assert!(save(store, &key, version(most, 1), "two").await);
}

/// Of many saves at once over one version, one is done.
pub async fn one_of_many_saves_of_a_version_is_done<S: TokenStore>(store: &Arc<S>) {
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

/// A holder who was paused for longer than its lease may hold the only refresh token that lives:
/// its save is done, and the later holder's is not.
pub async fn a_save_is_done_after_the_lease_was_lost<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let at = version(7, 1);
    assert!(claim(store, &key, 1, SHORT, Some(at)).await.granted);
    wait_until("another has the lease", || async {
        claim(store, &key, 2, LONG, Some(at)).await.granted.then_some(())
    })
    .await;
    assert!(save(store, &key, at, "of the first").await, "a save must not ask for the lease");
    assert!(!save(store, &key, at, "of the second").await);
    let row = read(store, &key).await.expect("the row");
    assert_eq!(text(&row), "of the first");
    assert_eq!(row.leased_for, None, "a save ends any lease");
}

/// A save of an earlier stay finds nothing, whether the user is gone or has come back since.
pub async fn an_old_save_does_not_bring_a_user_back<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    let old = version(7, 1);
    assert!(claim(store, &key, 1, LONG, Some(old)).await.granted);
    assert!(store.forget(&key).await.expect("forget"));
    assert!(!save(store, &key, old, "old").await, "the user was forgotten");
    assert!(read(store, &key).await.is_none(), "and stays so");

    // The same revision, of another stay.
    put(store, &key, 8, "new").await;
    assert!(!save(store, &key, old, "old").await, "the user is back");
    let refusal = Release { not_before: LONG, refused: true };
    release(store, &key, old, 1, refusal).await;
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(8, 1), "new"));
    assert!(!row.refused && row.not_before.is_none());
    assert_eq!(row.leased_for, None, "a lease does not outlive its stay");
}

/// A put that replaces leaves nothing of another stay: no lease, pause or mark.
pub async fn a_put_replaces_all_of_another_stay<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    assert!(save(store, &key, version(7, 1), "two").await);
    let at = version(7, 2);
    assert!(claim(store, &key, 1, SHORT, Some(at)).await.granted);
    wait_until("the lease is lost", || async {
        claim(store, &key, 2, LONG, Some(at)).await.granted.then_some(())
    })
    .await;
    let refusal = Release { not_before: LONG, refused: true };
    release(store, &key, at, 2, refusal).await;
    put(store, &key, 8, "new").await;
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(8, 1), "new"));
    assert_eq!((row.leased_for, row.not_before), (None, None));
    assert!(!row.refused && !row.in_flight);
    assert!(!save(store, &key, at, "old").await);

    // And takes the place of a row without a token.
    let key = some_key();
    assert!(claim(store, &key, 1, LONG, None).await.granted);
    put(store, &key, 9, "first").await;
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(9, 1), "first"));
    assert_eq!(row.leased_for, None);
}

/// A put of what may be there already never replaces a token, and takes the place of a row
/// without one.
pub async fn a_put_if_absent_leaves_a_token_alone<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    assert!(put_if_absent(store, &key, 7, "one").await, "none was there");
    assert!(!put_if_absent(store, &key, 8, "two").await, "one is there");
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(7, 1), "one"));

    let key = some_key();
    assert!(claim(store, &key, 1, LONG, None).await.granted);
    assert!(put_if_absent(store, &key, 7, "one").await, "no token there");
    let row = read(store, &key).await.expect("the row");
    assert_eq!((row.version, text(&row)), (version(7, 1), "one"));
    assert_eq!(row.leased_for, None);
}

/// A put of an incarnation that is there has been done, whatever happened to the row since.
pub async fn a_repeated_put_changes_nothing<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    put(store, &key, 7, "one").await;
    assert!(save(store, &key, version(7, 1), "two").await);
    assert!(claim(store, &key, 1, LONG, Some(version(7, 2))).await.granted);
    for put in [Put::Replace, Put::IfAbsent] {
        let there = store.put(&key, 7, token("one"), put).await.expect("put");
        assert!(there, "a repeated {put:?} counts as done");
        let row = read(store, &key).await.expect("the row");
        assert_eq!((row.version, text(&row)), (version(7, 2), "two"));
        assert_lease(&row, LONG);
    }
}

/// Of many puts at once of what may be there already, one is there, and the others know.
pub async fn one_of_many_puts_if_absent_is_there<S: TokenStore>(store: &Arc<S>) {
    for _ in 0..4 {
        let key = some_key();
        let puts = crowd(|place| {
            let (store, key) = (store.clone(), key.clone());
            async move { put_if_absent(&store, &key, place as u64, &format!("{place}")).await }
        })
        .await;
        let there: Vec<_> = (0..CROWD).filter(|place| puts[*place]).collect();
        assert_eq!(there.len(), 1, "of {CROWD} puts at once, those of {there:?}");
        let row = read(store, &key).await.expect("the row");
        assert_eq!(row.version, version(there[0] as u64, 1));
    }
}

/// A user who was forgotten is not there, and says so the second time.
pub async fn forget_removes_the_row<S: TokenStore>(store: &Arc<S>) {
    let [key, other] = [some_key(), some_key()];
    assert!(!store.forget(&key).await.expect("forget"), "nobody is there");
    put(store, &key, 7, "one").await;
    put(store, &other, 7, "one").await;
    assert!(store.forget(&key).await.expect("forget"));
    assert!(read(store, &key).await.is_none());
    assert!(read(store, &other).await.is_some(), "no other was forgotten");
    assert!(!store.forget(&key).await.expect("forget"));
    let claimed = claim(store, &key, 1, LONG, None).await;
    assert!(claimed.granted, "who was forgotten can come back");
    assert!(store.forget(&key).await.expect("forget"), "without a token");
}

/// A token is handed out as old as it was, and older by what has passed on the store's clock; when
/// it is due comes nearer by as much.
pub async fn a_token_ages_by_the_stores_clock<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    let (age, due_in) = (Duration::from_micros(100_000_001), LONG);
    let aged = StoredToken { age, due_in, ..token("one") };
    let begun = Instant::now();
    assert!(store.put(&key, 7, aged, Put::Replace).await.expect("put"));
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
    assert!(store.save(&key, version(7, 1), token).await.expect("save"));
    let row = read(store, &key).await.expect("the row");
    let token = row.token.expect("the token");
    assert_eq!(token.due_in, Duration::ZERO, "never below zero");
    assert!(token.age < age + SHORT + PATIENCE, "a save brings its own age");
}

/// A payload may have any bytes: none, zeros, what is no text, and 64 KiB.
pub async fn a_payload_is_kept_byte_for_byte<S: TokenStore>(store: &Arc<S>) {
    let all: Vec<u8> = (0..=255).collect();
    for payload in [vec![], vec![0], vec![0xff, 0xfe], all.clone(), all.repeat(256)] {
        let key = some_key();
        let payload_of = || SecretBox::new(Box::new(payload.clone()));
        let token = || StoredToken { payload: payload_of(), ..token("") };
        for put in [Put::Replace, Put::IfAbsent] {
            assert!(store.put(&key, 7, token(), put).await.expect("put"));
        }
        assert!(store.save(&key, version(7, 1), token()).await.expect("save"));
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
        " a",
        "a ",
        "  ",
        " ",
        "\u{a0}",
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
        "\u{2028}",
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
        let row = row.unwrap_or_else(|| panic!("{subject:?} is not there"));
        assert_eq!((row.version.incarnation, text(&row)), (place as u64, subject));
    }
    let due: HashSet<_> = due(store, &realm, keys.len()).await.into_iter().collect();
    assert_eq!(due, keys.iter().cloned().collect(), "due says who it is");
}

/// One id as a user of another kind, API version, environment or client is another user.
pub async fn users_of_other_kinds_and_realms_are_others<S: TokenStore>(store: &Arc<S>) {
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
    for (place, row) in store.read(&keys).await.expect("read").iter().enumerate() {
        let row = row.as_ref().expect("each is there");
        let is = row.version.incarnation;
        assert_eq!(is, if place == walk { 1 } else { 100 } + place as u64);
    }
    let mut found = due(store, &one, 10).await;
    found.sort_by_key(StoreKey::kind);
    assert_eq!(found, [&keys[..1], &keys[realms.len()..walk]].concat(), "of one realm");
    assert!(store.forget(&keys[0]).await.expect("forget"));
    let rest = store.read(&keys).await.expect("read");
    assert_eq!(rest.iter().filter(|row| row.is_some()).count(), walk);
}

/// A read of many keys answers each in its place, known or not, and one asked for twice both times.
pub async fn a_read_answers_in_the_order_of_its_keys<S: TokenStore>(store: &Arc<S>) {
    assert!(store.read(&[]).await.expect("read").is_empty());
    let keys: Vec<_> = (0..9).map(|_| some_key()).collect();
    for (place, key) in keys.iter().enumerate().filter(|(place, _)| place % 3 != 1) {
        put(store, key, place as u64, "one").await;
    }
    let asked: Vec<_> = [8, 0, 1, 5, 5, 4, 2, 0].map(|place| keys[place].clone()).into();
    let rows = store.read(&asked).await.expect("read");
    let places: Vec<_> =
        rows.iter().map(|row| row.as_ref().map(|row| row.version.incarnation)).collect();
    assert_eq!(places, [Some(8), Some(0), None, Some(5), Some(5), None, Some(2), Some(0)]);
}

/// Of many who redeem one login's state at once, one is the first, and nobody is later.
pub async fn a_state_is_redeemed_once<S: TokenStore>(store: &Arc<S>) {
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
pub async fn a_state_is_forgotten_after_its_time<S: TokenStore>(store: &Arc<S>) {
    let [state, other] = [some_state(), some_state()];
    assert!(store.redeem(&state, LONG).await.expect("redeem"));
    assert!(store.redeem(&other, SHORT).await.expect("redeem"));
    // None of these tries prolongs it.
    wait_until("the other is forgotten", || async {
        let first = store.redeem(&other, SHORT).await.expect("redeem");
        first.then_some(())
    })
    .await;
    assert!(!store.redeem(&state, LONG).await.expect("redeem"));
}

/// Those who are due are found by how long they are, as many as were asked for.
pub async fn due_finds_the_longest_due_first<S: TokenStore>(store: &Arc<S>) {
    let realm = some_realm();
    let mut keys = Vec::new();
    for place in 0..5 {
        // Names and kinds in another order.
        let kind = [RowKind::Login, RowKind::Enterprise, RowKind::Partner][place % 3];
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

    let first = read(store, &keys[0]).await.expect("the row");
    assert!(save(store, &keys[0], first.version, "two").await);
    let found = due(store, &realm, 10).await;
    assert_eq!(found[..4], keys[1..], "who has a new token goes to the end");
}

/// Whoever has no token, a token that is not due, a lease, a pause or a refusal is not found.
pub async fn due_leaves_out_who_cannot_be_refreshed<S: TokenStore>(store: &Arc<S>) {
    let realm = some_realm();
    let key = |name| key_of(&realm, RowKind::Login, name);
    let at = version(7, 1);
    for name in ["due", "leased", "paused", "refused"] {
        put(store, &key(name), 7, "one").await;
    }
    let later = StoredToken { due_in: LONG, ..token("one") };
    let put = store.put(&key("later"), 7, later, Put::Replace).await;
    assert!(put.expect("put"));
    assert!(claim(store, &key("empty"), 1, SHORT, None).await.granted);
    let walk = key_of(&realm, RowKind::KeepAliveLock, "walk");
    assert!(claim(store, &walk, 1, SHORT, None).await.granted);
    assert!(claim(store, &key("leased"), 1, LONG, Some(at)).await.granted);
    for (name, not_before, refused) in [("paused", LONG, false), ("refused", Duration::ZERO, true)]
    {
        assert!(claim(store, &key(name), 1, LONG, Some(at)).await.granted);
        let release = Release { not_before, refused };
        self::release(store, &key(name), at, 1, release).await;
    }
    wait(store, &walk, "the leases end", |row| row.leased_for.is_none()).await;
    assert_eq!(due(store, &realm, 10).await, [key("due")]);

    release(store, &key("leased"), at, 1, Release::default()).await;
    let found: HashSet<_> = due(store, &realm, 10).await.into_iter().collect();
    assert_eq!(found, [key("due"), key("leased")].into(), "after a release");
}

/// A walk, page by page, meets every user who has a token once, and of this realm only; also one
/// that goes on from a user who has gone since.
pub async fn a_scan_meets_every_token_once<S: TokenStore>(store: &Arc<S>) {
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
    // A walk keeps nobody back whom nobody can refresh.
    let refusal = Release { refused: true, ..Release::default() };
    let refused = key_of(&realm, RowKind::Login, "user 3");
    assert!(claim(store, &refused, 1, LONG, Some(version(3, 1))).await.granted);
    release(store, &refused, version(3, 1), 1, refusal).await;

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
    assert!(store.forget(gone).await.expect("forget"));
    let rest = store.scan(&realm, Some(gone), 100).await.expect("scan");
    let order = |rows: &[(StoreKey, Row)]| rows.iter().map(|row| row.0.clone()).collect::<Vec<_>>();
    assert_eq!(order(&rest), order(&met[5..]), "the walk goes on in its order");
}

/// A rewrite needs version and payload, and changes the payload: the revision stays, so does a
/// lease with all that hangs on it, and its holder saves as if nothing had been.
pub async fn a_rewrite_changes_the_payload_and_nothing_else<S: TokenStore>(store: &Arc<S>) {
    let key = some_key();
    let rewrite = async |at: Version, old: &str, new: &str| {
        let [old, new] = [old, new].map(|text| token(text).payload);
        store.rewrite(&key, at, &old, new).await.expect("rewrite")
    };
    let at = version(7, 1);
    assert!(!rewrite(at, "one", "other").await, "there is no row");
    assert!(read(store, &key).await.is_none(), "a rewrite makes no row");
    let aged = StoredToken { age: LONG, due_in: LONG, ..token("one") };
    assert!(store.put(&key, 7, aged, Put::Replace).await.expect("put"));
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
    let [old, new] = ["", "new"].map(|text| token(text).payload);
    let done = store.rewrite(&empty, made.version, &old, new).await.expect("rewrite");
    assert!(!done, "no token is not an empty one");
}

/// Whoever did not get an answer can ask again: a second `forget` and a second `redeem` say no then,
/// and so do a second `save` and `rewrite`, which a look at the row explains.
pub async fn a_call_whose_answer_was_lost_can_be_repeated<S: TokenStore>(store: &Arc<S>) {
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
        assert!(!made.in_flight, "a repeated claim is of the same holder");

        lose(StoreCall::Save);
        let saved = faulty.save(&key, made.version, token("one")).await;
        saved.expect_err("lost");
        let again = save(faulty, &key, made.version, "one").await;
        assert_eq!(again, !done, "a repeated save");
        let row = read(faulty, &key).await.expect("the row");
        assert_eq!((row.version, text(&row)), (made.version.next(), "one"));

        for call in [StoreCall::Read, StoreCall::Due, StoreCall::Scan] {
            lose(call);
            let keys = std::slice::from_ref(&key);
            match call {
                StoreCall::Read => drop(faulty.read(keys).await.expect_err("lost")),
                StoreCall::Due => drop(faulty.due(key.realm(), 1).await.expect_err("lost")),
                _ => drop(faulty.scan(key.realm(), None, 1).await.expect_err("lost")),
            }
            assert_eq!(due(faulty, key.realm(), 2).await, keys);
            assert_eq!(scan_all(faulty, key.realm(), 2).await.len(), 1);
        }

        lose(StoreCall::Rewrite);
        let [old, new, same] = ["one", "other", "other"].map(|text| token(text).payload);
        let rewritten = faulty.rewrite(&key, row.version, &old, new).await;
        rewritten.expect_err("lost");
        let again = faulty.rewrite(&key, row.version, &old, same).await;
        assert_eq!(again.expect("rewrite"), !done, "a repeated rewrite");
        assert_eq!(text(&read(faulty, &key).await.expect("the row")), "other");

        lose(StoreCall::Put);
        let put = faulty.put(&key, 9, token("two"), Put::Replace).await;
        put.expect_err("lost");
        let put = faulty.put(&key, 9, token("two"), Put::Replace).await;
        assert!(put.expect("put"), "a repeated put");
        let at = version(9, 1);
        assert!(claim(faulty, &key, 2, LONG, Some(at)).await.granted);

        lose(StoreCall::Release);
        let pause = Release { not_before: LONG, refused: false };
        let released = faulty.release(&key, at, 2, pause).await;
        released.expect_err("lost");
        release(faulty, &key, at, 2, pause).await;
        let row = read(faulty, &key).await.expect("the row");
        assert!(row.leased_for.is_none() && row.not_before.is_some());

        lose(StoreCall::Forget);
        faulty.forget(&key).await.expect_err("lost");
        assert_eq!(faulty.forget(&key).await.expect("forget"), !done);
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
                let put = store.put(&key, place as u64, token, Put::IfAbsent).await;
                assert!(put.expect("put"), "{subject} was there");
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

fn ask(lease_id: u64, lease: Duration, expected: Option<Version>) -> Claim {
    Claim { lease_id, lease, expected, incarnation: lease_id }
}

async fn claim<S: TokenStore>(
    store: &S,
    key: &StoreKey,
    lease_id: u64,
    lease: Duration,
    expected: Option<Version>,
) -> Claimed {
    let claimed = store.claim(key, ask(lease_id, lease, expected)).await;
    claimed.expect("claim")
}

async fn read<S: TokenStore>(store: &S, key: &StoreKey) -> Option<Row> {
    let mut rows = store.read(std::slice::from_ref(key)).await.expect("read");
    assert_eq!(rows.len(), 1, "a read answers each key");
    rows.pop().flatten()
}

async fn save<S: TokenStore>(store: &S, key: &StoreKey, at: Version, text: &str) -> bool {
    store.save(key, at, token(text)).await.expect("save")
}

async fn put<S: TokenStore>(store: &S, key: &StoreKey, incarnation: u64, text: &str) {
    let token = token(text);
    let put = store.put(key, incarnation, token, Put::Replace).await;
    assert!(put.expect("put"), "a put that replaces is there");
}

async fn put_if_absent<S: TokenStore>(
    store: &S,
    key: &StoreKey,
    incarnation: u64,
    text: &str,
) -> bool {
    let token = token(text);
    let put = store.put(key, incarnation, token, Put::IfAbsent).await;
    put.expect("put")
}

async fn release<S: TokenStore>(
    store: &S,
    key: &StoreKey,
    at: Version,
    lease_id: u64,
    release: Release,
) {
    let released = store.release(key, at, lease_id, release).await;
    released.expect("release");
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
        let is_last = rows.len() < page;
        met.extend(rows);
        if is_last {
            return met;
        }
    }
}

async fn due<S: TokenStore>(store: &S, realm: &Arc<Realm>, limit: usize) -> Vec<StoreKey> {
    store.due(realm, limit).await.expect("due")
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

/// Asks the store again and again, since only it knows what time it is.
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
