//! A store that takes everything and keeps nothing, for figures about the manager's own memory.

use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::Error;
use hurdlr_oauth2::store::{
    Claim, Claimed, DueCursor, DueRow, ReadRow, Realm, Release, Rewrite, Row, Save, StoreFuture,
    StoreKey, TokenStore, Version,
};

#[derive(Debug)]
pub(crate) struct Nowhere;

impl TokenStore for Nowhere {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        Box::pin(async { Ok(keys.iter().map(|_| Ok(None)).collect()) })
    }

    fn claim<'a>(&'a self, _: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        let made = |incarnation| Row {
            version: Version { incarnation, revision: 0 },
            token: None,
            leased_for: Some(claim.lease),
            not_before: None,
            refused: false,
            in_flight: false,
        };
        let row = claim.create.map(made);
        Box::pin(async { Ok(Claimed { granted: row.is_some(), row }) })
    }

    fn save<'a>(&'a self, _: &'a StoreKey, _: Save) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(true) })
    }

    fn release<'a>(
        &'a self,
        _: &'a StoreKey,
        _: Version,
        _: u64,
        _: Release,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn forget<'a>(&'a self, _: &'a StoreKey, _: Option<Version>) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn redeem<'a>(&'a self, _: &'a [u8; 32], _: Duration) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(true) })
    }

    fn due<'a>(
        &'a self,
        _: &'a Arc<Realm>,
        _: Option<&'a DueCursor>,
        _: usize,
    ) -> StoreFuture<'a, Vec<DueRow>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn scan<'a>(
        &'a self,
        _: &'a Arc<Realm>,
        _: Option<&'a StoreKey>,
        _: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        Box::pin(async move { Ok(vec![false; rewrites.len()]) })
    }
}
