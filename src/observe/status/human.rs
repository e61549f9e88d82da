//! A report as people read it in a terminal.

use std::fmt;

use super::{Answer, AnsweredBy, Lag, Peer, Status};
use crate::state::lease::shown;
use crate::text::paste::complete;

const NOT_KNOWN: &str = "not known";

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = &self.status;
        let (table, mode, mark) = (&status.table, &status.mode, &status.mark);
        line(f, "outbox", format_args!("{table} ({mode}, mark {mark})"))?;
        match &self.answered_by {
            AnsweredBy::Relay { address } => {
                let version = &status.version;
                let by = format_args!("the relay at {address}, version {version}");
                line(f, "answered by", by)?;
            }
            AnsweredBy::Database { no_relay, .. } => {
                let by = format_args!("the database; no relay answers: {no_relay}");
                line(f, "answered by", by)?;
            }
        }
        if let Some(database) = &status.database {
            let server = status.server.as_deref().unwrap_or(NOT_KNOWN);
            line(f, "database", format_args!("{database} on {server}"))?;
        }
        if let Some(slot) = &status.slot {
            line(f, "slot", slot)?;
        }
        self.write_role(f)?;
        write_numbers(f, status)?;
        write_held(f, status)?;
        for drift in &status.drift {
            line(f, "publication", complete(drift))?;
        }
        for slot in &status.unread_slots {
            line(f, "unread slot", complete(slot))?;
        }
        write_peer(f, "postgres", &status.postgres)?;
        write_peer(f, "kafka", &status.kafka)?;
        match &status.last_error {
            Some(error) => line(
                f,
                "last error",
                format_args!("{}: {}", error.at, complete(&error.text)),
            ),
            None => Ok(()),
        }
    }
}

impl Answer {
    fn write_role(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = &self.status;
        let mut text = status.role.name().to_owned();
        if matches!(self.answered_by, AnsweredBy::Relay { .. }) {
            if status.state.name() != status.role.name() {
                text += &format!(", {}", status.state.name());
            }
            text += &format!(" since {}", status.since);
        }
        line(f, "role", text)?;
        if !status.reason.is_empty() {
            line(f, "reason", complete(&status.reason))?;
        }
        match &status.lease {
            Some(lease) => line(f, "lease", shown(&lease.holder)),
            None => Ok(()),
        }
    }
}

fn write_numbers(f: &mut fmt::Formatter<'_>, status: &Status) -> fmt::Result {
    if let Some(lsn) = &status.position.confirmed_lsn {
        line(f, "confirmed", lsn)?;
    }
    if let Some(seq) = status.position.sent_seq {
        line(f, "sent", format_args!("up to seq {seq}"))?;
    }
    line(f, "lag", lag(&status.lag))?;
    if let Some(age) = status.oldest_unsent_age_seconds {
        line(f, "oldest unsent", format_args!("{age:.1} s old"))?;
    }
    let in_flight = status.in_flight;
    if in_flight.rows > 0 {
        let text = format_args!("{} rows, {}", in_flight.rows, bytes(in_flight.bytes));
        line(f, "in flight", text)?;
    }
    if let Some(size) = status.table_size {
        let text = format_args!("about {} rows, {}", size.rows, bytes(size.bytes));
        line(f, "table holds", text)?;
    }
    match (status.slot_retained_bytes, status.wal_budget) {
        (Some(retained), Some(budget)) => {
            let (retained, alarm) = (bytes(retained), budget.alarm.name());
            let text = format_args!("{retained} of {}, alarm: {alarm}", bytes(budget.bytes));
            line(f, "slot retains", text)
        }
        (Some(retained), None) => line(f, "slot retains", bytes(retained)),
        (None, _) => Ok(()),
    }
}

fn write_held(f: &mut fmt::Formatter<'_>, status: &Status) -> fmt::Result {
    if let Some(count @ 1..) = status.blocked_aggregates {
        let text = format_args!("{count} aggregates: `outboxd blocked list` shows them");
        line(f, "blocked", text)?;
    }
    if let Some(count @ 1..) = status.dead_letters {
        let text = format_args!("{count}: `outboxd dead-letters list` shows them");
        line(f, "dead letters", text)?;
    }
    for held in &status.held {
        let (rows, kind) = (held.rows, &held.aggregate_type);
        let (id, reason) = (&held.event_id, &held.reason);
        let text = format_args!("{rows} rows, aggregate type {kind}, first event {id}: {reason}");
        line(f, "blocked", text)?;
    }
    for held in &status.held_topics {
        let (topic, rows, reason) = (&held.topic, held.rows, &held.reason);
        line(
            f,
            "paused topic",
            format_args!("{topic}, {rows} rows: {reason}"),
        )?;
        if let Some(command) = &held.command {
            line(f, "", format_args!("to resume it: {command}"))?;
        }
    }
    if let count @ 1.. = status.held_topics_left_out {
        let text = format_args!("{count} more can't be written");
        line(f, "paused topics", text)?;
    }
    Ok(())
}

fn write_peer(f: &mut fmt::Formatter<'_>, name: &str, peer: &Peer) -> fmt::Result {
    match (peer.is_up, &peer.error) {
        (Some(false), Some(error)) => line(f, name, format_args!("away: {error}")),
        (Some(false), None) => line(f, name, "away"),
        (Some(true) | None, _) => Ok(()),
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, text: impl fmt::Display) -> fmt::Result {
    writeln!(f, "{name:<14}{text}")
}

fn lag(lag: &Lag) -> String {
    let at_least = if lag.rows_at_least { "at least " } else { "" };
    let parts = [
        lag.rows.map(|rows| format!("{at_least}{rows} rows")),
        lag.bytes.map(|lag| format!("{} of WAL", bytes(lag))),
        lag.seconds.map(|seconds| format!("{seconds:.1} s")),
    ];
    let known: Vec<String> = parts.into_iter().flatten().collect();
    match (known.is_empty(), lag.not_known_since) {
        (true, Some(since)) => format!("{NOT_KNOWN} since {since}"),
        (true, None) => NOT_KNOWN.to_owned(),
        (false, _) => known.join(", "),
    }
}

fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes as f64, "B");
    for larger in units {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{size:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_in_the_largest_unit_that_keeps_a_whole_number() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(32 << 20), "32.0 MiB");
    }

    #[test]
    fn what_is_not_known_is_not_called_zero() {
        assert_eq!(lag(&Lag::default()), "not known");
        let known = Lag {
            rows: Some(0),
            seconds: Some(0.0),
            ..Lag::default()
        };
        assert_eq!(lag(&known), "0 rows, 0.0 s");
    }
}
