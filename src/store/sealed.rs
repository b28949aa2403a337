//! Any store, with the tokens in it encrypted.

mod envelope;
pub use envelope::{Bound, OpenError};
mod key_ring;
pub use key_ring::{KeyId, KeyRing, SealingKey, UserHashKey};
mod reseal;
pub use reseal::{Reseal, ResealOutcome, Resealed};

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use super::{
    Claim, Claimed, DueCursor, DueRow, ReadRow, Realm, Release, Rewrite, Row, Save, StoreFuture,
    StoreKey, StoredToken, TokenStore, Version,
};
use crate::error::Error;
use crate::wire::user::UserId;

/// Marks a subject as the one by which the table has the row, where user ids are hashed. No user id
/// can begin so.
const STORED: char = '\0';

/// Encrypts what another [`TokenStore`] keeps.
///
/// Tokens are sealed with XChaCha20-Poly1305 by the first key of a [`KeyRing`], under a nonce of 24
/// random bytes that the operating system draws for each, and opened with whichever key of the ring
/// sealed them. A value that cannot be opened is an error of kind
/// [`Store`](crate::ErrorKind::Store) whose source is an [`OpenError`]. The manager then serves the
/// token it has in memory, and overwrites nothing.
///
/// The store inside is not handed out: what is written past the seal would be in plaintext.
///
#[doc = include_str!("../../docs/encryption.md")]
#[derive(Debug)]
pub struct Sealed<S> {
    pub(super) store: Arc<S>,
    keys: KeyRing,
    user_hash: Option<UserHashKey>,
}

impl<S: TokenStore> Sealed<S> {
    /// Seals what `store` keeps from now on. What it holds already in plaintext can not be read;
    /// [`Reseal::include_plaintext`] seals it.
    #[must_use]
    pub fn new(store: S, keys: KeyRing) -> Self {
        Self { store: Arc::new(store), keys, user_hash: None }
    }

    /// Puts a hash in the place of each user id: HMAC-SHA256 under a key of its own, as base64. The
    /// id itself travels inside the sealed payload, so that [`due`](TokenStore::due) knows it.
    ///
    /// Decide at the start: by the hash the row is found. Users whose rows have another, or none,
    /// are not there, and with the key the rows are lost. One who has the key can tell whether
    /// somebody they know of is in the table, and nothing else.
    ///
    /// A row that cannot be opened does not tell whose it is. [`scan`](TokenStore::scan) returns it
    /// under a key that no user has, by which it can be removed.
    #[must_use]
    pub fn hash_users(self, key: UserHashKey) -> Self {
        Self { user_hash: Some(key), ..self }
    }

    /// The key by which the store inside has the row of `key`: to find a user in a table in which
    /// ids are hashed. The same key where they are not.
    #[must_use]
    pub fn stored_key(&self, key: &StoreKey) -> StoreKey {
        let subject = match (&self.user_hash, key.subject.as_str().strip_prefix(STORED)) {
            (None, _) => return key.clone(),
            (Some(_), Some(stored)) => UserId::internal(stored),
            (Some(hash), None) => hash.hash(key.subject.as_str()),
        };
        StoreKey { subject, ..key.clone() }
    }

    /// Opens a row's token, if it has one, and says whose it is.
    fn open_row(&self, stored_key: &StoreKey, row: Row) -> Result<(UserId, Row), OpenError> {
        let Some(token) = row.token else {
            return Ok((stored_key.subject.clone(), row));
        };
        let (payload, user, _) = self.open(stored_key, row.version, &token.payload)?;
        Ok((user, Row { token: Some(StoredToken { payload, ..token }), ..row }))
    }

    /// Has the store inside do the rewrites that there are, and says of each item whether one was.
    async fn rewrite_some(&self, rewrites: Vec<Option<Rewrite>>) -> Result<Vec<bool>, Error> {
        let mut done: Vec<_> = rewrites.iter().map(Option::is_some).collect();
        let rewrites: Vec<_> = rewrites.into_iter().flatten().collect();
        if !rewrites.is_empty() {
            let places = done.iter_mut().filter(|is_there| **is_there);
            for (place, is_done) in places.zip(self.store.rewrite(rewrites).await?) {
                *place = is_done;
            }
        }
        Ok(done)
    }
}

impl<S: TokenStore> TokenStore for Sealed<S> {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        Box::pin(async move {
            let keys: Vec<_> = keys.iter().map(|key| self.stored_key(key)).collect();
            let rows = self.store.read(&keys).await?;
            let open = |(key, row): (_, ReadRow)| {
                row?.map(|row| Ok(self.open_row(key, row)?.1)).transpose()
            };
            Ok(keys.iter().zip(rows).map(open).collect())
        })
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        Box::pin(async move {
            let key = self.stored_key(key);
            let Claimed { granted, row } = self.store.claim(&key, claim).await?;
            let Some(row) = row else {
                return Ok(Claimed { granted, row });
            };
            let version = row.version;
            match self.open_row(&key, row) {
                Ok((_, row)) => Ok(Claimed { granted, row: Some(row) }),
                Err(problem) => {
                    if granted {
                        // Release the lease so that a process without the key does not block those
                        // that have it. If this fails, the lease ends by itself.
                        let release = Release::default();
                        let _ = self.store.release(&key, version, claim.holder, release).await;
                    }
                    Err(problem.into())
                }
            }
        })
    }

    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let stored_key = self.stored_key(key);
            let payload =
                self.seal(&stored_key, save.version, &save.token.payload, &key.subject)?;
            let token = StoredToken { payload, ..save.token };
            self.store.save(&stored_key, Save { token, ..save }).await
        })
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.store.release(&self.stored_key(key), version, holder, release).await
        })
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool> {
        Box::pin(async move { self.store.forget(&self.stored_key(key), version).await })
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        self.store.redeem(state, keep)
    }

    fn due<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a DueCursor>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DueRow>> {
        if self.user_hash.is_none() {
            return self.store.due(realm, after, limit);
        }
        Box::pin(async move {
            let mut due = self.store.due(realm, after, limit).await?;
            let keys: Vec<_> =
                due.iter().filter_map(|row| row.key.as_ref().ok().cloned()).collect();
            let rows = self.store.read(&keys).await?;
            let named = due.iter_mut().map(|row| &mut row.key).filter(|key| key.is_ok());
            for (named, (key, row)) in named.zip(keys.into_iter().zip(rows)) {
                *named = row.and_then(|row| {
                    // The user id is in the sealed token, and a page must not become shorter.
                    let gone = || Error::store("the row of a due user was removed meanwhile");
                    let row = row.filter(|row| row.token.is_some()).ok_or_else(gone)?;
                    let (user, _) = self.open_row(&key, row)?;
                    Ok(StoreKey { subject: user, ..key })
                });
            }
            Ok(due)
        })
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>> {
        Box::pin(async move {
            let after = after.map(|key| self.stored_key(key));
            let rows = self.store.scan(realm, after.as_ref(), limit).await?;
            let open = |(key, row): (StoreKey, Result<Row, Error>)| match row
                .and_then(|row| Ok(self.open_row(&key, row)?))
            {
                Ok((user, row)) => (StoreKey { subject: user, ..key }, Ok(row)),
                // The table's key, by which the row can be addressed all the same.
                Err(error) if self.user_hash.is_some() => {
                    let subject = UserId::internal(format!("{STORED}{}", key.subject.as_str()));
                    (StoreKey { subject, ..key }, Err(error))
                }
                Err(error) => (key, Err(error)),
            };
            Ok(rows.into_iter().map(open).collect())
        })
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        Box::pin(async move {
            let keys: Vec<_> =
                rewrites.iter().map(|rewrite| self.stored_key(&rewrite.key)).collect();
            let rows = self.store.read(&keys).await?;
            let seal = |(Rewrite { version, old, new, .. }, (key, row)): (_, (_, ReadRow))| {
                let row = row?.filter(|row| row.version == version);
                let Some(StoredToken { payload, .. }) = row.and_then(|row| row.token) else {
                    return Ok(None);
                };
                let (opened, user, _) = self.open(&key, version, &payload)?;
                if !bool::from(opened.expose_secret().ct_eq(old.expose_secret())) {
                    return Ok(None);
                }
                let new = self.seal(&key, version, &new, &user)?;
                Ok(Some(Rewrite { key, version, old: payload, new }))
            };
            let rewrites = rewrites.into_iter().zip(keys.into_iter().zip(rows)).map(seal);
            self.rewrite_some(rewrites.collect::<Result<_, Error>>()?).await
        })
    }
}

impl<S> Clone for Sealed<S> {
    fn clone(&self) -> Self {
        let Self { store, keys, user_hash } = self;
        Self { store: Arc::clone(store), keys: keys.clone(), user_hash: user_hash.clone() }
    }
}
