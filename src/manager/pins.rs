//! Entries that stay in memory although nobody holds them, since they know what the store does not:
//! a token that the API refused, or a pause.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub(super) struct Pins<Entry>(Mutex<Pinned<Entry>>);

struct Pinned<Entry> {
    /// By address.
    entries: HashMap<usize, Arc<Entry>>,
    sweep_at: usize,
}

impl<Entry> Default for Pins<Entry> {
    fn default() -> Self {
        Self(Mutex::new(Pinned { entries: HashMap::new(), sweep_at: 64 }))
    }
}

impl<Entry> Pins<Entry> {
    /// Keeps `entry` for as long as `is_needed` says so.
    ///
    /// The others are looked through as rarely as they double, so that a pin costs the same however
    /// many there are; up to that many entries stay for longer than needed.
    pub(super) fn pin(&self, entry: &Arc<Entry>, is_needed: impl Fn(&Entry) -> bool) {
        let mut pinned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pinned.entries.len() >= pinned.sweep_at {
            pinned.entries.retain(|_, entry| is_needed(entry));
            pinned.sweep_at = 2 * pinned.entries.len() + 64;
        }
        pinned.entries.insert(Arc::as_ptr(entry).addr(), Arc::clone(entry));
    }

    /// Lets all entries go. They hold what holds the pins.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_end_when_unneeded() {
        let pins = Pins::default();
        for n in 0..10_000 {
            pins.pin(&Arc::new(n), |n| n % 1_000 == 0);
        }
        let pinned = pins.0.lock().unwrap();
        assert!(pinned.entries.len() <= 200, "{}", pinned.entries.len());
        let needed = pinned.entries.values().filter(|n| ***n % 1_000 == 0).count();
        assert_eq!(needed, 10);
    }
}
