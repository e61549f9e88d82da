//! A synchronous standby that has everything on disk and applies nothing.
//!
//! A commit with `synchronous_commit = remote_apply` waits for it for ever: flushed, sent by the walsender, and visible to
//! nobody. Every other commit goes on. It speaks the streaming replication protocol over a plain socket, so that no
//! program has to be installed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::JoinHandle;

use super::postgres::Postgres;
use super::{SOON, wait_until};

/// What PostgreSQL is to know it by: `synchronous_standby_names` names it.
const NAME: &str = "sb";

pub struct FlushingStandby {
    socket: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl FlushingStandby {
    /// A server's only synchronous standby from now on.
    pub async fn start(postgres: &mut Postgres) -> Self {
        postgres.configure(&[("synchronous_standby_names", NAME)]);
        postgres.reload();
        let standby = Self::attach(postgres).await;
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        wait_for(postgres, sql, 1).await;
        standby
    }

    /// Lets every COMMIT through that waits.
    pub async fn end(self, postgres: &mut Postgres) {
        postgres.configure(&[("synchronous_standby_names", "")]);
        postgres.reload();
        let sql = "SELECT length(current_setting('synchronous_standby_names'))::int8";
        wait_for(postgres, sql, 0).await;
    }

    /// Attaches to a server where the write-ahead log stands now.
    async fn attach(postgres: &Postgres) -> Self {
        let client = postgres.client("postgres").await;
        let sql = "SELECT pg_current_wal_flush_lsn()::text";
        let position: String = client.query_one(sql, &[]).await.expect("ask").get(0);
        let mut socket = TcpStream::connect(("127.0.0.1", postgres.port)).expect("connect");
        start(&mut socket, &position);
        let mut replies = socket.try_clone().expect("clone the socket");
        let thread = std::thread::spawn(move || {
            while let Some((kind, body)) = message(&mut replies) {
                if kind == b'd' {
                    confirm(&mut replies, &body);
                }
            }
        });
        Self {
            socket,
            thread: Some(thread),
        }
    }
}

impl Drop for FlushingStandby {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn wait_for(postgres: &Postgres, sql: &str, wanted: i64) {
    let client = postgres.client("postgres").await;
    wait_until("the server knows its standbys", SOON, async || {
        let row = client.query_one(sql, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            found if found == wanted => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

fn start(socket: &mut TcpStream, position: &str) {
    let parameters = [
        ("user", "postgres"),
        ("replication", "true"),
        ("application_name", NAME),
    ];
    let mut startup = 196_608_u32.to_be_bytes().to_vec();
    for (name, value) in parameters {
        startup.extend_from_slice(name.as_bytes());
        startup.push(0);
        startup.extend_from_slice(value.as_bytes());
        startup.push(0);
    }
    startup.push(0);
    send(socket, None, &startup);
    await_kind(socket, b'Z');
    let query = format!("START_REPLICATION PHYSICAL {position}\0");
    send(socket, Some(b'Q'), query.as_bytes());
    await_kind(socket, b'W');
}

fn await_kind(socket: &mut TcpStream, wanted: u8) {
    loop {
        let (kind, body) = message(socket).expect("the server goes on");
        assert!(kind != b'E', "{}", String::from_utf8_lossy(&body));
        if kind == wanted {
            return;
        }
    }
}

/// Says that what arrived is written and flushed, and that nothing is applied.
fn confirm(socket: &mut TcpStream, body: &[u8]) {
    let number = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().expect("8 bytes"));
    let end = match body.first() {
        Some(b'w') => number(1) + (body.len() - 25) as u64,
        Some(b'k') => number(1),
        _ => return,
    };
    let mut status = vec![b'r'];
    for position in [end, end, 0, 0] {
        status.extend_from_slice(&position.to_be_bytes());
    }
    status.push(0);
    send(socket, Some(b'd'), &status);
}

fn send(socket: &mut TcpStream, kind: Option<u8>, body: &[u8]) {
    let mut message: Vec<u8> = kind.into_iter().collect();
    message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    message.extend_from_slice(body);
    // The server may end at any time.
    let _ = socket.write_all(&message);
}

fn message(socket: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    socket.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes(head[1..].try_into().expect("4 bytes"));
    let mut body = vec![0; length as usize - 4];
    socket.read_exact(&mut body).ok()?;
    Some((head[0], body))
}
