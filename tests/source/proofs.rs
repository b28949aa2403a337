//! The tests that `SECURITY.md` and `docs/proof.md` name are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of all source files below a folder.
fn source(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &source(&path);
        } else if path.extension().is_some_and(|it| it == "rs") {
            text += &fs::read_to_string(&path).unwrap();
        }
    }
    text
}

/// What a page has in backticks and looks like the name of a test: at least three words.
fn named_tests(page: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let names = text.split('`').skip(1).step_by(2);
    let is_test = |name: &&str| {
        name.matches('_').count() >= 2 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    names.filter(is_test).map(str::to_owned).collect()
}

/// A promise in `SECURITY.md` or a row of `docs/proof.md` names a test that exists.
#[test]
fn named_proofs_exist() {
    let tests = source(&root().join("tests")) + &source(&root().join("src"));
    for page in ["SECURITY.md", "docs/proof.md"] {
        let named = named_tests(page);
        assert!(named.len() >= 4, "{page} names hardly a test: {named:?}");
        let missing: Vec<_> = named
            .iter()
            // A function, or the name of a test with arguments of its own.
            .filter(|it| !tests.contains(&format!("fn {it}(")))
            .filter(|it| !tests.contains(&format!("\"{it}\"")))
            .collect();
        assert!(missing.is_empty(), "{page} names tests that are not there: {missing:?}");
    }
}
