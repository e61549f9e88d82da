//! What the documentation says of itself: every link leads somewhere, and every text that it quotes is said by the code.
//!
//! Reads files only, and exists for tests only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages that people read.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"]
        .map(PathBuf::from)
        .into();
    let folder = fs::read_dir(repository().join("docs")).expect("docs is a folder");
    let names = folder.map(|entry| Path::new("docs").join(entry.expect("an entry").file_name()));
    pages.extend(names.filter(|name| name.extension().is_some_and(|extension| extension == "md")));
    pages.sort();
    pages
}

fn read(path: &Path) -> String {
    let text = fs::read_to_string(repository().join(path));
    text.unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The lines of a page that are text, code blocks left out.
fn lines(page: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// What stands in round brackets behind square ones.
fn links(page: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for line in lines(page) {
        for rest in line.split("](").skip(1) {
            found.extend(rest.split_once(')').map(|(link, _)| link));
        }
    }
    found
}

/// The anchors of a page, made of its headings as GitHub does.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = lines(page).filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// A path without `.` and `..`, as seen from the repository.
fn plain(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir => {}
            part => parts.push(part),
        }
    }
    parts
}

/// Why a link of a page leads nowhere.
fn fault(page: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => page.to_owned(),
        file => plain(&page.parent().unwrap_or(Path::new("")).join(file)),
    };
    if !repository().join(&target).exists() {
        return Some(format!("{}: no file for ({link})", page.display()));
    }
    let is_known = anchor.is_empty() || anchors(&read(&target)).contains(anchor);
    (!is_known).then(|| format!("{}: no heading for ({link})", page.display()))
}

/// The program's own text, without the line breaks within its strings, tests left out.
fn code() -> String {
    let mut text = String::new();
    let mut folders = vec![repository().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !name.contains("tests") && name != "simulator" {
                folders.push(path);
            } else if name.ends_with(".rs") && name != "tests.rs" && name != "documentation.rs" {
                text.push_str(&fs::read_to_string(path).expect("a source file"));
            }
        }
    }
    let mut joined = String::new();
    for (number, part) in text.split("\\\n").enumerate() {
        joined.push_str(if number == 0 { part } else { part.trim_start() });
    }
    joined
}

#[test]
fn each_link_of_the_documentation_is_fresh() {
    let mut faults = Vec::new();
    for page in pages() {
        let text = read(&page);
        faults.extend(
            links(&text)
                .into_iter()
                .filter_map(|link| fault(&page, link)),
        );
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn each_page_that_the_code_names_is_fresh() {
    let code = code();
    let mut faults = Vec::new();
    for rest in code.split("docs/").skip(1) {
        let is_end = |c: char| !(c.is_ascii_alphanumeric() || "-_.#/".contains(c));
        let link = rest.split(is_end).next().unwrap_or_default();
        let link = format!("docs/{}", link.trim_end_matches('.'));
        if link.contains(".md") {
            faults.extend(fault(Path::new("src"), &format!("../{link}")));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// What stands between backticks.
fn words(page: &str) -> impl Iterator<Item = &str> {
    lines(page).flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn each_file_that_the_documentation_names_is_fresh() {
    const FOLDERS: [&str; 6] = [
        "src/",
        "integration-tests/",
        "benches/",
        "config/",
        "deploy/",
        "docs/",
    ];
    let mut faults = Vec::new();
    for page in pages()
        .into_iter()
        .filter(|page| page != Path::new("CHANGELOG.md"))
    {
        let text = read(&page);
        let files =
            words(&text).filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)));
        let files = files.map(|word| word.split(' ').next().unwrap_or_default());
        let is_missing =
            |file: &&str| !file.contains(['*', '{']) && !repository().join(file).exists();
        faults.extend(
            files
                .filter(is_missing)
                .map(|file| format!("{}: {file}", page.display())),
        );
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// What troubleshooting quotes in the first cell of a line, between backticks; `…` stands for anything.
#[test]
fn each_text_that_troubleshooting_quotes_is_fresh() {
    let (page, code) = (read(Path::new("docs/troubleshooting.md")), code());
    let mut faults = Vec::new();
    let cells = lines(&page).filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    for quote in cells.flat_map(|cell| cell.split('`').step_by(2)) {
        // Of a metric its name.
        let quote = match quote.starts_with("outboxd_") {
            true => quote.split(['{', ' ']).next().unwrap_or_default(),
            false => quote,
        };
        let parts = quote.split('…').map(str::trim);
        let unknown =
            |part: &&str| !code.contains(part) && !code.contains(&part.replace('"', "\\\""));
        faults.extend(
            parts
                .filter(unknown)
                .map(|part| format!("`{part}` of `{quote}`")),
        );
    }
    assert!(faults.is_empty(), "the code says it otherwise: {faults:#?}");
}
