//! One broker that asks everybody who they are, shared by the tests of this subject.

use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;

use super::secrets::secret;
use super::tokens::{CLIENT, Tokens};
use crate::harness::certificates::{Identity, Signature, Subject};
use crate::harness::kafka::{Kafka, Listener};
use crate::harness::relay::RelayConfig;
use crate::harness::workspace;

pub const USER: &str = "relay";
pub const PASSWORD: &str = "kafka-hush";

/// Users whose password one test changes: the first by SCRAM-SHA-256, the second by SCRAM-SHA-512.
pub const ROTATED: &str = "rotated";
pub const REVOKED: &str = "revoked";

/// What the broker asks of whom, whoever reaches it.
const SETTINGS: &[(&str, &str)] = &[
    // As Azure Event Hubs does, which is reached in the same way.
    ("socket.request.max.bytes", "1046528"),
    (
        "authorizer.class.name",
        "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    ),
    ("super.users", "User:ANONYMOUS"),
    ("allow.everyone.if.no.acl.found", "true"),
    ("ssl.keystore.type", "PEM"),
    ("ssl.truststore.type", "PEM"),
    ("listener.name.mutual.ssl.client.auth", "required"),
    (
        "listener.name.sasl.sasl.enabled.mechanisms",
        "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
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
];

pub struct Secured {
    pub kafka: Kafka,
    pub authority: Identity,
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
        let authority = Identity::authority("the tests' authority", Signature::EcdsaSha256);
        let ca = secret("ca.pem", &authority.certificate_pem());
        let broker = authority.issue(&Subject::named("broker", &["127.0.0.1"]));
        let store = broker.key_pem() + &broker.certificate_pem();
        let store = secret("broker.pem", &store);
        let (sasl_port, mutual_port) = (workspace::free_port(), workspace::free_port());
        let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        let login = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"
        );
        let (store, authorities) = (text(&store), text(&ca));
        let mut settings = SETTINGS.to_vec();
        settings.extend([
            ("ssl.keystore.location", store.as_str()),
            ("ssl.truststore.location", &authorities),
            ("listener.name.sasl.plain.sasl.jaas.config", &login),
        ]);
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
            &settings,
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

    /// A certificate of the authority for a server at these names and addresses, or for a client.
    pub fn sign(&self, name: &str, hosts: &[&str]) -> Identity {
        self.authority.issue(&Subject::named(name, hosts))
    }

    /// To the listener that asks for a password or token, by TLS and a password.
    pub fn by_password(
        &self,
        config: RelayConfig,
        mechanism: &str,
        user: &str,
        password: &str,
    ) -> RelayConfig {
        self.to(config, self.sasl_port, "SASL_SSL")
            .kafka_property("sasl.mechanism", mechanism)
            .kafka_property("sasl.username", user)
            .kafka_property("sasl.password", password)
    }

    /// To the same listener by TLS and a token.
    pub fn by_token(&self, config: RelayConfig, tokens: &Tokens, secret: &str) -> RelayConfig {
        self.to(config, self.sasl_port, "SASL_SSL")
            .kafka_property("sasl.mechanism", "OAUTHBEARER")
            .kafka_property("sasl.oauthbearer.method", "oidc")
            .kafka_property("sasl.oauthbearer.token.endpoint.url", &tokens.url)
            .kafka_property("sasl.oauthbearer.client.id", CLIENT)
            .kafka_property("sasl.oauthbearer.client.secret", secret)
    }

    /// To the listener that asks for a certificate.
    pub fn by_certificate(
        &self,
        config: RelayConfig,
        certificate: &Path,
        key: &Path,
    ) -> RelayConfig {
        self.to(config, self.mutual_port, "SSL")
            .kafka_property("ssl.certificate.location", certificate.to_str().unwrap())
            .kafka_property("ssl.key.location", key.to_str().unwrap())
    }

    fn to(&self, config: RelayConfig, port: u16, protocol: &str) -> RelayConfig {
        let brokers = toml_edit::Array::from_iter([format!("127.0.0.1:{port}")]);
        config
            .set("kafka.brokers", brokers)
            .kafka_property("security.protocol", protocol)
            .kafka_property("ssl.ca.location", self.ca.to_str().unwrap())
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
