//! The one scenario: what an outbox goes through from its first start to its last stop.
//!
//! A step that a mode can't do is left out by a rule here, never by hand.

use super::case::{Outbox, allow_all, until};
use super::check::{self, Answer};
use super::events::Wanted;
use super::shape::{PAIRS, Pair, filled};
use crate::harness::postgres::Postgres;
use crate::harness::standby::FlushingStandby;

type Step = Result<(), String>;

/// Rows that give each of the aggregates two.
const ROWS: u64 = 14;

pub async fn run(outboxes: &mut [Outbox], server: &mut Postgres) -> Step {
    for outbox in &mut *outboxes {
        named("first start", first_start(outbox).await)?;
    }
    for outbox in &mut *outboxes {
        named("rows that come", stream(outbox).await)?;
        named("changes by others", changes(outbox).await)?;
        named("a blocked row", blocked(outbox).await)?;
        named("rows beside it", outbox.await_published().await)?;
        named("a commit that is not seen", unseen(outbox, server).await)?;
    }
    for outbox in &mut *outboxes {
        named("while it is away", away(outbox).await)?;
    }
    for outbox in &mut *outboxes {
        named("the retry", retry(outbox).await)?;
    }
    for outbox in &mut *outboxes {
        named("marks", settled(outbox).await)?;
    }
    for outbox in &mut *outboxes {
        named("another mode and mark", switched(outbox).await)?;
    }
    for outbox in &mut *outboxes {
        named("the last stop", outbox.stop())?;
    }
    Ok(())
}

fn named(step: &str, done: Step) -> Step {
    done.map_err(|fault| format!("{step}: {fault}"))
}

/// Old rows are published or skipped, then new ones come.
async fn first_start(outbox: &mut Outbox) -> Step {
    outbox.start();
    publishing(outbox).await?;
    outbox.await_published().await?;
    outbox.writer.insert(ROWS).await?;
    outbox.await_published().await?;
    let sql = filled(outbox.case.shape.once_running, &outbox.table);
    outbox.writer.run(&sql).await
}

async fn publishing(outbox: &Outbox) -> Step {
    let relay = outbox.relay.as_ref().expect("it was started");
    until("it publishes", async || {
        let status = relay.try_status()?;
        match status["state"] == "publishing" {
            true => Ok(()),
            false => Err(format!("{}: {}", status["state"], status["reason"])),
        }
    })
    .await
}

async fn stream(outbox: &mut Outbox) -> Step {
    outbox.writer.insert(ROWS).await?;
    outbox.writer.insert_at_once(ROWS).await?;
    outbox.await_published().await
}

/// Rows changed and deleted in their own transaction, and by a job.
async fn changes(outbox: &mut Outbox) -> Step {
    // A row that is gone is in the log for a stream, and for nobody else.
    let deleted = match outbox.case.pair.is_polled() {
        true => Wanted::Perhaps,
        false => Wanted::Always,
    };
    let sends_changes = !check::warns(&outbox.config, "is sent as it was inserted")?;
    let writer = &mut outbox.writer;
    if sends_changes {
        writer.change_within().await?;
    }
    writer.change_later().await?;
    writer.delete_within(deleted).await?;
    writer.delete_later(deleted).await?;
    writer.insert(ROWS).await
}

/// A row that may not reach its topic holds its aggregate, and no other.
async fn blocked(outbox: &mut Outbox) -> Step {
    outbox.writer.insert(1).await?;
    outbox.await_published().await?;
    outbox.writer.insert_of("invoice", 9).await?;
    // They are published later: nobody waits for them before `retry`.
    for event in &mut outbox.writer.events {
        if event.kind == "invoice" {
            event.wanted = Wanted::Perhaps;
        }
    }
    outbox.writer.insert(ROWS).await?;
    let (writer, sql) = (&outbox.writer, "SELECT count(*) FROM outboxd.blocked");
    until("its aggregate is blocked", async || {
        match writer.count(sql).await? {
            0 => Err("nothing is".to_owned()),
            _ => Ok(()),
        }
    })
    .await
}

/// A commit that is flushed, decoded and seen by nobody, while the walsender is cut or the relay starts again.
async fn unseen(outbox: &mut Outbox, server: &mut Postgres) -> Step {
    // What is not logged waits for no standby.
    let logged = "SELECT count(*) FROM pg_class WHERE relpersistence = 'p' AND oid = ";
    let logged = format!("{logged} '{}'::regclass", outbox.table);
    if outbox.writer.count(&logged).await? == 0 {
        return Ok(());
    }
    let standby = FlushingStandby::start(server).await;
    let done = unseen_with(outbox).await;
    standby.end(server).await;
    let waiting = done?;
    let committed = waiting.await.map_err(|error| error.to_string())?;
    committed.map_err(|error| error.to_string())?;
    outbox.writer.insert(ROWS).await?;
    outbox.await_published().await
}

type Waiting = tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>;

async fn unseen_with(outbox: &mut Outbox) -> Result<Waiting, String> {
    let is_restarted = !outbox.case.is_cut();
    if is_restarted {
        outbox.stop()?;
    }
    let waiting = outbox.writer.insert_unseen().await?;
    let writer = &outbox.writer;
    until("the commit waits", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        match writer.count(sql).await? {
            0 => Err("none does".to_owned()),
            _ => Ok(()),
        }
    })
    .await?;
    if is_restarted {
        outbox.start();
        publishing(outbox).await?;
    } else {
        cut(outbox).await?;
    }
    // Of other aggregates: they are not held up.
    let hidden = outbox.writer.events.pop().expect("it was noted");
    let rows = outbox.writer.insert(6).await;
    let come = outbox.await_published().await;
    let place = outbox.writer.events.len() - 6;
    outbox.writer.events.insert(place, hidden);
    rows?;
    come?;
    Ok(waiting)
}

/// Ends the relay's walsender, and all its other connections where it has none.
async fn cut(outbox: &Outbox) -> Step {
    let kind = match outbox.case.pair.is_polled() {
        true => "application_name LIKE 'outboxd%'",
        false => "backend_type = 'walsender'",
    };
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND {kind}"
    );
    outbox.writer.run(&sql).await
}

/// What happens to the table while no relay runs.
async fn away(outbox: &mut Outbox) -> Step {
    outbox.stop()?;
    outbox.writer.insert(ROWS).await?;
    changes(outbox).await?;
    outbox.config = allow_all(&outbox.config);
    outbox.start();
    outbox.await_published().await
}

/// What was blocked goes out in its order.
async fn retry(outbox: &mut Outbox) -> Step {
    let asked = outbox.config.outboxd(&["blocked", "retry", "--all"]);
    let told = crate::harness::relay::said(&asked);
    let is_unsendable = told.contains("still rejected (unreadable)")
        && check::warns(&outbox.config, "such a row blocks its aggregate")?;
    // The cause stands: such rows are sent again, as the documentation of `retry` says, and refused again.
    let is_unmarkable = told.contains("still rejected (mark)")
        && check::warns(&outbox.config, "and blocks its aggregate")?;
    if !asked.status.success() && !is_unsendable && !is_unmarkable {
        return Err(told);
    }
    outbox.sends_again = is_unmarkable;
    for event in &mut outbox.writer.events {
        if event.kind == "invoice" {
            event.wanted = Wanted::Always;
        }
    }
    outbox.await_published().await
}

/// Every row that has to be in Kafka is marked, or named as one whose mark is refused; the slot is confirmed.
async fn settled(outbox: &mut Outbox) -> Step {
    let sql = match unmarked(outbox).await? {
        Some(sql) => sql,
        None => return confirmed(outbox).await,
    };
    let writer = &outbox.writer;
    until("every row is marked", async || {
        let ids = writer.ids(&sql).await?;
        let wanted = writer.events.iter();
        let wanted = wanted.filter(|event| event.wanted == Wanted::Always);
        let standing: Vec<u64> = wanted
            .filter(|event| ids.contains(&event.id))
            .map(|event| event.number)
            .collect();
        let named = "SELECT count(*) FROM outboxd.blocked WHERE state IN ('blocked', 'retry')";
        match standing.len() as i64 {
            0 => Ok(()),
            _ if writer.count(named).await? > 0 => Ok(()),
            rows => Err(format!("{rows} are not, the first {}", standing[0])),
        }
    })
    .await?;
    confirmed(outbox).await
}

/// The ids of the rows without a mark; ids that repeat do not tell.
async fn unmarked(outbox: &Outbox) -> Result<Option<String>, String> {
    let shape = &outbox.case.shape;
    if shape.given.iter().any(|(name, _)| shape.key.contains(name)) {
        return Ok(None);
    }
    let table = &outbox.table;
    let by_view = format!(
        "SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
         WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = '{table}'::regclass
           AND obj_description(r.ev_class, 'pg_class') LIKE '%outboxd%'"
    );
    let (id, sent_at) = (shape.column("id"), shape.column("sent_at"));
    let sql = match outbox.case.pair.mark {
        "delete" => Some(format!("SELECT format('%s', {id}) AS id FROM {table}")),
        "ledger" => {
            let view = outbox.writer.text(&by_view).await?;
            view.map(|view| format!("SELECT format('%s', {id}) AS id FROM {view} WHERE NOT sent"))
        }
        "sent_at" => Some(format!(
            "SELECT format('%s', {id}) AS id FROM {table} WHERE {sent_at} IS NULL"
        )),
        _ => None,
    };
    Ok(sql)
}

/// The slot lets go of what is published.
async fn confirmed(outbox: &Outbox) -> Step {
    if outbox.case.pair.is_polled() {
        return Ok(());
    }
    let writer = &outbox.writer;
    let now = writer
        .text("SELECT pg_current_wal_insert_lsn()::text")
        .await?;
    let sql = format!(
        "SELECT slot_name || ' stands at ' || confirmed_flush_lsn FROM pg_replication_slots
         WHERE database = current_database() AND slot_name LIKE 'outboxd%' AND confirmed_flush_lsn < '{}'",
        now.unwrap_or_default()
    );
    until("the slot is confirmed", async || {
        match writer.text(&sql).await? {
            None => Ok(()),
            Some(text) => Err(text),
        }
    })
    .await
}

/// The next mode and mark of the table: refused with the reason, or carried over.
async fn switched(outbox: &mut Outbox) -> Step {
    outbox.stop()?;
    let pair = next(outbox);
    outbox.config = outbox.config.clone().mode(pair.mode).mark(pair.mark);
    let step = async {
        let migrated = outbox.migrate();
        match (check::ask(&outbox.config)?, migrated) {
            (Answer::Refuses(refusal), _) => {
                outbox.relay = check::refused(&outbox.config, &refusal).await?;
                return Ok(());
            }
            (Answer::Passes(_), Err(text)) => {
                return Err(format!("check passes, and migrate fails: {text}"));
            }
            (Answer::Passes(_), Ok(())) => {}
        }
        outbox.start();
        if outbox.sends_again {
            // The mark that was refused is not made any more, unless the next one is refused too: then its rows are excused.
            outbox.config.outboxd(&["blocked", "retry", "--all"]);
        }
        outbox.writer.insert(ROWS).await?;
        outbox.await_published().await
    };
    let done: Step = step.await;
    done.map_err(|fault| format!("{} with {}: {fault}", pair.mode, pair.mark))
}

/// Each case switches to another one.
fn next(outbox: &Outbox) -> Pair {
    let own = outbox.case.pair;
    let is_next = |pair: &Pair| *pair != own && pair.mark != "none";
    let others: Vec<Pair> = PAIRS.into_iter().filter(is_next).collect();
    match others.len() {
        0 => own,
        count => others[outbox.case.turn() % count],
    }
}
