//! Strangers at the port of the admin server: what they do must cost the relay nothing.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::SOON;
use crate::harness::relay::Relay;
use crate::matrix::rig::{Rig, STREAMED, await_publishing};

const STRANGERS: usize = 150;
const DESCRIPTORS: usize = 128;
/// A probe of Kubernetes waits for a second, and three in a row must fail before it counts.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
const PROBES: usize = 3;

/// More of them than the relay may have descriptors: some say nothing, some do not end their request, some do not read.
#[tokio::test(flavor = "multi_thread")]
async fn many_connections_to_the_admin_server_leave_probes_and_the_relay_their_descriptors() {
    let mut rig = Rig::shared(STREAMED).await;
    let proxy = rig.through_proxy().await;
    let load = rig.load().await;
    let limit = format!("--nofile={DESCRIPTORS}");
    let relay = Relay::start_under(&rig.config, &["prlimit", &limit]);
    await_publishing(&relay, 0, SOON).await;
    let strangers: Vec<TcpStream> = (0..STRANGERS).map(|turn| stranger(&relay, turn)).collect();
    for path in ["/livez", "/readyz", "/metrics", "/status"] {
        let probes = (0..PROBES).map(|_| {
            let asked_at = Instant::now();
            let answer = relay.get(path).map(|(code, _)| code);
            assert_eq!(answer, Ok(200), "{path}");
            asked_at.elapsed()
        });
        let took = probes.min().expect("a probe");
        assert!(took < ANSWERS_WITHIN, "{path} took {took:?}");
    }
    proxy.cut();
    let published = relay.metric("outboxd_published_rows_total").await;
    let published = published.expect("a metric") as u64;
    await_publishing(&relay, published, SOON).await;
    let open = fs::read_dir(format!("/proc/{}/fd", relay.id()));
    let open = open.expect("list its descriptors").count();
    assert!(open < DESCRIPTORS, "{open} descriptors are open");
    drop(strangers);
    rig.judge(load, usize::MAX).await;
}

fn stranger(relay: &Relay, turn: usize) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", relay.admin_port()));
    let mut stream = stream.expect("a connection");
    let said: &[u8] = match turn % 3 {
        0 => b"",
        1 => b"GET /livez HTTP/1.1\r\nHost:",
        _ => b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
    };
    // It may have given way to another one already.
    let _ = stream.write_all(said);
    stream
}
