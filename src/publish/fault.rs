//! Whose fault a code of Kafka's is: the only place that decides.

use std::collections::BTreeMap;

use rdkafka::types::RDKafkaErrorCode as Code;

use super::cut_off::{Cause, CutOff};
use super::reports::Failure;
use super::{Fault, SessionEnd, SmallBatches, Ticket};

/// What bounds a request, in the words of those who set it.
const REQUEST_LIMIT: &str = "its `socket.request.max.bytes`, or a cloud's limit for a request";

/// Classes the code of a failed report; `None` where the record is only a bystander.
///
/// A row is never condemned by this alone: one bad record fails its whole request.
/// Source: what Kafka 4.1.1 answered to refused records, denied and vanished topics.
pub(super) fn of(code: Code) -> Option<Fault> {
    let text = code.to_string();
    match code {
        // The session's end, not the record's: purged, or behind a refused one.
        Code::PurgeQueue
        | Code::PurgeInflight
        | Code::InvalidDifferentRecord
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::UnknownProducerId
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::ProducerFenced
        | Code::Fenced
        | Code::Fatal
        | Code::GaplessGuarantee
        | Code::Inconsistent
        | Code::DestroyBroker => None,
        Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::MessageBatchTooLarge
        | Code::InvalidRecord
        | Code::InvalidTopic
        | Code::PolicyViolation => Some(Fault::Row(text)),
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId => Some(Fault::NoTopic(text)),
        Code::TopicAuthorizationFailed
        | Code::InvalidReplicationFactor
        | Code::UnsupportedForMessageFormat => Some(Fault::Topic(text)),
        // Such as an invalid timestamp: records carry the time of this machine, so a clock is wrong and no row.
        _ => Some(Fault::Session(text)),
    }
}

/// The bytes that batches may have from now on, of each topic that refused one whose records may all be small enough.
///
/// A record that is as large as a batch was sent alone, and a single one is a suspect like any other. A quarter of
/// what was refused: a topic's limit is found after a few sessions, whoever may not ask for it.
pub(super) fn small_batches(
    failures: &[Failure],
    batch_bytes: impl Fn(&str) -> usize,
) -> SmallBatches {
    let mut refused: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for failure in failures {
        if is_of_batch(failure, batch_bytes(&failure.topic)) {
            let (records, bytes) = refused.entry(&failure.topic).or_default();
            (*records, *bytes) = (*records + 1, *bytes + failure.bytes);
        }
    }
    let shared = refused.into_iter().filter(|(_, (records, _))| *records > 1);
    let quarter = |(topic, (_, bytes)): (&str, (usize, usize))| {
        (topic.into(), (bytes.min(batch_bytes(topic)) / 4).max(1))
    };
    shared.map(quarter).collect()
}

/// The record was refused for its size and may have shared a batch with others.
pub(super) fn is_of_batch(failure: &Failure, batch_bytes: usize) -> bool {
    let is_size = matches!(
        failure.code,
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize
    );
    is_size && failure.bytes < batch_bytes
}

/// The end of a session whose broker closes the connection on what it is sent, with the records that were given up.
pub(super) fn of_cut_off(cut_off: &CutOff, given_up: &[Failure], batch_bytes: usize) -> SessionEnd {
    let broker = format!("broker {}", cut_off.cutting.broker);
    let what = format!("{broker} closes the connection on what it is sent, and answers on others");
    let row = |(ticket, bytes): (Ticket, usize)| {
        let text = format!(
            "{broker} closes the connection on the request with this row, of {bytes} bytes, and answers on others: \
             raise {REQUEST_LIMIT}, or make the row smaller"
        );
        (ticket, Fault::Row(text))
    };
    let (failed, batch_bytes_max, meaning) = match cut_off.cause(given_up, batch_bytes) {
        Cause::Records(records) => {
            let largest = records.iter().map(|(_, bytes)| *bytes).max();
            let largest = largest.unwrap_or_default();
            let meaning =
                format!("a row of {largest} bytes may be above {REQUEST_LIMIT}: it is sent alone");
            (records.into_iter().map(row).collect(), None, meaning)
        }
        Cause::Batches(bytes) => {
            let meaning = format!(
                "batches may be above {REQUEST_LIMIT}: they have {bytes} bytes at most from now on"
            );
            (Vec::new(), Some(bytes), meaning)
        }
        Cause::Unknown(tickets) => {
            let fault = |ticket| (ticket, Fault::Session(what.clone()));
            let failed = tickets.into_iter().map(fault).collect();
            let meaning = "the rows in flight are too small to be the reason".to_owned();
            (failed, None, meaning)
        }
    };
    SessionEnd {
        failed,
        reason: format!("{what}; {meaning}"),
        batch_bytes_max,
        small_batches: SmallBatches::new(),
        cutting: Some(cut_off.cutting.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn too_large(topic: &str, bytes: usize) -> Failure {
        Failure {
            topic: topic.into(),
            ticket: 1,
            code: Code::MessageSizeTooLarge,
            bytes,
        }
    }

    #[test]
    fn a_batch_that_is_too_large_makes_smaller_batches_and_a_record_alone_does_not() {
        let batch = [
            too_large("a", 300),
            too_large("a", 500),
            too_large("b", 400),
        ];
        let of_a = |bytes| SmallBatches::from([("a".into(), bytes)]);
        assert_eq!(small_batches(&batch, |_| 1_000), of_a(200));
        assert_eq!(small_batches(&batch[1..], |_| 1_000), SmallBatches::new());
        // Each was as large as a batch, so each was alone.
        assert_eq!(small_batches(&batch, |_| 300), SmallBatches::new());
        assert_eq!(
            small_batches(&[too_large("a", 0), too_large("a", 0)], |_| 1),
            of_a(1)
        );
    }

    #[test]
    fn a_purged_record_is_nobodys_fault() {
        for code in [
            Code::PurgeQueue,
            Code::PurgeInflight,
            Code::InvalidDifferentRecord,
        ] {
            assert_eq!(of(code), None);
        }
    }

    #[test]
    fn only_what_the_record_itself_can_cause_makes_a_suspect() {
        assert!(matches!(of(Code::MessageSizeTooLarge), Some(Fault::Row(_))));
        assert!(matches!(
            of(Code::TopicAuthorizationFailed),
            Some(Fault::Topic(_))
        ));
        assert!(matches!(
            of(Code::NotEnoughReplicas),
            Some(Fault::Session(_))
        ));
        // Records carry the time of this machine.
        assert!(matches!(
            of(Code::InvalidTimestamp),
            Some(Fault::Session(_))
        ));
    }
}
