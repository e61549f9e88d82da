//! The route: whether it fits the table, and which topics the rows that stand go to.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Client;

use super::{Finding, Report, chain};
use crate::config::Config;
use crate::encode::Encoder;
use crate::kafka::record_bytes_max;
use crate::postgres::catalog::Table;

/// The newest rows tell the topics; the table is not read through for them.
const ROWS_READ_MAX: usize = 1_000;
const TOPICS_MAX: usize = 50;

/// The topic of a template without columns.
pub(super) fn fixed_topics(config: &Config) -> Vec<String> {
    let topic = &config.route.topic;
    if topic.contains("${") {
        Vec::new()
    } else {
        vec![topic.clone()]
    }
}

/// The topics that the newest rows of the table go to; none where they cannot be read.
pub(super) async fn look(
    client: &Client,
    config: &Config,
    table: &Table,
    report: &mut Report,
) -> Vec<String> {
    let record_bytes_max = record_bytes_max(&config.kafka);
    let encoder = match Encoder::new(&config.route, &table.layout, record_bytes_max) {
        Ok(encoder) => encoder,
        Err(error) => {
            let remedy = "correct `route.topic` or `route.headers`, or add the column to the table";
            report.push(Finding::missing("route", chain(&error), remedy));
            return Vec::new();
        }
    };
    report.push(Finding::ok("route", config.route.topic.clone()));
    let Some(topic) = topic_expression(&config.route.topic, table) else {
        return Vec::new();
    };
    let seq = table.layout.names.sql("seq");
    let order = table
        .layout
        .seq
        .map_or(String::new(), |_| format!("ORDER BY {seq} DESC"));
    let sql = format!(
        "SELECT DISTINCT {topic} AS topic FROM (SELECT * FROM {} {order} LIMIT {ROWS_READ_MAX}) o \
         WHERE {topic} IS NOT NULL ORDER BY topic LIMIT {TOPICS_MAX}",
        table.name()
    );
    let rows = client.query(&sql, &[]).await.unwrap_or_default();
    let found = rows.iter().map(|row| row.get::<_, String>(0));
    let topics: BTreeSet<String> = fixed_topics(config).into_iter().chain(found).collect();
    judge(&encoder, topics, report)
}

/// Keeps the topics that a row may reach. The others are not named: they are row data that nobody has vouched for.
fn judge(encoder: &Encoder, topics: BTreeSet<String>, report: &mut Report) -> Vec<String> {
    let mut reachable = Vec::new();
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for topic in topics {
        match encoder.check_topic(&topic) {
            Ok(()) => reachable.push(topic),
            Err(rejection) => *refused.entry(rejection.text).or_default() += 1,
        }
    }
    for (why, count) in refused {
        report.push(Finding::missing(
            "route",
            format!("{count} of the topics that the newest rows go to: {why}"),
            "extend `route.allow`, or change `route.topic`; until then such rows are rejected",
        ));
    }
    reachable
}

/// The template as an SQL expression over the table's columns; a row's own `topic` goes before it.
fn topic_expression(template: &str, table: &Table) -> Option<String> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once("${") {
        let (column, after) = after.split_once('}')?;
        parts.push(escape_literal(text));
        parts.push(word(table, table.layout.named(column)?));
        rest = after;
    }
    parts.push(escape_literal(rest));
    let template = parts.join(" || ");
    Some(match table.layout.topic {
        Some(column) => format!("coalesce(nullif({}, ''), {template})", word(table, column)),
        None => template,
    })
}

/// A column as the relay writes it into a topic.
fn word(table: &Table, column: usize) -> String {
    let text = table.layout.text_of(column);
    match table.layout.columns[column].base_type() {
        "character" => format!("pg_catalog.rtrim({text}, ' ')"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalog::tests::five_columns;

    #[test]
    fn a_template_becomes_an_expression_over_the_tables_columns() {
        let mut table = five_columns();
        let expression = topic_expression("a'.${aggregatetype}.x", &table);
        assert_eq!(
            expression.as_deref(),
            Some("'a''.' || o.\"aggregatetype\"::text || '.x'")
        );
        table.layout.topic = Some(3);
        let expression = topic_expression("fixed", &table);
        assert_eq!(
            expression.as_deref(),
            Some("coalesce(nullif(o.\"type\"::text, ''), 'fixed')")
        );
        assert_eq!(topic_expression("${tenant}", &table), None);
    }
}
