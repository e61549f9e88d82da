//! How much the table holds, and whether what was sent goes.

use tokio_postgres::Client;

use super::{Finding, Report, unknown};
use crate::config::Config;
use crate::inspect::Table;
use crate::retention;

pub(super) async fn look(client: &Client, config: &Config, table: &Table, report: &mut Report) {
    match retention::kept(client, &table.name()).await {
        Err(error) => report.push(unknown("kept rows", error)),
        Ok(None) => {}
        Ok(Some(kept)) => {
            let (rows, mib) = (kept.rows, kept.bytes.div_ceil(1 << 20));
            let detail = format!("about {rows} rows, {mib} MiB with indexes, by the statistics");
            report.push(Finding::ok("kept rows", detail));
        }
    }
    let Some(keep) = config.source.retention else {
        return;
    };
    report.push(match retention::fit::age(config.source.mark, table) {
        Ok(age) => {
            let keep = humantime::format_duration(keep);
            let column = age.column();
            let detail = format!("rows that were sent go {keep} after their `{column}`");
            Finding::ok("retention", detail)
        }
        Err(refusal) => Finding::missing(
            "retention",
            format!("no row can be removed: {}", refusal.text),
            refusal.remedy,
        ),
    });
}
