//! `slot status` and `slot drop`: what the relay's replication slot holds back, and its removal.
//!
//! Never creates a slot, and moves one only past a transaction that can't be sent.

use std::fmt;

use serde::Serialize;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::outbox::Lsn;
use crate::postgres::PostgresError;

/// A replication slot as the server describes it; sizes are bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Slot {
    pub name: String,
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub reader: Option<Reader>,
    pub restart_lsn: Option<String>,
    pub confirmed_flush_lsn: Option<String>,
    /// WAL that the server keeps for this slot.
    pub retained_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// WAL that may still be written before the slot is in danger; `None` where there is no limit.
    pub safe_wal_size: Option<i64>,
}

/// Who reads a slot now.
#[derive(Clone, Debug, Serialize)]
pub struct Reader {
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
    Active { name: String, reader: Reader },
    #[error("dropping slot `{name}` gives up what it holds for the relay; repeat with `--yes`")]
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
pub enum Consent {
    Given,
    Missing,
}

impl fmt::Display for Reader {
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

/// Moves a slot that nobody reads behind a position, without decoding what is passed; never backwards.
///
/// Cancel-safe: yes, the server moves on or not at all.
pub async fn advance(client: &Client, name: &str, behind: Lsn) -> Result<(), SlotError> {
    let upto = PgLsn::from(behind.0 + 1);
    // Reading through the log takes as long as it takes.
    let moved = async {
        client.batch_execute("SET statement_timeout = 0").await?;
        client.execute(ADVANCE, &[&name, &upto]).await
    };
    moved.await.map(drop).map_err(|error| SlotError::Query {
        action: "advance",
        name: name.to_owned(),
        source: error.into(),
    })
}

/// Reads a slot, `None` if there is none of that name.
///
/// Cancel-safe: yes.
pub async fn status(client: &Client, name: &str) -> Result<Option<Slot>, SlotError> {
    let row = client.query_opt(STATUS, &[&name]).await;
    let row = row.map_err(|error| SlotError::Query {
        action: "look at",
        name: name.to_owned(),
        source: error.into(),
    })?;
    let lsn = |lsn: Option<PgLsn>| lsn.map(|lsn| lsn.to_string());
    Ok(row.map(|row| Slot {
        name: name.to_owned(),
        plugin: row.get("plugin"),
        database: row.get("database"),
        reader: row.get::<_, Option<i32>>("active_pid").map(|pid| Reader {
            pid,
            application_name: row.get("application_name"),
            client_address: row.get("client_address"),
        }),
        restart_lsn: lsn(row.get("restart_lsn")),
        confirmed_flush_lsn: lsn(row.get("confirmed_flush_lsn")),
        retained_bytes: row.get("retained_bytes"),
        wal_status: row.get("wal_status"),
        safe_wal_size: row.get("safe_wal_size"),
    }))
}

/// Drops a slot that nobody reads.
///
/// Errors: `Active` names the reader; the server itself refuses one that begins to read meanwhile.
pub async fn drop_slot(client: &Client, name: &str, consent: Consent) -> Result<(), SlotError> {
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
    dropped.map(drop).map_err(|error| SlotError::Query {
        action: "drop",
        name,
        source: error.into(),
    })
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

/// On a standby the position is the one replayed.
const ADVANCE: &str = "
    SELECT pg_catalog.pg_replication_slot_advance(slot_name, $2)
    FROM pg_catalog.pg_replication_slots
    WHERE slot_name = $1 AND confirmed_flush_lsn < $2";

const STATUS: &str = "
    SELECT s.plugin::text, s.database::text, s.active_pid, s.restart_lsn, s.confirmed_flush_lsn, s.wal_status,
           s.safe_wal_size, nullif(a.application_name, '') AS application_name, host(a.client_addr) AS client_address,
           pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
                                           THEN pg_catalog.pg_last_wal_replay_lsn()
                                           ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn)::int8
               AS retained_bytes
    FROM pg_catalog.pg_replication_slots s
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

    #[test]
    fn a_reader_is_named_as_far_as_it_is_known() {
        let mut reader = Reader {
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
