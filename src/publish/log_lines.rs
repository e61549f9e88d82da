//! What librdkafka's log says of its connections. Pure.
//!
//! The log alone says it for nothing: a line is written when a connection changes (`debug = "broker"`). The statistics
//! say it too, in 1 MB a second for 100 topics of 12 partitions. Source: `rd_kafka_broker_set_error` and
//! `rd_kafka_err_action` of librdkafka 2.12.1; `integration-tests/cut_off.rs` fails when other words come.

/// One line that says something of a broker's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) broker: i32,
    pub(super) event: Event,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The other side closed a connection that had been opened, and let in where somebody asks for that.
    Closed,
    /// A connection ended in another way, or there was none.
    Failed,
    /// A request with records lost its connection before it was answered; it follows what became of the connection.
    Lost,
    /// A request with records was answered by an error of the broker's.
    Answered,
    /// The error was that fewer replicas are in sync than the topic asks for.
    TooFewReplicas,
}

/// How a closed connection is told.
const CLOSED: [&str; 3] = ["Disconnected", "Send failed", "Receive failed"];
/// How a lost connection is told to the requests on it.
const LOST: [&str; 2] = ["Local: Broker transport failure", "Local: SSL error"];

/// How it is told that fewer replicas are in sync than `min.insync.replicas` asks for, before a record was appended and after.
const TOO_FEW_REPLICAS: [&str; 2] = [
    "Broker: Not enough in-sync replicas",
    "Broker: Message(s) written to insufficient number of in-sync replicas",
];

/// Reads one line of level debug; `None` where it says nothing of this.
pub(super) fn read(facility: &str, text: &str) -> Option<Line> {
    if !matches!(facility, "FAIL" | "REQERR") {
        return None;
    }
    let text = match text.strip_prefix("[thrd:") {
        Some(rest) => rest.split_once("]: ")?.1,
        None => text,
    };
    let (name, words) = text.split_once(": ")?;
    // `sasl_ssl://host:9093/1`; one that is not known yet ends with `/bootstrap`.
    let broker = name.rsplit_once('/')?.1.parse().ok()?;
    let event = match facility {
        "FAIL" => of_connection(words),
        _ => of_request(words.strip_prefix("ProduceRequest failed: ")?)?,
    };
    Some(Line { broker, event })
}

fn of_connection(words: &str) -> Event {
    let was_open = words.contains(" in state UP)") || words.contains(" in state UP,");
    // Not what librdkafka closed itself: a request that took too long, a connection that nobody used.
    let by_other_side = CLOSED.iter().any(|told| words.starts_with(told))
        && ["(_TRANSPORT)", "(_SSL)"]
            .iter()
            .any(|code| words.contains(code));
    match was_open && by_other_side {
        true => Event::Closed,
        false => Event::Failed,
    }
}

fn of_request(words: &str) -> Option<Event> {
    if LOST.iter().any(|told| words.starts_with(told)) {
        return Some(Event::Lost);
    }
    if TOO_FEW_REPLICAS.iter().any(|told| words.starts_with(told)) {
        return Some(Event::TooFewReplicas);
    }
    words.starts_with("Broker: ").then_some(Event::Answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as they came, from a real broker unless it says otherwise.
    const LINES: &[(&str, &str, Option<Event>)] = &[
        (
            "FAIL",
            "[thrd:127.0.0.1:39192/1]: 127.0.0.1:39192/1: Disconnected: connection closed by peer: receive 0 after \
             POLLIN (after 84ms in state UP, 1 identical error(s) suppressed) (_TRANSPORT): identical to last error",
            Some(Event::Closed),
        ),
        (
            "FAIL",
            "sasl_ssl://[::1]:9093/1: Send failed: Broken pipe (after 5ms in state UP) (_TRANSPORT)",
            Some(Event::Closed),
        ),
        (
            "FAIL",
            "[thrd:[::1]:9093/1]: [::1]:9093/1: 1 request(s) timed out: disconnect (after 10004ms in state UP) (_TIMED_OUT)",
            Some(Event::Failed),
        ),
        (
            "FAIL",
            "[thrd:a:1/1]: a:1/1: Connection max idle time exceeded (180003ms since last activity) (after 190120ms in state UP) \
             (_TRANSPORT)",
            Some(Event::Failed),
        ),
        (
            "FAIL",
            "[thrd:a:1/1]: a:1/1: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT) \
             (_TRANSPORT)",
            Some(Event::Failed),
        ),
        (
            "FAIL",
            "[thrd:a:1/bootstrap]: a:1/bootstrap: Decommissioning this broker (after 4ms in state UP) (_DESTROY_BROKER)",
            None,
        ),
        (
            "REQERR",
            "[thrd:127.0.0.1:39192/1]: 127.0.0.1:39192/1: ProduceRequest failed: Local: Broker transport failure: \
             explicit actions Refresh,MsgPossiblyPersisted",
            Some(Event::Lost),
        ),
        (
            "REQERR",
            "[thrd:a:1/1]: a:1/1: ProduceRequest failed: Broker: Not enough in-sync replicas: actions Retry",
            Some(Event::TooFewReplicas),
        ),
        (
            "REQERR",
            "[thrd:a:1/1]: a:1/1: ProduceRequest failed: Broker: Message size too large: actions Permanent",
            Some(Event::Answered),
        ),
        (
            "REQERR",
            "[thrd:a:1/1]: a:1/1: ProduceRequest failed: Local: Timed out: explicit actions Retry",
            None,
        ),
        (
            "REQERR",
            "[thrd:a:1/1]: a:1/1: MetadataRequest failed: Local: Broker transport failure: actions Retry",
            None,
        ),
        (
            "STATE",
            "[thrd:a:1/1]: a:1/1: Broker changed state UP -> DOWN",
            None,
        ),
        ("FAIL", "", None),
    ];

    #[test]
    fn lines_of_librdkafka_are_read() {
        for (facility, text, event) in LINES {
            let expected = event.map(|event| Line { broker: 1, event });
            assert_eq!(read(facility, text), expected, "{text}");
        }
    }
}
