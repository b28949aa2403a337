//! The tests: built once, and run by those mutants that they come past.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::on_threads;

/// The targets of the tests, beside the library itself.
const TARGETS: [&str; 7] = ["client", "edges", "fake", "manager", "proof", "stores", "web"];

/// The target whose tests see most of a layer; `client` sees to all else.
const LAYERS: [(&str, &str); 6] = [
    ("src/calls", "edges"),
    ("src/manager", "manager"),
    ("src/metrics", "manager"),
    ("src/rng", "manager"),
    ("src/store", "stores"),
    ("src/web", "web"),
];

/// The name of the unit tests' program.
const LIBRARY: &str = "hurdlr_oauth2";

/// How long a test may take.
const LONGEST: Duration = Duration::from_mins(10);

/// How many of the quickest tests get a process of their own, since one of them mostly notices.
const QUICK: usize = 15;

/// How many of the others share one.
const TOGETHER: usize = 20;

/// The tests of a tree.
pub struct Suite {
    pub tree: PathBuf,
    build: PathBuf,
    tests: Vec<Test>,
}

/// A test, and what it did on the tree without a change.
struct Test {
    program: PathBuf,
    name: String,
    took: Duration,
    /// The numbers of the mutants that it came past.
    met: HashSet<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    TimedOut,
}

impl Suite {
    pub fn new(tree: &Path, place: &Path) -> Self {
        Self { tree: tree.into(), build: place.join("build"), tests: Vec::new() }
    }

    /// Runs cargo: whether it worked, and its messages.
    fn cargo(&self, arguments: &[&str]) -> (bool, Vec<Value>) {
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).args(["--locked", "--all-features", "--message-format", "json"]);
        // Debug information would double the time of a build, and planted code is odd to read.
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("RUSTFLAGS", "--cap-lints=warn");
        cargo.env("CARGO_TARGET_DIR", &self.build).current_dir(&self.tree).stderr(Stdio::null());
        let output = cargo.output().expect("cargo runs");
        let lines = output.stdout.split(|byte| *byte == b'\n');
        let messages = lines.filter_map(|line| serde_json::from_slice(line).ok());
        (output.status.success(), messages.collect())
    }

    /// The errors of the compiler in the library and its unit tests.
    pub fn errors_of_library(&self) -> Vec<Value> {
        let (compiles, messages) = self.cargo(&["check", "--lib", "--profile", "test"]);
        let messages = messages.into_iter().map(|mut message| message["message"].take());
        let errors: Vec<_> = messages.filter(|message| message["level"] == "error").collect();
        assert_eq!(compiles, errors.is_empty(), "cargo itself failed");
        errors
    }

    /// Builds all tests, and runs each of them without a change. Returns how many there are, and
    /// how many of them pass: the others are left out.
    pub fn learn(&mut self) -> (usize, usize) {
        let mut arguments = vec!["test", "--no-run", "--lib"];
        arguments.extend(TARGETS.iter().flat_map(|target| ["--test", target]));
        let (is_built, messages) = self.cargo(&arguments);
        assert!(is_built, "the tests cannot be built");
        let programs = messages.iter().filter_map(|message| message["executable"].as_str());
        let tests: Vec<(PathBuf, String)> = programs.flat_map(tests_of).collect();
        let all = tests.len();
        let passed = Mutex::new(Vec::new());
        on_threads(1, tests.into_iter().enumerate().collect(), |(number, (program, name))| {
            let notes = self.build.join(format!("met-{number}"));
            let mut test = Test { program, name, took: Duration::ZERO, met: HashSet::new() };
            if self.learn_one(&mut test, &notes) == End::Passed {
                passed.lock().expect("no panic").push(test);
            } else {
                crate::say(&format!("fails without a change, and is left out: {}", test.name));
            }
        });
        self.tests = passed.into_inner().expect("no panic");
        self.tests.sort_by_key(|test| test.took);
        (all, self.tests.len())
    }

    fn learn_one(&self, test: &mut Test, notes: &Path) -> End {
        File::create(notes).expect("a file");
        let start = Instant::now();
        let variable = ("MUTANTS_MET", notes.to_str().expect("a path of text"));
        let end = self.run(&[test], LONGEST, variable);
        test.took = start.elapsed();
        let met = fs::read_to_string(notes).expect("a file");
        test.met = met.lines().filter_map(|line| line.parse().ok()).collect();
        let _ = fs::remove_file(notes);
        end
    }

    /// Whether a test notices a mutant that was planted.
    pub fn notices(&self, mutant: usize) -> bool {
        let met = self.tests.iter().filter(|test| test.met.contains(&mutant));
        self.notice(met.collect(), mutant)
    }

    /// Whether a test notices a change that stands in the tree without a switch: those of its layer
    /// are asked first.
    pub fn notices_built(&self, file: &str) -> bool {
        let own = LAYERS.iter().find(|(layer, _)| file.starts_with(layer));
        let own = own.map_or("client", |(_, target)| *target);
        let others = TARGETS.into_iter().filter(|target| *target != own);
        [vec![LIBRARY, own], others.collect()].into_iter().any(|targets| {
            let mut arguments = vec!["test", "--no-run"];
            for target in &targets {
                match *target {
                    LIBRARY => arguments.push("--lib"),
                    target => arguments.extend(["--test", target]),
                }
            }
            assert!(self.cargo(&arguments).0, "the tests cannot be built");
            let tests = self.tests.iter().filter(|test| targets.contains(&test.target()));
            self.notice(tests.collect(), usize::MAX)
        })
    }

    /// Whether one of these tests notices a mutant. The quickest come first.
    fn notice(&self, mut tests: Vec<&Test>, mutant: usize) -> bool {
        let slow = tests.split_off(tests.len().min(QUICK));
        let mut programs: BTreeMap<&Path, Vec<&Test>> = BTreeMap::new();
        for test in slow {
            programs.entry(&test.program).or_default().push(test);
        }
        let mut groups: Vec<_> = programs.values().flat_map(|all| all.chunks(TOGETHER)).collect();
        groups.sort_by_key(|group| took(group));
        let quick = tests.chunks(1);
        quick.chain(groups).any(|group| self.fails(group, mutant))
    }

    /// Whether tests of one program take far too long with a mutant, or fail twice in a row.
    fn fails(&self, tests: &[&Test], mutant: usize) -> bool {
        let mutant = mutant.to_string();
        let longest = Duration::from_secs(15) + 2 * took(tests);
        let run = || self.run(tests, longest, ("MUTANT", &mutant));
        match run() {
            End::Passed => false,
            End::TimedOut => true,
            End::Failed => run() != End::Passed,
        }
    }

    /// Runs tests of one program in a process of their own, with a variable of the environment.
    fn run(&self, tests: &[&Test], longest: Duration, variable: (&str, &str)) -> End {
        let mut program = Command::new(&tests[0].program);
        program.args(["--exact", "--test-threads", "4"]).args(tests.iter().map(|it| &it.name));
        program.env(variable.0, variable.1).current_dir(&self.tree);
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = program.process_group(0).spawn().expect("a test program runs");
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("a child") {
                return if status.success() { End::Passed } else { End::Failed };
            }
            if start.elapsed() > longest {
                let group = format!("-{}", child.id());
                let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
                let _ = child.wait();
                return End::TimedOut;
            }
            thread::sleep(Duration::from_millis(5).max(start.elapsed() / 50));
        }
    }
}

impl Test {
    /// What it is built from.
    fn target(&self) -> &str {
        let program = self.program.file_name().and_then(OsStr::to_str).unwrap_or_default();
        program.rsplit_once('-').map_or(program, |(target, _)| target)
    }
}

fn took(tests: &[&Test]) -> Duration {
    tests.iter().map(|test| test.took).sum()
}

/// The tests of a program.
fn tests_of(program: &str) -> Vec<(PathBuf, String)> {
    let output = Command::new(program).arg("--list").output().expect("a test program runs");
    let list = String::from_utf8(output.stdout).expect("names are text");
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    names.map(|name| (program.into(), name.to_owned())).collect()
}
