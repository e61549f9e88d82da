//! TLS to PostgreSQL: what each `sslmode` does on the SQL and on the replication connection, and in a running relay.
//!
//! Row 51 of the fault matrix: expired certificate, wrong host, downgrade offer.

mod modes;
mod relay;
mod stripped;

use std::path::PathBuf;
use std::time::Duration;

use outboxd::config::Secret;
use outboxd::postgres::{self, ConnectOptions, PostgresError, Security, SqlConnection};
use outboxd::source::replication::wire::ReplicationConnection;
use tokio::sync::OnceCell;

use crate::harness::certificates::{Files, Identity, Signature, Subject};
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::RelayConfig;
use crate::harness::{SOON, wait_until, workspace};

/// In no output.
const PASSWORD: &str = "hunter2-is-secret";

/// Roles named after how they must come. The tests' own connections are not encrypted.
const ACCESS: &str = "
    local     all postgres               trust
    host      all postgres  127.0.0.1/32 trust
    hostssl   all anybody   127.0.0.1/32 trust
    hostssl   all bound     127.0.0.1/32 scram-sha-256
    hostssl   all hashed    127.0.0.1/32 md5
    hostssl   all clear     127.0.0.1/32 password
    hostssl   all certified 127.0.0.1/32 cert
    hostssl   all twofold   127.0.0.1/32 scram-sha-256 clientcert=verify-full
    hostnossl all plain     127.0.0.1/32 scram-sha-256
";

/// A server with TLS for 127.0.0.1, who issued its certificate, and the files that clients name.
struct Secured {
    postgres: Postgres,
    authority: Identity,
    folder: PathBuf,
}

impl Secured {
    /// The server of tests that change nothing of it.
    async fn shared() -> &'static Self {
        static SHARED: OnceCell<Secured> = OnceCell::const_new();
        SHARED.get_or_init(async || Self::start(USUAL).await).await
    }

    async fn start(major: u32) -> Self {
        let authority = Identity::authority("authority", Signature::EcdsaSha256);
        let folder = workspace::folder("certificates");
        authority.write(&folder, "authority");
        let mut postgres = Postgres::start(major);
        postgres.configure_access(ACCESS);
        postgres.configure_tls(&authority.issue(&server()), &authority);
        postgres.reload();
        let secured = Self {
            postgres,
            authority,
            folder,
        };
        secured.create_roles().await;
        wait_until("the server has TLS", SOON, async || {
            secured.connect("anybody", "sslmode=require").await
        })
        .await;
        secured
    }

    async fn create_roles(&self) {
        let client = self.postgres.client("postgres").await;
        let with = format!("LOGIN REPLICATION PASSWORD '{PASSWORD}'");
        let roles = ["anybody", "bound", "clear", "certified", "twofold", "plain"];
        let roles = roles.map(|role| format!("CREATE ROLE {role} {with};"));
        let hashed = format!("SET password_encryption = md5; CREATE ROLE hashed {with}");
        let sql = format!("{} {hashed}", roles.concat());
        client.batch_execute(&sql).await.expect("create roles");
    }

    /// Issues a client certificate.
    fn client(&self, common_name: &str) -> Files {
        self.authority
            .issue(&Subject::named(common_name, &[]))
            .write(&self.folder, common_name)
    }

    fn url(&self, role: &str, parameters: &str) -> String {
        let port = self.postgres.port;
        format!("postgres://{role}:{PASSWORD}@127.0.0.1:{port}/postgres?{parameters}")
    }

    /// The parameters that trust this server's authority.
    fn verified(&self, mode: &str) -> String {
        verified_by(&self.folder, mode)
    }

    async fn connect(&self, role: &str, parameters: &str) -> Result<Security, PostgresError> {
        connect(&self.url(role, parameters)).await
    }
}

fn server() -> Subject<'static> {
    Subject {
        common_name: "server",
        names: &["127.0.0.1", "db.test"],
        is_expired: false,
    }
}

fn verified_by(folder: &std::path::Path, mode: &str) -> String {
    let file = folder.join("authority.crt");
    format!("sslmode={mode}&sslrootcert={}", file.display())
}

fn with_client(parameters: &str, files: &Files) -> String {
    let (certificate, key) = (files.certificate.display(), files.key.display());
    format!("{parameters}&sslcert={certificate}&sslkey={key}")
}

/// Opens both kinds of connection, which must end alike, and says how the SQL one is secured.
async fn connect(url: &str) -> Result<Security, PostgresError> {
    let options = ConnectOptions::parse(&Secret::new(url.to_owned()))?;
    match open_both(&options).await {
        (Ok(session), Ok(mut replication)) => {
            replication.identify_system().await?;
            let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            let row = session.client.query_one(sql, &[]).await?;
            assert_eq!(session.security.is_encrypted(), row.get::<_, bool>(0));
            Ok(session.security)
        }
        (Err(sql), Err(replication)) => {
            assert_eq!(sql.to_string(), replication.to_string());
            assert!(!format!("{sql} {sql:?}").contains(PASSWORD));
            Err(sql)
        }
        (sql, replication) => panic!(
            "SQL: {:?}, replication: {:?}",
            sql.map(|session| session.security),
            replication.map(|_| "connected")
        ),
    }
}

async fn open_both(
    options: &ConnectOptions,
) -> (
    Result<SqlConnection, PostgresError>,
    Result<ReplicationConnection, PostgresError>,
) {
    let sql = postgres::connect(options, "test").await;
    let wal_sender_timeout = Duration::from_secs(30);
    let replication = ReplicationConnection::connect(options, wal_sender_timeout).await;
    (sql, replication)
}

/// The connection is refused with this text.
async fn assert_refused(url: &str, text: &str) {
    let error = connect(url).await.expect_err(text).to_string();
    assert!(error.contains(text), "`{text}` is not in `{error}`");
}

fn assert_no_secret(text: &str) {
    assert!(!text.contains(PASSWORD), "the password shows in\n{text}");
}

/// `check` with this URL, and whether it found everything.
fn check(config: &RelayConfig, url: &str) -> (bool, String) {
    let done = config.clone().set("source.url", url).outboxd(&["check"]);
    let said = crate::harness::relay::said(&done);
    assert_no_secret(&said);
    (done.status.success(), said)
}
