//! Which names are this outbox's, and why others are not. Pure.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::Names;
use super::facts::{Facts, SlotFact};
use crate::config::{SourceConfig, TableName};
use crate::postgres::compatibility::Incompatibility;

/// What tells the rows that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The table, by its marks: another slot loses nothing.
    ByTable,
    /// The slot alone.
    BySlot,
}

/// The names that a configuration means: given ones, else those that the state knows, else the default ones.
pub(super) fn choose(facts: &Facts, source: &SourceConfig, table: &TableName) -> Names {
    let given = &source.replication;
    let slot = match given.slot.as_str() {
        "" => slot(facts, table),
        slot => slot.to_owned(),
    };
    let publication = match given.publication.as_str() {
        "" => publication(facts, table, &slot),
        publication => publication.to_owned(),
    };
    Names { slot, publication }
}

fn slot(facts: &Facts, table: &TableName) -> String {
    let default = table.slot(&facts.database);
    let stands = |slot: &str| facts.has_slot(slot);
    if let Some(recorded) = facts.recorded.as_ref().filter(|one| stands(&one.slot)) {
        return recorded.slot.clone();
    }
    let ours: Vec<&str> = facts
        .ours()
        .map(|claim| claim.slot.as_str())
        .filter(|slot| stands(slot))
        .collect();
    match ours[..] {
        [only] => return only.to_owned(),
        [first, ..] if ours.iter().all(|one| *one == first) => return first.to_owned(),
        _ => {}
    }
    let short = table.short_slot();
    if !stands(&default) && stands(&short) && is_made_for_us(facts, &short) {
        return short;
    }
    default
}

fn publication(facts: &Facts, table: &TableName, slot: &str) -> String {
    let stands = |name: &&str| facts.publication(name).is_some();
    let ours = facts.ours().filter(|claim| claim.slot == slot);
    let known = ours
        .chain(&facts.recorded)
        .filter_map(|claim| claim.publication.as_deref());
    if let Some(known) = known.into_iter().find(stands) {
        return known.to_owned();
    }
    let short = table.short_slot();
    let publishes_us = facts
        .publication(&short)
        .is_some_and(|one| one.has_table && one.others.is_empty());
    if facts.has_slot(slot) && publishes_us && facts.other_publishers(&short).is_empty() {
        return short;
    }
    table.slot(&facts.database)
}

/// Whether a slot that nobody has claimed stands beside its twin: a publication of its name with this table
/// alone, as `migrate` has always made both.
pub(crate) fn is_made_for_us(facts: &Facts, slot: &str) -> bool {
    let twin = facts.publication(slot);
    let is_twin = twin.is_some_and(|one| one.has_table && one.is_as_made && one.others.is_empty());
    is_twin && facts.other_readers(slot).is_empty() && facts.other_publishers(slot).is_empty()
}

/// Why a slot is not this outbox's to use; nothing where it is, or where nobody has it.
pub(super) fn slot_refusal(
    facts: &Facts,
    names: &Names,
    reading: Reading,
    table: &TableName,
) -> Option<Incompatibility> {
    let name = &names.slot;
    let own = own_name(facts, name, table);
    let others = facts.other_readers(name);
    if !others.is_empty() {
        let owners = listed(&others);
        return Some(Incompatibility {
            text: format!(
                "slot `{name}` is read for {owners}: two outboxes on one slot take each other's rows"
            ),
            remedy: format!(
                "set source.replication.slot = \"{own}\" and source.replication.publication = \"{own}\"; or, if {owners} is \
                 gone for good: {}",
                forget(name, &others)
            ),
        });
    }
    if facts.ours().any(|claim| claim.slot == *name) {
        return None;
    }
    if facts.has_slot(name) {
        return (!is_made_for_us(facts, name)).then(|| Incompatibility {
            text: format!("slot `{name}` is there, and nothing says that it is this outbox's"),
            remedy: format!(
                "name another in source.replication.slot, such as \"{own}\"; or, if it was made for this outbox: {}",
                claim(facts, names)
            ),
        });
    }
    if facts.slot(name).is_some() || reading == Reading::ByTable {
        return None;
    }
    let other = facts.ours().find_map(|claim| {
        facts
            .slot(&claim.slot)
            .filter(|_| facts.has_slot(&claim.slot))
    })?;
    Some(Incompatibility {
        text: format!(
            "the configuration names slot `{name}`, and the rows were read through {}: without a mark only that one knows \
             which were sent",
            told(other)
        ),
        remedy: format!(
            "set source.replication.slot = \"{}\"; or, to read through `{name}` what is committed from its creation on: {}",
            other.name,
            claim(facts, names)
        ),
    })
}

/// Why a publication is not this outbox's to use: reading one that somebody else made for this table costs nobody anything.
pub(super) fn publication_refusal(
    facts: &Facts,
    names: &Names,
    table: &TableName,
) -> Option<Incompatibility> {
    let name = &names.publication;
    let own = own_name(facts, name, table);
    let remedy = format!("set source.replication.publication = \"{own}\"");
    let owners = facts.other_publishers(name);
    if !owners.is_empty() {
        return Some(Incompatibility {
            text: format!("publication `{name}` is the one of {}", listed(&owners)),
            remedy,
        });
    }
    let found = facts.publication(name)?;
    if facts.has_claimed_publication(name) {
        return None;
    }
    let others: Vec<&str> = found.others.iter().map(String::as_str).collect();
    if !others.is_empty() {
        return Some(Incompatibility {
            text: format!("publication `{name}` publishes {} too", listed(&others)),
            remedy,
        });
    }
    (!found.has_table).then(|| Incompatibility {
        text: format!(
            "publication `{name}` is there without table `{}`, and nothing says that it is this outbox's",
            facts.outbox
        ),
        remedy: format!(
            "{remedy}; or, if it is to publish this table too: ALTER PUBLICATION {} ADD TABLE {};",
            escape_identifier(name),
            table.quoted()
        ),
    })
}

/// Slots of this outbox that stand beside the one it reads, each with what is to be said of it and the statement that
/// drops it; an outbox that is polled reads none, `""`.
pub(crate) fn leftovers(facts: &Facts, slot: &str) -> Vec<Incompatibility> {
    let mut left: Vec<&SlotFact> = Vec::new();
    for claim in facts.ours().filter(|claim| claim.slot != slot) {
        let is_shared = !facts.other_readers(&claim.slot).is_empty();
        let found = facts.slot(&claim.slot).filter(|found| !found.is_read);
        let is_here = facts.has_slot(&claim.slot);
        if let Some(found) = found.filter(|found| is_here && !is_shared && !left.contains(found)) {
            left.push(found);
        }
    }
    let reads = match slot {
        "" => "the relay polls now".to_owned(),
        slot => format!("the relay reads `{slot}` now"),
    };
    let told = left.into_iter().map(|found| Incompatibility {
        text: format!(
            "the rows were read through slot {}: {reads}, and nobody reads that one",
            told(found)
        ),
        remedy: drop_statement(&found.name),
    });
    told.collect()
}

/// The statement that drops a slot.
pub(crate) fn drop_statement(slot: &str) -> String {
    format!(
        "SELECT pg_drop_replication_slot({});",
        escape_literal(slot).trim_start()
    )
}

fn told(slot: &SlotFact) -> String {
    match slot.retained_bytes {
        Some(bytes) => format!(
            "`{}`, which still stands and keeps {bytes} bytes of WAL",
            slot.name
        ),
        None => format!("`{}`, which still stands", slot.name),
    }
}

/// The default name, unless that is what is refused.
fn own_name(facts: &Facts, refused: &str, table: &TableName) -> String {
    let default = table.slot(&facts.database);
    match default == refused {
        true => format!("{}_2", &default[..default.len().min(61)]),
        false => default,
    }
}

fn listed(outboxes: &[&str]) -> String {
    let names: Vec<String> = outboxes.iter().map(|one| format!("`{one}`")).collect();
    names.join(", ")
}

/// The statement by which a person says that a slot is this outbox's.
fn claim(facts: &Facts, names: &Names) -> String {
    let literal = |text: &str| escape_literal(text).trim_start().to_owned();
    let (slot, publication) = (literal(&names.slot), literal(&names.publication));
    let outbox = literal(&facts.outbox);
    format!(
        "INSERT INTO outboxd.slot (slot, outbox, publication) VALUES ({slot}, {outbox}, {publication}) \
         ON CONFLICT (slot) DO UPDATE SET outbox = excluded.outbox, publication = excluded.publication;"
    )
}

/// The statements by which a person says that others do not read a slot any more.
fn forget(slot: &str, outboxes: &[&str]) -> String {
    let literal = |text: &str| escape_literal(text).trim_start().to_owned();
    let slot_literal = literal(slot);
    let mut sql = Vec::new();
    for outbox in outboxes {
        let name = literal(outbox);
        sql.push(format!(
            "DELETE FROM outboxd.slot WHERE slot = {slot_literal} AND outbox = {name}; \
             UPDATE outboxd.outbox SET slot = NULL WHERE slot = {slot_literal} AND outbox = {name};"
        ));
    }
    sql.join(" ")
}

#[cfg(test)]
mod tests;
