//! The headers of a record: the row's id, its `headers` object, its tracing columns, the mapped columns.
//!
//! Row data never sets a reserved name.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{EncodeError, Header, Names, Rejection, RejectionReason, find_column, remember};
use crate::config::RouteConfig;
use crate::config::is_reserved;
use crate::row::{Layout, OutboxRow};

/// Headers of one record at most; far above any real use, below what a broker chokes on.
const HEADERS_MAX: usize = 1_000;
/// Bytes of a header's name at most.
const NAME_BYTES_MAX: usize = 255;
/// Columns that become headers of their own name where the table has them.
const STANDING: [&str; 4] = ["correlationid", "causationid", "traceparent", "tracestate"];

/// The columns that headers are read from.
#[derive(Debug)]
pub(super) struct HeaderColumns {
    id: Arc<str>,
    object: Option<usize>,
    columns: Vec<(usize, Arc<str>)>,
}

impl HeaderColumns {
    pub(super) fn new(route: &RouteConfig, layout: &Layout) -> Result<Self, EncodeError> {
        let standing = STANDING.iter().filter_map(|name| {
            let column = layout.ours(name)?;
            Some((column, Arc::from(*name)))
        });
        let mut columns: Vec<_> = standing.collect();
        for (column, header) in &route.headers {
            check_name(header).map_err(|fault| EncodeError::Header {
                column: column.clone(),
                header: header.clone(),
                rule: fault.rule(),
            })?;
            let at = find_column(layout, column, "route.headers")?;
            columns.push((at, Arc::from(header.as_str())));
        }
        Ok(Self {
            id: "id".into(),
            object: layout.headers,
            columns,
        })
    }

    /// The columns whose values become headers.
    pub(super) fn columns(&self) -> impl Iterator<Item = usize> {
        let columns = self.columns.iter().map(|(column, _)| *column);
        self.object.into_iter().chain(columns)
    }

    /// The headers of a row in their fixed order.
    pub(super) fn read(
        &self,
        row: &OutboxRow,
        id: Bytes,
        names: &mut Names,
    ) -> Result<Vec<Header>, Rejection> {
        let mut headers = Vec::with_capacity(1 + self.columns.len());
        headers.push(Header {
            name: Arc::clone(&self.id),
            value: Some(id),
        });
        if let Some(object) = self.object.and_then(|column| row.slice(column)) {
            read_object(&object, &mut headers, names)?;
        }
        for (column, name) in &self.columns {
            if let Some(value) = row.slice(*column) {
                headers.push(Header {
                    name: Arc::clone(name),
                    value: Some(value),
                });
            }
        }
        if headers.len() > HEADERS_MAX {
            return Err(too_many());
        }
        Ok(headers)
    }
}

fn read_object(
    object: &Bytes,
    headers: &mut Vec<Header>,
    names: &mut Names,
) -> Result<(), Rejection> {
    let entries = serde_json::from_slice(object)
        .map_err(|_| invalid("the column `headers` is not a JSON object"))?;
    // ORMs write JSON null for "no headers".
    let Some(Entries(entries)) = entries else {
        return Ok(());
    };
    // Checked before the names are kept, so that one row can't fill the cache.
    if entries.len() > HEADERS_MAX {
        return Err(too_many());
    }
    for (name, value) in entries {
        check_name(&name).map_err(|fault| Rejection {
            reason: fault.reason(),
            text: format!(
                "a header of the column `headers` is refused: {}",
                fault.rule()
            ),
        })?;
        headers.push(Header {
            name: remember(&mut names.headers, &name),
            value: read_value(object, value)?,
        });
    }
    Ok(())
}

/// A string's own text, null as null, everything else as its JSON text.
fn read_value(object: &Bytes, value: &RawValue) -> Result<Option<Bytes>, Rejection> {
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b'"') => match serde_json::from_str::<&str>(text) {
            Ok(plain) => Ok(Some(object.slice_ref(plain.as_bytes()))),
            // It has escapes.
            Err(_) => serde_json::from_str::<String>(text)
                .map(|unescaped| Some(unescaped.into()))
                .map_err(|_| invalid("a value in the column `headers` is not text")),
        },
        _ => Ok(Some(object.slice_ref(text.as_bytes()))),
    }
}

enum NameFault {
    Reserved,
    Empty,
    TooLong,
    Nul,
}

impl NameFault {
    fn reason(&self) -> RejectionReason {
        match self {
            Self::Reserved => RejectionReason::HeaderReserved,
            Self::Empty | Self::TooLong | Self::Nul => RejectionReason::HeadersInvalid,
        }
    }

    fn rule(&self) -> &'static str {
        match self {
            Self::Reserved => "the names `id` and `outboxd_…` are reserved",
            Self::Empty => "a name can't be empty",
            Self::TooLong => "a name has at most 255 bytes",
            Self::Nul => "a name can't hold the character NUL",
        }
    }
}

fn check_name(name: &str) -> Result<(), NameFault> {
    if is_reserved(name) {
        return Err(NameFault::Reserved);
    }
    if name.is_empty() {
        return Err(NameFault::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameFault::TooLong);
    }
    if name.contains('\0') {
        return Err(NameFault::Nul);
    }
    Ok(())
}

fn invalid(text: &str) -> Rejection {
    Rejection {
        reason: RejectionReason::HeadersInvalid,
        text: text.into(),
    }
}

fn too_many() -> Rejection {
    invalid("a record has at most 1,000 headers, and the column `headers` brings more")
}

/// The entries of a JSON object in the order in which they stand.
struct Entries<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            entries.push((name, map.next_value()?));
        }
        Ok(Entries(entries))
    }
}

/// A name borrowed from the row where it has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Name(Cow::Borrowed(name)))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Name(Cow::Owned(name.to_owned())))
    }
}
