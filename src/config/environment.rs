//! The environment as a list of settings: `OUTBOXD_SOURCE__URL` is `source.url`.
//!
//! Values stay the text they are: `00123456` is a password, not a number.

use super::keys;
use super::settings::{Assignment, Setting};
use super::{ConfigError, Origin};

const PREFIX: &str = "OUTBOXD_";

/// The variables that name a key: those with our prefix and two underscores between section and name.
///
/// Others with our prefix are left alone, because Kubernetes sets `OUTBOXD_PORT` and the like for a service
/// called `outboxd`, except for one that is a key written with single underscores.
pub(super) fn entries(
    env: impl IntoIterator<Item = (String, String)>,
    errors: &mut Vec<ConfigError>,
) -> Vec<Assignment> {
    let mut entries = Vec::new();
    for (variable, value) in env {
        let Some(name) = variable.strip_prefix(PREFIX) else {
            continue;
        };
        if name.contains("__") {
            entries.push(Assignment {
                path: path_of(name),
                setting: Setting::Text(value),
                origin: Origin::Environment { variable },
            });
        } else if let Some(meant) = keys::paths()
            .map(variable_of)
            .find(|key| single(key) == variable)
        {
            errors.push(ConfigError::UnknownKey {
                key: name.to_lowercase(),
                at: Origin::Environment { variable },
                remedy: format!("did you mean {meant}, with two underscores?"),
            });
        }
    }
    entries
}

fn path_of(name: &str) -> Vec<String> {
    let path = name.to_lowercase().split("__").map(str::to_owned).collect();
    let mut path = flatten(path);
    if is_property(&path) {
        path[2] = path[2].replace('_', ".");
    }
    path
}

/// The variable of a key.
pub(super) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn single(variable: &str) -> String {
    variable.replace("__", "_")
}

/// The path is a property of librdkafka, or a part of its name.
pub(super) fn is_property(path: &[String]) -> bool {
    path.len() > 2 && path[0] == "kafka" && path[1] == "properties"
}

/// Joins what stands below `kafka.properties` to one name with dots, however it was written:
/// `compression.type` without quotes, or `COMPRESSION_TYPE` in a variable.
pub(super) fn flatten(mut path: Vec<String>) -> Vec<String> {
    if is_property(&path) {
        let name = path.split_off(2).join(".");
        path.push(name);
    }
    path
}
