use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::config::{
    Mark, Mode, OnLostSlot, PollingConfig, ReplicationConfig, Secret, SourceConfig, UrlSource,
};
use crate::publish::Deliveries;
use crate::state::lease::{LeaseState, Role, Server};
use crate::text::chain;
use std::net::SocketAddr;

fn source() -> SourceConfig {
    SourceConfig {
        url: UrlSource::Inline(Secret::new("postgres://nobody@localhost/none".to_owned())),
        mode: Mode::Replication,
        table: "outbox".to_owned(),
        columns: Default::default(),
        mark: Mark::Ledger,
        start: None,
        retention: None,
        order_column: None,
        polling: PollingConfig {
            interval: Duration::from_millis(100),
            batch_rows: 2000,
        },
        replication: ReplicationConfig {
            wal_budget_bytes: 1 << 30,
            slot: "outboxd_outbox".to_owned(),
            publication: "outboxd_outbox".to_owned(),
            on_lost_slot: OnLostSlot::Repair,
            catch_up: crate::config::CatchUpFrom::Stream,
            failover: true,
            sweep: std::time::Duration::from_secs(60),
        },
    }
}

/// A server on a port that was free.
struct Listening {
    admin: Admin,
    address: SocketAddr,
}

impl Listening {
    async fn stop(self) {
        self.admin.stop().await;
    }
}

async fn started() -> (Listening, StatusCell, Arc<Metrics>) {
    let (status, metrics) = (StatusCell::new(&source()), Arc::new(Metrics::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let admin = Admin::serve(listener, status.clone(), metrics.clone());
    (Listening { admin, address }, status, metrics)
}

async fn ask(admin: &Listening, path: &str) -> (u16, String) {
    let url = format!("http://{}{path}", admin.address);
    let asked = tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .new_agent();
        let mut answer = agent.get(&url).call().expect("it answers");
        let text = answer.body_mut().read_to_string().expect("a text");
        (answer.status().as_u16(), text)
    });
    asked.await.expect("no panic")
}

fn leads(epoch: i64) -> LeaseState {
    LeaseState {
        role: Role::Leader {
            epoch,
            valid_until: Duration::MAX,
        },
        server: Server::Connected,
        shutdown_notices: 0,
        last_error: None,
    }
}

#[tokio::test]
async fn a_relay_that_waits_is_alive_and_ready_but_not_strictly() {
    let (admin, status, _) = started().await;
    status.lease(&LeaseState {
        role: Role::Standby {
            holder: "elsewhere".to_owned(),
        },
        ..leads(1)
    });
    let text = "standby, waiting: another relay holds the lease\n".to_owned();
    assert_eq!(ask(&admin, "/livez").await, (200, text.clone()));
    assert_eq!(ask(&admin, "/readyz").await, (200, text.clone()));
    assert_eq!(ask(&admin, "/readyz?strict").await, (503, text));
    status.lease(&leads(7));
    status.state(crate::observe::status::State::Publishing, "");
    let text = "leader, publishing\n".to_owned();
    assert_eq!(ask(&admin, "/readyz?strict").await, (200, text));
    admin.stop().await;
}

#[tokio::test]
async fn a_halt_is_alive_and_says_why() {
    let (admin, status, _) = started().await;
    status.lease(&leads(7));
    status.halt("the slot is lost");
    status.lease(&leads(7));
    let text = "halted: the slot is lost\n".to_owned();
    assert_eq!(ask(&admin, "/livez").await, (200, text.clone()));
    assert_eq!(ask(&admin, "/readyz?strict").await, (503, text));
    let (_, metrics) = ask(&admin, "/metrics").await;
    assert!(
        metrics.contains("outboxd_role{role=\"halted\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn metrics_and_report_agree() {
    let (admin, status, metrics) = started().await;
    metrics.read(12);
    metrics.delivered(&Deliveries {
        tickets: (0..10).collect(),
        bytes: 700,
    });
    metrics.marked(9, Duration::from_millis(3));
    metrics.session_ended("source_lost");
    status.lease(&leads(7));
    status.update(|status| status.in_flight.rows = 3);
    let (code, text) = ask(&admin, "/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "outboxd_read_rows_total 12",
        "outboxd_published_rows_total 10",
        "outboxd_published_bytes_total 700",
        "outboxd_marked_rows_total 9",
        "outboxd_checkpoint_duration_seconds_count 1",
        "outboxd_sessions_total{reason=\"source_lost\"} 1",
        "outboxd_lease_epoch 7",
        "outboxd_in_flight_rows 3",
        "outboxd_up{peer=\"postgres\"} 1",
        "outboxd_lag_rows NaN",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} in {text}");
    }
    let (_, report) = ask(&admin, "/status").await;
    let report: Status = serde_json::from_str(&report).expect("a report");
    assert_eq!(report.table, "public.outbox");
    assert_eq!(report.in_flight.rows, 3);
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let (admin, status, metrics) = started().await;
    let listen = admin.address.to_string();
    let refused = Admin::start(&listen, status, metrics).await.err();
    let text = chain(&refused.expect("it is taken"));
    assert!(
        text.contains(&listen) && text.contains("admin.listen"),
        "{text}"
    );
}

#[test]
fn strict_is_a_word_in_the_query() {
    for query in ["strict", "strict=1", "a=b&strict=true"] {
        assert!(is_strict(Some(query)), "{query}");
    }
    for query in ["", "strict=false", "stricter"] {
        assert!(!is_strict(Some(query)), "{query}");
    }
    assert!(!is_strict(None));
}

async fn connect(admin: &Listening) -> TcpStream {
    let stream = TcpStream::connect(admin.address).await;
    stream.expect("a connection")
}

/// What the other side said before it closed the connection.
async fn read_to_end(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).expect("a text")
}

#[tokio::test]
async fn silent_connections_give_way_and_probes_are_answered() {
    let (admin, _, _) = started().await;
    let mut silent = Vec::new();
    for _ in 0..150 {
        silent.push(connect(&admin).await);
    }
    let asked = timeout(Duration::from_secs(2), ask(&admin, "/livez")).await;
    assert_eq!(asked.expect("in time").0, 200);
    let first = timeout(Duration::from_secs(2), read_to_end(silent.remove(0))).await;
    assert_eq!(first.expect("the oldest has ended"), "");
    admin.stop().await;
}

#[tokio::test]
async fn whoever_sends_nothing_or_a_byte_a_second_is_closed_after_five_seconds() {
    let (admin, _, _) = started().await;
    let (silent, slow) = (connect(&admin).await, connect(&admin).await);
    let (read, mut write) = slow.into_split();
    let slowly = async {
        for byte in b"GET /livez HTTP/1.1" {
            if write.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let read_slow = async {
        let mut read = read;
        let mut bytes = Vec::new();
        let _ = read.read_to_end(&mut bytes).await;
    };
    let both = async { tokio::join!(read_to_end(silent), read_slow) };
    let ended = tokio::select! {
        ended = timeout(Duration::from_secs(8), both) => ended,
        () = slowly => unreachable!("it takes 19 s"),
    };
    ended.expect("both are closed");
    admin.stop().await;
}

#[tokio::test]
async fn whoever_never_reads_the_answer_keeps_no_connection() {
    let (admin, _, _) = started().await;
    let mut unread = Vec::new();
    for _ in 0..150 {
        let mut stream = connect(&admin).await;
        let requests = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
        // It may be closed amid them.
        let _ = stream.write_all(requests.as_bytes()).await;
        unread.push(stream);
    }
    let asked = timeout(Duration::from_secs(2), ask(&admin, "/livez")).await;
    assert_eq!(asked.expect("in time").0, 200);
    admin.stop().await;
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused() {
    let (admin, _, _) = started().await;
    for (header_bytes, code) in [(12 << 10, "200"), (64 << 10, "431")] {
        let mut stream = connect(&admin).await;
        let header = "a".repeat(header_bytes);
        let request = format!("GET /livez HTTP/1.1\r\nHost: a\r\nX-A: {header}\r\n\r\n");
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, *format!("HTTP/1.1 {code}").as_bytes());
    }
    admin.stop().await;
}
