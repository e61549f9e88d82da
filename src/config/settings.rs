//! The settings of all layers, the later over the earlier: defaults, file, environment.
//!
//! The only file that imports figment, which merges the layers; types and errors are ours, because figment
//! knows no lines, reports one error at a time and prints values.

use std::collections::BTreeMap;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Serialize};

use super::Origin;

/// One value as it was written.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Setting {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Setting>),
    /// A section; what it holds are entries of their own.
    Table,
}

/// A setting, its path, and where it stands.
pub(super) struct Assignment {
    pub path: Vec<String>,
    pub setting: Setting,
    pub origin: Origin,
}

impl Assignment {
    /// The path as a person writes it.
    pub(crate) fn key(&self) -> String {
        written(&self.path)
    }
}

/// A path as a person writes it: the name of a property in quotes, everything else with dots.
pub(super) fn written(path: &[String]) -> String {
    match path {
        [section, table, name] if (section.as_str(), table.as_str()) == ("kafka", "properties") => {
            format!("kafka.properties.{name:?}")
        }
        _ => path.join("."),
    }
}

/// The merged settings.
pub(super) struct Settings {
    figment: Figment,
    origins: BTreeMap<String, Origin>,
    file: String,
}

impl Settings {
    /// No settings yet; `file` is named where a key is missing.
    pub(crate) fn new(file: &str) -> Self {
        Self {
            figment: Figment::new(),
            origins: BTreeMap::new(),
            file: file.to_owned(),
        }
    }

    /// Puts values that stand nowhere under everything that follows.
    pub(crate) fn with_defaults(mut self, entries: Vec<Assignment>) -> Self {
        self.figment = self.figment.merge(Layer::new("defaults", entries));
        self
    }

    /// Puts a layer over what is there.
    pub(crate) fn with(mut self, name: &'static str, entries: Vec<Assignment>) -> Self {
        for entry in &entries {
            self.origins.insert(entry.key(), entry.origin.clone());
        }
        self.figment = self.figment.merge(Layer::new(name, entries));
        self
    }

    /// The value of a key, from the uppermost layer that has one.
    pub(crate) fn find(&self, key: &str) -> Option<Setting> {
        let value = self.figment.find_value(key).ok()?;
        Some(setting(&value))
    }

    /// The names and values in a table whose names are free.
    pub(crate) fn table(&self, key: &str) -> BTreeMap<String, Setting> {
        let table = self.figment.find_value(key).ok().and_then(Value::into_dict);
        let entries = table.unwrap_or_default().into_iter();
        entries
            .map(|(name, value)| (name, setting(&value)))
            .collect()
    }

    /// Where a key stands; the file as a whole if it has its default.
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::File {
            file: self.file.clone(),
        })
    }

    /// The key was written by somebody.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }
}

fn setting(value: &Value) -> Setting {
    value.deserialize().unwrap_or(Setting::Table)
}

/// One layer as figment reads it.
struct Layer {
    name: &'static str,
    dict: Dict,
}

impl Layer {
    fn new(name: &'static str, entries: Vec<Assignment>) -> Self {
        let mut dict = Dict::new();
        for entry in entries {
            insert(&mut dict, &entry.path, &entry.setting);
        }
        Self { name, dict }
    }
}

fn insert(dict: &mut Dict, path: &[String], setting: &Setting) {
    let Some((name, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        let value = match setting {
            Setting::Table => Ok(Value::from(Dict::new())),
            other => Value::serialize(other),
        };
        // A setting is a plain value, which always serializes.
        if let Ok(value) = value {
            dict.insert(name.clone(), value);
        }
        return;
    }
    let inner = dict
        .entry(name.clone())
        .or_insert_with(|| Value::from(Dict::new()));
    if let Value::Dict(_, inner) = inner {
        insert(inner, rest, setting);
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}
