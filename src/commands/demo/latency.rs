//! Latency figures of a set of events: pure.

use std::time::Duration;

/// Percentiles of a set of latencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Latency {
    pub events: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Latency {
    /// Takes the percentiles by nearest rank; `None` without a single event.
    pub(crate) fn of(mut latencies: Vec<Duration>) -> Option<Self> {
        latencies.sort_unstable();
        let max = *latencies.last()?;
        let rank = |percent: usize| latencies[(latencies.len() * percent).div_ceil(100) - 1];
        Some(Self {
            events: latencies.len(),
            p50: rank(50),
            p99: rank(99),
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_by_nearest_rank() {
        let latency = Latency::of((1..=200).rev().map(Duration::from_millis).collect()).unwrap();
        assert_eq!(latency.p50, Duration::from_millis(100));
        assert_eq!(latency.p99, Duration::from_millis(198));
        assert_eq!(latency.max, Duration::from_millis(200));
    }

    #[test]
    fn one_event_is_every_percentile() {
        let latency = Latency::of(vec![Duration::from_millis(7)]).unwrap();
        assert_eq!((latency.p50, latency.p99), (latency.max, latency.max));
    }

    #[test]
    fn nothing_has_no_percentile() {
        assert_eq!(Latency::of(Vec::new()), None);
    }
}
