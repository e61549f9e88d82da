//! Somebody between us and the server who wants to read along: what it receives before we refuse.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// The request for TLS, all that anybody may read.
const REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];

/// Answers every connection's first bytes with `answer` and keeps what comes after them.
struct Stranger {
    port: u16,
    /// What each connection sent, until it ended.
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Stranger {
    async fn start(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let connections = heard.clone();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut said = vec![0; REQUEST.len()];
                let _ = stream.read_exact(&mut said).await;
                let _ = stream.write_all(answer).await;
                let _ = stream.read_to_end(&mut said).await;
                connections.lock().unwrap().push(said);
            }
        });
        Self { port, heard, task }
    }

    /// Both kinds of connection are refused with this text; gives what they sent.
    async fn assert_refused(&self, parameters: &str, text: &str) -> Vec<Vec<u8>> {
        let port = self.port;
        let url = format!("postgres://bound:{PASSWORD}@127.0.0.1:{port}/postgres?{parameters}");
        assert_refused(&url, text).await;
        wait_until("both connections have ended", SOON, async || {
            let heard = self.heard.lock().unwrap();
            let count = heard.len();
            (count == 2).then(|| heard.clone()).ok_or(count)
        })
        .await
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_in_plain_text_to_who_answers_no() {
    let folder = workspace::folder("certificates");
    Identity::authority("authority", Signature::EcdsaSha256).write(&folder, "authority");
    for mode in ["require", "verify-ca", "verify-full"] {
        let stranger = Stranger::start(b"N").await;
        let heard = stranger
            .assert_refused(&verified_by(&folder, mode), "offers no TLS")
            .await;
        assert_eq!(heard, [REQUEST, REQUEST]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_before_the_handshake_are_refused() {
    // An answer to a query that was never sent, for a client that reads it once it is encrypted.
    let answers: [&'static [u8]; 2] = [b"SR\0\0\0\x08\0\0\0\0", b"NR\0\0\0\x08\0\0\0\0"];
    for answer in answers {
        for mode in ["prefer", "require"] {
            let stranger = Stranger::start(answer).await;
            let heard = stranger
                .assert_refused(&format!("sslmode={mode}"), "tampers")
                .await;
            assert_eq!(heard, [REQUEST, REQUEST]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_instead_of_an_answer_is_not_believed() {
    let answer = b"E\0\0\0\x1dSFATAL\0C28000\0Mgo without\0\0";
    let stranger = Stranger::start(answer).await;
    let heard = stranger
        .assert_refused("sslmode=prefer", "with an error")
        .await;
    assert_eq!(heard, [REQUEST, REQUEST]);
}
