//! Who answers in the place of a broker: librdkafka's words for bytes that it does not understand, in plain ones.

/// What librdkafka said, or what it means where that is known.
pub(crate) fn in_plain_words(reason: &str) -> String {
    let at = address(reason);
    if let Some(size) = size(reason) {
        return format!("{at}{}", by_first_bytes(size.to_be_bytes()));
    }
    let known = WORDS.iter().find(|(said, _)| reason.contains(said));
    match known {
        Some((_, meant)) => format!("{at}{meant}"),
        None => reason.to_owned(),
    }
}

const TLS: &str = "the port speaks TLS and outboxd does not: set \"security.protocol\" = \"SSL\", or \"SASL_SSL\" with a login, \
                   under [kafka.properties]";
const CONTROLLER: &str = "what answers is no broker, it seems a controller of KRaft: write the brokers' own listener in \
                          `kafka.brokers`, usually port 9092";

const WORDS: &[(&str, &str)] = &[
    (
        "connecting to a SSL listener?",
        "the connection was closed at the first request: the port speaks TLS (set \"security.protocol\" = \"SSL\" or \
         \"SASL_SSL\" under [kafka.properties]), or it is none of Kafka's; write the brokers' own in `kafka.brokers`, \
         usually 9092",
    ),
    (
        "connecting to a PLAINTEXT broker listener?",
        "the port does not speak TLS, which \"security.protocol\" asks for: name the port of a TLS listener in \
         `kafka.brokers`, or write PLAINTEXT or SASL_PLAINTEXT",
    ),
    (
        "might be caused by broker version < 0.10",
        "the connection was closed at the first request after TLS: the port is none of Kafka's; write the brokers' own in \
         `kafka.brokers`",
    ),
    ("SASL Handshake not supported by broker", CONTROLLER),
    ("Required feature not supported by broker", CONTROLLER),
    ("request not supported by broker", CONTROLLER),
];

/// The bytes that librdkafka took for a length.
fn size(reason: &str) -> Option<i32> {
    let (_, rest) = reason.split_once("Invalid response size ")?;
    rest.split(' ').next()?.parse().ok()
}

fn by_first_bytes(bytes: [u8; 4]) -> &'static str {
    match bytes {
        [b'H', b'T', b'T', b'P'] => {
            "what answers is a web server and no Kafka: write the brokers' own port in `kafka.brokers`, usually 9092"
        }
        [0x15, 3, ..] => TLS,
        [b'E' | b'R' | b'N' | b'S', 0, 0, _] => {
            "what answers is PostgreSQL and no Kafka: write the brokers' own port in `kafka.brokers`, usually 9092"
        }
        [b'S', b'S', b'H', b'-'] => {
            "what answers is SSH and no Kafka: write the brokers' own port in `kafka.brokers`, usually 9092"
        }
        _ => {
            "what answers is no Kafka, or speaks TLS: write the brokers' own port in `kafka.brokers`, usually 9092, and look \
             at \"security.protocol\""
        }
    }
}

/// The broker that librdkafka speaks of, as it stands before its words: `ssl://host:port/bootstrap: `.
fn address(reason: &str) -> String {
    let Some((name, _)) = reason.split_once(": ") else {
        return String::new();
    };
    let name = name.rsplit("://").next().unwrap_or(name);
    let name = name.split('/').next().unwrap_or(name);
    match name.contains(' ') || !name.contains(':') {
        true => String::new(),
        false => format!("{name}: "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_is_named_by_its_first_bytes() {
        let said = |size: i32| {
            in_plain_words(&format!(
                "127.0.0.1:5432/bootstrap: Receive failed: Invalid response size {size} (0..100000000): increase \
                 receive.message.max.bytes (after 0ms in state APIVERSION_QUERY)"
            ))
        };
        for (bytes, word) in [
            (*b"HTTP", "a web server"),
            ([0x15, 3, 3, 0], "speaks TLS"),
            ([b'E', 0, 0, 0], "PostgreSQL"),
            (*b"SSH-", "SSH"),
            ([0x7f, 1, 2, 3], "no Kafka"),
        ] {
            let said = said(i32::from_be_bytes(bytes));
            assert!(
                said.starts_with("127.0.0.1:5432: ") && said.contains(word),
                "{said}"
            );
            assert!(!said.contains("receive.message"), "{said}");
        }
        let other = "sasl_ssl://k:9093/1: SASL authentication error: Authentication failed";
        assert_eq!(in_plain_words(other), other);
    }
}
