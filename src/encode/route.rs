//! The topic of a row: its own column or a template over its columns, held against the allow-list.
//!
//! Nothing in row data leaves `route.allow`. A refused name is never printed: it is row data.

use crate::config::RouteConfig;
use crate::encode::{EncodeError, Rejection, RejectionReason};
use crate::row::{Layout, OutboxRow};

/// Bytes of the longest topic name that Kafka takes (`Topic.MAX_NAME_LENGTH`).
const TOPIC_BYTES_MAX: usize = 249;

/// Where a row's topic comes from and which topics it may reach.
///
/// Blanks at the end of a `character(n)` only fill it up, and no topic can have them: they are left out of the name.
#[derive(Debug)]
pub(super) struct Route {
    column: Option<Source>,
    template: Vec<Part>,
    allow: Vec<String>,
}

#[derive(Debug)]
enum Part {
    Literal(String),
    Column(Source, String),
}

/// A column that a topic may be made of.
#[derive(Clone, Copy, Debug)]
struct Source {
    column: usize,
    is_padded: bool,
}

impl Source {
    fn new(layout: &Layout, column: usize) -> Self {
        let is_padded = layout.columns[column].base_type() == "character";
        Self { column, is_padded }
    }

    fn value(self, row: &OutboxRow) -> Option<&[u8]> {
        let value = row.field(self.column)?;
        let is_filling = |byte: &u8| self.is_padded && *byte == b' ';
        let end = value.iter().rposition(|byte| !is_filling(byte));
        Some(&value[..end.map_or(0, |last| last + 1)])
    }
}

impl Route {
    /// Reads the template of `route.topic`.
    ///
    /// Errors: an unknown column, an unclosed `${`, a character that no topic may have.
    pub(super) fn new(route: &RouteConfig, layout: &Layout) -> Result<Self, EncodeError> {
        Ok(Self {
            column: layout.topic.map(|column| Source::new(layout, column)),
            template: parse_template(&route.topic, layout)?,
            allow: route.allow.clone(),
        })
    }

    /// The columns that a topic may come from.
    pub(super) fn columns(&self) -> impl Iterator<Item = usize> {
        let parts = self.template.iter().filter_map(|part| match part {
            Part::Column(source, _) => Some(source.column),
            Part::Literal(_) => None,
        });
        self.column.map(|own| own.column).into_iter().chain(parts)
    }

    /// Writes the row's topic into `topic`, not yet checked.
    pub(super) fn render(&self, row: &OutboxRow, topic: &mut String) -> Result<(), Rejection> {
        topic.clear();
        if let Some(own) = self.own(row) {
            return append(topic, own);
        }
        for part in &self.template {
            match part {
                Part::Literal(text) => topic.push_str(text),
                Part::Column(source, name) => match source.value(row) {
                    Some(value) => append(topic, value)?,
                    None => return Err(invalid(&format!("the column `{name}` is NULL"))),
                },
            }
        }
        Ok(())
    }

    /// The columns that a row's topic was made of, for people.
    pub(super) fn origin(&self, row: &OutboxRow) -> String {
        if self.own(row).is_some() {
            return "the column `topic`".to_owned();
        }
        let names = self.template.iter().filter_map(|part| match part {
            Part::Column(_, name) => Some(format!("`{name}`")),
            Part::Literal(_) => None,
        });
        let names: Vec<_> = names.collect();
        format!("`route.topic` and the column {}", names.join(", "))
    }

    fn own<'a>(&self, row: &'a OutboxRow) -> Option<&'a [u8]> {
        let own = self.column.and_then(|source| source.value(row));
        own.filter(|own| !own.is_empty())
    }

    /// Refuses a name that Kafka would not take or that `route.allow` does not list.
    pub(super) fn check(&self, topic: &str) -> Result<(), Rejection> {
        if topic.is_empty() || topic.len() > TOPIC_BYTES_MAX {
            return Err(invalid("a topic has 1 to 249 characters"));
        }
        if !topic.bytes().all(is_topic_byte) {
            return Err(invalid("a topic has only a-z, A-Z, 0-9, `.`, `_` and `-`"));
        }
        if topic == "." || topic == ".." {
            return Err(invalid("`.` and `..` are no topics"));
        }
        if topic.starts_with("__") {
            return Err(invalid("topics that begin with `__` are Kafka's own"));
        }
        if !self.allow.iter().any(|glob| matches(glob, topic)) {
            return Err(Rejection {
                reason: RejectionReason::TopicNotAllowed,
                text: "the topic is refused: no pattern of `route.allow` matches it".into(),
            });
        }
        Ok(())
    }
}

fn invalid(rule: &str) -> Rejection {
    Rejection {
        reason: RejectionReason::TopicInvalid,
        text: format!("the topic is refused: {rule}"),
    }
}

fn append(topic: &mut String, value: &[u8]) -> Result<(), Rejection> {
    let text = std::str::from_utf8(value).map_err(|_| invalid("it is not text"))?;
    topic.push_str(text);
    Ok(())
}

fn is_topic_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn parse_template(template: &str, layout: &Layout) -> Result<Vec<Part>, EncodeError> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(start) = rest.find("${") {
        push_literal(&mut parts, template, &rest[..start])?;
        let (name, after) = rest[start + 2..]
            .split_once('}')
            .ok_or_else(|| template_error(template, "a `${` has no `}`"))?;
        let column = super::find_column(layout, name, "route.topic")?;
        parts.push(Part::Column(Source::new(layout, column), name.to_owned()));
        rest = after;
    }
    push_literal(&mut parts, template, rest)?;
    Ok(parts)
}

fn push_literal(parts: &mut Vec<Part>, template: &str, text: &str) -> Result<(), EncodeError> {
    if !text.bytes().all(is_topic_byte) {
        let rule = "outside `${…}` only a-z, A-Z, 0-9, `.`, `_` and `-` can stand";
        return Err(template_error(template, rule));
    }
    if !text.is_empty() {
        parts.push(Part::Literal(text.to_owned()));
    }
    Ok(())
}

fn template_error(template: &str, rule: &'static str) -> EncodeError {
    EncodeError::Template {
        template: template.to_owned(),
        rule,
    }
}

/// Whether `text` fits a pattern in which `*` stands for any characters, none included.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut at, mut seen) = (0, 0);
    let mut star = None;
    while seen < text.len() {
        if glob.get(at) == Some(&b'*') {
            star = Some((at, seen));
            at += 1;
        } else if glob.get(at) == Some(&text[seen]) {
            at += 1;
            seen += 1;
        } else if let Some((star_at, star_seen)) = star {
            // The last star takes one character more.
            star = Some((star_at, star_seen + 1));
            at = star_at + 1;
            seen = star_seen + 1;
        } else {
            return false;
        }
    }
    glob[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_matches_any_characters_and_everything_else_itself() {
        let cases = [
            ("outbox.event.*", "outbox.event.order", true),
            ("outbox.event.*", "outbox.event.", true),
            ("outbox.event.*", "outbox.events.order", false),
            ("*", "anything", true),
            ("a*b*c", "a.b.b.c", true),
            ("a*b*c", "a.c.b", false),
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("", "x", false),
        ];
        for (glob, text, fits) in cases {
            assert_eq!(matches(glob, text), fits, "{glob} {text}");
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_recursive_definition(glob in "[ab*]{0,8}", text in "[ab]{0,10}") {
            fn slow(glob: &[u8], text: &[u8]) -> bool {
                match glob.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|n| slow(rest, &text[n..])),
                    Some((byte, rest)) => text.first() == Some(byte) && slow(rest, &text[1..]),
                }
            }
            prop_assert_eq!(matches(&glob, &text), slow(glob.as_bytes(), text.as_bytes()));
        }
    }
}
