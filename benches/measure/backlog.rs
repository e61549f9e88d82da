//! The backlog that every round drains anew.

use tokio_postgres::Client;

use crate::contender::Mode;
use crate::kafka::Kafka;
use crate::relay::Relay;
use crate::stand::Stand;
use crate::workload::{self, Workload};

const DATABASE: &str = "backlog";

/// Copies every table of the relay's state, so that each round starts where the first one did.
const SAVE_STATE: &str = "
    CREATE SCHEMA saved;
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'outboxd' LOOP
            EXECUTE format('CREATE TABLE saved.%I AS TABLE outboxd.%I', name, name);
        END LOOP;
    END $$;";
const RESTORE_STATE: &str = "
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'saved' LOOP
            EXECUTE format('DELETE FROM outboxd.%I', name);
            EXECUTE format('INSERT INTO outboxd.%I OVERRIDING SYSTEM VALUE TABLE saved.%I', name, name);
        END LOOP;
    END $$;";

/// A database with a full outbox that nobody has read, and a full slot of which rounds read copies.
pub struct Backlog<'a> {
    pub relay: Relay<'a>,
    pub kafka: &'a Kafka,
    pub client: Client,
    pub workload: Workload,
    /// Where the stream of the backlog ends.
    pub end_lsn: String,
}

impl<'a> Backlog<'a> {
    /// Creates outbox and slot, lets a relay take possession of them, and fills the table.
    pub async fn fill(stand: &'a Stand, workload: &Workload) -> anyhow::Result<Self> {
        let relay = stand.relay(DATABASE, Mode::Replication, "ledger");
        let client = relay.prepare(&stand.kafka).await?;
        eprintln!(
            "{}: {} rows, {}",
            workload.name, workload.rows, workload.about
        );
        fill(&client, workload).await?;
        let position = "SELECT pg_current_wal_insert_lsn()::text";
        let end_lsn = client.query_one(position, &[]).await?.get(0);
        client
            .batch_execute("SET synchronous_commit = on; CREATE TABLE flushed ()")
            .await?;
        client.batch_execute("CHECKPOINT").await?;
        client.batch_execute(SAVE_STATE).await?;
        Ok(Self {
            relay,
            kafka: &stand.kafka,
            client,
            workload: *workload,
            end_lsn,
        })
    }

    /// Makes a copy of the full slot, and the relay forget every earlier round.
    ///
    /// It knows the copy as its slot: through another one than before it would read the table first.
    pub async fn rewind(&self, slot: &str) -> anyhow::Result<()> {
        self.client.batch_execute(RESTORE_STATE).await?;
        let full = self.relay.slot;
        let copy = format!(
            "SELECT pg_copy_logical_replication_slot('{full}', '{slot}');
             UPDATE outboxd.outbox SET slot = '{slot}'"
        );
        self.client.batch_execute(&copy).await?;
        Ok(())
    }
}

/// Fills the outbox and settles the table, as a table is that autovacuum looks after.
pub async fn fill(client: &Client, workload: &Workload) -> anyhow::Result<()> {
    client.batch_execute(workload::PROCEDURE).await?;
    client.batch_execute("SET synchronous_commit = off").await?;
    client.batch_execute(&workload.fill()).await?;
    client.batch_execute("VACUUM ANALYZE public.outbox").await?;
    Ok(())
}
