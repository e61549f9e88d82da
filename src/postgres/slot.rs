//! The relay's replication slot: what it holds back, what it is good for, its removal.
//!
//! Never creates a slot, and moves one only past what it can't bring or what was read from the table.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::postgres::PostgresError;
use crate::row::Lsn;

/// A replication slot as the server describes it; sizes are bytes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Slot {
    pub name: String,
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub reader: Option<SlotReader>,
    pub restart_lsn: Option<String>,
    pub confirmed_flush_lsn: Option<String>,
    /// WAL that the server keeps for this slot.
    pub retained_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// WAL that may still be written before the slot is in danger; `None` where there is no limit.
    pub safe_wal_size: Option<i64>,
    pub is_temporary: bool,
    /// Why the server gave the slot up, in its own word; told by PostgreSQL 17 and newer.
    pub invalidation_reason: Option<String>,
    /// Whether standbys keep the slot; `None` before PostgreSQL 17.
    pub failover: Option<bool>,
    /// The slot came from a primary, by the standby's synchronisation; `None` before PostgreSQL 17.
    pub synced: Option<bool>,
}

/// What a slot is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    Usable,
    /// It is somebody else's: never to be dropped.
    Foreign(String),
    /// The server has given it up: it can only be dropped.
    Lost(String),
}

impl Slot {
    /// Judges whether a relay of this database can stream from the slot.
    pub(crate) fn fitness(&self, database: &str) -> Fitness {
        let name = &self.name;
        if let Some(other) = self.database.as_deref().filter(|other| *other != database) {
            return Fitness::Foreign(format!(
                "slot `{name}` belongs to database `{other}`; a slot's name is unique in the whole server"
            ));
        }
        let plugin = self.plugin.as_deref();
        let plugin = plugin.unwrap_or("none: it is a physical slot");
        if plugin != "pgoutput" {
            return Fitness::Foreign(format!(
                "slot `{name}` has the plugin {plugin}, and the relay reads pgoutput"
            ));
        }
        if self.is_temporary {
            return Fitness::Foreign(format!("slot `{name}` is somebody's temporary one"));
        }
        match (&self.invalidation_reason, self.wal_status.as_deref()) {
            (Some(reason), _) => Fitness::Lost(format!(
                "the server has invalidated slot `{name}`: {reason}"
            )),
            (None, Some("lost")) => Fitness::Lost(format!(
                "the server has invalidated slot `{name}`: it removed WAL that the slot needed"
            )),
            _ => Fitness::Usable,
        }
    }
}

/// Who reads a slot now.
#[derive(Clone, Debug, Serialize)]
pub struct SlotReader {
    pub pid: i32,
    pub application_name: Option<String>,
    /// `None` for a Unix socket, or where the role may not see it.
    pub client_address: Option<String>,
}

/// Why a slot could not be looked at or dropped.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error("slot `{name}` does not exist")]
    NotFound { name: String },
    #[error("slot `{name}` is being read by {reader}; stop it first")]
    Active { name: String, reader: SlotReader },
    #[error(
        "dropping slot `{name}` discards the changes that it keeps for the relay; repeat with `--yes`: `outboxd slot drop --yes`"
    )]
    NotConfirmed { name: String },
    #[error("cannot {action} slot `{name}`")]
    Query {
        action: &'static str,
        name: String,
        #[source]
        source: PostgresError,
    },
}

/// Whether a person has agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consent {
    Given,
    Missing,
}

impl fmt::Display for SlotReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if let Some(name) = &self.application_name {
            write!(f, ", `{name}`")?;
        }
        match &self.client_address {
            Some(address) => write!(f, ", from {address}"),
            None => Ok(()),
        }
    }
}

/// Where a slot stands in the server's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotPosition {
    /// `confirmed_flush_lsn`: transactions whose commit record begins before it do not come again.
    pub confirmed: Lsn,
    /// As far as the server has flushed its log.
    pub server: Lsn,
}

impl SlotPosition {
    /// WAL between the two, in bytes.
    pub(crate) fn lag_bytes(self) -> u64 {
        self.server.0.saturating_sub(self.confirmed.0)
    }
}

/// Reads where a slot stands.
///
/// Errors: `NotFound` too where the server has given it up.
/// Cancel-safe: yes.
pub(crate) async fn position(client: &Client, name: &str) -> Result<SlotPosition, SlotError> {
    let row = client.query_opt(STANDING, &[&name]).await;
    let row = row.map_err(failed("look at", name))?;
    let row = row.ok_or_else(|| SlotError::NotFound {
        name: name.to_owned(),
    })?;
    let lsn = |column| Lsn(u64::from(row.get::<_, PgLsn>(column)));
    Ok(SlotPosition {
        confirmed: lsn(0),
        server: lsn(1),
    })
}

/// Moves a slot that nobody reads up to a position, without decoding what is passed; never backwards.
///
/// A transaction is passed if its commit record begins before `upto`.
/// Cancel-safe: yes, the server moves on or not at all.
pub(crate) async fn advance(client: &Client, name: &str, upto: Lsn) -> Result<(), SlotError> {
    let upto = PgLsn::from(upto.0);
    // Reading through the log takes as long as it takes.
    let moved = async {
        client.batch_execute("SET statement_timeout = 0").await?;
        client.execute(ADVANCE, &[&name, &upto]).await
    };
    moved.await.map(drop).map_err(failed("advance", name))
}

/// Takes a slot that nobody has read for so long, and leaves it where it is: the server counts its idle time anew.
///
/// From PostgreSQL 18 on, which alone gives idle slots up. Errors: also where the server does not get through the log
/// within the session's `statement_timeout`; the idle time begins anew all the same.
/// Cancel-safe: yes.
pub(crate) async fn step_on(
    client: &Client,
    name: &str,
    unread_for: Duration,
) -> Result<(), SlotError> {
    let seconds = unread_for.as_secs_f64();
    let done = client.execute(STEP_ON, &[&name, &seconds]).await;
    done.map(drop).map_err(failed("step on", name))
}

/// Reads a slot, `None` if there is none of that name.
///
/// Cancel-safe: yes.
pub(crate) async fn status(client: &Client, name: &str) -> Result<Option<Slot>, SlotError> {
    let row = client.query_opt(STATUS, &[&name]).await;
    let row = row.map_err(failed("look at", name))?;
    let lsn = |lsn: Option<PgLsn>| lsn.map(|lsn| lsn.to_string());
    Ok(row.map(|row| Slot {
        name: name.to_owned(),
        plugin: row.get("plugin"),
        database: row.get("database"),
        reader: row
            .get::<_, Option<i32>>("active_pid")
            .map(|pid| SlotReader {
                pid,
                application_name: row.get("application_name"),
                client_address: row.get("client_address"),
            }),
        restart_lsn: lsn(row.get("restart_lsn")),
        confirmed_flush_lsn: lsn(row.get("confirmed_flush_lsn")),
        retained_bytes: row.get("retained_bytes"),
        wal_status: row.get("wal_status"),
        safe_wal_size: row.get("safe_wal_size"),
        is_temporary: row.get("temporary"),
        invalidation_reason: row.get("invalidation_reason"),
        failover: row.get("failover"),
        synced: row.get("synced"),
    }))
}

/// Drops a slot that nobody reads.
///
/// Errors: `Active` names the reader; the server itself refuses one that begins to read meanwhile.
pub(crate) async fn drop_slot(
    client: &Client,
    name: &str,
    consent: Consent,
) -> Result<(), SlotError> {
    let name = name.to_owned();
    match status(client, &name).await? {
        None => return Err(SlotError::NotFound { name }),
        Some(Slot {
            reader: Some(reader),
            ..
        }) => return Err(SlotError::Active { name, reader }),
        Some(_) => {}
    }
    if consent == Consent::Missing {
        return Err(SlotError::NotConfirmed { name });
    }
    let dropped = client
        .execute("SELECT pg_catalog.pg_drop_replication_slot($1)", &[&name])
        .await;
    dropped.map(drop).map_err(failed("drop", &name))
}

fn failed(action: &'static str, name: &str) -> impl FnOnce(tokio_postgres::Error) -> SlotError {
    move |error| SlotError::Query {
        action,
        name: name.to_owned(),
        source: error.into(),
    }
}

impl fmt::Display for Slot {
    /// One line for each thing known, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
        writeln!(f, "slot                 {}", self.name)?;
        writeln!(f, "plugin               {}", text(&self.plugin))?;
        writeln!(f, "database             {}", text(&self.database))?;
        match &self.reader {
            Some(reader) => writeln!(f, "read by              {reader}")?,
            None => writeln!(f, "read by              nobody")?,
        }
        writeln!(f, "restart_lsn          {}", text(&self.restart_lsn))?;
        writeln!(
            f,
            "confirmed_flush_lsn  {}",
            text(&self.confirmed_flush_lsn)
        )?;
        writeln!(
            f,
            "retained             {}",
            bytes(self.retained_bytes, "unknown")
        )?;
        writeln!(f, "wal_status           {}", text(&self.wal_status))?;
        if let Some(reason) = &self.invalidation_reason {
            writeln!(f, "invalidated          {reason}")?;
        }
        if let Some(failover) = self.failover {
            let kept = if failover { "yes" } else { "no" };
            writeln!(f, "kept by standbys     {kept}")?;
        }
        write!(
            f,
            "safe_wal_size        {}",
            bytes(self.safe_wal_size, "no limit")
        )
    }
}

/// A size in the largest unit that leaves at least one.
fn bytes(size: Option<i64>, absent: &str) -> String {
    let Some(size) = size else {
        return absent.to_owned();
    };
    let units = [("GiB", 1_i64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| size.abs() >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", size as f64 / *unit as f64),
        None => format!("{size} bytes"),
    }
}

const STANDING: &str = "
    SELECT confirmed_flush_lsn, pg_catalog.pg_current_wal_flush_lsn()
    FROM pg_catalog.pg_replication_slots
    WHERE slot_name = $1 AND confirmed_flush_lsn IS NOT NULL";

const ADVANCE: &str = "
    SELECT pg_catalog.pg_replication_slot_advance(slot_name, $2)
    FROM pg_catalog.pg_replication_slots
    WHERE slot_name = $1 AND confirmed_flush_lsn < $2";

const STEP_ON: &str = "
    SELECT pg_catalog.pg_replication_slot_advance(slot_name, confirmed_flush_lsn)
    FROM pg_catalog.pg_replication_slots
    WHERE slot_name = $1 AND plugin = 'pgoutput' AND database = pg_catalog.current_database() AND NOT temporary
      AND active_pid IS NULL AND invalidation_reason IS NULL
      AND inactive_since <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2)";

/// Columns that came with PostgreSQL 17 are read by name from the whole row. On a standby the position is the one replayed.
const STATUS: &str = "
    SELECT s.plugin::text, s.database::text, s.active_pid, s.restart_lsn, s.confirmed_flush_lsn, s.wal_status,
           s.safe_wal_size, s.temporary, newer.slot ->> 'invalidation_reason' AS invalidation_reason,
           (newer.slot ->> 'failover')::bool AS failover, (newer.slot ->> 'synced')::bool AS synced,
           nullif(a.application_name, '') AS application_name, host(a.client_addr) AS client_address,
           pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
                                           THEN pg_catalog.pg_last_wal_replay_lsn()
                                           ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn)::int8
               AS retained_bytes
    FROM pg_catalog.pg_replication_slots s
    CROSS JOIN LATERAL pg_catalog.to_jsonb(s) AS newer (slot)
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
    WHERE s.slot_name = $1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_the_largest_unit() {
        assert_eq!(bytes(None, "no limit"), "no limit");
        assert_eq!(bytes(Some(1_023), ""), "1023 bytes");
        assert_eq!(bytes(Some(1_536), ""), "1.5 KiB");
        assert_eq!(bytes(Some(3 << 30), ""), "3.0 GiB");
    }

    fn slot() -> Slot {
        Slot {
            name: "orders".to_owned(),
            plugin: Some("pgoutput".to_owned()),
            database: Some("shop".to_owned()),
            reader: None,
            restart_lsn: None,
            confirmed_flush_lsn: None,
            retained_bytes: None,
            wal_status: Some("reserved".to_owned()),
            safe_wal_size: None,
            is_temporary: false,
            invalidation_reason: None,
            failover: None,
            synced: None,
        }
    }

    #[test]
    fn a_foreign_slot_is_never_called_lost() {
        assert_eq!(slot().fitness("shop"), Fitness::Usable);
        let mut lost = slot();
        lost.wal_status = Some("lost".to_owned());
        assert!(matches!(lost.fitness("shop"), Fitness::Lost(_)));
        assert!(matches!(lost.fitness("other"), Fitness::Foreign(_)));
        lost.plugin = Some("test_decoding".to_owned());
        assert!(matches!(lost.fitness("shop"), Fitness::Foreign(_)));
        let mut physical = slot();
        (physical.plugin, physical.database) = (None, None);
        assert!(matches!(physical.fitness("shop"), Fitness::Foreign(_)));
        let mut idle = slot();
        idle.invalidation_reason = Some("idle_timeout".to_owned());
        assert!(
            matches!(idle.fitness("shop"), Fitness::Lost(text) if text.contains("idle_timeout"))
        );
    }

    #[test]
    fn a_reader_is_named_as_far_as_it_is_known() {
        let mut reader = SlotReader {
            pid: 4_711,
            application_name: None,
            client_address: None,
        };
        assert_eq!(reader.to_string(), "pid 4711");
        reader.application_name = Some("outboxd".to_owned());
        reader.client_address = Some("10.0.0.7".to_owned());
        assert_eq!(reader.to_string(), "pid 4711, `outboxd`, from 10.0.0.7");
    }
}
