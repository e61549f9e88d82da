//! The outbox as a table partitioned by ranges of `seq`. Pure.

use std::fmt::Write;

use super::existing_objects::ExistingObjects;
use super::fragment::Values;
use super::{MigrateError, Names};
use crate::config::Mark;
use crate::postgres::catalog::{TableKind, qualified, suffixed};
use crate::state::retention::{AHEAD, Bounds};

/// Puts partitions in the place of one table.
///
/// Only what holds the partition key can be unique, so that `id` is not; the relay makes further partitions ahead, and
/// what it could not make stands in the default one.
/// Errors: `NotPartitionable` where the table stands undivided, or nothing would ever drop a partition.
pub(super) fn set(
    values: &mut Values,
    names: &Names,
    existing: &ExistingObjects,
) -> Result<(), MigrateError> {
    let Some(rows) = names.partition_rows else {
        return Ok(());
    };
    let refuse = |why, remedy| {
        let table = names.outbox();
        Err(MigrateError::NotPartitionable { table, why, remedy })
    };
    if !names.removes || names.mark != Mark::Ledger {
        return refuse(
            "only retention with the ledger makes and drops partitions",
            "set source.retention, such as \"7d\", and source.mark = \"ledger\"",
        );
    }
    match &existing.table {
        Some(table) if table.kind != TableKind::Partitioned => {
            return refuse(
                "it stands already",
                "leave out --partitioned, or name a new table in `source.table` and move over once the old one is empty",
            );
        }
        _ => {}
    }
    values.set("id_key", " NOT NULL".to_owned());
    values.set("seq_key", " PRIMARY KEY".to_owned());
    values.set("storage", " PARTITION BY RANGE (seq)".to_owned());
    values.set("partitions", partitions(names, rows));
    Ok(())
}

fn partitions(names: &Names, rows: i64) -> String {
    let name = |suffix: &str| qualified(&names.schema, &suffixed(&names.table, suffix));
    let table = qualified(&names.schema, &names.table);
    let mut sql = format!(
        "\nCREATE INDEX ON {table} (id);\nCREATE TABLE {} PARTITION OF {table} DEFAULT;",
        name("_default")
    );
    for number in 0..=AHEAD {
        let from = number * rows;
        let bounds = Bounds {
            from: (number > 0).then_some(from),
            to: from + rows,
        };
        let (name, bounds) = (name(&format!("_p{from}")), bounds.sql());
        write!(sql, "\nCREATE TABLE {name} PARTITION OF {table} {bounds};")
            .expect("a String takes every text");
    }
    sql
}
