//! One broker that asks everybody who they are, shared by the tests of this subject.

use std::path::PathBuf;

use tokio::sync::OnceCell;

use super::certificates::{Authority, written};
use crate::harness::kafka::{Kafka, Listener};
use crate::harness::relay::RelayConfig;
use crate::harness::workspace;

pub const USER: &str = "relay";
pub const PASSWORD: &str = "kafka-hush";

/// Users whose password one test changes: the first by SCRAM-SHA-256, the second by SCRAM-SHA-512.
pub const ROTATED: &str = "rotated";
pub const REVOKED: &str = "revoked";

pub struct Secured {
    pub kafka: Kafka,
    pub authority: Authority,
    /// The authority's certificate.
    pub ca: PathBuf,
    sasl_port: u16,
    mutual_port: u16,
}

impl Secured {
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Secured> = OnceCell::const_new();
        SHARED.get_or_init(async || Self::start()).await
    }

    fn start() -> Self {
        let folder = workspace::folder("secured");
        let authority = Authority::new("the tests' authority");
        let ca = written(&folder, "ca.pem", &authority.certificate);
        let broker = authority.sign("broker", &["127.0.0.1"]);
        let store = broker.key + &broker.certificate;
        let store = written(&folder, "broker.pem", &store);
        let (sasl_port, mutual_port) = (workspace::free_port(), workspace::free_port());
        let kafka = Kafka::start_listening(
            &[
                Listener {
                    name: "SASL",
                    protocol: "SASL_SSL",
                    port: sasl_port,
                },
                Listener {
                    name: "MUTUAL",
                    protocol: "SSL",
                    port: mutual_port,
                },
            ],
            &[
                scram("SCRAM-SHA-256", USER),
                scram("SCRAM-SHA-512", USER),
                scram("SCRAM-SHA-256", ROTATED),
                scram("SCRAM-SHA-512", REVOKED),
            ],
            &[
                (
                    "authorizer.class.name",
                    "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                ),
                ("super.users", "User:ANONYMOUS"),
                ("allow.everyone.if.no.acl.found", "true"),
                ("ssl.keystore.type", "PEM"),
                ("ssl.keystore.location", store.to_str().unwrap()),
                ("ssl.truststore.type", "PEM"),
                ("ssl.truststore.location", ca.to_str().unwrap()),
                ("listener.name.mutual.ssl.client.auth", "required"),
                (
                    "listener.name.sasl.sasl.enabled.mechanisms",
                    "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
                ),
                (
                    "listener.name.sasl.plain.sasl.jaas.config",
                    &format!(
                        "org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"
                    ),
                ),
                (
                    "listener.name.sasl.scram-sha-256.sasl.jaas.config",
                    SCRAM_LOGIN,
                ),
                (
                    "listener.name.sasl.scram-sha-512.sasl.jaas.config",
                    SCRAM_LOGIN,
                ),
                (
                    "listener.name.sasl.oauthbearer.sasl.jaas.config",
                    "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";",
                ),
                // A connection proves again every 3 s who it is: a revoked password shows.
                (
                    "listener.name.sasl.scram-sha-512.connections.max.reauth.ms",
                    "3000",
                ),
            ],
        );
        Self {
            kafka,
            authority,
            ca,
            sasl_port,
            mutual_port,
        }
    }

    /// Gives a user of this kind of SCRAM another password.
    pub fn set_password(&self, mechanism: &str, user: &str, password: &str) {
        let credentials = format!("{mechanism}=[password={password}]");
        let arguments = [
            "--alter",
            "--add-config",
            &credentials,
            "--entity-type",
            "users",
            "--entity-name",
            user,
        ];
        self.kafka.tool("kafka.admin.ConfigCommand", &arguments);
    }

    pub fn deny_writing(&self, topic: &str, user: &str) {
        self.change_rights("--add", topic, user);
    }

    pub fn allow_writing(&self, topic: &str, user: &str) {
        self.change_rights("--remove", topic, user);
    }

    fn change_rights(&self, change: &str, topic: &str, user: &str) {
        let user = format!("User:{user}");
        let arguments = [
            change,
            "--deny-principal",
            &user,
            "--operation",
            "Write",
            "--topic",
            topic,
        ];
        let force: &[&str] = if change == "--remove" {
            &["--force"]
        } else {
            &[]
        };
        let arguments = [&arguments, force].concat();
        self.kafka
            .tool("org.apache.kafka.tools.AclCommand", &arguments);
    }

    /// A configuration with these properties, by TLS, to the listener that asks for a password or token.
    pub fn sasl(&self, config: RelayConfig, properties: &[(&str, &str)]) -> RelayConfig {
        let config = to(config, self.sasl_port)
            .kafka_property("security.protocol", "SASL_SSL")
            .kafka_property("ssl.ca.location", self.ca.to_str().unwrap());
        with(config, properties)
    }

    /// The same to the listener that asks for a certificate.
    pub fn mutual(&self, config: RelayConfig, properties: &[(&str, &str)]) -> RelayConfig {
        let config = to(config, self.mutual_port)
            .kafka_property("security.protocol", "SSL")
            .kafka_property("ssl.ca.location", self.ca.to_str().unwrap());
        with(config, properties)
    }

    /// The address of the listener that asks for a password or token, under any name of this machine.
    pub fn sasl_at(&self, host: &str) -> String {
        format!("{host}:{}", self.sasl_port)
    }
}

const SCRAM_LOGIN: &str = "org.apache.kafka.common.security.scram.ScramLoginModule required;";

fn scram(mechanism: &str, user: &str) -> String {
    format!("{mechanism}=[name={user},password={PASSWORD}]")
}

fn to(config: RelayConfig, port: u16) -> RelayConfig {
    let brokers = toml_edit::Array::from_iter([format!("127.0.0.1:{port}")]);
    config.set("kafka.brokers", brokers)
}

fn with(config: RelayConfig, properties: &[(&str, &str)]) -> RelayConfig {
    let set =
        |config: RelayConfig, (name, value): &(&str, &str)| config.kafka_property(name, value);
    properties.iter().fold(config, set)
}
