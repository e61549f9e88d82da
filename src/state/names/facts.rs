//! What the catalog and the state say of slots and publications. Reads only.

use tokio_postgres::Client;

use super::NamesError;
use crate::state::rename::{self, Home};

/// A slot that an outbox reads, as the state knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub slot: String,
    /// `schema.table`
    pub outbox: String,
    pub publication: Option<String>,
}

/// A slot of this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotFact {
    pub name: String,
    /// `None` for a physical one.
    pub database: Option<String>,
    pub is_read: bool,
    pub retained_bytes: Option<i64>,
}

/// A publication of this database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicationFact {
    pub name: String,
    /// It publishes this outbox, alone or among others.
    pub has_table: bool,
    /// It is as `migrate` makes it: no deletes, through the partition root.
    pub is_as_made: bool,
    /// Other outboxes that were added to it.
    pub others: Vec<String>,
}

/// All that is known of names that this outbox shares a space with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub database: String,
    /// `schema.table`, as the configuration names it.
    pub outbox: String,
    /// Where the state of the table stands.
    pub home: Home,
    /// The slot that the rows were read through last, and its publication.
    pub recorded: Option<Claim>,
    pub claims: Vec<Claim>,
    /// The slots that stand in `outboxd.slot` for this outbox.
    pub(super) noted: Vec<String>,
    pub slots: Vec<SlotFact>,
    pub publications: Vec<PublicationFact>,
}

impl Facts {
    pub(crate) async fn read(
        client: &Client,
        schema: &str,
        table: &str,
    ) -> Result<Self, NamesError> {
        let home = rename::home(client, schema, table).await?;
        Ok(Self::read_at(client, schema, table, home).await?)
    }

    async fn read_at(
        client: &Client,
        schema: &str,
        table: &str,
        home: Home,
    ) -> Result<Self, tokio_postgres::Error> {
        let database = "SELECT pg_catalog.current_database()::text";
        let mut facts = Self {
            database: client.query_one(database, &[]).await?.get(0),
            outbox: format!("{schema}.{table}"),
            home,
            ..Self::default()
        };
        let readable: Vec<String> = client.query_one(READABLE, &[]).await?.get(0);
        let may_read = |table: &str| readable.iter().any(|one| one == table);
        let has_outboxes = may_read("outbox");
        if has_outboxes {
            facts.read_recorded(client).await?;
        }
        if may_read("slot") {
            facts.read_claims(client).await?;
        } else if may_read("lease") {
            // Before there was a table for it the lease alone knew slots without a mark.
            facts.read_leases(client).await?;
        }
        for row in client.query(SLOTS, &[]).await? {
            facts.slots.push(SlotFact {
                name: row.get("slot_name"),
                database: row.get("database"),
                is_read: row.get("is_read"),
                retained_bytes: row.get("retained_bytes"),
            });
        }
        let others = if has_outboxes { OTHERS } else { NO_OTHERS };
        let publications = format!("{PUBLICATIONS} {others} ORDER BY p.pubname");
        for row in client.query(&publications, &[&schema, &table]).await? {
            facts.publications.push(PublicationFact {
                name: row.get("name"),
                has_table: row.get("has_table"),
                is_as_made: row.get("is_as_made"),
                others: row.get("others"),
            });
        }
        Ok(facts)
    }

    /// What was noted under the table's former name is its own.
    fn named_now(&self, outbox: String) -> String {
        match outbox == self.home.key(&self.outbox) {
            true => self.outbox.clone(),
            false => outbox,
        }
    }

    async fn read_recorded(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        for row in client.query(RECORDED, &[]).await? {
            let claim = Claim {
                slot: row.get("slot"),
                outbox: self.named_now(row.get("outbox")),
                publication: row.get("publication"),
            };
            if claim.outbox == self.outbox {
                self.recorded = Some(claim.clone());
            }
            self.claims.push(claim);
        }
        Ok(())
    }

    async fn read_claims(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        for row in client.query(CLAIMS, &[]).await? {
            let claim = Claim {
                slot: row.get("slot"),
                outbox: self.named_now(row.get("outbox")),
                publication: row.get("publication"),
            };
            if claim.outbox == self.outbox {
                self.noted.push(claim.slot.clone());
            }
            self.claims.push(claim);
        }
        Ok(())
    }

    async fn read_leases(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        for row in client.query(LEASES, &[]).await? {
            self.claims.push(Claim {
                slot: row.get("slot"),
                outbox: self.named_now(row.get("outbox")),
                publication: None,
            });
        }
        Ok(())
    }

    /// The slot of this name, in whatever database.
    pub(crate) fn slot(&self, name: &str) -> Option<&SlotFact> {
        self.slots.iter().find(|slot| slot.name == name)
    }

    /// Whether a slot of this name stands in this database.
    pub(crate) fn has_slot(&self, name: &str) -> bool {
        self.slot(name)
            .is_some_and(|slot| slot.database.as_ref() == Some(&self.database))
    }

    pub(crate) fn publication(&self, name: &str) -> Option<&PublicationFact> {
        self.publications.iter().find(|one| one.name == name)
    }

    /// Whether `outboxd.slot` says that a slot is this outbox's.
    pub(crate) fn has_noted(&self, slot: &str) -> bool {
        self.noted.iter().any(|one| one == slot)
    }

    /// The claims on a slot that are this outbox's.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Claim> {
        self.claims.iter().filter(|one| one.outbox == self.outbox)
    }

    /// Whether another slot of this outbox stands: one that another relay may read, where nothing is marked.
    pub(crate) fn has_another_than(&self, slot: &str) -> bool {
        self.ours()
            .any(|claim| claim.slot != slot && self.has_slot(&claim.slot))
    }

    /// Whether the state says that this outbox made the publication, or used it last.
    pub(crate) fn has_claimed_publication(&self, name: &str) -> bool {
        self.ours()
            .any(|claim| claim.publication.as_deref() == Some(name))
    }

    /// The other outboxes that a slot belongs to, each once.
    pub(crate) fn other_readers(&self, slot: &str) -> Vec<&str> {
        let others = self.claims.iter().filter(|one| one.slot == slot);
        self.each_once(others)
    }

    /// The other outboxes that a publication belongs to, each once.
    pub(crate) fn other_publishers(&self, publication: &str) -> Vec<&str> {
        let is_named = |one: &&Claim| one.publication.as_deref() == Some(publication);
        self.each_once(self.claims.iter().filter(is_named))
    }

    fn each_once<'a>(&'a self, claims: impl Iterator<Item = &'a Claim>) -> Vec<&'a str> {
        let mut names: Vec<&str> = claims
            .map(|claim| claim.outbox.as_str())
            .filter(|outbox| *outbox != self.outbox)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// The state tables that stand and that this role may read.
const READABLE: &str = "
    SELECT coalesce(array_agg(c.relname::text), '{}')
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'outboxd' AND c.relkind IN ('r', 'p')
      AND CASE WHEN pg_catalog.has_schema_privilege(n.oid, 'USAGE')
               THEN pg_catalog.has_table_privilege(c.oid, 'SELECT') ELSE false END";

const RECORDED: &str = "
    SELECT slot, outbox, publication FROM outboxd.outbox WHERE slot IS NOT NULL ORDER BY outbox";

const CLAIMS: &str = "SELECT slot, outbox, publication FROM outboxd.slot ORDER BY slot";

const LEASES: &str = "
    SELECT substring(outbox FROM '#([a-z0-9_]+)$') AS slot, regexp_replace(outbox, '#[a-z0-9_]+$', '') AS outbox
    FROM outboxd.lease WHERE outbox ~ '#[a-z0-9_]+$' ORDER BY 1";

const SLOTS: &str = "
    SELECT slot_name::text, database::text, active_pid IS NOT NULL AS is_read,
           pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
                                           THEN pg_catalog.pg_last_wal_replay_lsn()
                                           ELSE pg_catalog.pg_current_wal_lsn() END, restart_lsn)::int8
               AS retained_bytes
    FROM pg_catalog.pg_replication_slots ORDER BY slot_name";

/// The table may be published alone, with all tables or with its schema.
const PUBLICATIONS: &str = "
    SELECT p.pubname::text AS name,
           p.puballtables
           OR EXISTS (SELECT FROM pg_catalog.pg_publication_tables t
                      WHERE t.pubname = p.pubname AND t.schemaname = $1 AND t.tablename = $2)
           OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                      JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
                      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                      WHERE r.prpubid = p.oid AND n.nspname = $1 AND c.relname = $2) AS has_table,
           p.pubinsert AND p.pubviaroot AND NOT (p.pubdelete OR p.pubtruncate) AS is_as_made,
           o.others
    FROM pg_catalog.pg_publication p";

const NO_OTHERS: &str = "CROSS JOIN (SELECT '{}'::text[] AS others) o";

const OTHERS: &str = "
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(b.outbox ORDER BY b.outbox), '{}') AS others
        FROM pg_catalog.pg_publication_rel r
        JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN outboxd.outbox b ON b.table_oid = c.oid AND b.database = pg_catalog.current_database()
        WHERE r.prpubid = p.oid AND NOT (n.nspname = $1 AND c.relname = $2)) o";
