//! Whether a broker closes the connection on what it is sent, and on nothing else. Pure.
//!
//! A request above `socket.request.max.bytes`, or above a cloud's limit (Azure Event Hubs: 1 MB), is answered by no code:
//! the connection is closed, and librdkafka sends it again for ever. A broker that is away, or a way that is cut, looks
//! alike; so only what happens while a second connection to the same broker stands and is answered counts.

use std::time::{Duration, Instant};

use super::reports::Failure;
use super::{Cutting, Ticket};

/// Connections that are cut beside one that stands, before anything is concluded; librdkafka tries that often in 2 to 6 s.
const CUTS: usize = 3;
/// A broker that has cut nothing for so long has done with it: a request is tried again within 2 s.
const OVER_AFTER: Duration = Duration::from_secs(15);
/// A request below this is cut for another reason than its size: 256 KB is the lowest limit known, of a cloud's basic tier.
const BYTES_MIN: usize = 64 << 10;

/// How long a connection to a broker has stood without a break: from its first answer to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) since: Instant,
    pub(super) until: Instant,
}

/// What one broker has cut.
#[derive(Debug)]
pub(super) struct Watch {
    cuts: Vec<Instant>,
    /// What was in flight at the first cut has no higher ticket.
    last: Ticket,
    /// How many records of it are not acknowledged.
    waiting: usize,
    began_alone: bool,
}

impl Watch {
    /// Begins with the first cut, while so many records are in flight.
    pub(super) fn begin(waiting: usize, last: Ticket, now: Instant) -> Self {
        Self {
            cuts: vec![now],
            last,
            waiting,
            began_alone: waiting == 1,
        }
    }

    pub(super) fn cut(&mut self, now: Instant) {
        // Those that stand before all that count are forgotten.
        if self.cuts.len() > 10 * CUTS {
            self.cuts.remove(0);
        }
        self.cuts.push(now);
    }

    /// A request was answered, with an error; of a record alone it was its own.
    pub(super) fn answered(&mut self) {
        if self.began_alone {
            self.waiting = 0;
        }
    }

    pub(super) fn delivered(&mut self, tickets: &[Ticket]) {
        let waited = tickets.iter().filter(|ticket| **ticket <= self.last);
        self.waiting = self.waiting.saturating_sub(waited.count());
    }

    /// All that was in flight is acknowledged, or nothing is cut any more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let is_quiet = |cut: &Instant| now.saturating_duration_since(*cut) > OVER_AFTER;
        self.waiting == 0 || self.cuts.last().is_none_or(is_quiet)
    }

    /// Enough was cut while another connection stood.
    pub(super) fn is_proved(&self, stand: Stand) -> bool {
        let is_within = |cut: &&Instant| stand.since < **cut && **cut < stand.until;
        self.waiting > 0 && self.cuts.iter().filter(is_within).count() >= CUTS
    }

    pub(super) fn last(&self) -> Ticket {
        self.last
    }
}

/// A broker that cuts what it is sent.
#[derive(Clone, Debug)]
pub(super) struct CutOff {
    pub(super) cutting: Cutting,
    /// No record that was in flight all the time has a higher ticket.
    pub(super) last: Ticket,
}

/// What may be too large.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// These records, each in a request of its own, with their bytes: suspects.
    Records(Vec<(Ticket, usize)>),
    /// Batches of more bytes than these.
    Batches(usize),
    /// Nothing: what was in flight is small.
    Unknown(Vec<Ticket>),
}

impl CutOff {
    /// Looks for what may be too large among the records that were given up.
    ///
    /// A record that is as large as a batch was sent alone; so was one that alone was in flight.
    pub(super) fn cause(&self, given_up: &[Failure], batch_bytes: usize) -> Cause {
        let waited = || given_up.iter().filter(|record| record.ticket <= self.last);
        let is_one = waited().count() == 1;
        let alone = |record: &&Failure| {
            record.bytes >= BYTES_MIN && (is_one || record.bytes >= batch_bytes)
        };
        let records: Vec<_> = waited().filter(alone).collect();
        if !records.is_empty() {
            let records = records.iter().map(|record| (record.ticket, record.bytes));
            return Cause::Records(records.collect());
        }
        let bytes = waited().map(|record| record.bytes).sum::<usize>();
        let bytes = bytes.min(batch_bytes);
        if is_one || bytes < BYTES_MIN {
            return Cause::Unknown(waited().map(|record| record.ticket).collect());
        }
        Cause::Batches(bytes / 4)
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaErrorCode;

    use super::*;

    fn clock() -> impl Fn(u64) -> Instant {
        let began_at = Instant::now();
        move |ms| began_at + Duration::from_millis(ms)
    }

    fn watch(cuts: &[Instant]) -> Watch {
        let mut watch = Watch::begin(2, 7, cuts[0]);
        cuts[1..].iter().for_each(|cut| watch.cut(*cut));
        watch
    }

    #[test]
    fn three_cuts_beside_a_connection_that_stands_are_a_proof() {
        let at = clock();
        let cuts = [at(0), at(100), at(400), at(900), at(2_000)];
        let stand = |since, until| Stand {
            since: at(since),
            until: at(until),
        };
        assert!(watch(&cuts).is_proved(stand(50, 950)));
        assert!(watch(&cuts).is_proved(stand(300, 2_001)));
        // The other connection was opened later, broke meanwhile, or has not answered since.
        assert!(!watch(&cuts).is_proved(stand(401, 5_000)));
        assert!(!watch(&cuts).is_proved(stand(50, 900)));
        assert!(!watch(&cuts).is_proved(stand(5_000, 6_000)));
    }

    #[test]
    fn it_is_over_when_all_that_was_in_flight_is_acknowledged() {
        let at = clock();
        let cuts = [at(10), at(20), at(30)];
        let stand = Stand {
            since: at(0),
            until: at(40),
        };
        let mut watch = watch(&cuts);
        // Handed over later.
        watch.delivered(&[8, 9]);
        watch.delivered(&[3]);
        assert!(!watch.is_over(at(40)) && watch.is_proved(stand));
        watch.delivered(&[7]);
        assert!(watch.is_over(at(40)) && !watch.is_proved(stand));
    }

    #[test]
    fn it_is_over_when_nothing_is_cut_any_more() {
        let at = clock();
        let watch = watch(&[at(0), at(1_000)]);
        assert!(!watch.is_over(at(16_000)));
        assert!(watch.is_over(at(16_001)));
    }

    #[test]
    fn an_answer_speaks_for_a_record_alone_and_not_for_one_of_many() {
        let at = clock();
        let mut alone = Watch::begin(1, 7, at(0));
        alone.answered();
        assert!(alone.is_over(at(1)));
        let mut among_others = watch(&[at(0)]);
        among_others.answered();
        assert!(!among_others.is_over(at(1)));
    }

    fn given_up(sizes: &[usize]) -> Vec<Failure> {
        let record = |(bytes, ticket): (&usize, Ticket)| Failure {
            topic: "orders".into(),
            ticket,
            code: RDKafkaErrorCode::PurgeQueue,
            bytes: *bytes,
        };
        sizes.iter().zip(1..).map(record).collect()
    }

    fn cause(sizes: &[usize], batch_bytes: usize) -> Cause {
        let (broker, topic) = (1, "orders".into());
        let cutting = Cutting { broker, topic };
        let cut_off = CutOff { cutting, last: 5 };
        cut_off.cause(&given_up(sizes), batch_bytes)
    }

    #[test]
    fn records_as_large_as_a_batch_are_suspects_and_no_others() {
        let sizes = [100, 2_000_000, 300_000, 1_000_000];
        let suspects = Cause::Records(vec![(2, 2_000_000), (4, 1_000_000)]);
        assert_eq!(cause(&sizes, 1_000_000), suspects);
        // Handed over after the first cut.
        assert_eq!(
            cause(&[100, 100, 100, 100, 100, 2_000_000], 1_000_000),
            Cause::Unknown(vec![1, 2, 3, 4, 5])
        );
        assert_eq!(
            cause(&[300_000], 1_000_000),
            Cause::Records(vec![(1, 300_000)])
        );
    }

    #[test]
    fn batches_become_smaller_where_no_record_was_alone() {
        assert_eq!(cause(&[200_000; 5], 2_000_000), Cause::Batches(250_000));
        assert_eq!(cause(&[600_000; 5], 1_000_000), Cause::Batches(250_000));
    }

    #[test]
    fn what_is_small_is_no_fault_of_its_size() {
        assert_eq!(cause(&[100], 1_000_000), Cause::Unknown(vec![1]));
        assert_eq!(cause(&[100, 200], 1), Cause::Unknown(vec![1, 2]));
        assert_eq!(cause(&[100, 200], 1_000_000), Cause::Unknown(vec![1, 2]));
    }
}
