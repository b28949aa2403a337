//! `docs/operations.md` has every log line, span and metric of the source, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A log line or a span, as the page has it and as the source does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Traced {
    level: String,
    target: String,
    fields: BTreeSet<String>,
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The files that log for operators, each with its target.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let module = path.strip_prefix(&root).unwrap().with_extension("");
            let layer = module.iter().next().unwrap().to_str().unwrap().to_owned();
            if layer != "testing" {
                found.push((format!("hurdlr_oauth2::{layer}"), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// The arguments of each call of a macro, such as `tracing::info!`.
fn calls(text: &str, name: &str) -> Vec<Vec<String>> {
    let mut calls = Vec::new();
    for (at, _) in text.match_indices(name) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue; // another macro, whose name ends like this one
        }
        let (mut depth, mut in_text, mut arguments) = (0, false, vec![String::new()]);
        for c in text[at + name.len()..].chars() {
            match c {
                '"' => in_text = !in_text,
                '(' | '{' | '[' if !in_text => depth += 1,
                ')' | '}' | ']' if !in_text => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if c == ',' && depth == 1 && !in_text {
                arguments.push(String::new());
            } else {
                arguments.last_mut().unwrap().push(c);
            }
        }
        let arguments = arguments.iter().map(|it| it.trim_start_matches('(').trim().to_owned());
        calls.push(arguments.filter(|it| !it.is_empty()).collect());
    }
    calls
}

fn quoted(argument: &str) -> Option<&str> {
    argument.strip_prefix('"')?.strip_suffix('"')
}

/// The name of a field: that of `name = value`, or of a variable.
fn field(argument: &str) -> &str {
    let name = argument.split_once('=').map_or(argument, |(name, _)| name);
    name.trim().trim_start_matches(['?', '%'])
}

/// The events and spans of the source, by message or name. `kind` is empty for events.
fn traced(kind: &str) -> BTreeMap<String, Traced> {
    let mut traced = BTreeMap::<String, Traced>::new();
    for (target, text) in sources() {
        for level in ["error", "warn", "info", "debug", "trace"] {
            for arguments in calls(&text, &format!("tracing::{level}{kind}!")) {
                let name = arguments.iter().find_map(|it| quoted(it)).unwrap();
                let fields = arguments.iter().filter(|it| quoted(it).is_none());
                let fields = fields.filter(|it| !it.starts_with("parent:")).map(|it| field(it));
                let level = level.to_uppercase();
                let here = Traced { level, target: target.clone(), fields: BTreeSet::new() };
                let known = traced.entry(name.to_owned()).or_insert_with(|| here.clone());
                assert_eq!((&known.level, &known.target), (&here.level, &here.target), "{name}");
                known.fields.extend(fields.map(str::to_owned));
            }
        }
    }
    traced
}

/// The rows of the table whose first column has this heading.
fn table(heading: &str) -> Vec<Vec<String>> {
    let page = read("docs/operations.md");
    let rows = page.lines().skip_while(|line| !line.starts_with(&format!("| {heading} |")));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| {
        let cells = row.strip_prefix('|')?.strip_suffix('|')?.split('|');
        Some(cells.map(|cell| cell.trim().to_owned()).collect())
    };
    rows.map(|row| cells(row).unwrap()).collect()
}

/// The texts in backticks.
fn codes(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn code(cell: &str) -> String {
    codes(cell).pop_first().unwrap_or_default()
}

fn assert_same(source: &BTreeMap<String, Traced>, page: &BTreeMap<String, Traced>) {
    for (name, traced) in source {
        assert_eq!(page.get(name), Some(traced), "{name:?} in docs/operations.md");
    }
    for name in page.keys() {
        assert!(source.contains_key(name), "docs/operations.md has {name:?}, which nothing logs");
    }
}

#[test]
fn page_has_every_log_line() {
    let page = table("level").into_iter().map(|row| {
        let [level, target, line, fields, _] = row.try_into().unwrap();
        (code(&line), Traced { level, target: code(&target), fields: codes(&fields) })
    });
    let source = traced("");
    assert!(source.len() > 30, "the log lines are not read");
    assert_same(&source, &page.collect());
}

#[test]
fn page_has_every_span() {
    let page = table("span").into_iter().map(|row| {
        let [span, level, target, fields] = row.try_into().unwrap();
        (code(&span), Traced { level, target: code(&target), fields: codes(&fields) })
    });
    assert_same(&traced("_span"), &page.collect());
}

#[test]
fn page_has_every_metric_with_its_labels() {
    let source = read("src/metrics.rs");
    let names: BTreeMap<_, _> = source
        .lines()
        .filter_map(|line| line.strip_prefix("const ")?.split_once(": &str = "))
        .map(|(constant, name)| (constant, name.trim_matches(['"', ';']).to_owned()))
        .collect();
    let mut recorded: BTreeMap<_, _> =
        names.values().map(|name| (name.clone(), BTreeSet::new())).collect();
    for kind in ["counter!", "gauge!", "histogram!"] {
        for arguments in calls(&source, kind) {
            let Some(name) = names.get(&*arguments[0]) else { continue };
            let labels = arguments[1..].iter().map(|it| it.split('"').nth(1).unwrap().to_owned());
            recorded.get_mut(name).unwrap().extend(labels);
        }
    }
    let page = table("name").into_iter().map(|row| {
        let [name, _, labels, _] = row.try_into().unwrap();
        // The values of a label follow its name.
        let labels = labels.split(", ").flat_map(|label| {
            let name = label.split(':').next().unwrap();
            codes(name).into_iter().filter(|it| !["miss", "error"].contains(&it.as_str()))
        });
        (code(&name), labels.collect())
    });
    assert_eq!(recorded, page.collect());
    // The buckets and alerts name no others.
    let page = read("docs/operations.md");
    for word in page.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
        let metric = word.trim_end_matches("_count");
        let is_metric = word.starts_with("hurdlr_") && word != "hurdlr_oauth2";
        assert!(!is_metric || recorded.contains_key(metric), "docs/operations.md has {word}");
    }
}
