//! The corpus of the fuzz targets, replayed: each entry was odd once.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use targets::TARGETS;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// The names of what a folder holds, without what follows a dot.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    entries.map(|entry| stem(entry.unwrap().path())).collect()
}

/// No entry of the corpus breaks a promise of its target.
#[test]
fn corpus_breaks_no_promise() {
    let (mut replayed, mut broken) = (0, Vec::new());
    for (name, check) in TARGETS {
        for entry in fs::read_dir(folder("corpus").join(name)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            if catch_unwind(|| check(&bytes)).is_err() {
                broken.push(path);
            }
            replayed += 1;
        }
    }
    println!("figure: fuzz.corpus_replayed = {replayed} inputs");
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Each target has a program for the fuzzer and a corpus, and there are no others.
#[test]
fn target_has_program_and_corpus() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&folder("fuzz_targets")), targets);
    assert_eq!(names(&folder("corpus")), targets);
    for (name, _) in TARGETS {
        assert!(names(&folder("corpus").join(name)).len() > 9, "{name} has next to no corpus");
    }
}
