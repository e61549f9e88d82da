//! Dead letters as people read them.

use std::fmt;
use std::fmt::Write as _;

use super::DeadLetter;
use crate::commands::blocked::remedy;
use crate::commands::blocked::text::{
    REASON_WIDTH, WIDTH_MIN, aggregate, cut, fit, plain, row, width,
};

/// A list of letters, one line for each, none wider than the terminal where there is one.
pub(crate) struct Lines<'a> {
    pub letters: &'a [DeadLetter],
    pub terminal: Option<usize>,
}

/// All columns but those of aggregates, rows and reasons, with the blanks between.
const FIXED_WIDTH: usize = 6 + 2 + 2 + 2 + 20 + 2 + 5 + 2;
/// A uuid.
const ROW_WIDTH: usize = 36;

/// How wide the columns of aggregates and of rows are: half each of what a narrow terminal leaves them.
fn widths(longest: usize, terminal: Option<usize>) -> (usize, usize) {
    let Some(columns) = terminal else {
        return (longest, ROW_WIDTH);
    };
    let room = columns.saturating_sub(FIXED_WIDTH + REASON_WIDTH);
    let name = longest.min(room.saturating_sub(ROW_WIDTH).max(room / 2));
    let row = ROW_WIDTH.min(room.saturating_sub(name));
    (name.max(WIDTH_MIN), row.max(WIDTH_MIN))
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.letters.iter().map(DeadLetter::name).collect();
        let (width, row_width) = widths(width(&names, "AGGREGATE"), self.terminal);
        let shown = |text: &str, width: usize| match self.terminal {
            Some(_) => cut(text, width).into_owned(),
            None => text.to_owned(),
        };
        let heading = format!(
            "{:>6}  {:<width$}  {:<row_width$}  {:<20}  {:>5}  REASON",
            "NUMBER",
            shown("AGGREGATE", width),
            "ROW",
            "SINCE",
            "TRIES"
        );
        f.write_str(&fit(heading, self.terminal))?;
        for (letter, name) in self.letters.iter().zip(names) {
            let name = shown(&name, width);
            let (id, row_id, since, attempts) = (
                letter.id,
                shown(&plain(&letter.row_id), row_width),
                &letter.since,
                letter.attempts,
            );
            let mut text = format!(
                "{id:>6}  {name:<width$}  {row_id:<row_width$}  {since:<20}  {attempts:>5}  {}",
                letter.reason
            );
            if letter.state != "dead" {
                let (state, by) = (&letter.state, letter.by());
                text += &format!(" ({state} at {}{by})", letter.at);
            }
            write!(f, "\n{}", fit(text, self.terminal))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_a_list_is_wider_than_the_terminal() {
        let text = str::to_owned;
        let letter = |aggregate_id: &str| DeadLetter {
            id: 4711,
            aggregate_type: Some(text("customer-subscription")),
            aggregate_id: Some(text(aggregate_id)),
            row_id: text("0198c0de-7a11-7000-8000-00000000000a"),
            row_seq: None,
            since: text("2026-11-30T22:00:00Z"),
            reason: text("headers_invalid"),
            error: String::new(),
            attempts: 1,
            state: text("replay"),
            actor: Some(text("somebody@host")),
            note: None,
            at: text("2026-11-30T22:10:00Z"),
            bytes: 12,
            blocked: None,
            content: None,
            blocked_key: None,
        };
        let letters = ["0198c0de-7a11-7000-8000-000000000001", "7"].map(letter);
        for columns in [60, 80, 100, 120, 200] {
            let terminal = Some(columns);
            let list = Lines {
                letters: &letters,
                terminal,
            }
            .to_string();
            let widest = list.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(columns), "{columns}: {list}");
            let shown = ["\n  4711  ", "custom", "0198c0d", "2026-11-30T22:0"];
            assert!(shown.iter().all(|part| list.contains(part)), "{list}");
        }
        let list = Lines {
            letters: &letters,
            terminal: None,
        };
        let whole = "0198c0de-7a11-7000-8000-000000000001  0198c0de-7a11-7000-8000-00000000000a";
        assert!(list.to_string().contains(whole), "{list}");
    }
}
