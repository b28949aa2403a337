//! Tests that need a process of their own, because they listen to all of it.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the test's failure")]
#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::process::Command;

const ALONE: &str = "TEST_IS_ALONE";

/// Whether this process is the test's own. If not, the test has been run in one by now, and its
/// figures are printed.
pub(crate) fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", "--nocapture", test]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{complaint}");
    for figure in said.lines().filter_map(|line| line.find("figure: ").map(|at| &line[at..])) {
        println!("{figure}");
    }
    false
}
