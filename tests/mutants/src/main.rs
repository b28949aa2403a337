//! Changes the code in small ways, and counts how many of the changes the tests notice.
//!
//! The changes are those of `cargo mutants`. It would build the crate once for each of them, which
//! takes a day; here all of them are written into the code at once, each behind a switch, and a test
//! is run only by those changes that it comes past.

mod list;
mod suite;
mod weave;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use list::Mutant;
use suite::{End, Test};

/// How many of a hundred changes tests have to notice.
const GOAL: usize = 95;

/// How many tests get a process of their own.
const QUICK: usize = 15;

/// The compiler's code for a call in a constant of what is no constant.
const NOT_CONSTANT: &str = "E0015";

/// How many tests share a process, when the quick ones have passed.
const TOGETHER: usize = 20;

/// What woven code asks whether a change is on.
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

struct Place {
    root: PathBuf,
}

impl Place {
    fn tree(&self) -> PathBuf {
        self.root.join("tree")
    }

    fn build(&self) -> PathBuf {
        self.root.join("build")
    }
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> T {
    serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON")
}

fn write(file: &Path, value: &impl serde::Serialize) {
    fs::write(file, serde_json::to_vec(value).expect("JSON")).expect("a file");
}

fn say(text: &str) {
    println!("tests/mutants: {text}");
}

/// Clones the last commit.
fn clone(repository: &Path, tree: &Path) {
    let _ = fs::remove_dir_all(tree);
    let mut git = Command::new("git");
    git.args(["clone", "--quiet"]).args([repository, tree]);
    assert!(git.status().expect("git runs").success(), "the clone failed");
}

/// The mutants that are not in the woven tree.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Left {
    /// These do not compile.
    wrong: HashSet<usize>,
    /// These may compile without a switch: they change a constant, or a function's `impl Trait`.
    alone: HashSet<usize>,
}

impl Left {
    fn has(&self, number: usize) -> bool {
        self.wrong.contains(&number) || self.alone.contains(&number)
    }

    fn len(&self) -> usize {
        self.wrong.len() + self.alone.len()
    }
}

/// The text of each file that has mutants.
fn sources(tree: &Path, mutants: &[Mutant]) -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    for mutant in mutants {
        sources.entry(mutant.file.clone()).or_insert_with(|| {
            fs::read_to_string(tree.join(&mutant.file)).expect("a source file")
        });
    }
    sources
}

/// Writes the mutants into the tree, but for those that do not compile there.
fn weave(place: &Place, mutants: &[Mutant], sources: &BTreeMap<String, String>) -> Left {
    let tree = place.tree();
    let library = tree.join("src/lib.rs");
    let switched = fs::read_to_string(&library).expect("a source file") + SWITCH;
    fs::write(&library, switched).expect("a source file");

    let mut left = Left::default();
    loop {
        let mut places = HashMap::new();
        for (file, text) in sources {
            let here: Vec<(usize, &Mutant)> = mutants
                .iter()
                .enumerate()
                .filter(|(number, mutant)| mutant.file == *file && !left.has(*number))
                .collect();
            let (woven, unplaced) = weave::weave(text, &here);
            left.alone.extend(unplaced);
            fs::write(tree.join(file), &woven.text).expect("a source file");
            places.insert(file.clone(), woven.places);
        }
        let check = ["check", "--lib"];
        let (compiles, messages) = suite::cargo(&tree, &place.build(), &check);
        if compiles {
            return left;
        }
        let before = left.len();
        let errors = messages.iter().map(|message| &message["message"]);
        for error in errors.filter(|error| error["level"] == "error") {
            let is_constant = error["code"]["code"] == NOT_CONSTANT;
            let into = if is_constant { &mut left.alone } else { &mut left.wrong };
            into.extend(blamed(error, &places));
        }
        say(&format!("{} do not compile so far", left.len()));
        if left.len() == before {
            for error in messages.iter().filter_map(|it| it["message"]["rendered"].as_str()) {
                if error.starts_with("error") {
                    eprintln!("{error}");
                }
            }
            exit(1);
        }
    }
}

/// Whose code an error of the compiler is about.
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

/// Runs each of the items on one of a few threads.
fn on_threads<T: Send>(more: usize, items: Vec<T>, work: impl Fn(usize, T) + Sync) {
    let threads = thread::available_parallelism().map_or(2, usize::from) + more;
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else { break };
                    let item = item.lock().expect("no panic").take().expect("taken once");
                    work(number, item);
                }
            });
        }
    });
}

/// Whether tests notice a mutant that is built alone; none, if it does not compile.
fn is_noticed_alone(place: &Place, mutant: &Mutant, source: &str, tests: &[Test]) -> Option<bool> {
    let tree = place.tree();
    let file = tree.join(&mutant.file);
    fs::write(&file, weave::replaced(source, mutant)).expect("a source file");
    let (compiles, _) = suite::cargo(&tree, &place.build(), &["check", "--lib"]);
    let noticed = compiles.then(|| suite::notice_built(&tree, &place.build(), tests, &mutant.file));
    fs::write(&file, source).expect("a source file");
    noticed
}

fn learn(place: &Place, tests: Vec<Test>) -> Vec<Test> {
    let learnt = Mutex::new(Vec::new());
    on_threads(1, tests, |number, mut test| {
        let notes = place.root.join(format!("met-{number}"));
        match test.learn(&place.tree(), &notes) {
            End::Passed => learnt.lock().expect("no panic").push(test),
            end => say(&format!("left out, since without a change it {end:?}: {}", test.name)),
        }
    });
    let mut learnt = learnt.into_inner().expect("no panic");
    learnt.sort_by_key(|test| test.took);
    learnt
}

/// The quickest tests each in a process of its own, since one of them mostly notices; the others in
/// processes of some of one program.
fn in_groups<'a>(tests: &[&'a Test]) -> Vec<Vec<&'a Test>> {
    let (quick, slow) = tests.split_at(tests.len().min(QUICK));
    let mut groups: Vec<_> = quick.iter().map(|test| vec![*test]).collect();
    let mut programs: BTreeMap<&Path, Vec<&Test>> = BTreeMap::new();
    for test in slow {
        programs.entry(&test.program).or_default().push(test);
    }
    let chunks = programs.values().flat_map(|tests| tests.chunks(TOGETHER).map(<[_]>::to_vec));
    groups.extend(chunks);
    let took = |group: &Vec<&Test>| group.iter().map(|test| test.took).sum::<Duration>();
    groups.sort_by_key(took);
    groups
}

fn main() {
    let mut words = Vec::new();
    let mut skipped = Vec::new();
    let mut again = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--again" {
            again = true;
        } else if argument == "--skip" {
            skipped.extend(arguments.next());
        } else if let Some(file) = argument.strip_prefix('@') {
            let names = fs::read_to_string(file).expect("a file of names");
            words.extend(names.lines().map(str::to_owned));
        } else {
            words.push(argument);
        }
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let repository = repository.join("../..").canonicalize().expect("the repository");
    let place = Place { root: repository.join("target/mutants") };
    let learnt = place.root.join("learnt");
    if !again {
        clone(&repository, &place.tree());
    }
    let mutants = if again { read(&place.root.join("list")) } else { list::mutants(&place.tree()) };
    say(&format!("{} changes", mutants.len()));
    let (left, tests, sources): (Left, Vec<Test>, BTreeMap<String, String>) = if again {
        read(&learnt)
    } else {
        write(&place.root.join("list"), &mutants);
        let sources = sources(&place.tree(), &mutants);
        let left = weave(&place, &mutants, &sources);
        say("builds the tests");
        let tests = suite::build(&place.tree(), &place.build(), &skipped);
        say(&format!("{} tests, without a change", tests.len()));
        let tests = learn(&place, tests);
        write(&learnt, &(&left, &tests, &sources));
        (left, tests, sources)
    };
    let is_skipped = |test: &Test| skipped.iter().any(|skipped| test.name.contains(skipped));
    let longest: u64 = std::env::var("LONGEST").map_or(9999, |it| it.parse().unwrap());
    let tests: Vec<Test> = tests.into_iter().filter(|test| !is_skipped(test) && test.took < Duration::from_secs(longest)).collect();
    let slow: f32 = tests.iter().map(|test| test.took.as_secs_f32()).sum();
    say(&format!("{} tests pass, in {slow:.0} s", tests.len()));

    let wanted = |number: &usize| {
        let name = &mutants[*number].name;
        words.is_empty() || words.iter().any(|word| name.contains(word))
    };
    let (alone, numbers): (Vec<usize>, Vec<usize>) = (0..mutants.len())
        .filter(|number| wanted(number) && !left.wrong.contains(number))
        .partition(|number| left.alone.contains(number));
    let mut numbers = numbers;
    fastrand::shuffle(&mut numbers);
    let mut all = numbers.len();
    let unnoticed = Mutex::new(Vec::new());
    let done = AtomicUsize::new(0);
    on_threads(4, numbers, |_, number| {
        let tree = place.tree();
        let met: Vec<&Test> = tests.iter().filter(|test| test.met.contains(&number)).collect();
        if let Some(group) = in_groups(&met).into_iter().find(|it| suite::notice(&tree, it, number))
        {
            say(&format!("by {}: {}", group[0].name, mutants[number].name));
        } else {
            let why = if met.is_empty() { "is met by no test" } else { "passes" };
            println!("nobody noticed, it {why}: {}", mutants[number].name);
            unnoticed.lock().expect("no panic").push(number);
        }
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done % 100 == 0 {
            say(&format!("{done} of {all}, {} unnoticed", unnoticed.lock().expect("no panic").len()));
        }
    });
    let mut unnoticed = unnoticed.into_inner().expect("no panic");

    clone(&repository, &place.tree());
    for number in alone {
        let mutant = &mutants[number];
        say(&format!("alone, {}", mutant.name));
        match is_noticed_alone(&place, mutant, &sources[mutant.file.as_str()], &tests) {
            None => {}
            Some(noticed) => {
                all += 1;
                if !noticed {
                    println!("nobody noticed: {}", mutant.name);
                    unnoticed.push(number);
                }
            }
        }
    }
    unnoticed.sort_unstable();
    let names: Vec<_> = unnoticed.iter().map(|it| format!("{}\n", mutants[*it].name)).collect();
    fs::write(place.root.join("unnoticed"), names.concat()).expect("a file");
    let noticed = all - unnoticed.len();
    println!("figure: mutants.tried = {all} changes");
    println!("figure: mutants.caught_share = {:.1} %", 100.0 * noticed as f64 / all as f64);
    if noticed * 100 < GOAL * all {
        eprintln!("tests/mutants: too few were noticed");
        exit(1);
    }
}
