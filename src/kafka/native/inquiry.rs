//! Asks for many topics, or creates them, by one request that nobody waits for.
//!
//! The binding asks for one topic or for all of a cluster, and drops the broker's words about what it did not create.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings::*;
use rdkafka::client::{Client, ClientContext};
use rdkafka::types::RDKafkaErrorCode;

/// Topics to be created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) topics: &'a [Arc<str>],
    /// -1 is the broker's own count, here and of replicas.
    pub(crate) partitions: i32,
    pub(crate) replication_factor: i32,
    /// Brokers only say whether they would.
    pub(crate) is_trial: bool,
}

/// What a broker said of one topic.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) topic: String,
    pub(crate) partitions: Result<Partitions, RDKafkaErrorCode>,
}

/// The partitions of a topic.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    pub(crate) count: usize,
    /// Those that nobody leads.
    pub(crate) leaderless: Vec<u32>,
}

/// Why a topic was not created, with the broker's own words.
#[derive(Debug)]
pub(crate) struct CreationRefusal {
    pub(crate) topic: String,
    pub(crate) code: RDKafkaErrorCode,
    pub(crate) words: String,
}

/// What came back.
#[derive(Debug)]
pub(crate) enum Reply {
    Found(Vec<Found>),
    /// All were created but these.
    Created(Vec<CreationRefusal>),
    /// No broker could say.
    Failed(RDKafkaErrorCode),
}

/// One question on its way.
///
/// To be dropped before the client, which the queue belongs to.
pub(crate) struct Inquiry {
    queue: NonNull<rd_kafka_queue_t>,
}

/// Options of one request, freed when dropped.
struct Options(NonNull<rd_kafka_AdminOptions_t>);

/// One event, freed when dropped.
struct Event(NonNull<rd_kafka_event_t>);

impl Drop for Inquiry {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: they are ours, and librdkafka has copied what it needs.
        unsafe { rd_kafka_AdminOptions_destroy(self.0.as_ptr()) };
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing that points into it outlives it.
        unsafe { rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

/// The number of a broker that answers, or of one that it names.
///
/// Librdkafka would ask the controller, which some clusters do not name.
pub(crate) fn answering_broker<C: ClientContext>(
    client: &Client<C>,
    limit: Duration,
) -> Result<i32, RDKafkaErrorCode> {
    let mut metadata: *const rd_kafka_metadata = ptr::null();
    // SAFETY: the client lives; what it gives is read before it is freed, and the list is as long as it says.
    unsafe {
        let native = client.native_ptr();
        let limit_ms = milliseconds(limit);
        // No topic is known to this client, so none is asked for.
        let code = rd_kafka_metadata(native, 0, ptr::null_mut(), &mut metadata, limit_ms);
        if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(code.into());
        }
        let Some(found) = metadata.as_ref() else {
            return Err(RDKafkaErrorCode::Fail);
        };
        let named = match found.broker_cnt {
            1.. => Ok((*found.brokers).id),
            _ => Err(RDKafkaErrorCode::AllBrokersDown),
        };
        let broker = match found.orig_broker_id {
            number @ 0.. => Ok(number),
            _ => named,
        };
        rd_kafka_metadata_destroy(metadata);
        broker
    }
}

fn milliseconds(limit: Duration) -> c_int {
    c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX)
}

impl Inquiry {
    /// Asks what this broker knows of these topics, each named once; the answer comes within the limit.
    pub(crate) fn describe<C: ClientContext>(
        client: &Client<C>,
        broker: i32,
        topics: &[Arc<str>],
        limit: Duration,
    ) -> Option<Self> {
        let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let (inquiry, options) = Self::prepare(client, operation, limit)?;
        // SAFETY: the options live; no text of an error is asked for.
        unsafe { rd_kafka_AdminOptions_set_broker(options.0.as_ptr(), broker, ptr::null_mut(), 0) };
        let names: Vec<CString> = topics.iter().filter_map(|name| c_text(name)).collect();
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: the client lives; the names outlive the calls, which copy them; the collection is freed once.
        unsafe {
            let list =
                rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            let (native, queue) = (client.native_ptr(), inquiry.queue.as_ptr());
            rd_kafka_DescribeTopics(native, list, options.0.as_ptr(), queue);
            rd_kafka_TopicCollection_destroy(list);
        }
        Some(inquiry)
    }

    /// Asks for topics to be created; the answer comes within the limit.
    pub(crate) fn create<C: ClientContext>(
        client: &Client<C>,
        wanted: &Wanted<'_>,
        limit: Duration,
    ) -> Option<Self> {
        let Wanted {
            topics,
            partitions,
            replication_factor,
            is_trial,
        } = *wanted;
        let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_CREATETOPICS;
        let (inquiry, options) = Self::prepare(client, operation, limit)?;
        let (trial, no_text) = (c_int::from(is_trial), ptr::null_mut());
        // SAFETY: the options live; no text of an error is asked for.
        unsafe {
            rd_kafka_AdminOptions_set_validate_only(options.0.as_ptr(), trial, no_text, 0);
        }
        let new = |name: &Arc<str>| {
            let name = c_text(name)?;
            // SAFETY: the name is copied; no text of an error is asked for.
            let new = unsafe {
                rd_kafka_NewTopic_new(
                    name.as_ptr(),
                    partitions,
                    replication_factor,
                    ptr::null_mut(),
                    0,
                )
            };
            (!new.is_null()).then_some(new)
        };
        let mut new: Vec<*mut rd_kafka_NewTopic_t> = topics.iter().filter_map(new).collect();
        // SAFETY: client and topics live; librdkafka copies them, and each is freed once.
        unsafe {
            let (native, queue) = (client.native_ptr(), inquiry.queue.as_ptr());
            rd_kafka_CreateTopics(
                native,
                new.as_mut_ptr(),
                new.len(),
                options.0.as_ptr(),
                queue,
            );
            rd_kafka_NewTopic_destroy_array(new.as_mut_ptr(), new.len());
        }
        Some(inquiry)
    }

    fn prepare<C: ClientContext>(
        client: &Client<C>,
        operation: rd_kafka_admin_op_t,
        limit: Duration,
    ) -> Option<(Self, Options)> {
        let limit_ms = milliseconds(limit);
        // SAFETY: the client lives; what is made is freed by its owner.
        unsafe {
            let queue = NonNull::new(rd_kafka_queue_new(client.native_ptr()))?;
            let inquiry = Self { queue };
            let options = rd_kafka_AdminOptions_new(client.native_ptr(), operation);
            let options = Options(NonNull::new(options)?);
            let pointer = options.0.as_ptr();
            rd_kafka_AdminOptions_set_request_timeout(pointer, limit_ms, ptr::null_mut(), 0);
            Some((inquiry, options))
        }
    }

    /// Waits so long for the answer.
    pub(crate) fn wait(&self, limit: Duration) -> Option<Reply> {
        let limit_ms = milliseconds(limit);
        // SAFETY: the queue lives, and the event is ours.
        let event = unsafe { rd_kafka_queue_poll(self.queue.as_ptr(), limit_ms) };
        NonNull::new(event).map(|event| Event(event).reply())
    }
}

impl CreationRefusal {
    /// What the broker said, or what its code means where it said nothing.
    pub(crate) fn text(&self) -> String {
        match self.words.is_empty() {
            true => self.code.to_string(),
            false => self.words.clone(),
        }
    }
}

impl Event {
    fn reply(&self) -> Reply {
        let event = self.0.as_ptr();
        // SAFETY: the event lives; each result is read only from an event of its type, which the accessors ensure by null.
        unsafe {
            let error = rd_kafka_event_error(event);
            if error != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Reply::Failed(error.into());
            }
            let described = rd_kafka_event_DescribeTopics_result(event);
            if !described.is_null() {
                let mut count = 0;
                let topics = rd_kafka_DescribeTopics_result_topics(described, &mut count);
                return Reply::Found((0..count).map(|at| found(*topics.add(at))).collect());
            }
            let created = rd_kafka_event_CreateTopics_result(event);
            if !created.is_null() {
                let mut count = 0;
                let topics = rd_kafka_CreateTopics_result_topics(created, &mut count);
                let refusals = (0..count).filter_map(|at| refusal(*topics.add(at)));
                return Reply::Created(refusals.collect());
            }
        }
        Reply::Failed(RDKafkaErrorCode::Fail)
    }
}

/// SAFETY: the description belongs to an event that lives.
unsafe fn found(topic: *const rd_kafka_TopicDescription_t) -> Found {
    // SAFETY: as promised by the caller; the partitions are as many as are counted.
    unsafe {
        let name = text(rd_kafka_TopicDescription_name(topic));
        let error = rd_kafka_TopicDescription_error(topic);
        if !error.is_null() {
            let code = rd_kafka_error_code(error);
            if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                let partitions = Err(code.into());
                return Found {
                    topic: name,
                    partitions,
                };
            }
        }
        let mut count = 0;
        let partitions = rd_kafka_TopicDescription_partitions(topic, &mut count);
        let mut found = Partitions {
            count,
            ..Partitions::default()
        };
        for at in 0..count {
            let partition = *partitions.add(at);
            let leader = rd_kafka_TopicPartitionInfo_leader(partition);
            if leader.is_null() || rd_kafka_Node_id(leader) < 0 {
                let number = rd_kafka_TopicPartitionInfo_partition(partition);
                found.leaderless.extend(u32::try_from(number));
            }
        }
        Found {
            topic: name,
            partitions: Ok(found),
        }
    }
}

/// SAFETY: the result belongs to an event that lives.
unsafe fn refusal(result: *const rd_kafka_topic_result_t) -> Option<CreationRefusal> {
    // SAFETY: as promised by the caller.
    unsafe {
        let code = rd_kafka_topic_result_error(result);
        if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        Some(CreationRefusal {
            topic: text(rd_kafka_topic_result_name(result)),
            code: code.into(),
            words: text(rd_kafka_topic_result_error_string(result)),
        })
    }
}

/// SAFETY: null, or text that ends with a null byte.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as promised by the caller.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_string_lossy().into_owned()
}

/// `None` for a name with a null byte, which no topic has.
fn c_text(name: &str) -> Option<CString> {
    CString::new(name).ok()
}
