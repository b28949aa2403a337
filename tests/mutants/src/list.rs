//! The changes, as `cargo mutants` lists them.

use std::path::Path;
use std::process::Command;

use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Genre {
    FnValue,
    BinaryOperator,
    UnaryOperator,
    MatchArm,
    MatchArmGuard,
    StructField,
}

/// A line and a column, both counted from 1.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Span {
    pub start: Place,
    pub end: Place,
}

/// A change of the code.
#[derive(Debug, Clone, Deserialize)]
pub struct Mutant {
    pub name: String,
    pub file: String,
    pub genre: Genre,
    pub span: Span,
    pub replacement: String,
}

/// All changes of the crate in a folder but those that `.cargo/mutants.toml` leaves out.
pub fn mutants(tree: &Path) -> Vec<Mutant> {
    let mut list = Command::new("cargo");
    list.args(["mutants", "--list", "--json", "--exclude", "src/testing/**"]);
    list.args(["--exclude", "src/testing.rs"]);
    let output = list.current_dir(tree).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the list is JSON")
}
