//! The properties of librdkafka that keep a connection secret: which of them are read from files, which can't
//! work together, and which leave something open.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::Problem;
use super::kafka_names::MECHANISMS;
use super::secret::read_secret;
use super::{ConfigError, KafkaConfig, Secret};

/// Properties whose value may be `${file:/path}`.
const SECRETS: &[&str] = &[
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
];

/// Properties that name a file or a folder, which librdkafka reads when a client is created.
const LOCATIONS: &[&str] = &[
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
    "https.ca.location",
    "sasl.oauthbearer.assertion.file",
    "sasl.oauthbearer.assertion.private.key.file",
    "sasl.oauthbearer.assertion.jwt.template.file",
];

/// The value to hand to librdkafka; `${file:/path}` in a secret one is read now, its last newline removed.
///
/// Errors: the file can't be read or is empty.
pub(crate) fn resolve_property(name: &str, value: &str) -> Result<Secret, ConfigError> {
    match file_of(value) {
        Some(path) if SECRETS.contains(&name) => read_secret(Path::new(path)),
        _ => Ok(Secret::new(value.to_owned())),
    }
}

impl KafkaConfig {
    /// The files and folders whose content goes into a client: secrets, keys, certificates.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let path_of = |(name, value): (&String, &String)| {
            let is_location = LOCATIONS.contains(&name.as_str());
            let path = file_of(value).or(is_location.then_some(value.as_str()));
            path.map(PathBuf::from)
        };
        self.properties.iter().filter_map(path_of).collect()
    }

    /// What the properties leave unprotected: the property as written, and what may happen.
    pub(crate) fn weaknesses(&self) -> Vec<(String, &'static str)> {
        let mut found = Vec::new();
        for weakness in WEAKNESSES {
            let value = self.properties.get(weakness.name);
            let is_weak = |value: &&String| {
                let value = value.trim().to_ascii_lowercase();
                weakness.values.contains(&value.as_str())
            };
            if let Some(value) = value.filter(is_weak) {
                found.push((format!("{} = {value}", weakness.name), weakness.reason));
            }
        }
        found
    }
}

/// A value that is allowed and leaves something open.
struct Weakness {
    name: &'static str,
    values: &'static [&'static str],
    reason: &'static str,
}

const WEAKNESSES: &[Weakness] = &[
    Weakness {
        name: "enable.ssl.certificate.verification",
        values: &["false", "f", "0"],
        reason: "any server is taken for the broker: whoever is in between reads and answers everything",
    },
    Weakness {
        name: "ssl.endpoint.identification.algorithm",
        values: &["none"],
        reason: "the broker's host name is not compared with its certificate: any certificate of the authority will do",
    },
    Weakness {
        name: "security.protocol",
        values: &["sasl_plaintext"],
        reason: "rows, and with PLAIN and OAUTHBEARER the password or token, cross the network unencrypted",
    },
];

/// Refuses properties that can't work together, or would be ignored in silence.
///
/// Errors: with the property as it is written.
pub(super) fn check_together(
    properties: &BTreeMap<String, String>,
) -> Result<(), (String, Problem)> {
    let protocol = properties.get("security.protocol");
    let protocol = protocol.map(|protocol| protocol.trim().to_ascii_uppercase());
    let login = properties.keys().find(|name| name.starts_with("sasl."));
    let tls = |name: &&String| name.starts_with("ssl.") || name.starts_with("enable.ssl.");
    let tls = properties.keys().find(tls);
    if let Some(name) = login.or(tls).filter(|_| protocol.is_none()) {
        let wanted = match login {
            Some(_) => "SASL_SSL",
            None => "SSL",
        };
        return Err((
            name.clone(),
            Problem::new(
                "is ignored without `security.protocol`, and everything is sent in plain text",
                format!("add \"security.protocol\" = \"{wanted}\" under [kafka.properties]"),
            ),
        ));
    }
    let protocol = protocol.unwrap_or_default();
    let unused = [(login, "SASL_"), (tls, "SSL")].into_iter();
    let mut unused = unused.filter(|(_, part)| !protocol.contains(part));
    if let Some(name) = unused.find_map(|(name, _)| name) {
        return Err((
            name.clone(),
            Problem::new(
                format!("is ignored with \"security.protocol\" = \"{protocol}\""),
                "write SASL_SSL there for a login over TLS, SSL for TLS alone, or remove this property",
            ),
        ));
    }
    match protocol.starts_with("SASL_") {
        true => check_login(properties),
        false => Ok(()),
    }
}

/// A mechanism, and all that it needs.
fn check_login(properties: &BTreeMap<String, String>) -> Result<(), (String, Problem)> {
    let names = ["sasl.mechanism", "sasl.mechanisms"];
    let given = names
        .iter()
        .find_map(|name| Some((*name, properties.get(*name)?)));
    let Some((name, mechanism)) = given else {
        return Err((
            "security.protocol".to_owned(),
            Problem::new(
                "asks for a login, and \"sasl.mechanism\" is missing",
                format!("write one of {MECHANISMS} as \"sasl.mechanism\""),
            ),
        ));
    };
    let needed: &[&str] = match mechanism.trim() {
        "OAUTHBEARER" => &[
            "sasl.oauthbearer.method",
            "sasl.oauthbearer.token.endpoint.url",
        ],
        _ => &["sasl.username", "sasl.password"],
    };
    let is_missing = |needed: &&&str| properties.get(**needed).is_none_or(String::is_empty);
    let Some(missing) = needed.iter().find(is_missing) else {
        return Ok(());
    };
    let example = match *missing {
        "sasl.oauthbearer.method" => "\"oidc\": nothing else gives the relay a token",
        "sasl.password" => "\"${file:/run/secrets/kafka-password}\"",
        _ => "its value",
    };
    Err((
        name.to_owned(),
        Problem::new(
            format!(
                "= {:?} needs \"{missing}\", which is missing",
                mechanism.trim()
            ),
            format!("add \"{missing}\" = {example}"),
        ),
    ))
}

fn file_of(value: &str) -> Option<&str> {
    value.strip_prefix("${file:")?.strip_suffix('}')
}

/// Refuses `${file:…}` where no secret stands, and as a part of a text.
pub(super) fn check_file(name: &str, value: &str) -> Result<(), Problem> {
    if !value.contains("${file:") {
        return Ok(());
    }
    if !SECRETS.contains(&name) {
        return Err(Problem::new(
            "is not read from a file by `${file:…}`",
            format!("only these are: {}", SECRETS.join(", ")),
        ));
    }
    match file_of(value) {
        Some(path) if !path.is_empty() && !path.contains(['{', '}']) => Ok(()),
        _ => Err(Problem::new(
            "has `${file:…}` as a part of its text",
            "write nothing but \"${file:/run/secrets/…}\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TopicsConfig;

    #[test]
    fn a_secret_property_is_read_from_its_file_at_each_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "00123\n").unwrap();
        let value = format!("${{file:{}}}", path.display());
        let read = |name| resolve_property(name, &value).unwrap();
        assert_eq!(read("sasl.password").reveal(), "00123");
        assert_eq!(read("client.id").reveal(), value);
        std::fs::write(&path, "").unwrap();
        let error = resolve_property("sasl.password", &value).unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
    }

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    fn kafka(pairs: &[(&str, &str)]) -> KafkaConfig {
        KafkaConfig {
            brokers: Vec::new(),
            properties: properties(pairs),
            allow_partitioner: false,
            topics: TopicsConfig {
                create: false,
                partitions: -1,
                replication_factor: -1,
            },
        }
    }

    #[test]
    fn the_files_behind_secrets_keys_and_certificates_are_known() {
        let kafka = kafka(&[
            ("compression.type", "zstd"),
            ("sasl.password", "${file:/run/password}"),
            ("ssl.ca.location", "/etc/ca.pem"),
            ("ssl.key.password", "inline"),
        ]);
        assert_eq!(
            kafka.files(),
            [PathBuf::from("/run/password"), PathBuf::from("/etc/ca.pem")]
        );
    }

    #[test]
    fn what_is_left_unprotected_is_warned_of_and_nothing_else() {
        let weak = kafka(&[
            ("enable.ssl.certificate.verification", "False"),
            ("ssl.endpoint.identification.algorithm", "none"),
            ("security.protocol", "SASL_PLAINTEXT"),
        ]);
        assert_eq!(weak.weaknesses().len(), 3);
        let strong = kafka(&[
            ("enable.ssl.certificate.verification", "true"),
            ("ssl.endpoint.identification.algorithm", "https"),
            ("security.protocol", "SASL_SSL"),
        ]);
        assert_eq!(strong.weaknesses(), []);
    }

    #[test]
    fn tokens_need_a_place_that_gives_them() {
        let protocol = ("security.protocol", "sasl_ssl");
        let alone = properties(&[protocol, ("sasl.mechanism", "OAUTHBEARER")]);
        let (name, problem) = check_together(&alone).unwrap_err();
        assert_eq!(name, "sasl.mechanism");
        assert!(problem.problem.contains("sasl.oauthbearer.method"));
        let oidc = [
            protocol,
            ("sasl.mechanisms", "OAUTHBEARER"),
            ("sasl.oauthbearer.method", "OIDC"),
            ("sasl.oauthbearer.token.endpoint.url", "https://login/token"),
        ];
        assert!(check_together(&properties(&oidc)).is_ok());
    }

    #[test]
    fn nothing_of_tls_or_a_login_is_ignored_in_silence() {
        let login = [
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "u"),
            ("sasl.password", "p"),
        ];
        let check = |protocol: Option<&str>, others: &[(&str, &str)]| {
            let protocol = protocol.map(|protocol| ("security.protocol", protocol));
            let all: Vec<_> = protocol.into_iter().chain(others.iter().copied()).collect();
            let checked = check_together(&properties(&all));
            checked
                .map_err(|(name, problem)| format!("{name} {} {}", problem.problem, problem.remedy))
        };
        let line = "add \"security.protocol\" = \"SASL_SSL\" under [kafka.properties]";
        assert!(check(None, &login).unwrap_err().contains(line));
        let ca = [("ssl.ca.location", "/ca.pem")];
        let line = "add \"security.protocol\" = \"SSL\" under [kafka.properties]";
        assert!(check(None, &ca).unwrap_err().contains(line));
        for (protocol, others) in [
            ("PLAINTEXT", &login[..]),
            ("SSL", &login),
            ("plaintext", &ca),
            ("SASL_SSL", &login[..2]),
            ("SASL_SSL", &ca),
        ] {
            assert!(check(Some(protocol), others).is_err(), "{protocol}");
        }
        assert_eq!(check(None, &[]), Ok(()));
        assert_eq!(check(Some("SSL"), &ca), Ok(()));
        assert_eq!(check(Some("SASL_SSL"), &login), Ok(()));
        assert_eq!(check(Some("sasl_plaintext"), &login), Ok(()));
    }

    #[test]
    fn a_file_is_refused_elsewhere_and_as_a_part() {
        for (name, value) in [
            ("client.id", "${file:/a}"),
            ("sasl.password", "x${file:/a}"),
            ("sasl.password", "${file:}"),
            ("sasl.password", "${file:/a"),
            ("sasl.password", "${file:/a}${file:/b}"),
        ] {
            assert!(check_file(name, value).is_err(), "{name} = {value}");
        }
    }
}
