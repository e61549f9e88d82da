//! Blocked aggregates and topics as people read them.

use std::borrow::Cow;
use std::fmt;

use super::{Blocked, Shown};

/// A list of entries, one line for each, none wider than the terminal where there is one.
pub(crate) struct Lines<'a> {
    pub entries: &'a [Blocked],
    pub terminal: Option<usize>,
}

/// What a list's last column gets of a narrow terminal at least.
pub(crate) const REASON_WIDTH: usize = 16;
/// What every other column gets.
pub(crate) const WIDTH_MIN: usize = 8;
/// All columns but those of names and reasons, with the blanks between.
const FIXED_WIDTH: usize = 8 + 2 + 2 + 20 + 2 + 6 + 2 + 5 + 2;

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.entries.iter().map(Blocked::name).collect();
        let room = self
            .terminal
            .map(|columns| columns.saturating_sub(FIXED_WIDTH + REASON_WIDTH));
        let width = width(&names, "WHAT").min(room.map_or(usize::MAX, |room| room.max(WIDTH_MIN)));
        let line = |text: String| fit(text, self.terminal);
        let heading = format!(
            "{:<8}  {:<width$}  {:<20}  {:>6}  {:>5}  REASON",
            "ID", "WHAT", "SINCE", "ROWS", "TRIES"
        );
        f.write_str(&line(heading))?;
        for (entry, name) in self.entries.iter().zip(names) {
            let name = match room {
                Some(_) => cut(&name, width),
                None => Cow::Borrowed(&*name),
            };
            let rows = entry
                .rows_waiting
                .map_or("?".to_owned(), |rows| rows.to_string());
            let (id, since, attempts) = (&entry.id, &entry.since, entry.attempts);
            let mut text = format!(
                "{id:<8}  {name:<width$}  {since:<20}  {rows:>6}  {attempts:>5}  {}",
                entry.reason
            );
            if entry.dead_letters > 0 {
                text += &format!(", {} dead letters", entry.dead_letters);
            }
            if let Some(state) = entry.state_in_words() {
                text += &format!(" ({state})");
            }
            write!(f, "\n{}", line(text))?;
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
            request => Some(format!("{request} asked by {actor} at {at}")),
        }
    }
}

/// How wide a list's column of names is.
pub(crate) fn width(names: &[String], title: &str) -> usize {
    let longest = names.iter().map(|name| name.chars().count()).max();
    longest.unwrap_or(0).clamp(title.len(), 60)
}

/// A text that is too long, cut so that one sees it.
pub(crate) fn cut(text: &str, width: usize) -> Cow<'_, str> {
    match text.chars().count() > width {
        true => {
            let kept = text.chars().take(width.saturating_sub(1));
            Cow::Owned(kept.chain(['\u{2026}']).collect())
        }
        false => Cow::Borrowed(text),
    }
}

/// A line that no terminal breaks.
pub(crate) fn fit(line: String, terminal: Option<usize>) -> String {
    match terminal {
        Some(columns) => cut(line.trim_end(), columns).into_owned(),
        None => line,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(aggregate_id: &str) -> Blocked {
        let text = str::to_owned;
        Blocked {
            id: text("0123abcd"),
            key: text("0123abcd"),
            kind: text("aggregate"),
            aggregate_type: Some(text("customer-subscription")),
            aggregate_id: Some(text(aggregate_id)),
            topic: None,
            since: text("2026-11-30T22:00:00Z"),
            reason: text("topic_not_allowed"),
            error: String::new(),
            attempts: 3,
            policy: text("block"),
            state: text("retry"),
            actor: Some(text("somebody@a-host-with-a-long-name")),
            note: None,
            at: text("2026-11-30T22:10:00Z"),
            row_seq: Some(7),
            row_id: text("r"),
            rows_waiting: Some(12),
            copies: 0,
            dead_letters: 2,
        }
    }

    #[test]
    fn no_line_of_a_list_is_wider_than_the_terminal() {
        let entries = ["0198c0de-7a11-7000-8000-000000000001", "größe", "7"].map(entry);
        for columns in [80, 100, 200] {
            let terminal = Some(columns);
            let list = Lines {
                entries: &entries,
                terminal,
            }
            .to_string();
            let widest = list.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(columns), "{list}");
            assert!(
                list.contains("\n0123abcd  ") && list.contains("topic_not"),
                "{list}"
            );
        }
        let terminal = None;
        let list = Lines {
            entries: &entries,
            terminal,
        }
        .to_string();
        let whole = "customer-subscription 0198c0de-7a11-7000-8000-000000000001  2026";
        assert!(
            list.contains(whole) && list.ends_with("at 2026-11-30T22:10:00Z)"),
            "{list}"
        );
    }

    #[test]
    fn what_is_cut_is_seen_to_be() {
        assert_eq!(cut("größe", 5), "größe");
        assert_eq!(cut("größer", 5), "größ\u{2026}");
        assert_eq!(fit("a b  ".to_owned(), None), "a b  ");
        assert_eq!(fit("abcdef".to_owned(), Some(3)), "ab\u{2026}");
    }
}
