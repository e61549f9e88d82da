//! Blocked aggregates and topics as people read them.

use std::fmt;

use super::{Blocked, Shown};

/// A list of entries, one line for each.
pub struct Lines<'a>(pub &'a [Blocked]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(Blocked::name).collect();
        let width = width(&names, "WHAT");
        write!(
            f,
            "{:<8}  {:<width$}  {:<20}  {:>6}  {:>5}  REASON",
            "ID", "WHAT", "SINCE", "ROWS", "TRIES"
        )?;
        for (entry, name) in self.0.iter().zip(names) {
            let rows = entry
                .rows_waiting
                .map_or("?".to_owned(), |rows| rows.to_string());
            let (id, since, attempts) = (&entry.id, &entry.since, entry.attempts);
            write!(
                f,
                "\n{id:<8}  {name:<width$}  {since:<20}  {rows:>6}  {attempts:>5}  {}",
                entry.reason
            )?;
            if entry.dead_letters > 0 {
                write!(f, ", {} dead letters", entry.dead_letters)?;
            }
            if let Some(state) = entry.state_in_words() {
                write!(f, " ({state})")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (blocked, remedy) = (&self.blocked, self.remedy);
        blocked.write_facts(f)?;
        if let Some(sql) = &self.sql {
            writeln!(f, "{:<13} {sql}", "see it by")?;
        }
        write!(f, "{:<13} {remedy}", "what to do")?;
        if blocked.topic.is_none() && blocked.state == "blocked" {
            let id = &blocked.id;
            let skip = format_args!("`outboxd blocked skip {id} --yes --note 'why'`");
            match blocked.reason.as_str() {
                "mark" => write!(f, ": {skip}")?,
                _ => write!(
                    f,
                    "; then `outboxd blocked retry {id}`, or give the row up: {skip}"
                )?,
            }
        }
        Ok(())
    }
}

impl Blocked {
    /// Everything that is known, a line each.
    fn write_facts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, text: &str| writeln!(f, "{name:<13} {text}");
        line("id", &self.id)?;
        line("blocked", &self.name())?;
        line("since", &self.since)?;
        line("reason", &self.reason)?;
        line("error", &plain(&self.error))?;
        line("first row", &row(&self.row_id, self.row_seq))?;
        let rows = self
            .rows_waiting
            .map_or("not counted".to_owned(), |rows| rows.to_string());
        line("rows waiting", &rows)?;
        if self.copies > 0 {
            let text = format!("{} of rows that do not stand in the table", self.copies);
            line("copies", &text)?;
        }
        if self.dead_letters > 0 {
            let text = format!(
                "{}: `outboxd dead-letters list` shows them",
                self.dead_letters
            );
            line("dead letters", &text)?;
        }
        line("attempts", &self.attempts.to_string())?;
        if let Some(state) = self.state_in_words() {
            line("state", &state)?;
        }
        if let Some(note) = &self.note {
            line("note", &plain(note))?;
        }
        Ok(())
    }

    /// What was asked for, by whom and when; nothing while nobody has.
    fn state_in_words(&self) -> Option<String> {
        let actor = self.actor.as_deref().unwrap_or("nobody");
        let (actor, at) = (plain(actor), &self.at);
        match self.state.as_str() {
            "blocked" => None,
            "released" if self.actor.is_none() => Some(format!("released at {at}")),
            "released" => Some(format!("released at {at}, asked by {actor}")),
            wish => Some(format!("{wish} asked by {actor} at {at}")),
        }
    }
}

/// How wide a list's column of names is.
pub(crate) fn width(names: &[String], title: &str) -> usize {
    let longest = names.iter().map(String::len).max();
    longest.unwrap_or(0).clamp(title.len(), 60)
}

/// A row by its id, and its number where it has one.
pub(crate) fn row(id: &str, seq: Option<i64>) -> String {
    let seq = seq.map_or(String::new(), |seq| format!(" (seq {seq})"));
    format!("{}{seq}", plain(id))
}

/// An aggregate by type and id.
pub(crate) fn aggregate(kind: &Option<String>, id: &Option<String>) -> String {
    let part = |part: &Option<String>| part.as_deref().map_or("NULL".to_owned(), plain);
    format!("{} {}", part(kind), part(id))
}

/// Text from a row, without characters that steer a terminal.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}
