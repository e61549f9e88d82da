//! Dead letters as people read them.

use std::fmt;
use std::fmt::Write as _;

use super::DeadLetter;
use crate::blocked::remedy;
use crate::blocked::text::{aggregate, plain, row, width};

/// A list of letters, one line for each.
pub struct Lines<'a>(pub &'a [DeadLetter]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(DeadLetter::name).collect();
        let width = width(&names, "AGGREGATE");
        write!(
            f,
            "{:>6}  {:<width$}  {:<36}  {:<20}  {:>5}  REASON",
            "NUMBER", "AGGREGATE", "ROW", "SINCE", "TRIES"
        )?;
        for (letter, name) in self.0.iter().zip(names) {
            let (id, row_id, since, attempts) = (
                letter.id,
                plain(&letter.row_id),
                &letter.since,
                letter.attempts,
            );
            write!(
                f,
                "\n{id:>6}  {name:<width$}  {row_id:<36}  {since:<20}  {attempts:>5}  {}",
                letter.reason
            )?;
            if letter.state != "dead" {
                let (state, by) = (&letter.state, letter.by());
                write!(f, " ({state} at {}{by})", letter.at)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for DeadLetter {
    /// Everything, a line each; the row only where it was asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, text: &str| writeln!(f, "{name:<13} {text}");
        line("dead letter", &self.id.to_string())?;
        line("aggregate", &self.name())?;
        line("row", &row(&self.row_id, self.row_seq))?;
        line("since", &self.since)?;
        line("reason", &self.reason)?;
        line("error", &plain(&self.error))?;
        line("attempts", &self.attempts.to_string())?;
        line(
            "state",
            &format!("{} at {}{}", self.state, self.at, self.by()),
        )?;
        if let Some(note) = &self.note {
            line("note", &plain(note))?;
        }
        if let Some(blocked) = &self.blocked {
            line(
                "waits with",
                &format!("all of its aggregate: `outboxd blocked show {blocked}`"),
            )?;
        }
        match &self.content {
            None => line(
                "content",
                &format!("{} bytes, shown with --content", self.bytes),
            )?,
            Some(columns) => {
                for column in columns {
                    let value = column.value.as_deref().unwrap_or("NULL");
                    line(&format!("  {}", column.name), &plain(value))?;
                }
            }
        }
        let (remedy, id) = (remedy::of_letter(&self.reason), self.id);
        writeln!(f, "{:<13} {remedy}", "what to do")?;
        write!(
            f,
            "{:<13} `outboxd dead-letters replay {id}`, `outboxd dead-letters discard {id} --yes --note 'why'`",
            "commands"
        )
    }
}

impl DeadLetter {
    fn name(&self) -> String {
        aggregate(&self.aggregate_type, &self.aggregate_id)
    }

    fn by(&self) -> String {
        let by = |actor: &String| format!(" by {}", plain(actor));
        self.actor.as_ref().map_or(String::new(), by)
    }
}

/// Text as it is, other bytes in hex.
pub(super) fn readable(value: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(value) {
        return text.to_owned();
    }
    let mut hex = String::from("\\x");
    for byte in value {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
