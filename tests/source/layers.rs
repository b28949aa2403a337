//! The layers of `docs/design.md`: imports between the files of `src/` point down, without a cycle.
//!
//! A file imports another one where it names something that is defined there, in a `use` or by a
//! path. A name that a module hands on counts for the file that defines it, and a module may hand
//! on the names of its children. Documentation may point anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Names = Vec<String>;

/// The text of each module without comments, strings, tests and what is for documentation alone.
struct Crate(BTreeMap<Names, String>);

impl Crate {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let (mut modules, mut folders) = (BTreeMap::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let place = path.strip_prefix(&root).unwrap().with_extension("");
                let place = place.iter().map(|name| name.to_str().unwrap().to_owned());
                let name: Names = place.filter(|name| name != "lib").collect();
                modules.insert(name, code(&fs::read_to_string(&path).unwrap()));
            }
        }
        Self(modules)
    }

    /// The paths that a module names, from the crate's root on.
    fn paths(&self, module: &Names) -> Vec<Names> {
        let text = &self.0[module];
        let mut paths = Vec::new();
        for statement in uses(text) {
            expand(&statement.tree, &Names::new(), &mut paths);
        }
        for start in ["crate::", "super::"] {
            for (at, _) in text.match_indices(start) {
                let is_start = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == ':');
                let end = text[at..].find(|c: char| !(c.is_alphanumeric() || "_:".contains(c)));
                let path = &text[at..at + end.unwrap_or(text.len() - at)];
                if is_start && !path.ends_with("::") {
                    paths.push(path.split("::").map(str::to_owned).collect());
                }
            }
        }
        paths.into_iter().filter_map(|path| self.absolute(module, path)).collect()
    }

    /// A path from the root on; `None` for one that leads to another crate.
    fn absolute(&self, module: &Names, path: Names) -> Option<Names> {
        let mut here = module.clone();
        let mut names = path.into_iter().peekable();
        match names.peek()?.as_str() {
            "crate" => {
                names.next();
                here.clear();
            }
            "self" => drop(names.next()),
            "super" => {
                while names.next_if(|name| name == "super").is_some() {
                    here.pop()?;
                }
            }
            first => {
                here.push(first.to_owned());
                let is_child = self.0.contains_key(&here);
                here.pop();
                if !is_child {
                    return None;
                }
            }
        }
        here.extend(names);
        Some(here)
    }

    /// The module that defines what a path names, past all modules that hand it on.
    fn definer(&self, path: &Names) -> Names {
        let length = (0..=path.len()).rev().find(|&length| self.0.contains_key(&path[..length]));
        let (module, rest) = path.split_at(length.unwrap());
        let Some(name) = rest.first() else {
            return module.to_vec();
        };
        let module = module.to_vec();
        for statement in uses(&self.0[&module]).into_iter().filter(|it| it.is_public) {
            let mut handed_on = Vec::new();
            expand(&statement.tree, &Names::new(), &mut handed_on);
            for handed_on in handed_on {
                if handed_on.last() == Some(name)
                    && let Some(target) = self.absolute(&module, handed_on)
                    && target != *path
                {
                    return self.definer(&target);
                }
            }
        }
        module
    }

    fn imports(&self) -> BTreeMap<Names, BTreeSet<Names>> {
        let imports = self.0.keys().map(|module| {
            let used = self.paths(module).into_iter();
            let handed_on: BTreeSet<_> = uses(&self.0[module])
                .into_iter()
                .filter(|statement| statement.is_public)
                .flat_map(|statement| {
                    let mut paths = Vec::new();
                    expand(&statement.tree, &Names::new(), &mut paths);
                    paths
                })
                .filter_map(|path| self.absolute(module, path))
                .collect();
            let used = used.filter(|path| !handed_on.contains(path));
            let definers = used.map(|path| self.definer(&path));
            (module.clone(), definers.filter(|definer| definer != module).collect())
        });
        imports.collect()
    }
}

struct Use {
    is_public: bool,
    tree: String,
}

fn uses(text: &str) -> Vec<Use> {
    let mut uses = Vec::new();
    for (at, _) in text.match_indices("use ") {
        let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let before = text[line..at].trim();
        if before.is_empty() || before.starts_with("pub") && !before.contains(' ') {
            let end = at + text[at..].find(';').unwrap();
            let tree = text[at + 4..end].split_whitespace().collect::<Vec<_>>().join(" ");
            uses.push(Use { is_public: !before.is_empty(), tree });
        }
    }
    uses
}

/// The paths of a `use`, one for each name. A renamed name counts as what it was.
fn expand(tree: &str, prefix: &Names, paths: &mut Vec<Names>) {
    let tree = tree.trim();
    if let Some((head, rest)) = tree.split_once('{') {
        let mut prefix = prefix.clone();
        prefix.extend(head.split("::").map(str::trim).filter(|it| !it.is_empty()).map(Into::into));
        let rest = rest.strip_suffix('}').unwrap();
        let (mut depth, mut start) = (0, 0);
        for (at, c) in rest.char_indices().chain([(rest.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(&rest[start..at], &prefix, paths);
                    start = at + 1;
                }
                _ => {}
            }
        }
    } else if !tree.is_empty() {
        let name = tree.split(" as ").next().unwrap();
        let mut path = prefix.clone();
        path.extend(name.split("::").filter(|name| *name != "self").map(str::to_owned));
        if tree.starts_with("self::") && prefix.is_empty() {
            path.insert(0, "self".to_owned());
        }
        paths.push(path);
    }
}

/// The text without comments, strings, test modules and imports for documentation.
fn code(text: &str) -> String {
    let text = text.split("\nmod tests {").next().unwrap();
    let text = text.replace("#[cfg(doc)]\n", "doc ");
    let lines = text.lines().map(|line| match line.trim_start() {
        comment if comment.starts_with("//") => "",
        documentation if documentation.starts_with("doc use ") => "",
        _ => line.split(" // ").next().unwrap(),
    });
    lines.map(|line| line.split('"').step_by(2).collect::<String>() + "\n").collect()
}

/// The files of a cycle, if there is one.
fn cycle(imports: &BTreeMap<Names, BTreeSet<Names>>) -> Option<BTreeSet<Names>> {
    let mut left = imports.clone();
    loop {
        let ground: Vec<_> =
            left.iter().filter(|(_, used)| used.is_empty()).map(|(name, _)| name.clone()).collect();
        if ground.is_empty() {
            break;
        }
        for name in ground {
            left.remove(&name);
            for used in left.values_mut() {
                used.remove(&name);
            }
        }
    }
    // Some of the rest stand above the cycle only.
    loop {
        let used: BTreeSet<_> = left.values().flatten().cloned().collect();
        let count = left.len();
        left.retain(|name, _| used.contains(name));
        if left.len() == count {
            break;
        }
    }
    Some(left.into_keys().collect()).filter(|cycle: &BTreeSet<_>| !cycle.is_empty())
}

#[test]
fn imports_have_no_cycle() {
    let krate = Crate::read();
    let imports = krate.imports();
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 200, "the imports are not read");
    if let Some(cycle) = cycle(&imports) {
        let line = |name: &Names| {
            let used: Vec<_> =
                imports[name].intersection(&cycle).map(|name| name.join("::")).collect();
            format!("\n{} imports {}", name.join("::"), used.join(", "))
        };
        let story: String = cycle.iter().map(line).collect();
        panic!("imports form a cycle:{story}");
    }
}

/// The layers, from the ground up, each with those that it may import.
const LAYERS: &[(&str, &str)] = &[
    ("error", ""),
    ("clock", ""),
    ("rng", ""),
    ("backoff", ""),
    ("key_material", "error"),
    ("wire", "error key_material"),
    ("token", "wire error clock"),
    ("store", "token wire error clock key_material"),
    ("client", "token wire error clock rng backoff"),
    ("metrics", "store error"),
    ("manager", "client store metrics token wire error clock rng backoff"),
    ("calls", "manager client metrics token wire error clock rng"),
    ("web", "calls manager client wire error key_material"),
    // A provider must not agree with a mistake of the client.
    ("testing", "store wire error clock rng"),
    // The pages of docs/, and no code.
    ("guide", ""),
];

#[test]
fn layers_import_those_below() {
    for (module, imported) in Crate::read().imports() {
        let Some(layer) = module.first() else { continue };
        let (_, below) = LAYERS.iter().find(|(name, _)| name == layer).expect("a layer");
        for name in imported.iter().filter_map(|imported| imported.first()) {
            let is_below = name == layer || below.split(' ').any(|below| below == name);
            assert!(is_below, "{} imports {name}, which is no layer below", module.join("::"));
        }
    }
}
