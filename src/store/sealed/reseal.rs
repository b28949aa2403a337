//! A walk that seals anew what is not under the first key.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::{OpenError, Sealed};
use crate::error::Error;
use crate::store::{Realm, Row, StoreFuture, StoreKey, TokenStore};

/// So many rows are held at once.
const PAGE: usize = 100;

/// The walk of [`Sealed::reseal`]: a [`Stream`] of one item per row, with counts for a progress
/// bar.
///
/// An error is one of the store: the walk goes on from the last row it is sure of when it is asked
/// again. Dropped, it stops; a new one can go [on from](Self::after) any row, or from the start, as
/// rows under the first key are only read.
pub struct Reseal<S> {
    sealed: Sealed<S>,
    realm: Arc<Realm>,
    after: Option<StoreKey>,
    include_plaintext: bool,
    page: VecDeque<(StoreKey, Result<Row, Error>)>,
    is_last_page: bool,
    step: Option<StoreFuture<'static, Step>>,
    current: u64,
    left: u64,
}

/// A row of the walk.
#[derive(Debug)]
pub struct Resealed {
    /// The row, as the table has it: with a hash of the user id, where ids are hashed.
    pub key: StoreKey,
    /// How it went.
    pub outcome: ResealOutcome,
}

/// What became of a row.
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

enum Step {
    Page(Vec<(StoreKey, Result<Row, Error>)>),
    Row(Resealed),
}

impl<S: TokenStore> Reseal<S> {
    pub(super) fn new(sealed: Sealed<S>, realm: Arc<Realm>) -> Self {
        Self {
            sealed,
            realm,
            after: None,
            include_plaintext: false,
            page: VecDeque::new(),
            is_last_page: false,
            step: None,
            current: 0,
            left: 0,
        }
    }

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

    /// The next row; none when the walk is over.
    pub async fn next(&mut self) -> Option<Result<Resealed, Error>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
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

    fn next_step(&mut self) -> Option<StoreFuture<'static, Step>> {
        let sealed = self.sealed.clone();
        if let Some((key, row)) = self.page.pop_front() {
            let include_plaintext = self.include_plaintext;
            return Some(Box::pin(async move {
                let outcome = sealed.reseal_row(&key, row, include_plaintext).await?;
                Ok(Step::Row(Resealed { key, outcome }))
            }));
        }
        if self.is_last_page {
            return None;
        }
        let (realm, after) = (Arc::clone(&self.realm), self.after.clone());
        Some(Box::pin(async move {
            sealed.store.scan(&realm, after.as_ref(), PAGE).await.map(Step::Page)
        }))
    }
}

impl<S: TokenStore> Sealed<S> {
    async fn reseal_row(
        &self,
        key: &StoreKey,
        row: Result<Row, Error>,
        include_plaintext: bool,
    ) -> Result<ResealOutcome, Error> {
        let row = match row {
            Ok(row) => row,
            Err(error) => return Ok(ResealOutcome::Unreadable(error)),
        };
        let Some(token) = row.token else {
            return Ok(ResealOutcome::Overtaken);
        };
        let (seal, old) = (&self.seal, token.payload);
        let new = match seal.open(key, row.version, &old) {
            Ok((_, _, id)) if id == seal.keys.first().id() => return Ok(ResealOutcome::Current),
            Ok((payload, user, _)) => seal.seal(key, row.version, &payload, &user)?,
            Err(OpenError::NotSealed) if include_plaintext && seal.user_hash.is_none() => {
                seal.seal(key, row.version, &old, &key.subject)?
            }
            Err(problem) => return Ok(ResealOutcome::Unreadable(problem.into())),
        };
        Ok(if self.store.rewrite(key, row.version, &old, new).await? {
            ResealOutcome::Resealed
        } else {
            ResealOutcome::Overtaken
        })
    }
}

impl<S: TokenStore> Stream for Reseal<S> {
    type Item = Result<Resealed, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.step.is_none() {
                self.step = self.next_step();
            }
            let Some(step) = &mut self.step else {
                return Poll::Ready(None);
            };
            let done = ready!(step.as_mut().poll(context));
            self.step = None;
            match done {
                Ok(Step::Page(rows)) => {
                    self.is_last_page = rows.len() < PAGE;
                    self.page = rows.into();
                }
                Ok(Step::Row(row)) => {
                    match row.outcome {
                        ResealOutcome::Resealed | ResealOutcome::Current => self.current += 1,
                        ResealOutcome::Overtaken | ResealOutcome::Unreadable(_) => self.left += 1,
                    }
                    self.after = Some(row.key.clone());
                    return Poll::Ready(Some(Ok(row)));
                }
                Err(error) => {
                    // The call may have taken effect, so the row is looked at again.
                    self.page.clear();
                    self.is_last_page = false;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl<S> fmt::Debug for Reseal<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reseal")
            .field("current", &self.current)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
