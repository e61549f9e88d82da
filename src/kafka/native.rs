//! What the binding of librdkafka does not offer: all unsafe code of this crate.
#![allow(unsafe_code)]

mod brokers;
mod exit;
mod handles;
mod inquiry;

pub(crate) use brokers::add_brokers;
pub(crate) use exit::exit;
pub(crate) use handles::Handles;
pub(crate) use inquiry::{
    CreationRefusal, Found, Inquiry, Partitions, Reply, Wanted, answering_broker,
};
