//! The tests: built once, and run one by one in processes of their own.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The tests of each of these see to the layers under `src/`.
const TARGETS: [&str; 7] = ["client", "edges", "fake", "manager", "proof", "stores", "web"];

/// What the program of the unit tests is named after.
const LIBRARY: &str = "hurdlr_oauth2";

/// Whose tests see to what most; `client` sees to all else.
const LAYERS: [(&str, &str); 6] = [
    ("src/calls", "edges"),
    ("src/manager", "manager"),
    ("src/metrics", "manager"),
    ("src/rng", "manager"),
    ("src/store", "stores"),
    ("src/web", "web"),
];

/// How long a test may take.
const LONGEST: Duration = Duration::from_secs(600);

/// A test, and what it did on the tree without a change.
#[derive(Serialize, Deserialize)]
pub struct Test {
    pub program: PathBuf,
    pub name: String,
    pub took: Duration,
    /// The numbers of the mutants that it came past.
    pub met: HashSet<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Passed,
    Failed,
    TimedOut,
}

/// What a build says: whether it worked, and its messages.
pub fn cargo(tree: &Path, build: &Path, arguments: &[&str]) -> (bool, Vec<Value>) {
    let mut cargo = Command::new("cargo");
    cargo.args(arguments).args(["--locked", "--all-features", "--message-format", "json"]);
    // Debug information would double the time of a build, and woven code is full of parentheses.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("RUSTFLAGS", "--cap-lints=warn");
    cargo.env("CARGO_TARGET_DIR", build).current_dir(tree).stderr(Stdio::null());
    let output = cargo.output().expect("cargo runs");
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    (output.status.success(), messages)
}

/// Builds all tests of a tree, and names them.
pub fn build(tree: &Path, build: &Path, skipped: &[String]) -> Vec<Test> {
    let mut arguments = vec!["test", "--no-run", "--lib"];
    arguments.extend(TARGETS.iter().flat_map(|target| ["--test", target]));
    let (is_built, messages) = cargo(tree, build, &arguments);
    assert!(is_built, "the tests cannot be built");
    let programs = messages.iter().filter_map(|message| message["executable"].as_str());
    let mut tests = Vec::new();
    for program in programs {
        let output = Command::new(program).arg("--list").output().expect("a test program runs");
        let list = String::from_utf8(output.stdout).expect("names are text");
        for name in list.lines().filter_map(|line| line.strip_suffix(": test")) {
            if !skipped.iter().any(|skipped| name.contains(skipped)) {
                tests.push(Test {
                    program: program.into(),
                    name: name.to_owned(),
                    took: Duration::ZERO,
                    met: HashSet::new(),
                });
            }
        }
    }
    tests
}

/// Runs tests of one program in a process of their own, with a variable of the environment.
fn run(tree: &Path, tests: &[&Test], longest: Duration, variable: (&str, &str)) -> End {
    let mut program = Command::new(&tests[0].program);
    program.args(["--exact", "--test-threads", "4"]).args(tests.iter().map(|test| &test.name));
    program.env(variable.0, variable.1).env("CARGO_MANIFEST_DIR", tree).current_dir(tree);
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

/// Whether one of the tests notices a mutant: they take far too long, or fail twice in a row.
pub fn notice(tree: &Path, tests: &[&Test], mutant: usize) -> bool {
    let took: Duration = tests.iter().map(|test| test.took).sum();
    let mutant = mutant.to_string();
    let run = || run(tree, tests, Duration::from_secs(15) + took, ("MUTANT", &mutant));
    match run() {
        End::Passed => false,
        End::TimedOut => true,
        End::Failed => run() != End::Passed,
    }
}

/// Whether the tests notice a change that stands in the tree: those of its layer first.
pub fn notice_built(tree: &Path, build: &Path, tests: &[Test], file: &str) -> bool {
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
        assert!(cargo(tree, build, &arguments).0, "the tests cannot be built");
        targets.into_iter().any(|target| {
            let of_target: Vec<_> = tests.iter().filter(|test| test.target() == target).collect();
            !of_target.is_empty() && notice(tree, &of_target, usize::MAX)
        })
    })
}

impl Test {
    /// What it is built from.
    fn target(&self) -> &str {
        let program = self.program.file_name().and_then(OsStr::to_str).unwrap_or_default();
        program.rsplit_once('-').map_or(program, |(target, _)| target)
    }

    /// Runs it without a change, and notes how long it took and which mutants it met.
    pub fn learn(&mut self, tree: &Path, notes: &Path) -> End {
        File::create(notes).expect("a file");
        let variable = ("MUTANTS_MET", notes.to_str().expect("a path of text"));
        let start = Instant::now();
        let end = run(tree, &[self], LONGEST, variable);
        self.took = start.elapsed();
        let met = fs::read_to_string(notes).expect("a file");
        self.met = met.lines().filter_map(|line| line.parse().ok()).collect();
        let _ = fs::remove_file(notes);
        end
    }
}
