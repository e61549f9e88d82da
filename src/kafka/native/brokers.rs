//! Leads a client that knows no broker any more back to the ones of `bootstrap.servers`.
//!
//! While its brokers are fenced, a KRaft cluster answers that it has none; librdkafka then drops those that it knew, and
//! asks nobody ever again (its issue 5301, open; seen with 2.12.1 and a broker that was frozen for 20 s).

use std::ffi::CString;

use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, ClientContext};

/// Adds the brokers of a comma-separated list; a connected client loses nothing by it.
pub(crate) fn add_brokers<C: ClientContext>(client: &Client<C>, brokers: &str) {
    let Ok(brokers) = CString::new(brokers) else {
        return;
    };
    // SAFETY: the client lives, so its pointer is valid, and librdkafka copies the list; any thread may call this.
    unsafe { rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
}
