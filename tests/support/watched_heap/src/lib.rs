//! A global allocator for tests, which keeps what each block held when it was given back.
//!
//! # How it works
//!
//! A [`WatchedHeap`] passes everything on to the system's allocator. Between [`watch`] and
//! [`Watch::end`] it also keeps a record of each block of [`SHORTEST`] bytes or more: the stack that
//! allocated it, and, when it is freed, the stack that freed it and a copy of its content. The
//! content is searched by [`Blocks::holding`] afterwards, so that a secret is found that nobody knew
//! yet when its block was freed.
//!
//! Records and copies lie in two regions of the system's allocator that are reserved beforehand.
//! Recording allocates nothing, takes no lock, and calls itself in no case: a stack is a walk over
//! return addresses, which get their names afterwards.
//!
//! In front of each block stands one word, the number of its record. A block whose word is 0 was
//! allocated while nobody watched; it is recorded when it is freed.
//!
//! Each block is handed out zeroed, so that it holds what its owner wrote and nothing that another
//! block left behind.
//!
//! A block that changes its size always moves, and what it held is searched like that of a freed
//! block. The system's allocator moves only some: which ones is chance, and no figure should be.
//!
//! It does not see what C libraries allocate, what is on a stack, and what a block held before it
//! was overwritten.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Smaller blocks are not recorded.
pub const SHORTEST: usize = 16;

/// The frames of a stack that are kept, from the innermost on.
const FRAMES: usize = 96;
/// The most blocks that one watch records.
const MOST_RECORDS: usize = 400_000;
/// The most bytes of content that one watch keeps.
const MOST_BYTES: usize = 1 << 30;

/// The word in front of a block that is never recorded.
const UNWATCHED: u64 = u64::MAX;

/// What stands in front of a block.
type Word = [u8; 8];

type Stack = [usize; FRAMES];

struct Record {
    address: usize,
    size: usize,
    allocated_by: Stack,
    freed_by: Stack,
    content: *const u8,
    /// Set once all other fields of a freed block are written.
    is_freed: AtomicBool,
}

impl Record {
    fn new(address: usize, size: usize) -> Self {
        Self {
            address,
            size,
            allocated_by: [0; FRAMES],
            freed_by: [0; FRAMES],
            content: ptr::null(),
            is_freed: AtomicBool::new(false),
        }
    }
}

/// Set while records are kept: from the begin of a watch until its blocks are dropped.
static IS_IN_USE: AtomicBool = AtomicBool::new(false);
/// Set while a watch is on.
static IS_WATCHING: AtomicBool = AtomicBool::new(false);
/// The number of the present watch. Words in front of blocks have it in their upper half.
static WATCH: AtomicU64 = AtomicU64::new(0);
static RECORDS: AtomicPtr<Record> = AtomicPtr::new(ptr::null_mut());
static RECORDS_USED: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static BYTES_USED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// What this thread allocates now is not recorded. Without a destructor, so that it can be
    /// read at any time.
    static IS_UNWATCHED: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, watched.
#[derive(Clone, Copy, Debug)]
pub struct WatchedHeap;

/// The bytes between the start of what the system gave and the block.
fn offset(layout: Layout) -> usize {
    layout.align().max(16)
}

/// What the system is asked for.
fn outer(layout: Layout) -> Option<Layout> {
    let size = layout.size().checked_add(offset(layout))?;
    Layout::from_size_align(size, layout.align().max(16)).ok()
}

impl WatchedHeap {
    /// # Safety
    ///
    /// `start` is null, or what the system gave for `outer(layout)`.
    unsafe fn hand_out(start: *mut u8, layout: Layout) -> *mut u8 {
        if start.is_null() {
            return start;
        }
        // SAFETY: `outer` has made the room.
        let block = unsafe { start.add(offset(layout)) };
        let word = if IS_UNWATCHED.get() {
            UNWATCHED
        } else if IS_WATCHING.load(Ordering::Acquire) && layout.size() >= SHORTEST {
            record(block as usize, layout.size(), true)
        } else {
            0
        };
        // SAFETY: there are at least 16 bytes in front of the block.
        unsafe { block.cast::<Word>().sub(1).write(word.to_ne_bytes()) };
        block
    }
}

// SAFETY: every block is one of the system's, begun a few bytes later, and given back as it came.
unsafe impl GlobalAlloc for WatchedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(outer) = outer(layout) else { return ptr::null_mut() };
        // Zeroed, so that a block never holds what another one left there: each copy counts once,
        // and every byte of it can be read.
        // SAFETY: it is not empty, and the start is what came of it.
        unsafe { Self::hand_out(System.alloc_zeroed(outer), layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { self.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `hand_out` has written it.
        let word = u64::from_ne_bytes(unsafe { block.cast::<Word>().sub(1).read() });
        if IS_WATCHING.load(Ordering::Acquire)
            && word != UNWATCHED
            && layout.size() >= SHORTEST
            && !IS_UNWATCHED.get()
        {
            // SAFETY: the block is the caller's, whole, and given up.
            unsafe { keep(word, block, layout.size()) };
        }
        if let Some(outer) = outer(layout) {
            // SAFETY: this is where the system's block begins, by the same computation.
            unsafe { System.dealloc(block.sub(offset(layout)), outer) };
        }
    }

    // `realloc` is the trait's own: allocate, copy, free.
}

/// Records a new block, and returns the word for it.
fn record(address: usize, size: usize, with_stack: bool) -> u64 {
    let index = RECORDS_USED.fetch_add(1, Ordering::Relaxed);
    if index >= MOST_RECORDS {
        return 0;
    }
    // SAFETY: the region has room for so many, and this one is nobody else's: the index is new. What
    // an earlier watch left there needs no drop.
    let record = unsafe {
        let place = RECORDS.load(Ordering::Acquire).add(index);
        place.write(Record::new(address, size));
        &mut *place
    };
    if with_stack {
        walk(&mut record.allocated_by);
    }
    WATCH.load(Ordering::Relaxed) << 32 | (index as u64 + 1)
}

/// Keeps what a block holds.
///
/// # Safety
///
/// The block is readable, and nobody else's.
unsafe fn keep(mut word: u64, block: *const u8, size: usize) {
    if word >> 32 != WATCH.load(Ordering::Relaxed) {
        word = record(block as usize, size, false);
        if word == 0 {
            return;
        }
    }
    // SAFETY: as the caller says.
    let Some(copy) = (unsafe { copy(block, size) }) else { return };
    let index = (word & u64::from(u32::MAX)) - 1;
    // SAFETY: the record was made in this watch, and belongs to whoever frees its block.
    let record =
        unsafe { &mut *RECORDS.load(Ordering::Acquire).add(usize::try_from(index).unwrap_or(0)) };
    record.content = copy;
    walk(&mut record.freed_by);
    record.is_freed.store(true, Ordering::Release);
}

/// Copies what a block holds; nothing where there is no more room.
///
/// # Safety
///
/// The block is readable, and nobody else's.
unsafe fn copy(block: *const u8, size: usize) -> Option<*const u8> {
    let start = BYTES_USED.fetch_add(size, Ordering::Relaxed);
    if start.saturating_add(size) > MOST_BYTES {
        return None;
    }
    // SAFETY: the region has the room, and these bytes are nobody else's.
    unsafe {
        let copy = BYTES.load(Ordering::Acquire).add(start);
        ptr::copy_nonoverlapping(block, copy, size);
        Some(copy)
    }
}

/// Keeps the present stack, without the names.
fn walk(stack: &mut Stack) {
    let mut depth = 0;
    let keep = |frame: &backtrace::Frame| {
        stack[depth] = frame.ip() as usize;
        depth += 1;
        depth < FRAMES
    };
    // SAFETY: threads share nothing in it on a system whose unwinder is the compiler's; what has to
    // be kept apart is the look-up of names.
    unsafe { backtrace::trace_unsynchronized(keep) };
}

/// Does something whose blocks are nobody's concern, such as keeping a secret to look for.
pub fn unwatched<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_UNWATCHED.set(self.0);
        }
    }
    let _restore = Restore(IS_UNWATCHED.replace(true));
    work()
}

/// A watch that is on.
#[must_use = "it is ended by `end`"]
#[derive(Debug)]
pub struct Watch(());

/// Begins to watch all threads of this process.
///
/// # Panics
///
/// Where [`WatchedHeap`] is not this process's allocator, a watch is on, or memory is short.
pub fn watch() -> Watch {
    fn region<T>(place: &AtomicPtr<T>, count: usize) {
        if place.load(Ordering::Acquire).is_null() {
            let layout = Layout::array::<T>(count).expect("a layout");
            // SAFETY: it is not empty. Memory that is never touched costs nothing.
            let region = unsafe { System.alloc_zeroed(layout) };
            assert!(!region.is_null(), "no memory for records");
            place.store(region.cast(), Ordering::Release);
        }
    }
    assert!(!IS_IN_USE.swap(true, Ordering::AcqRel), "a watch is on, or its blocks are held");
    region(&RECORDS, MOST_RECORDS);
    region(&BYTES, MOST_BYTES);
    RECORDS_USED.store(0, Ordering::Relaxed);
    BYTES_USED.store(0, Ordering::Relaxed);
    WATCH.fetch_add(1, Ordering::Relaxed);
    // What a first walk loads is loaded by now.
    walk(&mut [0; FRAMES]);
    IS_WATCHING.store(true, Ordering::Release);
    drop(std::hint::black_box(Box::new([0_u8; SHORTEST])));
    assert_ne!(RECORDS_USED.load(Ordering::Relaxed), 0, "WatchedHeap is not the allocator");
    Watch(())
}

impl Watch {
    /// Ends the watch, once the calling thread is the only one.
    ///
    /// # Panics
    ///
    /// Where other threads run on, or more was allocated than there is room for.
    #[must_use]
    pub fn end(self) -> Blocks {
        let patience = Instant::now() + Duration::from_secs(30);
        // One that was joined may take a moment to leave the list.
        while unwatched(threads) > 1 {
            assert!(Instant::now() < patience, "other threads run on");
            thread::yield_now();
        }
        IS_WATCHING.store(false, Ordering::Release);
        let used = RECORDS_USED.load(Ordering::Acquire);
        assert!(used <= MOST_RECORDS, "too many blocks: {used}");
        for index in 0..used {
            // SAFETY: it was written, and nobody else is left who could change it.
            let record = unsafe { &mut *RECORDS.load(Ordering::Acquire).add(index) };
            if !record.is_freed.load(Ordering::Acquire) {
                // SAFETY: nobody has freed the block, and this is the only thread.
                let content = unsafe { copy(record.address as *const u8, record.size) };
                record.content = content.unwrap_or(ptr::null());
            }
        }
        let bytes = BYTES_USED.load(Ordering::Acquire);
        assert!(bytes <= MOST_BYTES, "too many bytes: {bytes}");
        std::mem::forget(self);
        Blocks { records: used }
    }
}

/// Where a test fails before the end.
impl Drop for Watch {
    fn drop(&mut self) {
        IS_WATCHING.store(false, Ordering::Release);
        IS_IN_USE.store(false, Ordering::Release);
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// The blocks of a watch that is over. No other watch begins while they are held.
#[derive(Debug)]
pub struct Blocks {
    records: usize,
}

/// The state of a block at the end of the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was given back with the secret in it.
    Freed,
    /// It still holds the secret.
    Alive,
}

/// A block that held something that was looked for.
#[derive(Debug)]
pub struct Hit {
    /// Its state.
    pub state: State,
    /// Its size in bytes.
    pub size: usize,
    /// Which of the markers it held, as places in the list.
    pub markers: Vec<usize>,
    allocated_by: Vec<usize>,
    freed_by: Vec<usize>,
}

impl Blocks {
    /// How many blocks were recorded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The blocks that held one of `markers` when they were freed, or at the watch's end.
    #[must_use]
    pub fn holding(&self, markers: &[Vec<u8>]) -> Vec<Hit> {
        (0..self.records).filter_map(|index| hit(index, markers)).collect()
    }
}

fn hit(index: usize, markers: &[Vec<u8>]) -> Option<Hit> {
    // SAFETY: it is one of those that were written, and nobody writes any more.
    let record = unsafe { &*RECORDS.load(Ordering::Acquire).add(index) };
    let is_freed = record.is_freed.load(Ordering::Acquire);
    // SAFETY: `end` has seen to it that each record has its copy.
    let content = unsafe { std::slice::from_raw_parts(record.content, record.size) };
    let markers: Vec<usize> =
        (0..markers.len()).filter(|marker| contains(content, &markers[*marker])).collect();
    let frames = |stack: &Stack| stack.iter().copied().take_while(|ip| *ip != 0).collect();
    (!markers.is_empty()).then(|| Hit {
        state: if is_freed { State::Freed } else { State::Alive },
        size: record.size,
        markers,
        allocated_by: frames(&record.allocated_by),
        freed_by: frames(&record.freed_by),
    })
}

impl Drop for Blocks {
    fn drop(&mut self) {
        IS_IN_USE.store(false, Ordering::Release);
    }
}

fn contains(content: &[u8], marker: &[u8]) -> bool {
    let Some(first) = marker.first() else { return false };
    content.windows(marker.len()).any(|window| window[0] == *first && window == marker)
}

impl Hit {
    /// The functions that allocated the block, the innermost first. Empty where it was there before
    /// the watch.
    #[must_use]
    pub fn allocated_by(&self) -> Vec<String> {
        names(&self.allocated_by)
    }

    /// The functions that freed the block, the innermost first. Empty where it is alive.
    #[must_use]
    pub fn freed_by(&self) -> Vec<String> {
        names(&self.freed_by)
    }
}

fn names(stack: &[usize]) -> Vec<String> {
    let mut names = Vec::new();
    for ip in stack {
        backtrace::resolve(*ip as *mut c_void, |symbol| {
            names.extend(symbol.name().map(|name| format!("{name:#}")));
        });
    }
    names
}

/// [`WatchedHeap`], and an allocator of another crate above it that can be switched on, so that the
/// watch sees what that one really gives back.
///
/// The one above has to hand out the blocks of the `WatchedHeap` below it as they are, since they
/// may be given back to either.
#[derive(Debug)]
pub struct Switched<A> {
    above: A,
    is_on: AtomicBool,
}

impl<A> Switched<A> {
    /// Switched off.
    pub const fn new(above: A) -> Self {
        Self { above, is_on: AtomicBool::new(false) }
    }

    /// Does something with the allocator above switched on.
    pub fn switched_on<T>(&self, work: impl FnOnce() -> T) -> T {
        struct SwitchOff<'a>(&'a AtomicBool);
        impl Drop for SwitchOff<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Release);
            }
        }
        self.is_on.store(true, Ordering::Release);
        let _switch_off = SwitchOff(&self.is_on);
        work()
    }

    fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }
}

// SAFETY: every block is one of the `WatchedHeap`, whichever of the two it went through.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Switched<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's, here and below.
        unsafe { if self.is_on() { self.above.alloc(layout) } else { WatchedHeap.alloc(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: see above.
        unsafe {
            if self.is_on() {
                self.above.dealloc(block, layout);
            } else {
                WatchedHeap.dealloc(block, layout);
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        unsafe {
            if self.is_on() {
                self.above.alloc_zeroed(layout)
            } else {
                WatchedHeap.alloc_zeroed(layout)
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see above.
        unsafe {
            if self.is_on() {
                self.above.realloc(block, layout, size)
            } else {
                WatchedHeap.realloc(block, layout, size)
            }
        }
    }
}
