//! The fault matrix: every fault of `FakeHurdlr` for every grant, every rotation of refresh tokens
//! and every store, each cell compared with one table.
//!
//! [`table`] is what has to come of it, [`model`] what that means for the next request, [`cell`]
//! how it is found out.

mod cell;
mod clock;
mod model;
mod places;
mod table;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hurdlr_oauth2::ApiVersion;
use hurdlr_oauth2::testing::{ErrorStyle, Rotation};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use cell::Problems;
use places::{Databases, PLACES, Place};
use table::{CASES, Case, GRANTS, Grant, ROTATIONS};

/// Cells that are under way at once in each thread.
const AT_ONCE: usize = 16;

/// A cell that takes longer hangs.
const LONGEST: Duration = Duration::from_mins(5);

/// What the user has when the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Had {
    /// A living token: one that is due, or that of an earlier login where the grant is a login.
    LivingToken,
    /// A token that has expired, or no login.
    NoLivingToken,
}

/// How many requests meet the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meets {
    /// The first one.
    First,
    /// All of three attempts.
    All,
}

/// The coordinates of a cell.
#[derive(Clone, Copy)]
pub(crate) struct Coordinates {
    pub(crate) case: &'static Case,
    pub(crate) grant: Grant,
    pub(crate) rotation: Rotation,
    pub(crate) place: Place,
    pub(crate) had: Had,
    pub(crate) meets: Meets,
    pub(crate) style: ErrorStyle,
    pub(crate) version: ApiVersion,
}

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, grant, rotation, place, had, meets, style, version } = self;
        let name = case.name;
        write!(
            f,
            "{name} | {grant:?} | {rotation:?} | {place:?} | {had:?} | {meets:?} | {style:?} | \
             {version:?}"
        )
    }
}

/// The cells. Each fault meets each grant, rotation and store. In memory it does so with each
/// state and in both rounds; the other four stores take turns with these. The provider's styles
/// and versions take turns everywhere. `is_whole` takes no turns but the last.
fn cells(is_whole: bool) -> Vec<Coordinates> {
    let styles = [ErrorStyle::Envelope, ErrorStyle::Rfc6749];
    let versions = [ApiVersion::V4, ApiVersion::V6, ApiVersion::V5];
    let states = [
        (Had::LivingToken, Meets::First),
        (Had::LivingToken, Meets::All),
        (Had::NoLivingToken, Meets::First),
        (Had::NoLivingToken, Meets::All),
    ];
    let mut cells = Vec::new();
    let (mut turn, mut group) = (0, 0);
    for case in CASES {
        for grant in GRANTS {
            for rotation in ROTATIONS {
                group += 1;
                for (store, place) in PLACES.into_iter().enumerate() {
                    for (state, (had, meets)) in states.into_iter().enumerate() {
                        let is_its_turn = state == (store + group) % states.len();
                        if !is_whole && place != Place::Memory && !is_its_turn {
                            continue;
                        }
                        let (style, version) = (styles[turn % 2], versions[turn / 2 % 3]);
                        turn += 1;
                        let at = Coordinates {
                            case,
                            grant,
                            rotation,
                            place,
                            had,
                            meets,
                            style,
                            version,
                        };
                        cells.push(at);
                    }
                }
                // Or each group would have the same styles and versions in the same places.
                turn += 1;
            }
        }
    }
    cells
}

/// Every cell ends as the table says. `CELLS=text` runs those whose coordinates hold that text, of
/// all there are: in the other stores too, every state and round.
#[test]
fn every_fault_ends_as_designed() {
    let wanted = std::env::var("CELLS").unwrap_or_default();
    let is_wanted = |cell: &Coordinates| cell.to_string().contains(&wanted);
    let cells: Vec<_> = cells(!wanted.is_empty()).into_iter().filter(is_wanted).collect();
    let begun = Instant::now();
    let threads = thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let hands: Vec<_> = (0..threads)
        .map(|hand| {
            let cells: Vec<_> =
                cells.iter().copied().enumerate().skip(hand).step_by(threads).collect();
            thread::spawn(move || run(hand, cells))
        })
        .collect();
    let failures: Vec<_> = hands.into_iter().flat_map(|hand| hand.join().unwrap()).collect();
    println!("figure: faults.cells = {} cells", cells.len());
    println!("figure: faults.unexpected = {} cells", failures.len());
    println!("figure: faults.time = {:.1} s", begun.elapsed().as_secs_f64());
    assert!(!cells.is_empty(), "no cell has {wanted:?} in its coordinates");
    assert!(
        failures.is_empty(),
        "{} of {} cells are not as the table says:\n{}",
        failures.len(),
        cells.len(),
        failures.join("\n")
    );
}

/// Runs cells in one thread. There, a refresh ends in the same step as its last call of the store,
/// and nothing begins while a test turns the clocks.
fn run(thread: usize, cells: Vec<(usize, Coordinates)>) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let databases = Arc::new(Databases::open(thread).await);
        let (slots, mut running) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
        let (hanging, mut failures) = (Arc::new(AtomicUsize::new(0)), Vec::new());
        for (number, coordinates) in cells {
            let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
            let databases = Arc::clone(&databases);
            let hung = Arc::clone(&hanging);
            running.spawn(async move {
                let (_slot, problems) = (slot, Problems::default());
                let noted = Arc::clone(&problems);
                let mut run = tokio::spawn(async move {
                    cell::run(number, coordinates, &databases, noted).await;
                });
                let end = match tokio::time::timeout(LONGEST, &mut run).await {
                    Ok(Ok(())) => None,
                    Ok(Err(panic)) => Some(panic.to_string()),
                    Err(_) => {
                        run.abort();
                        hung.fetch_add(1, Ordering::Relaxed);
                        Some(format!("hangs for {LONGEST:?}"))
                    }
                };
                let mut problems = std::mem::take(&mut *problems.lock().unwrap());
                problems.extend(end);
                let lines = problems.iter().map(|problem| format!("\n    {problem}"));
                (!problems.is_empty())
                    .then(|| format!("{coordinates}{}", lines.collect::<String>()))
            });
            if hanging.load(Ordering::Relaxed) >= AT_ONCE {
                failures.push(format!("no cell after {coordinates}: too many hang"));
                break;
            }
        }
        failures.extend(running.join_all().await.into_iter().flatten());
        failures
    })
}
