//! Finds the outbox's columns by name, judges their types, and writes the select list that reads them.

use std::fmt;

use postgres_protocol::escape::escape_identifier;

use super::attribute::{Attribute, Wanted};
use super::{InspectError, qualified, suggest};
use crate::row::columns::{ColumnNames, Mapped, OURS, is_mandatory};
use crate::row::{Column, Layout};

/// Names and types of the columns of `$1`: they differ where rows must be read in another way.
pub const SHAPE: &str = "
    SELECT string_agg(a.attname || ' ' || a.atttypid || ' ' || a.atttypmod, ',' ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped";

/// What `SHAPE` gives for these columns.
pub(super) fn shape(attributes: &[Attribute]) -> String {
    let column = |one: &Attribute| format!("{} {} {}", one.name, one.type_id.0, one.type_id.1);
    attributes.iter().map(column).collect::<Vec<_>>().join(",")
}

/// A column whose type the relay cannot use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongType {
    pub column: String,
    pub found: String,
    pub wanted: &'static str,
    /// The statement that changes it.
    pub remedy: String,
}

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            column,
            found,
            wanted,
            ..
        } = self;
        write!(f, "`{column}` is {found}, wanted {wanted}")
    }
}

/// Finds the outbox's columns among a table's.
pub(super) fn layout(
    schema: &str,
    table: &str,
    attributes: &[Attribute],
    names: &ColumnNames,
) -> Result<Layout, InspectError> {
    let column = |one: &Attribute| Column::new(&one.name, &one.type_name);
    let columns = attributes.iter().map(column).collect();
    let present = || attributes.iter().map(|one| one.name.as_str());
    let has = |name: &str| present().any(|one| one == name);
    let unknown: Vec<String> = names
        .iter()
        .filter(|(_, mapped)| !has(&mapped.name))
        .map(|(ours, mapped)| unknown(ours, mapped, present()))
        .collect();
    if !unknown.is_empty() {
        return Err(InspectError::UnknownColumns {
            table: format!("{schema}.{table}"),
            unknown,
            present: ticked(present()),
        });
    }
    let Some(found) = Layout::find_mapped(schema, table, columns, names) else {
        let mandatory = OURS.into_iter().filter(|ours| is_mandatory(ours));
        let missing: Vec<String> = mandatory
            .filter(|&ours| names.is_taken(ours) || !has(names.of(ours)))
            .map(|ours| lacking(ours, names))
            .collect();
        return Err(InspectError::MissingColumns {
            table: format!("{schema}.{table}"),
            missing: missing.join(", "),
            present: ticked(present()),
            mapping: suggest::mapping(attributes, names).into(),
        });
    };
    let wrong = wrong_types(&found);
    if wrong.is_empty() {
        return Ok(found);
    }
    Err(InspectError::WrongTypes {
        table: format!("{schema}.{table}"),
        wrong,
    })
}

/// A column that the table does not have, as the configuration names it.
fn unknown<'a>(ours: &str, mapped: &Mapped, present: impl Iterator<Item = &'a str>) -> String {
    let Mapped { name, at } = mapped;
    let distance =
        |one: &str| strsim::damerau_levenshtein(&one.to_lowercase(), &name.to_lowercase());
    let nearest = present.min_by_key(|one| distance(one));
    let meant = nearest.filter(|one| distance(one) <= (name.len() / 4).clamp(1, 3));
    let meant = meant.map_or(String::new(), |one| format!(" (did you mean {one:?}?)"));
    format!("{at}: `source.columns.{ours}` names `{name}`{meant}")
}

/// A mandatory column that is not there.
fn lacking(ours: &str, names: &ColumnNames) -> String {
    match names.iter().find(|(_, mapped)| mapped.name == ours) {
        Some((other, _)) => format!("`{ours}` besides the one that `source.columns.{other}` names"),
        None => format!("`{ours}`"),
    }
}

fn ticked<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn wrong_types(layout: &Layout) -> Vec<WrongType> {
    let uses = [
        (Some(layout.id), Wanted::Word),
        (Some(layout.aggregate_type), Wanted::Word),
        (Some(layout.aggregate_id), Wanted::Word),
        (layout.event_type, Wanted::Word),
        (Some(layout.payload), Wanted::Payload),
        (layout.headers, Wanted::Json),
        (layout.topic, Wanted::Word),
        (layout.partition_key, Wanted::Word),
        (layout.seq, Wanted::Number),
        (layout.sent_at, Wanted::Instant),
    ];
    let mut wrong = Vec::new();
    for (column, wanted) in uses {
        let Some(column) = column.map(|at| &layout.columns[at]) else {
            continue;
        };
        if wanted.takes(&column.type_name) {
            continue;
        }
        let table = qualified(&layout.schema, &layout.table);
        let name = escape_identifier(&column.name);
        let (to, using) = wanted.remedy(&name, &column.type_name);
        wrong.push(WrongType {
            column: column.name.clone(),
            found: column.type_name.clone(),
            wanted: wanted.described(),
            remedy: format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {to} USING {using};"),
        });
    }
    wrong
}

/// The parts of a statement that reads rows of the outbox, called `o`, without what no record can carry.
pub struct Selection {
    /// Every column of the layout, in its order, then the sizes of `measured`.
    pub columns: String,
    /// What `columns` needs beside the table: a lateral subquery.
    pub sizes: String,
    /// The columns that are measured before they are read.
    pub measured: Vec<usize>,
}

/// Selects every column of the layout, in its order: the text that the column's output function prints, `bytea` as it
/// is, NULL as NULL and for a value larger than `value_bytes_max`, whose size comes instead.
///
/// Both sources must give the same text for a row, see [`Column::text`].
pub fn select_columns(layout: &Layout, value_bytes_max: usize) -> Selection {
    select_those(&layout.columns, value_bytes_max)
}

/// The same for some columns.
pub fn select_those(read: &[Column], value_bytes_max: usize) -> Selection {
    let (mut columns, mut sizes, mut measured) = (Vec::new(), Vec::new(), Vec::new());
    for (index, column) in read.iter().enumerate() {
        let value = select_column(column);
        match size(column, value_bytes_max) {
            Some(size) => {
                columns.push(format!(
                    "CASE WHEN size.c{index} <= {value_bytes_max} THEN {value} END"
                ));
                sizes.push(format!("({size})::int8 AS c{index}"));
                measured.push(index);
            }
            None => columns.push(value),
        }
    }
    columns.extend(measured.iter().map(|index| format!("size.c{index}")));
    let sizes = sizes.join(", ");
    Selection {
        columns: columns.join(", "),
        sizes: format!("CROSS JOIN LATERAL (SELECT {sizes} OFFSET 0) AS size"),
        measured,
    }
}

/// A column of `o` as the relay reads it: the text that PostgreSQL prints, or bytes.
pub fn select_column(column: &Column) -> String {
    if column.is_bytea {
        format!("o.{}", escape_identifier(&column.name))
    } else {
        column.text()
    }
}

/// The bytes of a column's value as it is read, NULL for NULL; `None` for types whose values are all short.
///
/// `octet_length` reads only the header of a value that stands apart. What must be printed to be measured is printed
/// only where its stored size leaves it open: stored larger it is larger still, stored small it can't be too large.
fn size(column: &Column, value_bytes_max: usize) -> Option<String> {
    let name = format!("o.{}", escape_identifier(&column.name));
    match column.base_type() {
        "uuid" | "smallint" | "integer" | "bigint" | "boolean" | "real" | "double precision"
        | "date" | "inet" | "cidr" => None,
        base if base.starts_with("time") || is_short(column, value_bytes_max) => None,
        "bytea" | "text" | "character varying" | "character" => {
            Some(format!("pg_catalog.octet_length({name})"))
        }
        _ => {
            let stored = format!("pg_catalog.pg_column_size({name})");
            let (small, text) = (value_bytes_max / GROWTH_MAX, column.text());
            Some(format!(
                "CASE WHEN {stored} <= {small} OR {stored} > {value_bytes_max} THEN {stored} \
                 ELSE pg_catalog.octet_length({text}) END"
            ))
        }
    }
}

/// How many times longer than stored a value may be printed: lz4 packs 255 to 1, and jsonb writes a control character
/// with six.
const GROWTH_MAX: usize = 255 * 6;

/// Whether a length in characters, four bytes each, keeps the values short.
fn is_short(column: &Column, value_bytes_max: usize) -> bool {
    let declared = column.type_name.strip_prefix("character");
    let digits = declared.and_then(|rest| rest.split(['(', ')']).nth(1));
    let characters: Option<usize> = digits.and_then(|digits| digits.parse().ok());
    characters.is_some_and(|characters| characters * 4 <= value_bytes_max)
}

#[cfg(test)]
mod tests;
