//! Whether the server has room for a relay's connections.

use tokio_postgres::Client;

use super::{Finding, Report, unknown};
use crate::config::Config;
use crate::postgres::obstacles::room::{ROOM, kept, narrow};

const WHAT: &str = "connections";

pub(super) async fn look(client: &Client, config: &Config, report: &mut Report) {
    let row = match client.query_one(ROOM, &[]).await {
        Ok(row) => row,
        Err(error) => return report.push(unknown(WHAT, error)),
    };
    let source = &config.source;
    report.push(match narrow(&row, source) {
        Some(refusal) => Finding::missing(WHAT, refusal.text, refusal.remedy),
        None => of_server(kept(source), row.get("free"), row.get("most")),
    });
}

fn of_server(kept: i64, free: i64, most: i64) -> Finding {
    let detail =
        format!("a relay keeps {kept}, and {free} of max_connections = {most} are free for it");
    match free < kept {
        true => Finding::warning(
            WHAT,
            detail,
            format!(
                "ALTER SYSTEM SET max_connections = {}; -- then restart PostgreSQL",
                most + kept - free
            ),
        ),
        false => Finding::ok(WHAT, detail),
    }
}

#[cfg(test)]
mod tests {
    use super::super::FindingOutcome;
    use super::*;

    #[test]
    fn a_server_that_is_full_is_told_in_time() {
        assert_eq!(of_server(5, 5, 100).outcome, FindingOutcome::Ok);
        let full = of_server(5, 4, 100);
        assert_eq!(full.outcome, FindingOutcome::Warning);
        assert!(
            full.remedy
                .is_some_and(|remedy| remedy.contains("max_connections = 101;"))
        );
    }
}
