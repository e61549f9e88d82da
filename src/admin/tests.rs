use super::*;
use crate::config::{
    Mark, Mode, OnLostSlot, PollingConfig, ReplicationConfig, Secret, SourceConfig, UrlSource,
};
use crate::lease::{LeaseState, Role, Server};
use crate::publish::Delivered;

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

async fn started() -> (Admin, StatusCell, Arc<Metrics>) {
    let (status, metrics) = (StatusCell::new(&source()), Arc::new(Metrics::new()));
    let admin = Admin::start("127.0.0.1:0", status.clone(), metrics.clone()).await;
    (admin.expect("a free port"), status, metrics)
}

async fn ask(admin: &Admin, path: &str) -> (u16, String) {
    let url = format!("http://{}{path}", admin.address());
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
    status.state(crate::status::State::Publishing, "");
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
    metrics.delivered(&Delivered {
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
    let listen = admin.address().to_string();
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
