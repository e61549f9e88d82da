//! Whose fault a code of Kafka's is: the only place that decides.

use rdkafka::types::RDKafkaErrorCode as Code;

use super::Fault;

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
        | Code::InvalidTimestamp
        | Code::InvalidTopic
        | Code::PolicyViolation => Some(Fault::Row(text)),
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId
        | Code::TopicAuthorizationFailed
        | Code::InvalidReplicationFactor
        | Code::UnsupportedForMessageFormat => Some(Fault::Topic(text)),
        _ => Some(Fault::Session(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
