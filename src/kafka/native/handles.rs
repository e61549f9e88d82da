//! Hands records to librdkafka by its handle of their topic.
//!
//! By name, as the binding does it, librdkafka looks through the list of all its topics, under the lock that its threads
//! share: with 1,000 topics that was half of the time of the thread that hands over.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdkafka::bindings::{
    RD_KAFKA_MSG_F_COPY, rd_kafka_header_add, rd_kafka_headers_destroy, rd_kafka_headers_new,
    rd_kafka_headers_t, rd_kafka_last_error, rd_kafka_producev, rd_kafka_resp_err_t,
    rd_kafka_topic_destroy, rd_kafka_topic_new, rd_kafka_topic_t, rd_kafka_vtype_t,
};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

use crate::encode::{Header, Record};

/// The topics that records went to, for one producer.
///
/// To be dropped before the producer, which waits for its handles.
#[derive(Default)]
pub(crate) struct Handles {
    topics: HashMap<Arc<str>, Handle>,
    /// The topic of the last record.
    last: Option<(Arc<str>, NonNull<rd_kafka_topic_t>)>,
}

/// One reference to a topic.
struct Handle(NonNull<rd_kafka_topic_t>);

// SAFETY: librdkafka's handles may be used by any thread; `last` points to what `topics` owns.
unsafe impl Send for Handles {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and its producer still lives.
        unsafe { rd_kafka_topic_destroy(self.0.as_ptr()) };
    }
}

impl Handles {
    /// Hands one record to librdkafka, which copies it.
    ///
    /// `opaque` comes back with the delivery report.
    pub(crate) fn send<C: ProducerContext>(
        &mut self,
        producer: &BaseProducer<C>,
        opaque: u64,
        record: &Record,
    ) -> Result<(), RDKafkaErrorCode> {
        let topic = self.topic(producer, &record.topic)?;
        let headers = headers(&record.headers);
        let (key, key_bytes) = parts(record.key.as_deref());
        let (value, value_bytes) = parts(record.value.as_deref());
        // The supported platforms have 64 bits.
        let opaque = opaque as usize as *mut c_void;
        // SAFETY: producer and topic live; each tag is followed by values of the types that librdkafka reads for it; key and
        // value outlive the call, which copies them; the headers are ours until it succeeds. The delivery report reads the
        // opaque as the number that it is.
        let code = unsafe {
            rd_kafka_producev(
                producer.client().native_ptr(),
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT,
                topic.as_ptr(),
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
                RD_KAFKA_MSG_F_COPY,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
                key,
                key_bytes,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
                value,
                value_bytes,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
                opaque,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
                headers,
                rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
            )
        };
        if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        if !headers.is_null() {
            // SAFETY: librdkafka takes them over only with the record.
            unsafe { rd_kafka_headers_destroy(headers) };
        }
        Err(code.into())
    }

    /// The topic of the last record.
    pub(crate) fn last_topic(&self) -> Option<&Arc<str>> {
        self.last.as_ref().map(|(name, _)| name)
    }

    fn topic<C: ProducerContext>(
        &mut self,
        producer: &BaseProducer<C>,
        name: &Arc<str>,
    ) -> Result<NonNull<rd_kafka_topic_t>, RDKafkaErrorCode> {
        if let Some((last, topic)) = &self.last
            && Arc::ptr_eq(last, name)
        {
            return Ok(*topic);
        }
        let topic = match self.topics.get(name) {
            Some(known) => known.0,
            None => {
                let opened = open(producer, name)?;
                let topic = opened.0;
                self.topics.insert(name.clone(), opened);
                topic
            }
        };
        self.last = Some((name.clone(), topic));
        Ok(topic)
    }
}

fn open<C: ProducerContext>(
    producer: &BaseProducer<C>,
    name: &str,
) -> Result<Handle, RDKafkaErrorCode> {
    let name = CString::new(name).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
    // SAFETY: the producer lives, and librdkafka copies the name. The error is this thread's last one.
    unsafe {
        let topic = rd_kafka_topic_new(
            producer.client().native_ptr(),
            name.as_ptr(),
            ptr::null_mut(),
        );
        NonNull::new(topic)
            .map(Handle)
            .ok_or_else(|| rd_kafka_last_error().into())
    }
}

/// A copy of the headers; null for none.
fn headers(headers: &[Header]) -> *mut rd_kafka_headers_t {
    if headers.is_empty() {
        return ptr::null_mut();
    }
    // SAFETY: names and values are copied; the list is new, and a list that can be written takes every header.
    unsafe {
        let list = rd_kafka_headers_new(headers.len());
        for header in headers {
            let (value, bytes) = parts(header.value.as_deref());
            let (name, name_bytes) = parts(Some(header.name.as_bytes()));
            rd_kafka_header_add(
                list,
                name.cast(),
                name_bytes as isize,
                value,
                bytes as isize,
            );
        }
        list
    }
}

/// Where bytes begin, and how many they are; null is no value.
fn parts(bytes: Option<&[u8]>) -> (*const c_void, usize) {
    bytes.map_or((ptr::null(), 0), |bytes| {
        (bytes.as_ptr().cast(), bytes.len())
    })
}
