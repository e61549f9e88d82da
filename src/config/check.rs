//! Refusals that need no server: what a single value or two of them together can't be.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::error::{Problem, shown};
use super::is_reserved;
use super::{ConfigError, Secret, TableName, UrlSource};
use super::{ConnectOptions, Host};

/// Kafka's longest topic name.
const TOPIC_CHARS_MAX: usize = 249;

/// A holder renews its lease each second, so a shorter one ends between two renewals.
const LEASE_TTL_MIN: Duration = Duration::from_secs(2);

/// A sweep reads the locks of the whole server.
const SWEEP_MIN: Duration = Duration::from_secs(1);

/// The table is looked through no more often.
const RETENTION_MIN: Duration = Duration::from_secs(1);

pub(super) fn url(url: &str) -> Result<(), Problem> {
    if holds_placeholder(url) {
        return Err(Problem::new(
            "holds a placeholder, and outboxd fills none in",
            "set the variable OUTBOXD_SOURCE__URL itself, or name a file in `source.url_file`",
        ));
    }
    let parsed = ConnectOptions::parse(&Secret::new(url.to_owned()));
    parsed.map(drop).map_err(Problem::from)
}

/// A part like `${NAME}`, which a shell or a template would have replaced.
pub(super) fn holds_placeholder(text: &str) -> bool {
    let parts = text.split("${").skip(1);
    let names = parts.filter_map(|part| part.split_once('}'));
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "_:.-".contains(c);
    names
        .map(|(name, _)| name)
        .any(|name| !name.is_empty() && !name.starts_with("file:") && name.chars().all(is_letter))
}

/// The same for the URL that a file holds.
pub(super) fn url_in(file: &Path) -> Result<(), Problem> {
    let path = file.display();
    let (problem, remedy) = match UrlSource::File(file.to_owned()).options() {
        Ok(_) => return Ok(()),
        Err(ConfigError::Url { fault, .. }) => (
            format!("names `{path}`, whose URL {}", fault.problem),
            fault.remedy,
        ),
        Err(ConfigError::Read { source, .. }) => {
            let remedy = match source.kind() {
                ErrorKind::PermissionDenied => "let the user that outboxd runs as read it",
                _ => {
                    "correct the path, or write postgres://user:password@host:port/database to that file"
                }
            };
            (
                format!("names `{path}`, which can't be read ({source})"),
                remedy.to_owned(),
            )
        }
        Err(_) => (
            format!("names `{path}`, which is empty"),
            "write postgres://user:password@host:port/database to it".to_owned(),
        ),
    };
    Err(Problem::new(problem, remedy))
}

/// What listens on one address is one of the two.
pub(super) fn servers(postgres: &ConnectOptions, brokers: &[String]) -> Result<(), Problem> {
    let hosts = postgres.hosts.iter().map(Host::to_string);
    let both = hosts.into_iter().find(|host| brokers.contains(host));
    both.map_or(Ok(()), |host| {
        Err(Problem::new(
            format!("names {host}, which `kafka.brokers` names too: one server can't be both"),
            "write PostgreSQL's port, usually 5432, and Kafka's, usually 9092",
        ))
    })
}

pub(super) fn url_file(path: &str) -> Result<(), Problem> {
    if path.contains("://") {
        return Err(Problem::new(
            "is a URL and not a path",
            "write it to `source.url`, or to a file and name that",
        ));
    }
    if path.trim().is_empty() {
        return Err(Problem::new(
            "is empty",
            "name the file that holds the connection URL",
        ));
    }
    Ok(())
}

pub(super) fn table(table: &str) -> Result<(), Problem> {
    let remedy =
        "write `schema.table`, with double quotes where SQL needs them, such as 'shop.\"Outbox\"'";
    let parsed = TableName::parse(table);
    parsed
        .map(drop)
        .map_err(|error| Problem::new(format!("= {} {error}", shown(table)), remedy))
}

pub(super) fn slot(name: &str) -> Result<(), Problem> {
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if (1..=63).contains(&name.len()) && name.chars().all(is_legal) {
        return Ok(());
    }
    Err(Problem::new(
        format!(
            "= {} is no name that PostgreSQL allows for a slot",
            shown(name)
        ),
        "write 1 to 63 lower-case letters, digits and underscores",
    ))
}

/// A name that PostgreSQL stores as it is: a publication or a column.
pub(super) fn identifier(name: &str) -> Result<(), Problem> {
    if (1..=63).contains(&name.len()) && !name.contains(char::is_control) {
        return Ok(());
    }
    Err(Problem::new(
        "is no name that PostgreSQL allows",
        "write 1 to 63 bytes, without double quotes around them",
    ))
}

pub(super) fn sweep(every: Duration) -> Result<(), Problem> {
    if every < SWEEP_MIN {
        return Err(Problem::new(
            "is less than a second",
            "write \"1s\" or more; \"60s\" is the default",
        ));
    }
    Ok(())
}

pub(super) fn retention(kept: Option<Duration>) -> Result<(), Problem> {
    if kept.is_some_and(|kept| kept < RETENTION_MIN) {
        return Err(Problem::new(
            "is less than a second",
            "write how long rows are kept, such as \"7d\", or \"none\"",
        ));
    }
    Ok(())
}

pub(super) fn not_zero(duration: Duration) -> Result<(), Problem> {
    if duration.is_zero() {
        return Err(Problem::new(
            "is zero",
            "write a longer one, such as \"100ms\" or \"10s\"",
        ));
    }
    Ok(())
}

pub(super) fn lease_ttl(ttl: Duration) -> Result<(), Problem> {
    if ttl >= LEASE_TTL_MIN {
        return Ok(());
    }
    Err(Problem::new(
        "is shorter than 2s: the lease is renewed each second and would end at every hiccup",
        "write at least \"2s\"",
    ))
}

pub(super) fn listen(address: &str) -> Result<(), Problem> {
    if address.parse::<SocketAddr>().is_ok() {
        return Ok(());
    }
    Err(Problem::new(
        format!("= {} is no address with a port", shown(address)),
        "write an IP address and a port, such as \"127.0.0.1:9464\" or \"0.0.0.0:9464\"",
    ))
}

pub(super) fn log_level(level: &str) -> Result<(), Problem> {
    const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace", "off"];
    let is_directive = |part: &str| {
        let (target, level) = part.split_once('=').unwrap_or(("outboxd", part));
        let is_target = |c: char| c.is_ascii_alphanumeric() || "_:-".contains(c);
        LEVELS.contains(&level) && !target.is_empty() && target.chars().all(is_target)
    };
    if level.split(',').all(|part| is_directive(part.trim())) {
        return Ok(());
    }
    let lower = level.to_lowercase();
    let meant = match lower.as_str() {
        "warning" => Some("warn"),
        "verbose" | "fine" => Some("debug"),
        "fatal" | "critical" | "severe" => Some("error"),
        lower => LEVELS.iter().copied().find(|one| *one == lower),
    };
    let meant = meant.map_or(String::new(), |meant| format!("did you mean {meant:?}? "));
    Err(Problem::new(
        format!("= {} is no level", shown(level)),
        format!(
            "{meant}write error, warn, info, debug or trace, and module=level behind a comma for one module"
        ),
    ))
}

pub(super) fn brokers(brokers: &[String]) -> Result<(), Problem> {
    let remedy = "write the brokers as host:port, such as [\"kafka:9092\"]";
    if brokers.is_empty() {
        return Err(Problem::new("is empty", remedy));
    }
    let wrong = brokers.iter().find(|broker| !is_broker(broker));
    if wrong.is_some_and(|broker| broker.contains("://")) {
        return Err(Problem::new(
            "holds a URL",
            "write host:port alone; how the connection is secured says \"security.protocol\" under [kafka.properties]",
        ));
    }
    wrong.map_or(Ok(()), |broker| {
        Err(Problem::new(
            format!("holds {}, which is not host:port", shown(broker)),
            remedy,
        ))
    })
}

fn is_broker(broker: &str) -> bool {
    let Some((host, port)) = broker.rsplit_once(':') else {
        return false;
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_host = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let is_legal = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            !host.is_empty() && host.chars().all(is_legal)
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_topic_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

/// One piece of a pattern: a character, or any text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    One(char),
    Any,
}

/// Checks the template of a topic; its columns are looked up when the table is known.
pub(super) fn topic(template: &str) -> Result<(), Problem> {
    let pieces = template_pieces(template)?;
    let is_fixed = !pieces.contains(&Piece::Any);
    if is_fixed && matches!(template, "" | "." | "..") || pieces.len() > TOPIC_CHARS_MAX {
        return Err(Problem::new(
            format!("= {} is no name for a topic", shown(template)),
            format!(
                "write 1 to {TOPIC_CHARS_MAX} characters, such as \"outbox.event.${{aggregatetype}}\""
            ),
        ));
    }
    Ok(())
}

fn template_pieces(template: &str) -> Result<Vec<Piece>, Problem> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(c) = rest.chars().next() {
        if let Some(column) = rest.strip_prefix("${") {
            rest = column_end(template, column)?;
            pieces.push(Piece::Any);
            continue;
        }
        if !is_topic_char(c) {
            return Err(Problem::new(
                format!("= {} holds {c:?}, which no topic may", shown(template)),
                "use letters, digits, `.`, `_` and `-`, and columns as ${column}",
            ));
        }
        pieces.push(Piece::One(c));
        rest = &rest[c.len_utf8()..];
    }
    Ok(pieces)
}

fn column_end<'a>(template: &str, column: &'a str) -> Result<&'a str, Problem> {
    let wrong = |problem: &str| {
        let problem = format!("= {} {problem}", shown(template));
        Problem::new(
            problem,
            "write ${column} with the name of a column of the outbox table",
        )
    };
    let (name, rest) = column
        .split_once('}')
        .ok_or_else(|| wrong("has a `${` without its `}`"))?;
    if name.is_empty()
        || name.contains(|c: char| c == '{' || c == '$' || c.is_whitespace() || c.is_control())
    {
        return Err(wrong("has a `${…}` that names no column"));
    }
    Ok(rest)
}

pub(super) fn allow(patterns: &[String]) -> Result<(), Problem> {
    if patterns.is_empty() {
        return Err(Problem::new(
            "is empty: no row could be published",
            "write patterns such as [\"outbox.event.*\"]",
        ));
    }
    let is_legal = |pattern: &str| {
        !pattern.is_empty() && pattern.chars().all(|c| c == '*' || is_topic_char(c))
    };
    let wrong = patterns.iter().find(|pattern| !is_legal(pattern));
    wrong.map_or(Ok(()), |pattern| {
        Err(Problem::new(
            format!("holds {}, which matches no topic", shown(pattern)),
            "use letters, digits, `.`, `_`, `-`, and `*` for any text",
        ))
    })
}

/// Refuses a template that no pattern can ever match: every row would be rejected.
pub(super) fn topic_is_allowed(template: &str, allow: &[String]) -> Result<(), Problem> {
    let Ok(template) = template_pieces(template) else {
        return Ok(());
    };
    let pieces = |pattern: &String| -> Vec<Piece> {
        let piece = |c| if c == '*' { Piece::Any } else { Piece::One(c) };
        pattern.chars().map(piece).collect()
    };
    if allow
        .iter()
        .any(|pattern| overlap(&template, &pieces(pattern)))
    {
        return Ok(());
    }
    Err(Problem::new(
        "can never be a topic that `route.allow` lets through: every row would be rejected",
        "add its pattern to `route.allow`",
    ))
}

/// Some text matches both.
fn overlap(left: &[Piece], right: &[Piece]) -> bool {
    // reachable[j]: the rest of `left` and the rest of `right` from j on have a text in common.
    let mut below = vec![false; right.len() + 1];
    for i in (0..=left.len()).rev() {
        let mut row = vec![false; right.len() + 1];
        for j in (0..=right.len()).rev() {
            let (l, r) = (left.get(i), right.get(j));
            row[j] = match (l, r) {
                (None, None) => true,
                (Some(Piece::Any), _) => below[j] || (j < right.len() && row[j + 1]),
                (_, Some(Piece::Any)) => row[j + 1] || (i < left.len() && below[j]),
                (Some(l), Some(r)) => l == r && below[j + 1],
                _ => false,
            };
        }
        below = row;
    }
    below[0]
}

/// Refuses a header that is ours, and one that two columns would fill; with the column.
pub(super) fn headers(headers: &BTreeMap<String, String>) -> Result<(), (String, Problem)> {
    for (column, name) in headers {
        let mut others = headers.iter().take_while(|(other, _)| *other != column);
        let (problem, remedy) = if name.is_empty() {
            (
                "names no header".to_owned(),
                "write the header's name, or remove it".to_owned(),
            )
        } else if is_reserved(name) {
            (
                format!("names the header {}, which is reserved", shown(name)),
                "choose a name other than `id` and `outboxd_…`".to_owned(),
            )
        } else if let Some((other, _)) = others.find(|(_, one)| *one == name) {
            (
                format!("gives its value the header {}", shown(name))
                    + &format!(", which `route.headers.{other}` has"),
                "name them apart".to_owned(),
            )
        } else {
            continue;
        };
        return Err((column.clone(), Problem::new(problem, remedy)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_no_pattern_matches_is_found() {
        let allowed =
            |template: &str, allow: &str| topic_is_allowed(template, &[allow.to_owned()]).is_ok();
        for (template, allow) in [
            ("outbox.event.${aggregatetype}", "outbox.event.*"),
            ("outbox.event.${aggregatetype}", "outbox.event.order"),
            ("${topic}", "orders"),
            ("orders", "orders"),
            ("a.${b}.c", "a.x*"),
            ("a.${b}.c", "*.c"),
            ("x", "*"),
        ] {
            assert!(allowed(template, allow), "{template} {allow}");
        }
        for (template, allow) in [
            ("orders.${type}", "outbox.event.*"),
            ("orders", "order"),
            ("a.${b}.c", "*.d"),
            ("ab", "a"),
        ] {
            assert!(!allowed(template, allow), "{template} {allow}");
        }
    }

    #[test]
    fn a_broker_is_a_host_and_a_port() {
        for broker in ["kafka:9092", "10.0.0.1:1", "[::1]:9092", "a-b.c_d:65535"] {
            assert!(is_broker(broker), "{broker}");
        }
        for broker in [
            "kafka",
            "kafka:",
            ":9092",
            "kafka:0",
            "kafka:99999",
            "SSL://kafka:9092",
            "a:1,b:2",
            "::1:9092",
        ] {
            assert!(!is_broker(broker), "{broker}");
        }
    }
}
