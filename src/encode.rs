//! Turns a row into the record that Kafka stores, or says why it can't: pure.

pub mod route;

use std::sync::Arc;

use bytes::Bytes;

/// What Kafka stores for one row.
#[derive(Clone, Debug)]
pub struct Record {
    pub topic: Arc<str>,
    /// `None` is a record without a key; an empty key is a key.
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

/// One header of a record.
#[derive(Clone, Debug)]
pub struct Header {
    pub name: Arc<str>,
    pub value: Option<Bytes>,
}
