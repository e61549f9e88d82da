//! What keeps a server or a role from logical replication.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::{Client, Row};

use crate::postgres::compatibility::Incompatibility;

/// A managed server may have a role of its own in place of the attribute.
pub(crate) const REPLICATION: &str = "
    SELECT pg_catalog.current_setting('wal_level') AS wal_level, current_user::text AS role,
           r.rolsuper OR r.rolreplication OR coalesce((
               SELECT pg_catalog.pg_has_role(m.oid, 'MEMBER') FROM pg_catalog.pg_roles m
               WHERE m.rolname = 'rds_replication'), false) AS may_replicate,
           pg_catalog.current_setting('max_replication_slots')::int8 AS slots_max,
           pg_catalog.current_setting('max_wal_senders')::int8 AS senders_max,
           (SELECT count(*) FROM pg_catalog.pg_stat_replication) AS senders,
           s.slots, s.has_slot, s.is_read,
           pg_catalog.current_setting('max_slot_wal_keep_size') AS kept,
           pg_catalog.current_setting('idle_replication_slot_timeout', true) AS idle
    FROM pg_catalog.pg_roles r
    CROSS JOIN (SELECT count(*) AS slots, coalesce(bool_or(slot_name = $1), false) AS has_slot,
                       coalesce(bool_or(slot_name = $1 AND active), false) AS is_read
                FROM pg_catalog.pg_replication_slots) s
    WHERE r.rolname = current_user";

pub(crate) const SLOTS: &str = "max_replication_slots";

pub(crate) const SENDERS: &str = "max_wal_senders";

/// Why the server takes no further slot for logical decoding, in the words of `check`; nothing where it does.
pub(crate) async fn slot(
    client: &Client,
    slot: &str,
) -> Result<Option<Incompatibility>, tokio_postgres::Error> {
    let row = client.query_one(REPLICATION, &[&slot]).await?;
    if row.get("has_slot") {
        return Ok(None);
    }
    let named = |what: &'static str| {
        move |refusal: Incompatibility| Incompatibility {
            text: format!("{what}: {}", refusal.text),
            ..refusal
        }
    };
    let level = wal_level(row.get("wal_level")).map(named("wal_level"));
    let full = full(SLOTS, row.get("slots"), row.get("slots_max")).map(named(SLOTS));
    Ok(level.or(full))
}

/// Why the server takes no further replication connection, in the words of `check`; nothing where it does.
pub(crate) async fn sender(
    client: &Client,
    slot: &str,
) -> Result<Option<Incompatibility>, tokio_postgres::Error> {
    let row = client.query_one(REPLICATION, &[&slot]).await?;
    let full = full(SENDERS, row.get("senders"), row.get("senders_max"));
    Ok(full.map(|refusal| Incompatibility {
        text: format!("{SENDERS}: {}", refusal.text),
        ..refusal
    }))
}

/// Why this role may make and read no slot, in the words of `check`; nothing where it may.
pub(crate) async fn role(
    client: &Client,
    slot: &str,
) -> Result<Option<Incompatibility>, tokio_postgres::Error> {
    let row = client.query_one(REPLICATION, &[&slot]).await?;
    Ok(may_not_replicate(&row).map(|refusal| Incompatibility {
        text: format!("REPLICATION: {}", refusal.text),
        ..refusal
    }))
}

pub(crate) fn may_not_replicate(row: &Row) -> Option<Incompatibility> {
    let role: &str = row.get("role");
    (!row.get::<_, bool>("may_replicate")).then(|| Incompatibility {
        text: format!("role `{role}` may not replicate"),
        remedy: format!("ALTER ROLE {} REPLICATION;", escape_identifier(role)),
    })
}

pub(crate) fn wal_level(level: &str) -> Option<Incompatibility> {
    (level != "logical").then(|| Incompatibility {
        text: format!("`{level}`, and replication needs `logical`"),
        remedy: "ALTER SYSTEM SET wal_level = logical; -- then restart PostgreSQL (managed: a parameter of the instance)"
            .to_owned(),
    })
}

pub(crate) fn full(what: &str, used: i64, most: i64) -> Option<Incompatibility> {
    (used >= most).then(|| Incompatibility {
        text: format!("{used} of {most} used"),
        remedy: format!(
            "ALTER SYSTEM SET {what} = {}; -- then restart PostgreSQL",
            most + 4
        ),
    })
}
