//! Rows that can't be published: each blocks its aggregate, all others flow, and everybody is told.

use uuid::Uuid;

use super::scene::{Pair, SOON, Scene, execute, has, insert, retry_all, stop};
use crate::harness::oracle::{Truth, payload};
use crate::harness::relay::{Relay, RelayConfig};
use crate::harness::topic::TopicReader;
use crate::harness::wait_until;

/// What the row at fault looks like, and what is written of it.
struct Fault {
    /// Sets further columns of the row.
    columns: &'static str,
    values: String,
    padding_bytes: usize,
    /// Part of the reason that status and log give.
    reason: &'static str,
}

/// A scene in which one aggregate is blocked.
struct Blocked {
    scene: Scene,
    relay: Relay,
    reader: TopicReader,
    row: Uuid,
    /// Later rows of the same aggregate.
    followers: Vec<Uuid>,
}

impl Blocked {
    /// Writes 200 good rows with the bad one among them, and waits until what may flow has flowed.
    async fn new(scene: Scene, fault: Fault) -> Self {
        let relay = scene.start_steady().await;
        let (client, mut reader) = (&scene.client, scene.reader());
        insert(client, "order-0", 1).await;
        execute(client, "BEGIN").await;
        for version in 1..=100 {
            insert(client, &format!("order-{}", 1 + version % 7), version).await;
        }
        let row = insert_fault(&scene, &fault).await;
        let mut followers = Vec::new();
        for version in 101..=200 {
            insert(client, &format!("order-{}", 1 + version % 7), version).await;
            if version % 20 == 0 {
                followers.push(insert(client, "order-0", version).await);
            }
        }
        execute(client, "COMMIT").await;
        scene.wait_for(&mut reader, 201).await;
        let last = insert(client, "order-0", 201).await;
        followers.push(last);
        let other = insert(client, "order-1", 201).await;
        scene.wait_for_row(&mut reader, other).await;
        let mut blocked = Self {
            scene,
            relay,
            reader,
            row,
            followers,
        };
        blocked.assert_held();
        blocked.wait_until_told(fault.reason).await;
        blocked
    }

    fn assert_held(&mut self) {
        let reads = tokio::task::block_in_place(|| self.reader.read_to_end());
        let held = std::iter::once(&self.row).chain(&self.followers);
        for id in held {
            assert!(!has(reads, *id), "{id} was published");
        }
    }

    /// Status, metrics and log name the row and the reason.
    async fn wait_until_told(&self, reason: &str) {
        let id = self.row.to_string();
        wait_until(
            "status, metrics and log tell of the row",
            SOON,
            async || {
                let status = self.relay.try_status()?;
                let held = &status["held"][0];
                let is_held = held["event_id"] == id
                    && held["aggregate_type"] == "order"
                    && held["rows"] == 1 + self.followers.len()
                    && held["reason"]
                        .as_str()
                        .is_some_and(|text| text.contains(reason));
                if !is_held {
                    return Err(format!("status: {status}"));
                }
                for metric in [
                    "outboxd_held_aggregates",
                    "outboxd_blocked_aggregates_total",
                ] {
                    let value = self.relay.metric(metric).await;
                    if value != Some(1.0) {
                        return Err(format!("{metric}: {value:?}"));
                    }
                }
                let log = self.relay.log();
                let line = log
                    .lines()
                    .find(|line| line.contains("ERROR") && line.contains(&id));
                line.map(drop)
                    .ok_or_else(|| "no line of the log names the row".to_owned())
            },
        )
        .await;
    }

    /// Starts the relay again, with another configuration; what was held goes out in order.
    async fn mend(self, config: RelayConfig) {
        self.mend_with(config, 0).await;
    }

    /// `mend` with so many duplicates allowed.
    async fn mend_with(mut self, config: RelayConfig, duplicates_max: usize) {
        stop(&mut self.relay);
        self.scene.config = config;
        retry_all(&self.scene);
        let mut relay = self.scene.start();
        self.scene
            .judge_to_the_end_with(&mut relay, duplicates_max)
            .await;
    }
}

/// Inserts the row at fault: `order-0`, version 2.
async fn insert_fault(scene: &Scene, fault: &Fault) -> Uuid {
    let (event_id, aggregate, version) = (Uuid::new_v4(), "order-0".to_owned(), 2);
    let row = Truth {
        event_id,
        aggregate,
        version,
    };
    let padding: String = (0..fault.padding_bytes)
        .map(|_| fastrand::alphanumeric())
        .collect();
    let sql = format!(
        "WITH truth AS (INSERT INTO truth VALUES ($1, 'order-0', 2))
         INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload{})
         VALUES ($1, 'order', 'order-0', 'Changed', $2::text::json{})",
        fault.columns, fault.values
    );
    let done = scene
        .client
        .execute(&sql, &[&event_id, &payload(&row, &padding)])
        .await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    event_id
}

/// Fixed by a wider `route.allow`: the row's own topic is then the one all others have.
pub async fn a_topic_that_is_not_allowed_blocks_its_aggregate(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    let (topic, other) = (scene.topic(), format!("{}.other", scene.database.name));
    scene.create_topic(&other, &[]).await;
    scene.config = scene.config.clone().topic(&topic);
    let fault = Fault {
        columns: ", topic",
        values: format!(", '{other}'"),
        padding_bytes: 0,
        reason: "route.allow",
    };
    let mut blocked = Blocked::new(scene, fault).await;
    stop(&mut blocked.relay);
    let Blocked {
        scene,
        reader: mut orders,
        row,
        followers,
        ..
    } = blocked;
    retry_all(&scene);
    let allowed = toml_edit::Array::from_iter([topic, other.clone()]);
    let mut relay = Relay::start(&scene.config.clone().set("route.allow", allowed));
    let last = followers.last().expect("a follower");
    scene.wait_for_row(&mut orders, *last).await;
    let others = scene.kafka.read_topic(&other);
    assert!(others.len() == 1 && has(&others, row));
    let ids: Vec<_> = followers.iter().map(Uuid::to_string).collect();
    let reads = orders.read_to_end().iter();
    let published: Vec<_> = reads
        .filter_map(|read| read.header("id"))
        .filter(|id| ids.iter().any(|own| own == id))
        .collect();
    assert_eq!(published, ids);
    scene.wait_until_marked().await;
    scene.wait_until_confirmed().await;
    stop(&mut relay);
}

/// Fixed by an UPDATE where the rows are marked, for what was held is read from the table.
pub async fn a_reserved_header_blocks_its_aggregate(pair: Pair) {
    let scene = Scene::new(pair).await;
    let fault = Fault {
        columns: ", headers",
        values: r#", '{"id": "another"}'"#.to_owned(),
        padding_bytes: 0,
        reason: "reserved",
    };
    let mut blocked = Blocked::new(scene, fault).await;
    if pair.mark != "none" {
        let sql = format!(
            "UPDATE outbox SET headers = NULL WHERE id = '{}'",
            blocked.row
        );
        execute(&blocked.scene.client, &sql).await;
        let config = blocked.scene.config.clone();
        return blocked.mend(config).await;
    }
    stop(&mut blocked.relay);
    blocked.relay.restart();
    let other = insert(&blocked.scene.client, "order-1", 202).await;
    blocked.scene.wait_for_row(&mut blocked.reader, other).await;
    blocked.assert_held();
}

/// Fixed by a higher `message.max.bytes`.
pub async fn a_row_above_our_limit_blocks_its_aggregate(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    let config = scene.config.clone();
    scene.config = config.clone().kafka_property("message.max.bytes", "100000");
    let fault = Fault {
        columns: "",
        values: String::new(),
        padding_bytes: 150_000,
        reason: "message.max.bytes",
    };
    Blocked::new(scene, fault).await.mend(config).await;
}

/// A real broker refuses the row and its whole request; fixed by a higher limit of the topic.
pub async fn a_row_that_the_broker_refuses_blocks_its_aggregate(pair: Pair) {
    let scene = Scene::new(pair).await;
    scene.limit_records("20000").await;
    let fault = Fault {
        columns: "",
        values: String::new(),
        padding_bytes: 60_000,
        reason: "",
    };
    let blocked = Blocked::new(scene, fault).await;
    blocked.scene.limit_records("1000000").await;
    // Each refusal ends a producer, which may leave records unreported that the broker has (S6).
    let duplicates_max = 400;
    let config = blocked.scene.config.clone();
    blocked.mend_with(config, duplicates_max).await;
}
