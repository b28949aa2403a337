//! A walk that seals anew what is not under the first key.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{OpenError, Sealed};
use crate::error::Error;
use crate::store::{Realm, Rewrite, Row, StoreKey, TokenStore};

/// How many rows are read, and then changed, in one step.
const PAGE: usize = 500;

/// The walk of [`Sealed::reseal`], with counts for a progress bar.
///
/// An error is one of the store: the walk goes on from the last row it is sure of when it is asked
/// again. Dropped, it stops; a new one can go [on from](Self::after) any row, or from the start, as
/// rows under the first key are only read.
#[derive(Debug)]
pub struct Reseal<S> {
    sealed: Sealed<S>,
    realm: Arc<Realm>,
    after: Option<StoreKey>,
    include_plaintext: bool,
    /// Rows that are done, and not handed out yet.
    done: VecDeque<Resealed>,
    /// Rows that were read while those before them were changed; none if those were the last.
    next: Option<Page>,
    current: u64,
    left: u64,
}

type Page = Vec<(StoreKey, Result<Row, Error>)>;

/// A row of the walk.
#[derive(Debug)]
#[non_exhaustive]
pub struct Resealed {
    /// The row, as the table has it: with a hash of the user id, where ids are hashed.
    pub key: StoreKey,
    /// How it went.
    pub outcome: ResealOutcome,
}

/// The outcome for a row.
#[derive(Debug)]
#[non_exhaustive]
pub enum ResealOutcome {
    /// It is under the first key now.
    Resealed,
    /// It was under the first key already.
    Current,
    /// A save, a login or a forget was first. Whoever saved has sealed it by the first key of a
    /// ring of their own.
    Overtaken,
    /// It cannot be opened, and was left as it is.
    Unreadable(Error),
}

impl<S: TokenStore> Reseal<S> {
    /// Begins with the rows that come after this one, of an earlier walk's [`Resealed::key`]. Said
    /// of a walk that has begun, it does nothing.
    #[must_use]
    pub fn after(mut self, key: StoreKey) -> Self {
        if self.after.is_none() {
            self.after = Some(key);
        }
        self
    }

    /// Seals also what was saved in plaintext, before the store was sealed. What lies there is
    /// taken for true, so say this once, on moving, and not when others may have written to the
    /// table. Not where user ids are hashed, since these rows' are not.
    #[must_use]
    pub fn include_plaintext(mut self) -> Self {
        self.include_plaintext = true;
        self
    }

    /// The next row; `None` when the walk is over.
    ///
    /// # Cancel safety
    ///
    /// No row is left out: the next call reads again what this one had not returned.
    pub async fn next(&mut self) -> Option<Result<Resealed, Error>> {
        while self.done.is_empty() {
            if self.next.as_ref().is_some_and(Vec::is_empty) {
                return None;
            }
            if let Err(error) = self.step().await {
                return Some(Err(error));
            }
        }
        let row = self.done.pop_front()?;
        match row.outcome {
            ResealOutcome::Resealed | ResealOutcome::Current => self.current += 1,
            ResealOutcome::Overtaken | ResealOutcome::Unreadable(_) => self.left += 1,
        }
        self.after = Some(row.key.clone());
        Some(Ok(row))
    }

    /// How many of the rows so far are under the first key.
    #[must_use]
    pub fn current(&self) -> u64 {
        self.current
    }

    /// How many of the rows so far may not be: a save was first, or they cannot be opened. Once a
    /// walk is over and this is zero, older keys can go.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Changes a page, and reads the next one meanwhile. If it fails, the page is read again: what
    /// was changed is under the first key then.
    async fn step(&mut self) -> Result<(), Error> {
        let page = self.next.take();
        let Self { sealed, realm, .. } = self;
        let page = match page {
            Some(page) => page,
            None => sealed.store.scan(realm, self.after.as_ref(), PAGE).await?,
        };
        let last = page.last().filter(|_| page.len() == PAGE).map(|(key, _)| key.clone());
        let next = async {
            match &last {
                Some(last) => sealed.store.scan(realm, Some(last), PAGE).await,
                None => Ok(Vec::new()),
            }
        };
        let (done, next) =
            tokio::try_join!(sealed.reseal_page(page, self.include_plaintext), next)?;
        (self.done, self.next) = (done.into(), Some(next));
        Ok(())
    }
}

impl<S: TokenStore> Sealed<S> {
    /// Walks the rows of `realm` and seals those anew that are not under the first key.
    ///
    /// See [Changing the key](Self#changing-the-key). Rows are read and changed in batches,
    /// and the next batch is read while one is changed. A row is changed only if its version and
    /// its sealed value are still those that were read, and keeps its revision: a refresh under way
    /// saves as if nothing had been. Any number of processes may walk at once.
    ///
    /// ```
    /// # use hurdlr_oauth2::{Error, Hurdlr, store::{Sealed, TokenStore}};
    /// # async fn reseal(store: Sealed<impl TokenStore>, hurdlr: Hurdlr) -> Result<(), Error> {
    /// let mut walk = store.reseal(hurdlr.realm());
    /// while let Some(row) = walk.next().await {
    ///     let row = row?; // the store failed: `next` tries again from there
    ///     println!("{:?}: {:?}", row.key, row.outcome);
    /// }
    /// println!("{} under the first key, {} to be looked at again", walk.current(), walk.left());
    /// # Ok(())
    /// # }
    /// ```
    pub fn reseal(&self, realm: impl Into<Arc<Realm>>) -> Reseal<S> {
        Reseal {
            sealed: self.clone(),
            realm: realm.into(),
            after: None,
            include_plaintext: false,
            done: VecDeque::new(),
            next: None,
            current: 0,
            left: 0,
        }
    }

    async fn reseal_page(
        &self,
        rows: Page,
        include_plaintext: bool,
    ) -> Result<Vec<Resealed>, Error> {
        let (mut page, mut rewrites) = (Vec::new(), Vec::new());
        for (key, row) in rows {
            let rewrite = row.and_then(|row| self.resealed(&key, row, include_plaintext));
            let (rewrite, outcome) = match rewrite {
                Ok(Some(rewrite)) => (Some(rewrite), ResealOutcome::Overtaken),
                Ok(None) => (None, ResealOutcome::Current),
                Err(error) => (None, ResealOutcome::Unreadable(error)),
            };
            rewrites.push(rewrite);
            page.push(Resealed { key, outcome });
        }
        for (row, is_done) in page.iter_mut().zip(self.rewrite_some(rewrites).await?) {
            if is_done {
                row.outcome = ResealOutcome::Resealed;
            }
        }
        Ok(page)
    }

    /// The payload under the first key; `None` where it is already.
    fn resealed(
        &self,
        key: &StoreKey,
        Row { version, token, .. }: Row,
        include_plaintext: bool,
    ) -> Result<Option<Rewrite>, Error> {
        let unexpected = || Error::store("a row without a token was scanned");
        let old = token.ok_or_else(unexpected)?.payload;
        let new = match self.open(key, version, &old) {
            Ok((_, _, id)) if id == self.keys.first.id() => return Ok(None),
            Ok((payload, user, _)) => self.seal(key, version, &payload, &user)?,
            Err(OpenError::NotSealed) if include_plaintext && self.user_hash.is_none() => {
                self.seal(key, version, &old, &key.subject)?
            }
            Err(problem) => return Err(problem.into()),
        };
        Ok(Some(Rewrite { key: key.clone(), version, old, new }))
    }
}
