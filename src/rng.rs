//! Randomness as an input, so that tests replay what happened.

#[cfg(feature = "testing")]
use std::fmt;
#[cfg(feature = "testing")]
use std::sync::Arc;

/// A source of random numbers: for jitter, and for ids that only have to differ.
#[cfg(feature = "testing")]
pub trait Rng: fmt::Debug + Send + Sync + 'static {
    /// The next number; all 64 bits are random.
    fn next_u64(&self) -> u64;
}

/// The random numbers of one client and of all that is built on it.
#[derive(Clone, Debug, Default)]
pub(crate) enum SharedRng {
    /// The generator of each thread, seeded by the operating system.
    #[default]
    Thread,
    #[cfg(feature = "testing")]
    Injected(Arc<dyn Rng>),
}

impl SharedRng {
    pub(crate) fn next_u64(&self) -> u64 {
        match self {
            Self::Thread => fastrand::u64(..),
            #[cfg(feature = "testing")]
            Self::Injected(rng) => rng.next_u64(),
        }
    }
}
