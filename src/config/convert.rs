//! From a setting as written to the value it means; a variable's text may stand for any of them.

use std::time::Duration;

use super::error::{Problem, shown};
use super::settings::Setting;
use super::{CatchUpFrom, FaultPolicy, LogFormat, Mark, Mode, NullKey, OnLostSlot, Start};

pub(super) fn text(setting: Setting) -> Result<String, Problem> {
    match setting {
        Setting::Text(text) if text.contains("${file:") => Err(Problem::new(
            "is not read from a file by `${file:…}`",
            "that works only for the passwords and keys in kafka.properties; for the connection URL set `source.url_file`",
        )),
        Setting::Text(text) => Ok(text),
        _ => Err(Problem::new("is not a text", "write it in double quotes")),
    }
}

/// A value of `kafka.properties`: numbers and truth values are written as librdkafka reads them.
pub(super) fn property(setting: Setting) -> Result<String, Problem> {
    match setting {
        Setting::Text(text) => Ok(text),
        Setting::Integer(number) => Ok(number.to_string()),
        Setting::Float(number) => Ok(number.to_string()),
        Setting::Bool(truth) => Ok(truth.to_string()),
        Setting::List(_) | Setting::Table => Err(Problem::new(
            "is not a single value",
            "write a text, as librdkafka's documentation gives it",
        )),
    }
}

/// A list; or a text, as a variable has it: with commas, or an array as TOML and JSON write it.
pub(super) fn list(setting: Setting) -> Result<Vec<String>, Problem> {
    match setting {
        Setting::List(elements) => elements.into_iter().map(text).collect(),
        Setting::Text(text) if text.trim().is_empty() => Ok(Vec::new()),
        Setting::Text(text) if is_array(text.trim()) => array(text.trim()),
        Setting::Text(text) => Ok(text.split(',').map(|part| part.trim().to_owned()).collect()),
        _ => Err(Problem::new("is not a list", "write [\"a\", \"b\"]")),
    }
}

/// An IPv6 address stands in brackets, too, and has a port behind them.
fn is_array(text: &str) -> bool {
    let inside = text.strip_prefix('[').map(str::trim_start);
    inside.is_some_and(|inside| inside.ends_with(']') || inside.starts_with(['"', '\'']))
}

fn array(text: &str) -> Result<Vec<String>, Problem> {
    let parsed = text.parse::<toml_edit::Value>().ok();
    let Some(array) = parsed.as_ref().and_then(toml_edit::Value::as_array) else {
        let problem = "begins with a bracket and is not a list in brackets";
        return Err(Problem::new(problem, LIST));
    };
    let elements = array.iter().map(|element| element.as_str());
    let elements: Option<Vec<&str>> = elements.collect();
    let elements = elements.ok_or_else(|| Problem::new("holds what is not a text", LIST))?;
    Ok(elements.into_iter().map(str::to_owned).collect())
}

const LIST: &str = "write a,b or [\"a\", \"b\"]";

pub(super) fn truth(setting: Setting) -> Result<bool, Problem> {
    match setting {
        Setting::Bool(truth) => Ok(truth),
        Setting::Text(text) if text == "true" => Ok(true),
        Setting::Text(text) if text == "false" => Ok(false),
        _ => Err(Problem::new(
            "is neither true nor false",
            "write one of them, without quotes",
        )),
    }
}

/// A whole number of at least `min`.
pub(super) fn whole<T: TryFrom<i64>>(setting: Setting, min: i64) -> Result<T, Problem> {
    let number = match setting {
        Setting::Integer(number) => Some(number),
        Setting::Text(text) => text.trim().replace('_', "").parse().ok(),
        _ => None,
    };
    let number = number.filter(|&number| number >= min);
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| {
            Problem::new(
                format!("is not a whole number of at least {min}"),
                "write one such as 2000, without quotes and unit",
            )
        })
}

/// −1, the broker's default, or a number of at least 1.
pub(super) fn count_or_default(setting: Setting) -> Result<i32, Problem> {
    match whole(setting, -1) {
        Ok(0) | Err(_) => Err(Problem::new(
            "is neither -1 nor a whole number of at least 1",
            "write -1 for the broker's default",
        )),
        count => count,
    }
}

pub(super) fn duration(setting: Setting) -> Result<Duration, Problem> {
    let duration = match &setting {
        Setting::Text(text) => humantime::parse_duration(text).ok(),
        _ => None,
    };
    let problem = match &setting {
        Setting::Integer(_) | Setting::Float(_) => "has no unit",
        Setting::Text(text) if text.trim().parse::<f64>().is_ok() => "has no unit",
        _ => "is not a duration",
    };
    let remedy = "write a text with a unit, such as \"100ms\", \"4s\" or \"7d\"";
    duration.ok_or_else(|| Problem::new(problem, remedy))
}

/// A duration, or `"none"`.
pub(super) fn duration_or_none(setting: Setting) -> Result<Option<Duration>, Problem> {
    match setting {
        Setting::Text(text) if text == "none" => Ok(None),
        setting => duration(setting).map(Some),
    }
}

/// A size in bytes: 33554432, or "32MiB".
pub(super) fn bytes(setting: Setting) -> Result<usize, Problem> {
    let bytes = match &setting {
        Setting::Integer(number) => usize::try_from(*number).ok(),
        Setting::Text(text) => bytes_of(text),
        _ => None,
    };
    bytes.filter(|&bytes| bytes > 0).ok_or_else(|| {
        let meant = match &setting {
            Setting::Text(text) => meant_bytes(text),
            _ => None,
        };
        let meant = meant.map_or(String::new(), |meant| format!("did you mean {meant:?}? "));
        let form = "write bytes such as 33554432, or a text with kB, MB, GB, KiB, MiB or GiB, such as \"32MiB\"";
        Problem::new("is not a size above zero", format!("{meant}{form}"))
    })
}

/// The size with the unit that somebody has spelt in another way.
fn meant_bytes(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_lowercase().chars().next()? {
        'k' => "KiB",
        'm' => "MiB",
        'g' => "GiB",
        _ => return None,
    };
    let meant = format!("{number}{unit}");
    bytes_of(&meant).filter(|bytes| *bytes > 0).map(|_| meant)
}

fn bytes_of(text: &str) -> Option<usize> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number
        .replace('_', "")
        .parse::<usize>()
        .ok()?
        .checked_mul(factor)
}

pub(super) fn mode(setting: Setting) -> Result<Mode, Problem> {
    choice(
        setting,
        &[
            ("replication", Mode::Replication),
            ("polling", Mode::Polling),
        ],
    )
}

pub(super) fn mark(setting: Setting) -> Result<Mark, Problem> {
    let marks = [
        ("ledger", Mark::Ledger),
        ("sent_at", Mark::SentAt),
        ("delete", Mark::Delete),
        ("none", Mark::None),
    ];
    choice(setting, &marks)
}

pub(super) fn on_lost_slot(setting: Setting) -> Result<OnLostSlot, Problem> {
    choice(
        setting,
        &[("repair", OnLostSlot::Repair), ("halt", OnLostSlot::Halt)],
    )
}

pub(super) fn catch_up(setting: Setting) -> Result<CatchUpFrom, Problem> {
    choice(
        setting,
        &[
            ("stream", CatchUpFrom::Stream),
            ("table", CatchUpFrom::Table),
        ],
    )
}

pub(super) fn start(setting: Setting) -> Result<Start, Problem> {
    choice(setting, &[("all", Start::All), ("now", Start::Now)])
}

pub(super) fn null_key(setting: Setting) -> Result<NullKey, Problem> {
    choice(
        setting,
        &[("block", NullKey::Block), ("publish", NullKey::Publish)],
    )
}

/// What happens with a row at fault; what follows a dead letter is another key.
pub(super) fn policy(setting: Setting) -> Result<FaultPolicy, Problem> {
    let policies = [
        ("block", FaultPolicy::Block),
        ("dead_letter", FaultPolicy::Follow),
        ("halt", FaultPolicy::Halt),
    ];
    choice(setting, &policies)
}

pub(super) fn after_dead_letter(setting: Setting) -> Result<FaultPolicy, Problem> {
    choice(
        setting,
        &[
            ("follow", FaultPolicy::Follow),
            ("continue", FaultPolicy::Continue),
        ],
    )
}

/// A share above 0 and up to 1.
pub(super) fn share(setting: Setting) -> Result<f64, Problem> {
    let share = match setting {
        Setting::Float(share) => Some(share),
        Setting::Integer(1) => Some(1.0),
        Setting::Text(text) => text.parse().ok(),
        _ => None,
    };
    share
        .filter(|share| *share > 0.0 && *share <= 1.0)
        .ok_or_else(|| {
            let text = "is not a share above 0 and up to 1".to_owned();
            Problem::new(text, "write one such as 0.5".to_owned())
        })
}

pub(super) fn log_format(setting: Setting) -> Result<LogFormat, Problem> {
    choice(
        setting,
        &[("human", LogFormat::Human), ("json", LogFormat::Json)],
    )
}

fn choice<T: Copy>(setting: Setting, choices: &[(&str, T)]) -> Result<T, Problem> {
    let text = text(setting)?;
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<String> = choices
        .iter()
        .map(|(name, _)| format!("{name:?}"))
        .collect();
    let names = names.join(", ");
    let near = |name: &str| strsim::damerau_levenshtein(name, &text.to_lowercase()) <= 2;
    let remedy = match choices.iter().find(|(name, _)| near(name)) {
        Some((name, _)) => format!("did you mean {name:?}?"),
        None => format!("write one of {names}"),
    };
    Err(Problem::new(
        format!("= {} is none of {names}", shown(&text)),
        remedy,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_in_a_variable_has_commas_or_brackets() {
        let read = |text: &str| list(Setting::Text(text.to_owned())).ok().unwrap();
        for text in [
            "a:1,b:2",
            " a:1 , b:2 ",
            "[\"a:1\", \"b:2\"]",
            "['a:1','b:2',]",
            "[\"a:1\",\n \"b:2\"]",
        ] {
            assert_eq!(read(text), ["a:1", "b:2"], "{text}");
        }
        assert_eq!(read("[::1]:9092,[::2]:9092"), ["[::1]:9092", "[::2]:9092"]);
        assert_eq!(read("[]"), Vec::<String>::new());
        for text in [
            "[a:1, b:2]",
            "[\"a:1\", 2]",
            "[\"a:1\"",
            "[[\"a\"]]",
            "['a']b",
        ] {
            assert!(list(Setting::Text(text.to_owned())).is_err(), "{text}");
        }
    }
}
