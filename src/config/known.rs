//! Which settings name a key, and what is said of those that don't.

use std::collections::BTreeSet;

use super::error::{self, Problem};
use super::keys::{self, PathMeaning};
use super::settings::{Assignment, Setting};
use super::{ConfigError, Origin, environment};

/// Keeps what names a key; everything else is an error, once for a whole section.
pub(super) fn known(entries: Vec<Assignment>, errors: &mut Vec<ConfigError>) -> Vec<Assignment> {
    let mut reported: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut kept: Vec<Assignment> = Vec::new();
    for entry in entries {
        if (1..entry.path.len()).any(|depth| reported.contains(&entry.path[..depth])) {
            continue;
        }
        let twin = kept.iter().find(|other| other.path == entry.path);
        match twin.map_or_else(|| refusal(&entry), |twin| Some(twice(&entry, twin))) {
            Some(error) => {
                reported.insert(entry.path);
                errors.push(error);
            }
            None => {
                if entry.setting == Setting::Table && is_single(&entry.path) {
                    // Its value is refused as a section; what stands below would be refused a second time.
                    reported.insert(entry.path.clone());
                }
                kept.push(entry);
            }
        }
    }
    kept
}

/// Two spellings of one key, such as a property with and without quotes.
fn twice(entry: &Assignment, twin: &Assignment) -> ConfigError {
    let problem = Problem::new(
        format!("is given a second time, first by {}", twin.origin),
        "remove one of them",
    );
    problem.at(entry.origin.clone(), &error::shown_name(&entry.key()))
}

/// The path is a key with one value.
fn is_single(path: &[String]) -> bool {
    match keys::place(path) {
        PathMeaning::Key(key) => !matches!(key.preset, keys::Preset::Table(_)),
        _ => false,
    }
}

/// A key without its section.
fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn refusal(entry: &Assignment) -> Option<ConfigError> {
    let key = error::shown_name(&entry.key());
    let at = entry.origin.clone();
    let is_section = entry.setting == Setting::Table;
    let problem = match keys::place(&entry.path) {
        PathMeaning::Section if is_section => return None,
        PathMeaning::Section => sections(&key, &at),
        PathMeaning::Key(keys::Key {
            preset: keys::Preset::Table(_),
            ..
        }) if !is_section => sections(&key, &at),
        PathMeaning::Name if is_section => Problem::new(
            "is a section and has to be a text",
            format!("write {} = \"...\" in one line", last(&key)),
        ),
        PathMeaning::Key(_) | PathMeaning::Name => return None,
        PathMeaning::BelowKey(parent) => Problem::new(
            format!("stands below `{}`, which is a value", parent.path),
            format!("write `{}` alone", parent.path),
        ),
        PathMeaning::Later(reason) => Problem::new(
            "is not there yet in this version",
            format!("remove it: {reason}"),
        ),
        PathMeaning::Unknown => {
            let remedy = remedy(entry, &key);
            return Some(ConfigError::UnknownKey { at, key, remedy });
        }
    };
    Some(problem.at(at, &key))
}

/// A section was given a value.
fn sections(key: &str, at: &Origin) -> Problem {
    let remedy = match at {
        Origin::Environment { .. } => {
            let name = keys::names_in(key).first().copied().unwrap_or("NAME");
            let variable = environment::variable_of(&format!("{key}.{name}"));
            format!("set a variable for each of its keys, such as {variable}")
        }
        _ => format!("write [{key}] on a line of its own"),
    };
    Problem::new("is a section and has no value", remedy)
}

/// Parts of the connection URL that others have as keys.
const URL_PARTS: [&str; 12] = [
    "user",
    "username",
    "password",
    "host",
    "hostname",
    "port",
    "database",
    "dbname",
    "db",
    "sslmode",
    "sslrootcert",
    "dsn",
];

/// What to do about a key that there is not.
fn remedy(entry: &Assignment, key: &str) -> String {
    if let [section, rest @ ..] = &entry.path[..]
        && !rest.is_empty()
        && matches!(
            keys::place(rest),
            PathMeaning::Key(_) | PathMeaning::Section | PathMeaning::Name
        )
        && matches!(entry.origin, Origin::Line { .. })
    {
        let above = rest.first().map_or("", String::as_str);
        return format!(
            "it stands in the section [{section}]; write [{above}] on a line of its own before it"
        );
    }
    let name = entry.path.last().map_or("", String::as_str);
    let is_of_source = matches!(
        entry.path[0].as_str(),
        "source" | "postgres" | "postgresql" | "database" | "db"
    );
    if is_of_source && URL_PARTS.contains(&name) {
        return "it is a part of `source.url`: postgres://user:password@host:port/database?sslmode=…".to_owned();
    }
    match (keys::meant(key), &entry.origin) {
        (Some(meant), Origin::Environment { .. }) => {
            format!("did you mean {}?", environment::variable_of(meant))
        }
        (Some(meant), _) => format!("did you mean `{meant}`?"),
        (None, _) => allowed(&entry.path),
    }
}

/// The names that could stand in its place.
fn allowed(path: &[String]) -> String {
    let depth = (1..path.len())
        .rev()
        .find(|depth| matches!(keys::place(&path[..*depth]), PathMeaning::Section));
    let section = depth.map_or(String::new(), |depth| path[..depth].join("."));
    let names = keys::names_in(&section).join(", ");
    match section.as_str() {
        "" => format!("the sections are {names}"),
        "kafka" => {
            format!(
                "[kafka] has {names}; a property of librdkafka belongs under [kafka.properties]"
            )
        }
        section => format!("[{section}] has {names}"),
    }
}
