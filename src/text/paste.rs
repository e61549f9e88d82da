//! Commands in what we say, complete enough to be pasted: they name the configuration that is in use.
//!
//! A command stands in backticks or is a line of its own; any other mention of outboxd is prose and stays as it is.

use std::borrow::Cow;
use std::path::Path;
use std::sync::OnceLock;

static FILE: OnceLock<String> = OnceLock::new();

const COMMANDS: [&str; 7] = [
    "run",
    "check",
    "migrate",
    "status",
    "blocked",
    "dead-letters",
    "slot",
];

/// From here on commands name this file; without a call they find theirs by themselves.
pub(crate) fn name(file: &Path) {
    let file = file.display().to_string();
    // It must not break a line of JSON.
    if !file.contains(['"', '\\']) && !file.contains(char::is_control) {
        // A process reads one configuration.
        let _ = FILE.set(shell_word(&file));
    }
}

/// The text with its commands completed.
pub(crate) fn complete(text: &str) -> Cow<'_, str> {
    match FILE.get() {
        Some(file) => with_file(text, file),
        None => Cow::Borrowed(text),
    }
}

fn with_file<'a>(text: &'a str, file: &str) -> Cow<'a, str> {
    if !text.contains("outboxd ") {
        return Cow::Borrowed(text);
    }
    let lines = text.split('\n').map(|line| line_with_file(line, file));
    Cow::Owned(lines.collect::<Vec<String>>().join("\n"))
}

fn line_with_file(line: &str, file: &str) -> String {
    if is_command(line.trim()) {
        return format!("{} --config {file}", line.trim_end());
    }
    let pieces = line.split('`').enumerate().map(|(number, piece)| {
        let is_quoted = number % 2 == 1;
        match is_quoted && is_command(piece) {
            true => format!("{piece} --config {file}"),
            false => piece.to_owned(),
        }
    });
    pieces.collect::<Vec<String>>().join("`")
}

/// Its own words only: prose may begin with our name.
fn is_command(text: &str) -> bool {
    let mut words = text.split(' ');
    let is_ours = words.next() == Some("outboxd");
    let is_known = words.next().is_some_and(|word| COMMANDS.contains(&word));
    is_ours && is_known && !text.contains(['`', ':', ';', '\u{2026}']) && !text.contains("--config")
}

/// A text as a shell reads it back.
pub(crate) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=@%,".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_the_configuration_and_prose_does_not() {
        for (text, expected) in [
            (
                "no table; `outboxd migrate` creates it",
                "no table; `outboxd migrate --config o.toml` creates it",
            ),
            (
                "           outboxd slot drop --yes",
                "           outboxd slot drop --yes --config o.toml",
            ),
            (
                "run `outboxd blocked list`, then\n`outboxd run`",
                "run `outboxd blocked list --config o.toml`, then\n`outboxd run --config o.toml`",
            ),
            (
                "`outboxd check --config x.toml`",
                "`outboxd check --config x.toml`",
            ),
            ("outboxd needs PostgreSQL 14", "outboxd needs PostgreSQL 14"),
            (
                "the schema `outboxd` is closed",
                "the schema `outboxd` is closed",
            ),
            ("outboxd run: waiting", "outboxd run: waiting"),
        ] {
            assert_eq!(with_file(text, "o.toml"), expected);
        }
    }

    #[test]
    fn a_path_is_quoted_as_a_shell_needs_it() {
        assert_eq!(shell_word("/etc/o-1.toml"), "/etc/o-1.toml");
        assert_eq!(shell_word("my file's.toml"), "'my file'\\''s.toml'");
    }
}
