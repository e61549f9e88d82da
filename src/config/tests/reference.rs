//! docs/configuration.md: every key in tables, one for each section, made from the reference file.

use std::fmt::Write;

use super::{reference_toml, repository};

const HEAD: &str = "# Configuration

<!-- Made by `OUTBOXD_BLESS=1 cargo test --lib is_fresh` from src/config/keys.rs. -->

outboxd reads one TOML file for each database:

1. `--config FILE`, else
2. the file that the variable `OUTBOXD_CONFIG` names, else
3. `/etc/outboxd/outboxd.toml`.

Environment variables override the file. The variable of a key is `OUTBOXD_`, then the key in capitals with `__` for each
dot: `OUTBOXD_KAFKA__BROKERS=k1:9092,k2:9092`. A list in a variable has commas or brackets. Durations are text with a unit:
`\"100ms\"`, `\"4s\"`, `\"7d\"`.

Unknown keys and unsafe values are rejected at startup (exit code 2), with the line, the reason and the fix.
`outboxd check` reads the file and then asks PostgreSQL and Kafka whether they go with it.

The same as a file to copy: [config/outboxd.toml](../config/outboxd.toml). The shortest that work:
[config/minimal.toml](../config/minimal.toml) and [config/polling.toml](../config/polling.toml).
";

/// The reference file's sections as tables; a section with free names as its example.
fn reference() -> String {
    let mut page = HEAD.to_owned();
    let (mut about, mut has_free_names) = (String::new(), false);
    let body = reference_toml();
    let (_, body) = body.split_once("\n\n").expect("the file has a head");
    let is_end = |line: &str| line.starts_with("# Not there yet");
    for line in body.lines().take_while(|line| !is_end(line)) {
        if let Some(text) = line.strip_prefix("# ") {
            text.clone_into(&mut about);
        } else if line.starts_with('[') {
            has_free_names = !about.is_empty();
            page.push_str(&section(line, &about));
            about.clear();
        } else if let Some((name, value)) = line.split_once(" = ") {
            match has_free_names {
                true => writeln!(page, "{}\n```", line.trim_start_matches('#')),
                false => page.write_str(&key(name, value, &about)),
            }
            .expect("a String takes every text");
            about.clear();
        }
    }
    page
}

fn section(name: &str, about: &str) -> String {
    match about.is_empty() {
        true => format!("\n## `{name}`\n\n| key | default | meaning |\n|---|---|---|\n"),
        false => format!("\n## `{name}`\n\n{about}\n\n```toml\n{name}\n"),
    }
}

/// A line of a table; what has no default shows an example.
fn key(name: &str, value: &str, about: &str) -> String {
    match name.strip_prefix('#') {
        Some(name) => format!("| `{name}` | none; such as `{value}` | {about} |\n"),
        None => format!("| `{name}` | `{value}` | {about} |\n"),
    }
}

#[test]
fn the_configuration_reference_is_fresh() {
    let path = repository("docs/configuration.md");
    if std::env::var_os("OUTBOXD_BLESS").is_some() {
        std::fs::write(&path, reference()).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == reference(),
        "docs/configuration.md is stale: OUTBOXD_BLESS=1 cargo test --lib is_fresh"
    );
}
