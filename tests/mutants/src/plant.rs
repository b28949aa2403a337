//! Which changes can stand in the code together, each behind its switch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::ops::Range;

use serde_json::Value;

use crate::list::{Genre, Mutant};
use crate::suite::Suite;
use crate::weave;

/// The compiler's code for a call in a constant of what is no constant.
const NOT_CONSTANT: &str = "E0015";

/// The planted code asks this module whether a change is on. In the file that `MUTANTS_MET` names,
/// the module notes which ones its process came past.
const SWITCH: &str = r#"
mod mutant {
    use std::collections::HashSet;
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::sync::{LazyLock, Mutex, PoisonError};

    static ON: LazyLock<Option<usize>> =
        LazyLock::new(|| std::env::var("MUTANT").ok()?.parse().ok());
    static MET: LazyLock<Option<Mutex<(File, HashSet<usize>)>>> = LazyLock::new(|| {
        let file = std::env::var_os("MUTANTS_MET")?;
        Some(Mutex::new((OpenOptions::new().append(true).open(file).ok()?, HashSet::new())))
    });

    pub(crate) fn is(number: usize) -> bool {
        if let Some(met) = &*MET {
            let mut met = met.lock().unwrap_or_else(PoisonError::into_inner);
            if met.1.insert(number) {
                let _ = met.0.write_all(format!("{number}\n").as_bytes());
            }
        }
        *ON == Some(number)
    }
}
"#;

/// Where in each file each mutant stands.
type Places = HashMap<String, Vec<(Range<usize>, usize)>>;

/// The mutants that compile, by their numbers.
pub struct Planted {
    /// These stand in the tree.
    pub switched: Vec<usize>,
    /// These may compile without a switch: they change a constant, or what an `impl Trait` is.
    pub alone: Vec<usize>,
}

/// Writes all mutants into the tree but those that do not compile there.
pub fn plant(suite: &Suite, mutants: &[Mutant]) -> Planted {
    let mut sources: BTreeMap<&str, String> = BTreeMap::new();
    for mutant in mutants {
        let file = suite.tree.join(&mutant.file);
        sources
            .entry(&mutant.file)
            .or_insert_with(|| fs::read_to_string(file).expect("a source file"));
    }
    let library = suite.tree.join("src/lib.rs");
    let switched = fs::read_to_string(&library).expect("a source file") + SWITCH;
    fs::write(&library, switched).expect("a source file");

    let mut switched: BTreeSet<usize> = (0..mutants.len()).collect();
    let mut alone = Vec::new();
    loop {
        let mut places = Places::new();
        for (file, text) in &sources {
            let here = switched.iter().map(|number| (*number, &mutants[*number]));
            let here: Vec<_> = here.filter(|(_, mutant)| mutant.file == *file).collect();
            let (woven, without_place) = weave::weave(text, &here);
            for number in without_place {
                switched.remove(&number);
                // The others are operators beside a `let`, which allows no other.
                if mutants[number].genre == Genre::FnValue {
                    alone.push(number);
                }
            }
            fs::write(suite.tree.join(file), &woven.text).expect("a source file");
            places.insert((*file).to_owned(), woven.places);
        }
        let errors = suite.errors_of_library();
        if errors.is_empty() {
            return Planted { switched: switched.into_iter().collect(), alone };
        }
        let before = switched.len();
        for error in &errors {
            for number in blamed(error, &places) {
                if switched.remove(&number) && error["code"]["code"] == NOT_CONSTANT {
                    alone.push(number);
                }
            }
        }
        assert!(switched.len() < before, "nobody is to blame: {errors:?}");
    }
}

/// The mutants whose code an error of the compiler is about.
fn blamed(error: &Value, places: &Places) -> Vec<usize> {
    let mut found: Vec<Vec<usize>> = spans(error, places)
        .map(|(range, places)| {
            let is_hit = |place: &Range<usize>| place.start < range.end && range.start < place.end;
            let hits = places.iter().filter(|(place, _)| is_hit(place));
            hits.map(|(_, number)| *number).collect()
        })
        .filter(|hits: &Vec<usize>| !hits.is_empty())
        .collect();
    // A span that holds much of a function says nothing about one of them.
    found.sort_by_key(Vec::len);
    if let Some(hits) = found.into_iter().next() {
        return hits;
    }
    // A `match` lacks an arm, and the compiler proposes to add it behind the last one.
    let proposals = error["children"].as_array().into_iter().flatten();
    let proposals = proposals.flat_map(|proposal| spans(proposal, places));
    let last = proposals.filter_map(|(range, places)| {
        let before = places.iter().filter(|(place, _)| place.start <= range.start);
        before.max_by_key(|(place, _)| place.start).map(|(_, number)| *number)
    });
    last.collect()
}

/// The places that a message of the compiler names, each with the mutants of its file.
fn spans<'a>(
    message: &'a Value,
    places: &'a Places,
) -> impl Iterator<Item = (Range<usize>, &'a Vec<(Range<usize>, usize)>)> {
    let spans = message["spans"].as_array().into_iter().flatten();
    spans.filter_map(|span| {
        let file = places.get(span["file_name"].as_str()?)?;
        let at = |name: &str| usize::try_from(span[name].as_u64()?).ok();
        Some((at("byte_start")?..at("byte_end")?, file))
    })
}
