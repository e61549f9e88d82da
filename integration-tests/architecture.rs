//! The source tree keeps its shape: every wing of `src/` stands on those below it, and no file grows beyond a screenful
//! of screens.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The wings, from the ground up: each may import from those before it only.
const FLOORS: [&str; 15] = [
    "text", "row", "config", "encode", "kafka", "postgres", "core", "mark", "publish", "state",
    "source", "observe", "relay", "commands", "cli",
];
/// Lines of a file of Rust.
const LINES_MAX: usize = 500;

#[test]
fn no_wing_imports_from_one_above_it() {
    let mut upward = BTreeSet::new();
    for file in rust_files("src") {
        let Some(own) = floor_of(&wing(&file)) else {
            continue;
        };
        for imported in imports(&text(&file)) {
            match floor_of(&imported) {
                Some(other) if other > own => {
                    upward.insert(format!("{} imports from {imported}", file.display()));
                }
                _ => {}
            }
        }
    }
    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn every_wing_has_its_floor() {
    let beside = ["lib", "main", "simulator"];
    let wings: BTreeSet<_> = rust_files("src").iter().map(|file| wing(file)).collect();
    let known: BTreeSet<_> = FLOORS
        .iter()
        .chain(&beside)
        .map(|&name| name.to_owned())
        .collect();
    assert_eq!(wings, known);
}

#[test]
fn no_file_is_longer_than_five_hundred_lines() {
    let folders = ["src", "integration-tests", "benches"];
    let files = folders.into_iter().flat_map(rust_files);
    let long: Vec<_> = files
        .filter(|file| text(file).lines().count() > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

fn floor_of(wing: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| *floor == wing)
}

/// The wing of a file: the first name below `src`.
fn wing(file: &Path) -> String {
    let mut names = file
        .components()
        .skip_while(|name| name.as_os_str() != "src")
        .skip(1);
    let first = names
        .next()
        .expect("a file below src")
        .as_os_str()
        .to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The wings that a file names, but for its tests: they may look down from anywhere.
fn imports(text: &str) -> BTreeSet<String> {
    let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let paths = product.split("crate::").skip(1);
    let names = paths.map(|path| {
        path.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap_or_default()
    });
    names.map(str::to_owned).collect()
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.retain(|file| !is_of_tests(file));
    files
}

fn is_of_tests(file: &Path) -> bool {
    file.components()
        .any(|name| name.as_os_str() == "tests" || name.as_os_str() == "tests.rs")
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the project") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn text(file: &Path) -> String {
    std::fs::read_to_string(file).expect("a file of the project")
}
