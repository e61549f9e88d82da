//! What a standby needs so that the relay's slot lives through its promotion (PostgreSQL 17 and newer), as far as the
//! primary shows it.

use tokio_postgres::Client;

use super::{Finding, Report, unknown};
use crate::postgres::slot::Slot;

pub(super) async fn look(client: &Client, slot: Option<&Slot>, report: &mut Report) {
    let Some(slot) = slot.filter(|slot| slot.failover.is_some()) else {
        return;
    };
    let name = &slot.name;
    if slot.failover == Some(false) {
        report.push(Finding::warning(
            "failover",
            format!("standbys do not keep slot `{name}`: after a promotion the table is read instead"),
            format!(
                "over a replication connection, while no relay reads it: ALTER_REPLICATION_SLOT {name} (FAILOVER);"
            ),
        ));
        return;
    }
    match client.query_one(STANDBYS, &[]).await {
        Ok(row) => {
            let standbys = Standbys {
                slots: row.get("slots"),
                without_feedback: row.get("without_feedback"),
                waited_for: row.get("waited_for"),
            };
            report.findings.extend(judge(&standbys));
        }
        Err(error) => report.push(unknown("failover", error)),
    }
}

struct Standbys {
    /// Physical slots that a standby reads.
    slots: Vec<String>,
    /// Those of them whose standby sends no feedback.
    without_feedback: Vec<String>,
    /// `synchronized_standby_slots`.
    waited_for: String,
}

fn judge(standbys: &Standbys) -> Vec<Finding> {
    if standbys.slots.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if standbys.waited_for.is_empty() {
        let slots = standbys.slots.join(", ");
        findings.push(Finding::warning(
            "failover",
            "`synchronized_standby_slots` is empty: rows may be published that a promoted standby does not have",
            format!("ALTER SYSTEM SET synchronized_standby_slots = '{slots}'; SELECT pg_reload_conf();"),
        ));
    }
    if !standbys.without_feedback.is_empty() {
        findings.push(Finding::warning(
            "failover",
            format!(
                "the standby behind {} sends no feedback: it can't keep the relay's slot",
                standbys.without_feedback.join(", ")
            ),
            "on the standby: hot_standby_feedback = on, sync_replication_slots = on, primary_slot_name, and a dbname in \
             primary_conninfo",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "failover",
            format!(
                "the slot is made for it; rows wait for {}",
                standbys.waited_for
            ),
        ));
    }
    findings
}

const STANDBYS: &str = "
    SELECT coalesce(array_agg(s.slot_name::text), '{}') AS slots,
           coalesce(array_agg(s.slot_name::text) FILTER (WHERE s.xmin IS NULL AND s.catalog_xmin IS NULL), '{}')
               AS without_feedback,
           coalesce(pg_catalog.current_setting('synchronized_standby_slots', true), '') AS waited_for
    FROM pg_catalog.pg_replication_slots s
    WHERE s.slot_type = 'physical' AND s.active";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::check::FindingOutcome;

    fn standbys() -> Standbys {
        Standbys {
            slots: vec!["standby".to_owned()],
            without_feedback: Vec::new(),
            waited_for: "standby".to_owned(),
        }
    }

    #[test]
    fn what_a_standby_lacks_is_a_warning() {
        let outcomes = |standbys: &Standbys| -> Vec<FindingOutcome> {
            judge(standbys).iter().map(|one| one.outcome).collect()
        };
        assert_eq!(outcomes(&standbys()), [FindingOutcome::Ok]);
        let mut lacking = standbys();
        lacking.waited_for.clear();
        lacking.without_feedback = lacking.slots.clone();
        assert_eq!(
            outcomes(&lacking),
            [FindingOutcome::Warning, FindingOutcome::Warning]
        );
        lacking.slots.clear();
        assert!(judge(&lacking).is_empty());
    }
}
