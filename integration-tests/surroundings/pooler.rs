//! Poolers, as far as a relay meets them: those that refuse what they do not pass on, and those that drop it.

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{await_reason, check};
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::orders::Orders;

/// What becomes of the settings at a session's start.
#[derive(Clone, Copy)]
enum Manner {
    /// As pgbouncer does by itself.
    Refuses(&'static str),
    /// As pgbouncer does with `ignore_startup_parameters = options`.
    Drops,
}

/// Stands before a server; gone when dropped.
struct Pooler {
    port: u16,
    task: JoinHandle<()>,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pooler {
    async fn start(server: u16, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, manner));
            }
        });
        Self { port, task }
    }
}

async fn serve(mut client: TcpStream, server: u16, manner: Manner) -> std::io::Result<()> {
    let mut startup = vec![0; client.read_u32().await? as usize - 4];
    client.read_exact(&mut startup).await?;
    match manner {
        Manner::Refuses(message) => {
            let fields = format!("SFATAL\0C08P01\0M{message}\0\0");
            client.write_u8(b'E').await?;
            client.write_u32(fields.len() as u32 + 4).await?;
            client.write_all(fields.as_bytes()).await
        }
        Manner::Drops => {
            let startup = without_options(&startup);
            let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
            server.write_u32(startup.len() as u32 + 4).await?;
            server.write_all(&startup).await?;
            copy_bidirectional(&mut client, &mut server).await.map(drop)
        }
    }
}

/// A startup message (its version, then names and values) less `options`.
fn without_options(startup: &[u8]) -> Vec<u8> {
    let (version, parameters) = startup.split_at(4);
    let mut kept = version.to_vec();
    let words: Vec<&[u8]> = parameters.split(|byte| *byte == 0).collect();
    for pair in words
        .chunks(2)
        .filter(|pair| pair.len() == 2 && !pair[0].is_empty())
    {
        if pair[0] != b"options" {
            kept.extend([pair[0], b"\0", pair[1], b"\0"].concat());
        }
    }
    kept.push(0);
    kept
}

async fn behind(manner: Manner, text: &str) {
    let orders = Orders::create(Postgres::shared(USUAL).await, "pooler", |config| config).await;
    let pooler = Pooler::start(orders.database.port(), manner).await;
    let (port, name) = (pooler.port, &orders.database.name);
    let url = format!("postgres://postgres@127.0.0.1:{port}/{name}?sslmode=disable");
    let config = orders.config.clone().set("source.url", url);
    let checked = check(&config, 1);
    assert!(
        checked.contains(text) && checked.contains("source.url"),
        "{checked}"
    );
    let migrated = config.outboxd(&["migrate"]);
    let said = said(&migrated);
    assert!(!migrated.status.success() && said.contains(text), "{said}");
    let relay = Relay::start(&config);
    await_reason(&relay, text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_refuses_settings_is_named() {
    for message in [
        "unsupported startup parameter: options",
        "unsupported startup parameter in options: quote_all_identifiers",
    ] {
        behind(Manner::Refuses(message), "a pooler such as pgbouncer").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_drops_settings_is_named() {
    behind(Manner::Drops, "a pooler such as pgbouncer").await;
}
