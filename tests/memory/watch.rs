//! The watch itself: it finds what is there to be found.

use std::hint::black_box;

use libtest_mimic::Trial;
use watched_heap::{Blocks, State, unwatched, watch};

use crate::HEAP;

pub(crate) fn trials() -> Vec<Trial> {
    let test = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    vec![
        test("freed_block_is_searched", freed_block_is_searched),
        test("moved_block_is_searched", moved_block_is_searched),
        test("old_block_is_searched", old_block_is_searched),
        test("living_block_is_searched", living_block_is_searched),
        test("block_of_another_thread_is_searched", block_of_another_thread_is_searched),
        test("unwatched_block_is_passed_over", unwatched_block_is_passed_over),
        test("zeroizing_allocator_wipes_moved_blocks", zeroizing_allocator_wipes_moved_blocks),
    ]
}

/// A secret that no other block has, built anew at each call, so that no copy is left of it.
fn secret(capacity: usize) -> Vec<u8> {
    let mut secret = Vec::with_capacity(capacity);
    secret.extend((0..40_u8).map(|place| place.wrapping_mul(7) ^ 0xa5));
    black_box(secret)
}

/// The states and sizes of the blocks that have it.
fn found(blocks: &Blocks) -> Vec<(State, usize)> {
    let hits = blocks.holding(&[secret(40)]);
    hits.iter().map(|hit| (hit.state, hit.size)).collect()
}

/// A secret in a freed block is found, with the stacks of both ends of the block.
fn freed_block_is_searched() {
    let watch = watch();
    drop(secret(100));
    let blocks = watch.end();
    assert_eq!(found(&blocks), [(State::Freed, 100)]);
    let hit = blocks.holding(&[secret(40)]).remove(0);
    for names in [hit.allocated_by(), hit.freed_by()] {
        let names = names.join("\n");
        assert!(names.contains("freed_block_is_searched"), "{names}");
    }
}

/// A block that grows or shrinks leaves what it held behind.
fn moved_block_is_searched() {
    let watch = watch();
    let mut secret = secret(100);
    secret.reserve_exact(200);
    secret.shrink_to_fit();
    secret.fill(0);
    drop(secret);
    let blocks = watch.end();
    assert_eq!(found(&blocks), [(State::Freed, 100), (State::Freed, 240)]);
}

/// A block that was there before the watch is searched when it is freed.
fn old_block_is_searched() {
    let old = secret(70);
    let watch = watch();
    drop(old);
    let blocks = watch.end();
    assert_eq!(found(&blocks), [(State::Freed, 70)]);
}

/// A block that nobody has freed is searched too.
fn living_block_is_searched() {
    let watch = watch();
    let living = secret(80);
    let blocks = watch.end();
    assert_eq!(found(&blocks), [(State::Alive, 80)]);
    drop(living);
}

/// What other threads free is searched.
fn block_of_another_thread_is_searched() {
    let watch = watch();
    std::thread::spawn(|| drop(secret(90))).join().unwrap();
    let blocks = watch.end();
    assert_eq!(found(&blocks), [(State::Freed, 90)]);
}

/// What is done unwatched leaves nothing to find.
fn unwatched_block_is_passed_over() {
    let watch = watch();
    unwatched(|| drop(secret(100)));
    let kept = unwatched(|| secret(100));
    drop(kept);
    let blocks = watch.end();
    assert_eq!(found(&blocks), []);
}

/// The allocator that wipes does so too where a block grows or shrinks.
fn zeroizing_allocator_wipes_moved_blocks() {
    let blocks = HEAP.switched_on(|| {
        let watch = watch();
        let mut secret = secret(100);
        secret.reserve_exact(200);
        secret.shrink_to_fit();
        drop(secret);
        watch.end()
    });
    assert_eq!(found(&blocks), []);
}
