//! `outboxd check --script`: the remedies of one report as one SQL script, each part with who runs it. Pure.

use std::fmt::Write;

use super::{Finding, FindingOutcome, Report};
use crate::state::schema::{Part, Step};

/// Whose work a remedy is, in the order in which it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// Settings of the server, which a restart makes hold.
    Server,
    Roles,
    /// The owner of schema and table.
    Owner,
    /// What `migrate` does.
    Migration,
    /// Nothing that SQL mends.
    Elsewhere,
}

impl By {
    fn heading(self) -> &'static str {
        match self {
            Self::Server => {
                "By a superuser; then restart PostgreSQL (managed: parameters of the instance)"
            }
            Self::Roles => "By a superuser, or by who may create roles and has REPLICATION",
            Self::Owner => "By the owner of schema and table",
            Self::Migration => {
                "By the owner of table and database: what `outboxd migrate` does, without the slot, which the relay makes"
            }
            Self::Elsewhere => "Not by SQL",
        }
    }

    fn of(finding: &Finding) -> Self {
        let remedy = finding.remedy.as_deref().unwrap_or_default();
        match finding.what.as_str() {
            _ if finding.is_step => Self::Migration,
            "wal_level" | "max_replication_slots" | "max_wal_senders" => Self::Server,
            "REPLICATION" | "row security" | "connections" | "default_transaction_read_only" => {
                Self::Roles
            }
            _ if remedy.lines().any(is_sql) => Self::Owner,
            _ => Self::Elsewhere,
        }
    }
}

/// Writes the script; comments alone where SQL mends nothing.
pub(super) fn script(report: &Report) -> String {
    let mut text = String::from(
        "-- What `outboxd check` misses, in the order in which it is done: for psql, as a whole by a superuser, or each part by\n\
         -- who is named.\n",
    );
    let missing = report
        .findings
        .iter()
        .filter(|finding| finding.outcome == FindingOutcome::Missing);
    let mut parts: Vec<(By, String)> = missing
        .filter(|finding| !finding.is_step)
        .map(|finding| (By::of(finding), lines(finding)))
        .collect();
    let steps = report.steps.iter().filter(|step| is_for_script(step));
    parts.extend(steps.map(|step| (By::Migration, transaction(step))));
    parts.sort_by_key(|(by, _)| *by);
    let mut number = 0;
    let mut last = None;
    for (by, part) in parts {
        if last != Some(by) {
            number += 1;
            write!(text, "\n-- {number}. {}.\n", by.heading()).expect("a String takes every text");
            last = Some(by);
        }
        text.push_str(&part);
    }
    if number == 0 {
        text.push_str("-- Nothing is missing.\n");
    }
    text
}

/// The relay makes its slot once it may.
fn is_for_script(step: &Step) -> bool {
    !matches!(step.part, Part::Slot | Part::Claim)
}

fn transaction(step: &Step) -> String {
    let Step {
        description, sql, ..
    } = step;
    format!("-- {description}\nBEGIN;\n{sql}\nCOMMIT;\n")
}

/// What is wrong as a comment, then the statements; what takes something away stays a comment for a person to decide.
fn lines(finding: &Finding) -> String {
    let Finding { what, detail, .. } = finding;
    let mut text = format!("-- {what}: {}\n", detail.replace('\n', " "));
    for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
        match is_sql(line) && !takes_away(line) {
            true => writeln!(text, "{line}"),
            false => writeln!(text, "--   {line}"),
        }
        .expect("a String takes every text");
    }
    text
}

/// A whole statement, with a comment behind it at most, and nothing to be filled in.
fn is_sql(line: &str) -> bool {
    const VERBS: [&str; 9] = [
        "ALTER ", "CREATE ", "GRANT ", "INSERT ", "UPDATE ", "BEGIN;", "COMMENT ", "DROP ",
        "DELETE ",
    ];
    let statement = line.split("; --").next().unwrap_or(line);
    let is_whole = line.ends_with(';') || statement != line;
    is_whole && !statement.contains('…') && VERBS.iter().any(|verb| line.starts_with(verb))
}

fn takes_away(line: &str) -> bool {
    let drops = [
        "DROP TRIGGER",
        "DROP RULE",
        "DROP SUBSCRIPTION",
        "DELETE ",
        "NO INHERIT",
        "DETACH ",
    ];
    drops.iter().any(|part| line.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::schema::StepState;

    #[test]
    fn remedies_stand_in_the_order_in_which_they_are_done_with_who_does_them() {
        let mut report = Report::default();
        let mut missing = |what: &str, detail: &str, remedy: &str| {
            report.push(Finding::missing(what, detail, remedy));
        };
        missing("Kafka", "no broker answers", "`kafka.brokers` says where");
        missing(
            "mode and mark",
            "no `seq`",
            "ALTER TABLE o ADD COLUMN \"seq\" bigint; -- rewrites the table",
        );
        missing("mark", "a trigger", "DROP TRIGGER t;");
        missing(
            "wal_level",
            "`replica`",
            "ALTER SYSTEM SET wal_level = logical; -- then restart PostgreSQL",
        );
        let step = |part, sql: &str| Step {
            part,
            description: "a step".to_owned(),
            sql: sql.to_owned(),
            state: StepState::Needed,
        };
        report.steps = vec![
            step(Part::State, "CREATE SCHEMA s;"),
            step(Part::Slot, "SELECT slot();"),
        ];
        let text = script(&report);
        let at = |part: &str| {
            text.find(part)
                .unwrap_or_else(|| panic!("{part} is not in {text}"))
        };
        let order = [
            "\n-- 1. By a superuser",
            "\nALTER SYSTEM",
            "\n-- 2. By the owner of schema",
            "\nALTER TABLE o",
            "\n--   DROP TRIGGER t;",
            "\n-- 3. By the owner of table",
            "BEGIN;\nCREATE SCHEMA s;\nCOMMIT;",
            "\n-- 4. Not by SQL",
            "\n-- Kafka: no broker answers",
        ];
        assert!(order.map(at).is_sorted(), "{text}");
        assert!(!text.contains("slot()"), "{text}");
    }

    #[test]
    fn what_needs_no_mending_is_said() {
        assert!(script(&Report::default()).ends_with("-- Nothing is missing.\n"));
    }
}
