//! Changes the code in small ways, and counts how many of the changes the tests notice.
//!
//! ```text
//! tests/mutants/run               all changes
//! tests/mutants/run 1/10          a random tenth of them
//! tests/mutants/run src/web       those whose name has this word, such as a file's
//! ```
//!
//! The changes are those that `cargo mutants` lists. It builds the crate once for each of them,
//! which takes a day. Here all of them stand in the code at once, each behind a switch, and are
//! shown only to the tests that come past them, which takes hours. What needs a build of its own,
//! such as the change of a constant, gets one.

mod list;
mod plant;
mod suite;
mod weave;

use std::path::Path;
use std::process::{Command, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use list::Mutant;
use plant::Planted;
use suite::Suite;

/// How many of a hundred changes tests have to notice.
const GOAL: usize = 95;

fn main() {
    let mut part = 1.0;
    let mut words = Vec::new();
    for argument in env::args().skip(1) {
        match share(&argument) {
            Some(share) => part = share,
            None => words.push(argument),
        }
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let place = repository.canonicalize().expect("the repository").join("target/mutants");
    let tree = place.join("tree");
    clone(&repository, &tree);

    let mutants = list::mutants(&tree);
    say(&format!("{} changes; looks which of them compile", mutants.len()));
    let mut suite = Suite::new(&tree, &place);
    let Planted { switched, alone } = plant::plant(&suite, &mutants);
    say("builds the tests, and runs them without a change");
    let (all, passed) = suite.learn();
    say(&format!("{passed} of {all} tests pass"));

    let is_chosen = |number: &usize| {
        let name = &mutants[*number].name;
        (words.is_empty() || words.iter().any(|word| name.contains(word))) && fastrand::f64() < part
    };
    let mut switched: Vec<usize> = switched.into_iter().filter(is_chosen).collect();
    let alone: Vec<usize> = alone.into_iter().filter(is_chosen).collect();
    fastrand::shuffle(&mut switched);
    let mut tried = switched.len();
    let mut unnoticed = unnoticed(&suite, &mutants, switched);
    clone(&repository, &tree);
    for number in alone {
        let mutant = &mutants[number];
        let file = tree.join(&mutant.file);
        let source = fs::read_to_string(&file).expect("a source file");
        fs::write(&file, weave::replaced(&source, mutant)).expect("a source file");
        if suite.errors_of_library().is_empty() {
            say(&format!("builds {}", mutant.name));
            tried += 1;
            if !suite.notices_built(&mutant.file) {
                unnoticed.push(number);
            }
        }
        fs::write(&file, source).expect("a source file");
    }

    unnoticed.sort_unstable();
    for number in &unnoticed {
        println!("nobody noticed: {}", mutants[*number].name);
    }
    let noticed = tried - unnoticed.len();
    println!("figure: mutants.tried = {tried} changes");
    println!("figure: mutants.caught_share = {:.1} %", percent(noticed, tried));
    if noticed * 100 < GOAL * tried {
        eprintln!("tests/mutants: too few were noticed");
        exit(1);
    }
}

/// Which of these mutants no test notices.
fn unnoticed(suite: &Suite, mutants: &[Mutant], numbers: Vec<usize>) -> Vec<usize> {
    let (all, done) = (numbers.len(), AtomicUsize::new(0));
    let unnoticed = Mutex::new(Vec::new());
    // Most tests wait for something most of the time.
    on_threads(4, numbers, |number| {
        if !suite.notices(number) {
            say(&format!("nobody noticed: {}", mutants[number].name));
            unnoticed.lock().expect("no panic").push(number);
        }
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(50) {
            say(&format!("{done} of {all} tried"));
        }
    });
    unnoticed.into_inner().expect("no panic")
}

/// Does some work for each of the items, on as many threads as there are processors, and `more`.
fn on_threads<T: Send>(more: usize, items: Vec<T>, work: impl Fn(T) + Sync) {
    let threads = thread::available_parallelism().map_or(2, usize::from) + more;
    let items = Mutex::new(items.into_iter());
    let next = || items.lock().expect("no panic").next();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| std::iter::from_fn(next).for_each(&work));
        }
    });
}

/// Clones the last commit.
fn clone(repository: &Path, tree: &Path) {
    let _ = fs::remove_dir_all(tree);
    let mut git = Command::new("git");
    let is_cloned = git.args(["clone", "--quiet"]).args([repository, tree]).status();
    assert!(is_cloned.expect("git runs").success(), "the clone failed");
}

/// A part such as 1/10.
fn share(text: &str) -> Option<f64> {
    let (part, parts) = text.split_once('/')?;
    Some(part.parse::<f64>().ok()? / parts.parse::<f64>().ok()?)
}

#[allow(clippy::cast_precision_loss, reason = "there are thousands of them")]
fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

fn say(text: &str) {
    println!("tests/mutants: {text}");
}
