//! Which settings name a key, and what is said of those that don't.

use std::collections::BTreeSet;

use super::error::{self, Problem};
use super::keys::{self, Place};
use super::settings::{Entry, Setting};
use super::{ConfigError, Origin, environment};

/// Keeps what names a key; everything else is an error, once for a whole section.
pub(super) fn known(entries: Vec<Entry>, errors: &mut Vec<ConfigError>) -> Vec<Entry> {
    let mut reported: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut kept: Vec<Entry> = Vec::new();
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
fn twice(entry: &Entry, twin: &Entry) -> ConfigError {
    let problem = Problem::new(
        format!("is given a second time, first by {}", twin.origin),
        "remove one of them",
    );
    problem.at(entry.origin.clone(), &error::shown_name(&entry.key()))
}

/// The path is a key with one value.
fn is_single(path: &[String]) -> bool {
    match keys::place(path) {
        Place::Key(key) => !matches!(key.preset, keys::Preset::Table(_)),
        _ => false,
    }
}

/// A key without its section.
fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn refusal(entry: &Entry) -> Option<ConfigError> {
    let key = error::shown_name(&entry.key());
    let at = entry.origin.clone();
    let is_section = entry.setting == Setting::Table;
    let problem = match keys::place(&entry.path) {
        Place::Section if is_section => return None,
        Place::Section => Problem::new(
            "is a section and has no value",
            format!("write [{key}] on a line of its own"),
        ),
        Place::Key(keys::Key {
            preset: keys::Preset::Table(_),
            ..
        }) if !is_section => Problem::new(
            "is a section and has no value",
            format!("write [{key}] on a line of its own"),
        ),
        Place::Name if is_section => Problem::new(
            "is a section and has to be a text",
            format!("write {} = \"...\" in one line", last(&key)),
        ),
        Place::Key(_) | Place::Name => return None,
        Place::BelowKey(parent) => Problem::new(
            format!("stands below `{}`, which is a value", parent.path),
            format!("write `{}` alone", parent.path),
        ),
        Place::Later(reason) => Problem::new(
            "is not there yet in this version",
            format!("remove it: {reason}"),
        ),
        Place::Unknown => {
            let remedy = match keys::meant(&key) {
                Some(meant) => match &at {
                    Origin::Environment { .. } => {
                        format!("did you mean {}?", environment::variable_of(meant))
                    }
                    _ => format!("did you mean `{meant}`?"),
                },
                None if key.starts_with("kafka.") => {
                    "a property of librdkafka belongs under [kafka.properties]".to_owned()
                }
                None => "config/outboxd.toml lists every key".to_owned(),
            };
            return Some(ConfigError::UnknownKey { at, key, remedy });
        }
    };
    Some(problem.at(at, &key))
}
