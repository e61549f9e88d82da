//! The outbox table: its columns and their types, and whether it allows the mode and the mark.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use super::{Finding, Report, chain, shown, unknown};
use crate::config::{Config, Mark};
use crate::postgres::catalog::{InspectError, SeqIndex, Table, TableKind, inspect, seq_orders};
use crate::postgres::compatibility;
use crate::state::schema;

/// Whether a partial index of the rows whose `sent_at` is NULL begins with a column.
const UNSENT_INDEX: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
    WHERE i.indrelid = $1 AND a.attname = $2 AND i.indisvalid \
    AND pg_catalog.pg_get_expr(i.indpred, i.indrelid) = pg_catalog.format('(%I IS NULL)', $3::text))";

/// What became of the look at the table.
pub(super) enum Looked {
    /// The relay could read it, whatever else is missing.
    Usable(Box<Table>),
    /// A migration makes it.
    Missing,
    Unusable,
}

pub(super) async fn look(client: &Client, config: &Config, report: &mut Report) -> Looked {
    let name = match config.source.table_name() {
        Ok(name) => name,
        Err(error) => {
            let remedy = "source.table = \"schema.table\", as in SQL";
            report.push(Finding::missing("source.table", chain(&error), remedy));
            return Looked::Unusable;
        }
    };
    let table = match inspect(client, &name.schema, &name.table, &config.source.columns).await {
        Ok(table) => table,
        Err(error) => {
            report.push(refused(client, config, &error).await);
            return match error {
                InspectError::NotFound { .. } if config.source.columns.is_empty() => {
                    Looked::Missing
                }
                _ => Looked::Unusable,
            };
        }
    };
    let columns = table.layout.columns.len();
    report.push(Finding::ok(
        "table",
        format!("`{}`, {columns} columns", shown(&table)),
    ));
    mode_and_mark(config, &table, report);
    numbers(config, &table, report);
    unsent_index(client, config, &table, report).await;
    row_security(client, &table, report).await;
    Looked::Usable(Box::new(table))
}

async fn refused(client: &Client, config: &Config, error: &InspectError) -> Finding {
    let remedy = match error {
        InspectError::NotFound { schema, .. } => {
            let sql = "SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1";
            if let Ok(None) = client.query_opt(sql, &[schema]).await {
                let detail = format!("schema `{schema}` does not exist");
                return Finding::missing("table", detail, schema::create_schema(schema));
            }
            match config.source.columns.is_empty() {
                true => "`outboxd migrate` creates it; `source.table` names another".to_owned(),
                false => {
                    "correct `source.table`: `source.columns` names columns of a table that stands"
                        .to_owned()
                }
            }
        }
        InspectError::NotATable { .. } => "name the table behind it in `source.table`".to_owned(),
        InspectError::MissingColumns { mapping, .. } => format!(
            "where columns have other names the configuration maps them; by names and types this may be meant:\n{mapping}"
        ),
        InspectError::UnknownColumns { .. } => {
            "write the table's own names behind outboxd's, as its CREATE TABLE has them".to_owned()
        }
        InspectError::WrongTypes { wrong, .. } => {
            let remedies: Vec<&str> = wrong.iter().map(|one| one.remedy.as_str()).collect();
            remedies.join("\n")
        }
        InspectError::Catalog { .. } => String::new(),
    };
    Finding::missing("table", chain(error), remedy)
}

fn mode_and_mark(config: &Config, table: &Table, report: &mut Report) {
    let source = &config.source;
    let order_column = source.order_column.as_deref();
    let (mode, mark) = (
        compatibility::mode_name(source.mode),
        compatibility::mark_name(source.mark),
    );
    let allowed = match compatibility::allowed(order_column, table) {
        none if none.is_empty() => "no mode with any mark".to_owned(),
        allowed => allowed,
    };
    let refusals = compatibility::refusals(source.mode, source.mark, order_column, table);
    if refusals.is_empty() {
        let detail = format!("{mode} with {mark}; this table allows {allowed}");
        report.push(Finding::ok("mode and mark", detail));
    } else {
        let detail = format!("as it is, it allows {allowed}");
        report.push(Finding::warning("table", detail, ""));
    }
    for refusal in refusals {
        report.push(Finding::missing(
            "mode and mark",
            format!("{mode} with {mark} is not possible: {}", refusal.text),
            refusal.remedy,
        ));
    }
    if source.mark == Mark::Delete {
        report.push(Finding::warning(
            "mark",
            "a row is deleted once it was sent: nothing is left to publish again from",
            "source.mark = \"ledger\" keeps the rows",
        ));
    }
}

/// What is not asked for by this mark, yet makes the numbers worth less.
fn numbers(config: &Config, table: &Table, report: &mut Report) {
    let Some(seq) = &table.seq else {
        return;
    };
    if config.source.mark != Mark::Ledger && config.source.order_column.is_none() {
        for distrust in seq_orders(table).err().unwrap_or_default() {
            report.push(Finding::warning("seq", distrust.text, distrust.remedy));
        }
    }
    if seq.index == SeqIndex::None {
        let create = match table.kind {
            TableKind::Ordinary => "CREATE UNIQUE INDEX CONCURRENTLY ON",
            TableKind::Partitioned => "CREATE INDEX ON",
        };
        let remedy = format!(
            "{create} {} ({});",
            table.name(),
            table.layout.names.sql("seq")
        );
        report.push(Finding::warning(
            "seq",
            "no index begins with `seq`: every look for unsent rows reads the whole table",
            remedy,
        ));
    }
}

/// Whether the rows without a mark are found without those that have one.
async fn unsent_index(client: &Client, config: &Config, table: &Table, report: &mut Report) {
    let layout = &table.layout;
    let seq = layout
        .seq
        .map(|column| layout.columns[column].name.as_str());
    let order = config.source.order_column.as_deref().or(seq);
    let sent_at = layout.names.of("sent_at");
    let (Mark::SentAt, Some(order), Some(_)) = (config.source.mark, order, layout.sent_at) else {
        return;
    };
    match client
        .query_one(UNSENT_INDEX, &[&table.oid, &order, &sent_at])
        .await
    {
        Err(error) => report.push(unknown("sent_at", error)),
        Ok(row) if row.get(0) => {}
        Ok(_) => {
            let create = match table.kind {
                TableKind::Ordinary => "CREATE INDEX CONCURRENTLY ON",
                TableKind::Partitioned => "CREATE INDEX ON",
            };
            let (name, order) = (table.name(), escape_identifier(order));
            report.push(Finding::warning(
                "sent_at",
                "no index finds the rows whose `sent_at` is NULL in their order: every look for them reads the rows that were sent, too",
                format!(
                    "{create} {name} ({order}) WHERE {} IS NULL;",
                    layout.names.plain_sql("sent_at")
                ),
            ));
        }
    }
}

async fn row_security(client: &Client, table: &Table, report: &mut Report) {
    if !table.row_security {
        return;
    }
    let sql =
        "SELECT pg_catalog.row_security_active($1::oid), pg_catalog.quote_ident(current_user)";
    match client.query_one(sql, &[&table.oid]).await {
        Err(error) => report.push(unknown("row security", error)),
        Ok(row) if row.get(0) => report.push(Finding::missing(
            "row security",
            "policies hide rows of the table from this role: they would never be sent",
            format!("ALTER ROLE {} BYPASSRLS;", row.get::<_, &str>(1)),
        )),
        Ok(_) => {}
    }
}
