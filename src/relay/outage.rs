//! Since when Kafka is away, when it is back, and which of it is said. Pure.

use std::time::Duration;

use crate::text::Episodes;

/// What was seen of Kafka.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// A broker can't be reached, or rows have waited for long.
    pub(super) is_troubled: bool,
    /// Rows wait for an acknowledgement, or to hear of their topic.
    pub(super) is_awaited: bool,
    /// All that were acknowledged so far.
    pub(super) delivered_rows: u64,
}

/// What is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Kafka is away, for the so-manieth time since that was said last.
    Away {
        times: u64,
    },
    Back {
        lasted: Duration,
    },
}

/// The times during which Kafka is away.
#[derive(Debug, Default)]
pub(super) struct Outages {
    episodes: Episodes,
    /// What had been acknowledged when the present one began.
    away_since: Option<u64>,
}

impl Outages {
    pub(super) fn is_away(&self) -> bool {
        self.away_since.is_some()
    }

    /// Takes a look, about once a second, by a clock that never goes back.
    ///
    /// That a broker answers some question does not end an outage while rows wait: an acknowledgement does. A broker may
    /// answer under the bootstrap address and be unreachable under the one that it advertises.
    pub(super) fn look(&mut self, seen: Seen, now: Duration) -> Option<Said> {
        let Some(delivered_rows) = self.away_since else {
            if !seen.is_troubled {
                return None;
            }
            self.away_since = Some(seen.delivered_rows);
            return self.episodes.begin(now).map(|times| Said::Away { times });
        };
        let is_back =
            !seen.is_troubled && (!seen.is_awaited || seen.delivered_rows > delivered_rows);
        if !is_back {
            return self.episodes.goes_on(now).map(|times| Said::Away { times });
        }
        self.away_since = None;
        self.episodes.end(now).map(|lasted| Said::Back { lasted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_REST: Seen = Seen {
        is_troubled: false,
        is_awaited: false,
        delivered_rows: 7,
    };

    fn second(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn while_rows_wait_only_an_acknowledgement_ends_an_outage() {
        let mut outages = Outages::default();
        let awaited = Seen {
            is_awaited: true,
            ..AT_REST
        };
        let troubled = Seen {
            is_troubled: true,
            ..awaited
        };
        assert_eq!(outages.look(awaited, second(0)), None);
        let away = Some(Said::Away { times: 1 });
        assert_eq!(outages.look(troubled, second(1)), away);
        // A question is answered now and then, and nothing is acknowledged.
        for at in 2..100 {
            let seen = if at % 2 == 0 { awaited } else { troubled };
            assert_eq!(outages.look(seen, second(at)), None);
            assert!(outages.is_away());
        }
        let acknowledged = Seen {
            delivered_rows: 8,
            ..awaited
        };
        let lasted = second(99);
        assert_eq!(
            outages.look(acknowledged, second(100)),
            Some(Said::Back { lasted })
        );
        assert!(!outages.is_away());
    }

    #[test]
    fn an_outage_without_rows_ends_with_an_answer() {
        let mut outages = Outages::default();
        let troubled = Seen {
            is_troubled: true,
            ..AT_REST
        };
        outages.look(troubled, second(0));
        let lasted = second(5);
        assert_eq!(
            outages.look(AT_REST, second(5)),
            Some(Said::Back { lasted })
        );
    }

    #[test]
    fn a_second_outage_that_lasts_is_said_too() {
        let mut outages = Outages::default();
        let troubled = Seen {
            is_troubled: true,
            ..AT_REST
        };
        let mut said = Vec::new();
        // Away for 6 s, there for 8 s, away for 85 s, then there.
        for at in 0..100 {
            let seen = match at {
                6..14 | 99 => AT_REST,
                _ => troubled,
            };
            said.extend(outages.look(seen, second(at)).map(|said| (at, said)));
        }
        let lasted = |seconds| Said::Back {
            lasted: second(seconds),
        };
        let away = Said::Away { times: 1 };
        assert_eq!(
            said,
            [(0, away), (6, lasted(6)), (60, away), (99, lasted(85))]
        );
    }
}
