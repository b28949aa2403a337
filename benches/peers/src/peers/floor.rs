//! The floor under every peer: an `arc_swap` load for a read, a POST by reqwest for a refresh, and
//! a look-up in the map that this crate keeps its users in for a read by id.

use std::hash::{Hash, Hasher};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hurdlr_oauth2::UserId;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, UnitWeighter};

use crate::Outcome;
use crate::peer;
use crate::site::Site;

/// The name in figures.
pub(crate) const NAME: &str = "floor";

pub(crate) fn load(token: &ArcSwap<String>, reads: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..reads {
        let token = token.load();
        black_box(token.as_str());
    }
    start.elapsed()
}

/// One refresh, by hand.
pub(crate) struct Post {
    http: reqwest::Client,
    url: String,
    form: [(&'static str, String); 4],
}

impl Post {
    pub(crate) fn new(site: &Site) -> Outcome<Self> {
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            url: site.token_url(),
            form: [
                ("grant_type", "refresh_token".into()),
                ("refresh_token", site.refresh_token.clone()),
                ("client_id", site.client_id.clone()),
                ("client_secret", site.client_secret.clone()),
            ],
        })
    }

    pub(crate) async fn send(&self) -> Outcome<Duration> {
        let start = Instant::now();
        let answer = self.http.post(&self.url).form(&self.form).send().await?;
        black_box(answer.error_for_status()?.bytes().await?);
        Ok(start.elapsed())
    }
}

type BareMap =
    Cache<Key, Arc<Bare>, UnitWeighter, DefaultHashBuilder, DefaultLifecycle<Key, Arc<Bare>>>;

/// A map like the manager's, with nothing in it but ids.
pub(crate) struct Map(BareMap);

#[derive(Hash, PartialEq, Eq)]
struct Bare {
    kind: u8,
    subject: UserId,
}

#[derive(Clone, Hash, PartialEq, Eq)]
struct Key(Arc<Bare>);

struct Sought<'a>(u8, &'a UserId);

impl Hash for Sought<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
        self.1.hash(state);
    }
}

impl Equivalent<Key> for Sought<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == key.0.kind && *self.1 == key.0.subject
    }
}

impl Map {
    pub(crate) fn new(users: usize) -> Outcome<Self> {
        let capacity = users + users / 20 + 5_000;
        let options = OptionsBuilder::new()
            .estimated_items_capacity(capacity)
            .weight_capacity(u64::try_from(capacity)?)
            .build()
            .map_err(|error| error.to_string())?;
        let map = BareMap::with_options(
            options,
            UnitWeighter,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        );
        for n in 0..users {
            let bare = Arc::new(Bare { kind: 0, subject: Self::id(n)? });
            map.insert(Key(Arc::clone(&bare)), bare);
        }
        Ok(Self(map))
    }

    pub(crate) fn id(n: usize) -> Outcome<UserId> {
        Ok(UserId::new(peer::id(n))?)
    }

    /// Awaits like a read of the manager, so that the loop around it costs the same.
    pub(crate) async fn look_up(&self, ids: &[UserId], reads: u32) -> Duration {
        let start = Instant::now();
        for id in ids.iter().cycle().take(reads as usize) {
            black_box(std::future::ready(self.0.get(&Sought(0, black_box(id)))).await);
        }
        start.elapsed()
    }
}
