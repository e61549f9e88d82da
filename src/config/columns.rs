//! `source.columns`: the table's names by ours. Names only as yet; a value of another form is refused.

use std::collections::BTreeMap;

use super::error::{Problem, shown, shown_name};
use super::settings::{Setting, Settings};
use super::{ConfigError, Origin, check, convert, environment};
use crate::row::columns::{ColumnNames, Mapped, OURS};

const TABLE: &str = "source.columns";

/// Reads the names, and notes what is wrong with them.
pub(super) fn read(settings: &Settings, errors: &mut Vec<ConfigError>) -> ColumnNames {
    let mut mapped = BTreeMap::new();
    for (ours, setting) in settings.table(TABLE) {
        let at = settings.origin(&format!("{TABLE}.{ours}"));
        let key = format!("{TABLE}.{}", shown_name(&ours));
        if let Err(remedy) = known(&ours, &setting, &at) {
            errors.push(ConfigError::UnknownKey { at, key, remedy });
            continue;
        }
        let name = convert::text(setting).and_then(|name| free(&name, &mapped).map(|()| name));
        match name {
            Ok(name) => {
                let at = at.to_string();
                mapped.insert(ours, Mapped { name, at });
            }
            Err(problem) => errors.push(problem.at(at, &key)),
        }
    }
    ColumnNames::new(mapped)
}

/// The key is a name of ours; else what was meant.
fn known(key: &str, setting: &Setting, at: &Origin) -> Result<(), String> {
    if OURS.contains(&key) {
        return Ok(());
    }
    if let Setting::Text(name) = setting
        && OURS.contains(&name.as_str())
    {
        return Err(format!(
            "it is the other way round: outboxd's name comes first, as in {name} = {}",
            shown(key)
        ));
    }
    let plain = |text: &str| text.to_lowercase().replace(['_', '-', '.', ' '], "");
    let distance = |ours: &&&str| strsim::damerau_levenshtein(&plain(ours), &plain(key));
    let nearest = OURS.iter().min_by_key(distance);
    match nearest.filter(|ours| distance(ours) <= (ours.len() / 4).max(1)) {
        Some(meant) => {
            let key = format!("{TABLE}.{meant}");
            Err(match at {
                Origin::Environment { .. } => {
                    format!("did you mean {}?", environment::variable_of(&key))
                }
                _ => format!("did you mean `{key}`?"),
            })
        }
        None => Err(format!("the names to map are {}", OURS.join(", "))),
    }
}

/// The value is the name of a column that nothing else is mapped to.
fn free(name: &str, mapped: &BTreeMap<String, Mapped>) -> Result<(), Problem> {
    check::identifier(name)?;
    let twin = mapped.iter().find(|(_, other)| other.name == name);
    twin.map_or(Ok(()), |(ours, Mapped { at, .. })| {
        Err(Problem::new(
            format!(
                "= {} is the column that `source.columns.{ours}` names too ({at})",
                shown(name)
            ),
            "name another one, or remove one of the two",
        ))
    })
}
