//! The relay itself on a server that admits it by TLS alone: every connection it makes, and rotation under way.

use std::fs;

use crate::harness::relay::Relay;
use crate::orders::{Orders, wait_for_status};

use super::*;

/// Every connection of a relay, and whether it is encrypted.
const CONNECTIONS: &str = "
    SELECT a.application_name, s.ssl FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)
    WHERE a.usename = $1 AND a.datname = current_database()";

#[tokio::test(flavor = "multi_thread")]
async fn replication_works_by_tls_alone() {
    works_by_tls_alone(
        "replication",
        &["marks", "lease", "replication", "sweep", "watch"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_works_by_tls_alone() {
    works_by_tls_alone("polling", &["marks", "lease", "polling"]).await;
}

async fn works_by_tls_alone(mode: &str, purposes: &[&str]) {
    let server = Secured::shared().await;
    let orders = Orders::create(&server.postgres, "tls", |config| config.mode(mode)).await;
    grant(&orders, "bound");
    let bound = format!("{}&channel_binding=require", server.verified("verify-full"));
    let url = url_of(server, &orders, "bound", &bound);
    let config = orders.config.clone().set("source.url", url.as_str());
    let (is_complete, said) = check(&orders.config, &url);
    assert!(
        is_complete && said.contains("the certificate and its name are verified"),
        "{said}"
    );

    let relay = Relay::start(&config);
    let ids = orders.insert(2_000).await;
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    let status = config.outboxd(&["status"]);
    assert!(status.status.success());
    wait_until("every purpose has its connection", SOON, async || {
        let rows = orders.client.query(CONNECTIONS, &[&"bound"]).await.unwrap();
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        for row in &rows {
            assert!(
                row.get::<_, bool>(1),
                "{} is not encrypted",
                row.get::<_, String>(0)
            );
        }
        let has = |purpose: &&&str| !names.iter().any(|name| name.ends_with(**purpose));
        match purposes.iter().find(has) {
            None => Ok(()),
            Some(purpose) => Err(format!("no `{purpose}` among {names:?}")),
        }
    })
    .await;
    assert_no_secret(&relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_certificates_and_passwords_are_picked_up_without_a_restart() {
    let mut server = Secured::start(USUAL).await;
    let orders = Orders::create(&server.postgres, "rotated", |config| config).await;
    grant(&orders, "twofold");
    let files = server.client("twofold");
    let parameters = with_client(&server.verified("verify-full"), &files);
    let url_file = server.folder.join("url");
    let url = url_of(&server, &orders, "twofold", &parameters);
    fs::write(&url_file, &url).unwrap();
    let file = url_file.display().to_string();
    let config = orders
        .config
        .clone()
        .set("source.url_file", file)
        .without("source.url");
    let mut relay = Relay::start(&config);
    let ids = orders.insert(1).await;
    orders.wait_for(&ids).await;

    // A new authority, new certificates on both sides, a new password.
    server.authority = Identity::authority("the next authority", Signature::RsaSha256);
    server
        .postgres
        .configure_tls(&server.authority.issue(&super::server()), &server.authority);
    server.postgres.reload();
    orders.run("ALTER ROLE twofold PASSWORD 'hunter3'").await;
    orders
        .run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'twofold'")
        .await;
    wait_for_status(&relay, "the server is refused", |status| {
        status
            .to_string()
            .contains("name the authority that issued it in `sslrootcert`")
    })
    .await;
    server.authority.write(&server.folder, "authority");
    server.client("twofold");
    fs::write(&url_file, url.replace(PASSWORD, "hunter3")).unwrap();

    let ids = orders.insert(1).await;
    orders.wait_for(&ids).await;
    assert!(relay.is_running());
    assert_no_secret(&relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_asks_for_tls_says_that_the_server_has_none() {
    let orders = Orders::create(Postgres::shared(USUAL).await, "no_tls", |config| config).await;
    let url = format!("{}?sslmode=require", orders.database.url);
    let text = "offers no TLS and `sslmode=require` never goes without";
    let (is_complete, said) = check(&orders.config, &url);
    assert!(!is_complete && said.contains(text), "{said}");
    let relay = Relay::start(&orders.config.clone().set("source.url", url));
    wait_for_status(&relay, text, |status| status.to_string().contains(text)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_systems_own_authorities_are_trusted_where_the_url_says_so() {
    let server = Secured::shared().await;
    let orders = Orders::create(&server.postgres, "system", |config| config).await;
    grant(&orders, "bound");
    let url = url_of(server, &orders, "bound", "sslrootcert=system");
    let (is_complete, said) = check(&orders.config, &url);
    assert!(
        !is_complete && said.contains("the server's certificate is refused"),
        "{said}"
    );
    let file = server.folder.join("authority.crt").display().to_string();
    let config = orders.config.clone().set("source.url", url);
    let _relay = Relay::start_with(&config, &[("SSL_CERT_FILE", &file)]);
    let ids = orders.insert(1).await;
    orders.wait_for(&ids).await;
}

/// Gives a role what `migrate` gives a relay.
fn grant(orders: &Orders, role: &str) {
    let done = orders.config.outboxd(&["migrate", "--relay-role", role]);
    assert!(done.status.success());
}

fn url_of(server: &Secured, orders: &Orders, role: &str, parameters: &str) -> String {
    let url = server.url(role, parameters);
    url.replace("/postgres?", &format!("/{}?", orders.database.name))
}
