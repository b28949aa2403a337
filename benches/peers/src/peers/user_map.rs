//! The users of a library that keeps one user per object, as an app would keep them: in a map.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::peer::{Peer, Token, Users, id};

pub(crate) struct UserMap<P>(RwLock<HashMap<String, P>>);

impl<P: Peer> UserMap<P> {
    pub(crate) fn new(users: impl IntoIterator<Item = P>) -> Self {
        let mut map: HashMap<_, _> =
            users.into_iter().enumerate().map(|(n, user)| (id(n), user)).collect();
        map.shrink_to_fit();
        Self(RwLock::new(map))
    }
}

impl<P: Peer> Users for UserMap<P> {
    type Id = String;

    fn id(n: usize) -> String {
        id(n)
    }

    async fn read(&self, ids: &[String], reads: u32) -> Outcome<Duration> {
        let start = Instant::now();
        for id in ids.iter().cycle().take(reads as usize) {
            // The lock is not held while a token is waited for.
            let user =
                self.0.read().unwrap_or_else(PoisonError::into_inner).get(black_box(id)).cloned();
            let token = user.ok_or("no such user")?.token().await.map_err(Into::into)?;
            black_box(token.secret());
        }
        Ok(start.elapsed())
    }
}
