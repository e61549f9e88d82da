use super::super::facts::{Claim, PublicationFact};
use super::*;

fn table() -> TableName {
    TableName::parse("orders.outbox").expect("a name")
}

fn claim(slot: &str, outbox: &str) -> Claim {
    Claim {
        slot: slot.to_owned(),
        outbox: outbox.to_owned(),
        publication: Some(slot.to_owned()),
    }
}

fn facts(claims: Vec<Claim>, slots: &[&str]) -> Facts {
    let slot = |name: &&str| SlotFact {
        name: (*name).to_owned(),
        database: Some("shop".to_owned()),
        is_read: false,
        retained_bytes: Some(7),
    };
    let publication = |name: &&str| PublicationFact {
        name: (*name).to_owned(),
        has_table: true,
        is_as_made: true,
        others: Vec::new(),
    };
    let is_ours = |one: &&Claim| one.outbox == "orders.outbox";
    Facts {
        database: "shop".to_owned(),
        outbox: "orders.outbox".to_owned(),
        recorded: claims.iter().find(is_ours).cloned(),
        publications: slots.iter().map(publication).collect(),
        slots: slots.iter().map(slot).collect(),
        claims,
        ..Facts::default()
    }
}

fn refused(facts: &Facts, name: &str, reading: Reading) -> Vec<String> {
    let names = Names {
        slot: name.to_owned(),
        publication: name.to_owned(),
    };
    let slot = slot_refusal(facts, &names, reading, &table());
    let publication = publication_refusal(facts, &names, &table());
    let refusals = slot.into_iter().chain(publication);
    refusals.map(|one| one.text).collect()
}

#[test]
fn names_that_are_left_open_are_the_known_ones_and_else_hold_database_schema_and_table() {
    let open = |facts: &Facts| {
        let slot = super::slot(facts, &table());
        let publication = super::publication(facts, &table(), &slot);
        assert_eq!(slot, publication);
        slot
    };
    assert_eq!(open(&facts(vec![], &[])), "outboxd_shop__orders__outbox");
    let known = claim("mine", "orders.outbox");
    assert_eq!(open(&facts(vec![known.clone()], &["mine"])), "mine");
    // The server is another one, and the slot did not come along.
    assert_eq!(
        open(&facts(vec![known], &[])),
        "outboxd_shop__orders__outbox"
    );
    // Made by an earlier version for a relay that never ran.
    assert_eq!(open(&facts(vec![], &["outboxd_outbox"])), "outboxd_outbox");
    let others = facts(
        vec![claim("outboxd_outbox", "billing.outbox")],
        &["outboxd_outbox"],
    );
    assert_eq!(open(&others), "outboxd_shop__orders__outbox");
}

#[test]
fn a_slot_and_a_publication_of_another_outbox_are_refused_with_its_name() {
    let facts = facts(vec![claim("taken", "billing.outbox")], &["taken"]);
    let said = refused(&facts, "taken", Reading::ByTable);
    assert_eq!(said.len(), 2, "{said:?}");
    let names_it = |text: &String| text.contains("`billing.outbox`");
    assert!(said.iter().all(names_it), "{said:?}");
}

#[test]
fn a_slot_that_two_outboxes_have_read_is_refused_to_both() {
    let both = vec![
        claim("shared", "orders.outbox"),
        claim("shared", "billing.outbox"),
    ];
    let facts = facts(both, &["shared"]);
    assert_eq!(refused(&facts, "shared", Reading::BySlot).len(), 2);
}

#[test]
fn a_slot_that_nobody_knows_is_taken_only_beside_its_twin() {
    let mut facts = facts(vec![], &["there"]);
    assert!(refused(&facts, "there", Reading::ByTable).is_empty());
    facts.publications[0].is_as_made = false;
    let said = refused(&facts, "there", Reading::ByTable);
    assert!(
        said.len() == 1 && said[0].contains("nothing says that it is this outbox's"),
        "{said:?}"
    );
    assert!(refused(&facts, "not_there", Reading::ByTable).is_empty());
}

#[test]
fn without_a_mark_another_slot_is_a_decision() {
    let facts = facts(vec![claim("a", "orders.outbox")], &["a"]);
    assert!(refused(&facts, "b", Reading::ByTable).is_empty());
    let said = refused(&facts, "b", Reading::BySlot);
    assert!(
        said.len() == 1 && said[0].contains("`a`, which still stands"),
        "{said:?}"
    );
    assert!(refused(&facts, "a", Reading::BySlot).is_empty());
}

#[test]
fn a_slot_of_ours_that_nobody_reads_is_named_with_the_statement_that_drops_it() {
    let both = vec![claim("a", "orders.outbox"), claim("b", "orders.outbox")];
    let mut facts = facts(both, &["a", "b"]);
    let left = leftovers(&facts, "b");
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].remedy, "SELECT pg_drop_replication_slot('a');");
    facts.slots[0].is_read = true;
    assert!(leftovers(&facts, "b").is_empty());
}
