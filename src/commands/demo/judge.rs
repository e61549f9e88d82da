//! Compares what a broker holds with what the database committed: pure.

use std::collections::HashMap;

use uuid::Uuid;

/// One event that the database committed, as its own transaction wrote it down.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub id: Uuid,
    pub aggregate: String,
    /// The aggregate's version, one higher for each of its events.
    pub version: i64,
}

/// One record that the broker holds; what could not be read of it is `None`.
#[derive(Clone, Debug)]
pub struct Held {
    pub partition: i32,
    pub offset: i64,
    /// The header `id`.
    pub id: Option<Uuid>,
    /// The key.
    pub aggregate: Option<String>,
    /// The version that the value names.
    pub version: Option<i64>,
}

/// What the comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Events that the database committed.
    pub committed: usize,
    /// Distinct committed events that the broker holds.
    pub published: usize,
    /// Committed events that the broker does not hold.
    pub lost: Vec<Uuid>,
    /// Records of no committed event.
    pub phantom: usize,
    /// Events whose first record stands behind a later event of their aggregate, or in another partition.
    pub out_of_order: Vec<Uuid>,
    /// Events whose record carries another key or content than was committed.
    pub altered: Vec<Uuid>,
    /// Records that repeat an event.
    pub duplicated: usize,
}

impl Verdict {
    /// Whether nothing was lost, invented, reordered or changed; repetitions are allowed.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.phantom == 0
            && self.out_of_order.is_empty()
            && self.altered.is_empty()
    }
}

/// How far the first occurrences of one aggregate have come.
struct Progress {
    partition: i32,
    version: i64,
}

/// Judges the records of one topic, in whatever order they are given, against the committed events.
///
/// Order is judged on first occurrences, by offset: a repeated event stands where it stood first.
pub(crate) fn judge(committed: &[Committed], mut held: Vec<Held>) -> Verdict {
    held.sort_by_key(|record| (record.partition, record.offset));
    let truth: HashMap<Uuid, &Committed> =
        committed.iter().map(|event| (event.id, event)).collect();
    let mut verdict = Verdict {
        committed: committed.len(),
        ..Verdict::default()
    };
    let mut copies: HashMap<Uuid, usize> = HashMap::new();
    let mut progress: HashMap<&str, Progress> = HashMap::new();
    for record in &held {
        let Some(event) = record.id.and_then(|id| truth.get(&id)) else {
            verdict.phantom += 1;
            continue;
        };
        let seen = copies.entry(event.id).or_default();
        *seen += 1;
        if *seen > 1 {
            verdict.duplicated += 1;
            continue;
        }
        if record.aggregate.as_deref() != Some(&event.aggregate)
            || record.version != Some(event.version)
        {
            verdict.altered.push(event.id);
        }
        let start = Progress {
            partition: record.partition,
            version: 0,
        };
        let at = progress.entry(&event.aggregate).or_insert(start);
        if at.partition != record.partition || event.version <= at.version {
            verdict.out_of_order.push(event.id);
        }
        at.version = at.version.max(event.version);
    }
    verdict.published = copies.len();
    verdict.lost = committed
        .iter()
        .map(|event| event.id)
        .filter(|id| !copies.contains_key(id))
        .collect();
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(aggregate: &str, version: i64) -> Committed {
        Committed {
            id: Uuid::new_v4(),
            aggregate: aggregate.into(),
            version,
        }
    }

    fn record(event: &Committed, offset: i64) -> Held {
        Held {
            partition: 0,
            offset,
            id: Some(event.id),
            aggregate: Some(event.aggregate.clone()),
            version: Some(event.version),
        }
    }

    fn three() -> Vec<Committed> {
        (1..=3).map(|version| event("o-1", version)).collect()
    }

    fn records(events: &[Committed], order: &[usize]) -> Vec<Held> {
        order
            .iter()
            .zip(0..)
            .map(|(at, offset)| record(&events[*at], offset))
            .collect()
    }

    #[test]
    fn a_faithful_log_is_clean() {
        let events = three();
        let verdict = judge(&events, records(&events, &[0, 1, 2]));
        assert!(verdict.is_clean());
        assert_eq!(
            (verdict.committed, verdict.published, verdict.duplicated),
            (3, 3, 0)
        );
    }

    #[test]
    fn a_planted_loss_is_found() {
        let events = three();
        let verdict = judge(&events, records(&events, &[0, 2]));
        assert_eq!(verdict.lost, [events[1].id]);
        assert!(verdict.out_of_order.is_empty());
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_planted_phantom_is_found() {
        let events = three();
        let mut held = records(&events, &[0, 1, 2]);
        held.push(record(&event("o-1", 4), 3));
        assert_eq!(judge(&events, held).phantom, 1);
    }

    #[test]
    fn a_record_without_an_id_is_a_phantom() {
        let events = three();
        let mut held = records(&events, &[0, 1, 2]);
        held[2].id = None;
        let verdict = judge(&events, held);
        assert_eq!((verdict.phantom, verdict.lost.len()), (1, 1));
    }

    #[test]
    fn a_planted_inversion_is_found() {
        let events = three();
        let verdict = judge(&events, records(&events, &[0, 2, 1]));
        assert_eq!(verdict.out_of_order, [events[1].id]);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn an_aggregate_in_two_partitions_is_out_of_order() {
        let events = three();
        let mut held = records(&events, &[0, 1, 2]);
        held[2].partition = 1;
        assert_eq!(judge(&events, held).out_of_order, [events[2].id]);
    }

    #[test]
    fn a_repeated_run_counts_as_duplicates_and_keeps_its_order() {
        let events = three();
        let verdict = judge(&events, records(&events, &[0, 1, 0, 1, 2]));
        assert_eq!(verdict.duplicated, 2);
        assert!(verdict.is_clean());
    }

    #[test]
    fn a_changed_key_or_content_is_found() {
        let events = three();
        let mut held = records(&events, &[0, 1, 2]);
        held[0].aggregate = Some("o-2".into());
        held[1].version = Some(9);
        assert_eq!(judge(&events, held).altered, [events[0].id, events[1].id]);
    }

    #[test]
    fn records_are_judged_by_offset_however_they_arrive() {
        let events = three();
        let mut held = records(&events, &[0, 1, 2]);
        held.reverse();
        assert!(judge(&events, held).is_clean());
    }

    #[test]
    fn aggregates_do_not_disturb_each_other() {
        let events = [
            event("o-1", 1),
            event("o-2", 1),
            event("o-1", 2),
            event("o-2", 2),
        ];
        assert!(judge(&events, records(&events, &[1, 3, 0, 2])).is_clean());
    }
}
