//! The server refuses the relay for a while: no connection left, a password that changed, a right that is gone.

use std::fs;

use tokio_postgres::Client;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::workspace;
use crate::matrix::rig::{Rig, SOON, STREAMED, await_publishing, published};
use crate::orders::wait_for_status;

/// A relay with a role of its own, on a server that asks for passwords.
struct Guarded {
    rig: Rig,
    role: String,
    url_file: std::path::PathBuf,
    admin: Client,
    _postgres: Postgres,
}

impl Guarded {
    async fn new() -> Self {
        let mut postgres = Postgres::start(USUAL);
        let kafka = Kafka::shared().await;
        let mut rig = Rig::new(STREAMED, &postgres, kafka).await;
        let role = "relay".to_owned();
        let admin = rig.client().await;
        let sql = "CREATE ROLE relay LOGIN REPLICATION PASSWORD 'first'";
        admin.batch_execute(sql).await.expect("create a role");
        let granted = rig.config.outboxd(&["migrate", "--relay-role", "relay"]);
        assert!(granted.status.success());
        let hba = "host all relay 127.0.0.1/32 scram-sha-256\n\
                   host replication relay 127.0.0.1/32 scram-sha-256\n\
                   host all postgres 127.0.0.1/32 trust\n";
        postgres.configure_access(hba);
        postgres.reload();
        let url_file = workspace::folder("secret").join("url");
        rig.config = rig
            .config
            .without("source.url")
            .set("source.url_file", url_file.to_str().expect("UTF-8"));
        let guarded = Self {
            rig,
            role,
            url_file,
            admin,
            _postgres: postgres,
        };
        guarded.write_password("first");
        guarded
    }

    fn write_password(&self, password: &str) {
        let url = self
            .rig
            .database
            .url
            .replace("postgres@", &format!("relay:{password}@"));
        fs::write(&self.url_file, url).expect("write the URL");
    }

    async fn run(&self, sql: &str) {
        self.admin
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Ends every connection of the relay.
    async fn disconnect(&self) {
        let sql =
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1";
        self.admin
            .query_one(sql, &[&self.role])
            .await
            .expect("end connections");
    }

    async fn await_reason(&self, relay: &Relay, text: &str) {
        wait_for_status(relay, text, |status| {
            let postgres = status["postgres"]["error"].as_str().unwrap_or_default();
            let reason = status["reason"].as_str().unwrap_or_default();
            status["state"] == "waiting" && (reason.contains(text) || postgres.contains(text))
        })
        .await;
        assert_eq!(relay.get("/readyz?strict").map(|(code, _)| code), Ok(503));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_the_server_refuses_says_why_and_comes_back_by_itself() {
    let guarded = Guarded::new().await;
    let relay = guarded.rig.relay();
    let load = guarded.rig.load().await;
    await_publishing(&relay, 0, SOON).await;

    // The password is changed first, the file later.
    guarded.run("ALTER ROLE relay PASSWORD 'second'").await;
    guarded.disconnect().await;
    guarded
        .await_reason(&relay, "password authentication failed")
        .await;
    guarded.write_password("second");
    await_again(&relay).await;

    guarded.run("ALTER ROLE relay CONNECTION LIMIT 0").await;
    guarded.disconnect().await;
    guarded.await_reason(&relay, "53300").await;
    guarded.run("ALTER ROLE relay CONNECTION LIMIT -1").await;
    await_again(&relay).await;

    guarded.run("ALTER ROLE relay NOREPLICATION").await;
    guarded.disconnect().await;
    guarded.await_reason(&relay, "42501").await;
    guarded.run("ALTER ROLE relay REPLICATION").await;
    await_again(&relay).await;

    guarded.rig.judge(load, 0).await;
    assert!(!relay.log().contains("second"), "a password is in the log");
}

async fn await_again(relay: &Relay) {
    let before = published(relay).await;
    await_publishing(relay, before, SOON).await;
}
