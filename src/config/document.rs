//! The file as a list of settings with their lines.
//!
//! Owns the TOML syntax and its errors. Knows no key.

use toml_edit::{Document, Item, Key, TableLike, Value};

use super::environment::{flatten, is_property};
use super::settings::{Assignment, Setting};
use super::{ConfigError, Origin};

/// Reads every section and value of a TOML text, a section as an empty table before what it holds.
///
/// Errors: the first place that is not TOML, in our words: the parser's would quote the line.
pub(super) fn entries(file: &str, text: &str) -> Result<Vec<Assignment>, ConfigError> {
    let document = Document::parse(text).map_err(|error| {
        let offset = error.span().map_or(text.len(), |span| span.start);
        let (line, column) = place(text, offset);
        ConfigError::Syntax {
            file: file.to_owned(),
            line,
            column,
            problem: other_format(text)
                .or_else(|| lacks_value(text, offset))
                .unwrap_or_else(|| wording(error.message())),
        }
    })?;
    let mut walk = Walk {
        file,
        text,
        entries: Vec::new(),
    };
    walk.table(document.as_table(), &[], 1);
    Ok(walk.entries)
}

struct Walk<'a> {
    file: &'a str,
    text: &'a str,
    entries: Vec<Assignment>,
}

impl Walk<'_> {
    fn table(&mut self, table: &dyn TableLike, path: &[String], line: usize) {
        for (name, item) in table.iter() {
            let path: Vec<String> = path.iter().cloned().chain([name.to_owned()]).collect();
            let span = table.key(name).and_then(Key::span).or_else(|| item.span());
            let line = span.map_or(line, |span| place(self.text, span.start).0);
            let nested = item.as_table_like();
            let setting = match nested {
                Some(_) => Setting::Table,
                None => setting(item),
            };
            // `compression.type` without quotes is one property, not a section.
            if nested.is_none() || !is_property(&path) {
                self.entries.push(Assignment {
                    path: flatten(path.clone()),
                    setting,
                    origin: Origin::Line {
                        file: self.file.to_owned(),
                        line,
                    },
                });
            }
            if let Some(nested) = nested {
                self.table(nested, &path, line);
            }
        }
    }
}

fn setting(item: &Item) -> Setting {
    item.as_value().map_or(Setting::List(Vec::new()), value)
}

fn value(value: &Value) -> Setting {
    match value {
        Value::String(text) => Setting::Text(text.value().clone()),
        Value::Integer(number) => Setting::Integer(*number.value()),
        Value::Float(number) => Setting::Float(*number.value()),
        Value::Boolean(truth) => Setting::Bool(*truth.value()),
        Value::Datetime(time) => Setting::Text(time.value().to_string()),
        Value::Array(array) => Setting::List(array.iter().map(self::value).collect()),
        Value::InlineTable(_) => Setting::Table,
    }
}

/// Line and column of a byte, both from 1, the column in characters.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    (line, column)
}

/// What the file is written in, where its first line shows that it is not TOML.
fn other_format(text: &str) -> Option<&'static str> {
    let mut lines = text.lines().map(str::trim_end);
    let line = lines.find(|line| !line.trim().is_empty() && !line.starts_with('#'))?;
    let is_name = |name: &str| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        !name.is_empty() && name.chars().all(is_part)
    };
    if line.starts_with('{') {
        return Some(
            "this looks like JSON; write TOML, such as [source] and below it table = \"public.outbox\"",
        );
    }
    if line.starts_with("---") || line.split_once(':').is_some_and(|(name, _)| is_name(name)) {
        return Some(
            "this looks like YAML; write TOML, such as [source] and below it table = \"public.outbox\"",
        );
    }
    if line.starts_with("export ") || line.starts_with("OUTBOXD_") {
        return Some(
            "this looks like a file of variables; set them in the environment, or write TOML, such as [source]",
        );
    }
    if line.starts_with('<') {
        return Some(
            "this looks like XML; write TOML, such as [source] and below it table = \"public.outbox\"",
        );
    }
    None
}

/// Where nothing stands in the place of a value the parser asks for quotes.
fn lacks_value(text: &str, offset: usize) -> Option<&'static str> {
    let rest = text.get(offset..).unwrap_or_default();
    let is_missing =
        rest.trim_start_matches([' ', '\t']).starts_with('\n') || rest.trim().is_empty();
    let is_value = text
        .get(..offset)
        .unwrap_or_default()
        .trim_end()
        .ends_with('=');
    (is_missing && is_value)
        .then_some("a line must look like name = value, a text in double quotes")
}

/// Our words for the parser's message, which may quote the file.
fn wording(message: &str) -> &'static str {
    const WORDS: &[(&str, &str)] = &[
        (
            "duplicate key",
            "this key or section stands twice; remove one",
        ),
        (
            "dotted key",
            "this name is a value further up and can't be a section too",
        ),
        (
            "unclosed table",
            "a section must look like [source.polling]",
        ),
        ("must be quoted", "a text must stand in double quotes"),
        (
            "escaped value",
            "a backslash must be written twice, or the text put into single quotes",
        ),
        (
            "basic string",
            "this text has no closing quote, or a backslash that must be written twice",
        ),
        ("literal string", "this text has no closing quote"),
        ("unclosed array", "a list must look like [\"a\", \"b\"]"),
        (
            "inline table",
            "a table in one line must look like { create = true }",
        ),
        (
            "integer",
            "this is no number; a text must stand in double quotes",
        ),
        (
            "floating-point",
            "this is no number; a text must stand in double quotes",
        ),
        (
            "time",
            "this is no date; a text must stand in double quotes",
        ),
        ("`=`", "a name must be followed by `=` and a value"),
        ("invalid key", "a line must look like name = value"),
    ];
    let known = WORDS.iter().find(|(part, _)| message.contains(part));
    known.map_or(
        "a line must look like name = value, a text in double quotes",
        |(_, words)| words,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syntax(text: &str) -> String {
        match entries("o.toml", text) {
            Ok(_) => panic!("this is TOML: {text}"),
            Err(error) => error.to_string(),
        }
    }

    const SYNTAX_ERRORS: &[(&str, &str)] = &[
        (
            "a = 1\na = 2",
            "o.toml:2:1: not valid TOML: this key or section stands twice",
        ),
        (
            "[a]\n[a]",
            "o.toml:2:2: not valid TOML: this key or section stands twice",
        ),
        (
            "\n[a\nb = 1",
            "o.toml:2:3: not valid TOML: a section must look like",
        ),
        (
            "b = hello",
            "o.toml:1:5: not valid TOML: a text must stand in double quotes",
        ),
        (
            "b = \"hello",
            "o.toml:1:11: not valid TOML: this text has no closing quote",
        ),
        (
            "b = \"C:\\secrets\"",
            "o.toml:1:9: not valid TOML: a backslash must be written twice",
        ),
        (
            "b = 'hello",
            "o.toml:1:11: not valid TOML: this text has no closing quote",
        ),
        (
            "b = [1, 2",
            "o.toml:1:10: not valid TOML: a list must look like",
        ),
        (
            "b 1",
            "o.toml:1:3: not valid TOML: a name must be followed by `=`",
        ),
        (
            "b = {a = 1",
            "o.toml:1:11: not valid TOML: a table in one line",
        ),
        (
            "b =",
            "o.toml:1:4: not valid TOML: a line must look like name = value, a text in double quotes",
        ),
        (
            "a = 1\na.b = 2",
            "o.toml:2:1: not valid TOML: this name is a value",
        ),
        (
            "b = 100ms",
            "o.toml:1:5: not valid TOML: a text must stand in double quotes",
        ),
        (
            "source:\n  url: x",
            "o.toml:1:8: not valid TOML: this looks like YAML; write TOML",
        ),
        (
            "# mine\n---\nsource:",
            "o.toml:2:4: not valid TOML: this looks like YAML; write TOML",
        ),
        (
            "{\"source\": {}}",
            "o.toml:1:1: not valid TOML: this looks like JSON; write TOML",
        ),
        (
            "export OUTBOXD_SOURCE__URL=x",
            "o.toml:1:8: not valid TOML: this looks like a file of variables; set them in the environment",
        ),
        (
            "<config/>",
            "o.toml:1:10: not valid TOML: this looks like XML; write TOML",
        ),
    ];

    #[test]
    fn a_syntax_error_names_line_and_column_in_our_words() {
        let start = |text: &str| syntax(text);
        for (text, expected) in SYNTAX_ERRORS {
            let error = start(text);
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn every_setting_has_its_line() {
        let text = "[a]\nb = 1\nc.d = \"x\"\n\n[a.e]\nf = [\n  1,\n]\ng = { h = true }\n";
        let entries = entries("o.toml", text).unwrap_or_default();
        let lines: Vec<(String, Origin)> = entries
            .into_iter()
            .map(|entry| (entry.path.join("."), entry.origin))
            .collect();
        for (path, line) in [
            ("a", 1),
            ("a.b", 2),
            ("a.c.d", 3),
            ("a.e", 5),
            ("a.e.f", 6),
            ("a.e.g.h", 9),
        ] {
            let file = "o.toml".to_owned();
            assert!(
                lines.contains(&(path.to_owned(), Origin::Line { file, line })),
                "{path}: {lines:?}"
            );
        }
    }
}
