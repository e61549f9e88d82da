//! Whether the server takes writes, and when their commits return.

use tokio_postgres::Client;

use super::{Finding, Report, unknown};
use crate::postgres::obstacles::writing::{READ_ONLY, WRITABLE, refusal};

pub(super) async fn look(client: &Client, report: &mut Report) {
    let row = match client.query_one(WRITABLE, &[]).await {
        Ok(row) => row,
        Err(error) => return report.push(unknown(READ_ONLY, error)),
    };
    if let Some((what, refusal)) = refusal(&row) {
        report.push(Finding::missing(what, refusal.text, refusal.remedy));
    }
    let sees = row.get("sees_all");
    report
        .findings
        .extend(standbys(row.get("awaited"), row.get("answering"), sees));
}

/// Every mark is a commit, and waits as every other one does.
fn standbys(awaited: &str, answering: i64, sees_all: bool) -> Option<Finding> {
    let what = "synchronous_standby_names";
    if awaited.is_empty() {
        return None;
    }
    if sees_all && answering == 0 {
        return Some(Finding::warning(
            what,
            format!(
                "'{awaited}', and none of them answers: every commit waits, those of marks and lease too"
            ),
            format!("start the standby, or ALTER SYSTEM SET {what} = ''; SELECT pg_reload_conf();"),
        ));
    }
    let detail = format!("'{awaited}': marks and lease wait for it with each commit");
    Some(Finding::ok(what, detail))
}

#[cfg(test)]
mod tests {
    use super::super::FindingOutcome;
    use super::*;
    use crate::postgres::obstacles::writing::read_only;

    #[test]
    fn a_setting_is_taken_away_where_it_was_made() {
        for (source, remedy) in [
            ("user", "ALTER ROLE r RESET"),
            ("database", "ALTER DATABASE d RESET"),
            ("database user", "ALTER ROLE r IN DATABASE d RESET"),
            ("configuration file", "ALTER SYSTEM SET"),
        ] {
            let (_, text) = read_only(source, "r", "d");
            assert!(text.starts_with(remedy), "{text}");
        }
    }

    #[test]
    fn standbys_that_do_not_answer_are_warned_of_where_that_is_seen() {
        assert_eq!(standbys("", 0, true), None);
        let outcome = |answering, sees_all| standbys("sb", answering, sees_all).unwrap().outcome;
        assert_eq!(outcome(0, true), FindingOutcome::Warning);
        assert_eq!(outcome(1, true), FindingOutcome::Ok);
        assert_eq!(outcome(0, false), FindingOutcome::Ok);
    }
}
