//! The lease: one relay of an outbox publishes, and the next one takes over however it ends.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use outboxd::config::{Secret, UrlSource};
use outboxd::state::lease::{LeaseKeeper, LeaseState, Role, Server};
use tokio::sync::watch::Receiver;
use tokio_postgres::Client;

use crate::harness::postgres::{Database, Postgres, Stop, USUAL, migrate};
use crate::harness::relay::{Relay, RelayConfig};
use crate::harness::{POLL, SOON, wait_until};
use crate::orders::{Orders, wait_for_status};

const TTL: Duration = Duration::from_secs(2);
/// So long that only a release or a proof of death can end it within a test.
const TTL_LONG: Duration = Duration::from_secs(5 * 60);

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_a_released_lease_and_no_other() {
    let outbox = Outbox::create(Postgres::shared(USUAL).await).await;
    let first = outbox.keeper(TTL_LONG);
    let mut first_state = first.state();
    let epoch = leads(&mut first_state).await;
    let second = outbox.keeper(TTL_LONG);
    let mut second_state = second.state();
    let state = wait(&mut second_state, "waits", is_standby).await;
    let Role::Standby { holder } = state.role else {
        unreachable!("it waits")
    };
    assert!(
        holder.contains(&format!("/{}/", std::process::id())),
        "{holder}"
    );
    first.release(outboxd::state::lease::RELEASE_MAX).await;
    assert_eq!(first_state.borrow_and_update().role, Role::Released);
    assert_eq!(leads(&mut second_state).await, epoch + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_not_renewed_is_taken_after_its_ttl_and_not_before() {
    let outbox = Outbox::create(Postgres::shared(USUAL).await).await;
    let first = outbox.keeper(TTL);
    leads(&mut first.state()).await;
    let second = outbox.keeper(TTL);
    let mut state = second.state();
    wait(&mut state, "waits", is_standby).await;
    // A keeper that is dropped releases nothing, and this process lives.
    drop(first);
    let renewed_at = outbox.lease_at().await;
    leads(&mut state).await;
    let after = outbox.lease_at().await - renewed_at;
    assert!(after >= TTL.as_secs_f64(), "taken after {after} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_that_begin_at_once_exactly_one_leads() {
    let outbox = Outbox::create(Postgres::shared(USUAL).await).await;
    for _ in 0..10 {
        outbox.run("DELETE FROM outboxd.lease").await;
        let keepers: Vec<_> = (0..6).map(|_| outbox.keeper(TTL * 10)).collect();
        for keeper in &keepers {
            let mut state = keeper.state();
            wait(&mut state, "has decided", |state| {
                is_leader(state) || is_standby(state)
            })
            .await;
        }
        let leaders = keepers
            .iter()
            .filter(|one| is_leader(&one.state().borrow()));
        assert_eq!(leaders.count(), 1);
    }
}

/// Every mark checks the epoch: were one given twice, a relay of long ago could mark again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_whose_row_was_deleted_begins_above_every_epoch_that_it_had() {
    let outbox = Outbox::create(Postgres::shared(USUAL).await).await;
    let first = outbox.keeper(TTL);
    leads(&mut first.state()).await;
    first.release(outboxd::state::lease::RELEASE_MAX).await;
    let second = outbox.keeper(TTL);
    let mut state = second.state();
    let mut epoch = leads(&mut state).await;
    for _ in 0..3 {
        outbox.run("DELETE FROM outboxd.lease").await;
        let other = wait(&mut state, "takes it again", |state| {
            is_leader(state) && state.epoch() != Some(epoch)
        })
        .await;
        assert!(other.epoch() > Some(epoch), "{other:?} after {epoch}");
        epoch = other.epoch().expect("it leads");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_postgresql_never_changes_the_holder() {
    let mut postgres = Postgres::start(USUAL);
    let outbox = Outbox::create(&postgres).await;
    // A holder that a busy machine keeps from renewing for so long would lose it rightly.
    let ttl = TTL * 2;
    let first = outbox.keeper(ttl);
    let mut holder = first.state();
    let epoch = leads(&mut holder).await;
    let second = outbox.keeper(ttl);
    let mut standby = second.state();
    wait(&mut standby, "waits", is_standby).await;
    for mode in [Stop::Immediate, Stop::Fast] {
        postgres.stop(mode);
        let suspended = |state: &LeaseState| matches!(state.role, Role::Suspended { .. });
        wait(&mut holder, "is suspended after a TTL", suspended).await;
        assert!(!holder.borrow().may_publish(epoch));
        postgres.restart();
        assert_eq!(leads(&mut holder).await, epoch);
        // The standby has to see it unchanged for a full TTL anew.
        wait(&mut standby, "is connected", |state| {
            state.server == Server::Connected && is_standby(state)
        })
        .await;
        let watched_at = Instant::now();
        while watched_at.elapsed() < ttl * 3 / 2 {
            assert_eq!(holder.borrow().epoch(), Some(epoch));
            assert!(is_standby(&standby.borrow()), "{:?}", standby.borrow());
            tokio::time::sleep(POLL).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_whose_row_was_taken_says_lost_and_stands_by() {
    let outbox = Outbox::create(Postgres::shared(USUAL).await).await;
    let keeper = outbox.keeper(TTL);
    let mut state = keeper.state();
    let epoch = leads(&mut state).await;
    outbox
        .run("UPDATE outboxd.lease SET owner = 'thief', epoch = epoch + 1, renewals = renewals + 1")
        .await;
    let lost = wait(&mut state, "lost it", |state| {
        matches!(state.role, Role::Lost { .. })
    })
    .await;
    assert_eq!(
        lost.role,
        Role::Lost {
            by: "thief".to_owned(),
            epoch
        }
    );
    assert!(!lost.may_publish(epoch));
    wait(&mut state, "waits", is_standby).await;
    // The thief never renews.
    assert_eq!(leads(&mut state).await, epoch + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_connection_costs_nobody_the_lease() {
    let outbox = Outbox::create(Postgres::shared(USUAL).await).await;
    let keeper = outbox.keeper(Duration::from_secs(4));
    let mut state = keeper.state();
    let epoch = leads(&mut state).await;
    let notices = state.borrow().shutdown_notices;
    outbox
        .run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    wait(&mut state, "sees 57P01", |state| {
        state.shutdown_notices > notices
    })
    .await;
    let back = wait(&mut state, "is back", |state| {
        state.server == Server::Connected && state.last_error.is_none()
    })
    .await;
    assert_eq!(back.epoch(), Some(epoch));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_relays_one_publishes_and_the_other_says_who_holds_the_lease() {
    for mode in ["replication", "polling"] {
        let orders = two_relays(mode, TTL_LONG).await;
        let first = Relay::start(&orders.config);
        orders.wait_for(&orders.insert(20).await).await;
        let second = Relay::start(&orders.config);
        let status = wait_for_status(&second, "it stands by", |status| {
            status["role"] == "standby"
        })
        .await;
        let holder = status["lease"]["holder"].as_str().unwrap_or_default();
        assert!(holder.contains(&format!("/{}/", first.id())), "{status}");
        assert!(
            status["reason"]
                .as_str()
                .unwrap_or_default()
                .contains("holds the lease"),
            "{status}"
        );
        // The pod works, so it is ready; who asks strictly hears that it does not publish.
        assert_eq!(second.get("/readyz").unwrap().0, 200);
        assert_eq!(second.get("/readyz?strict").unwrap().0, 503);
        // It changes from the table to the stream in the middle of this.
        wait_until("the leader is ready", SOON, async || {
            match first.get("/readyz?strict")?.0 {
                200 => Ok(()),
                code => Err(code.to_string()),
            }
        })
        .await;
        orders.wait_for(&orders.insert(20).await).await;
        assert_eq!(orders.published().len(), 40, "both published");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_sigterm_the_standby_publishes_at_once_and_nothing_twice() {
    for mode in ["replication", "polling"] {
        let orders = two_relays(mode, TTL_LONG).await;
        let (mut first, second) = leader_and_standby(&orders).await;
        let mut ids = orders.insert(20).await;
        assert!(first.terminate().success());
        ids.extend(orders.insert(20).await);
        orders.wait_for(&ids).await;
        wait_for_status(&second, "it leads", |status| status["role"] == "leader").await;
        let published = orders.published();
        let distinct: HashSet<_> = published.iter().collect();
        assert_eq!(distinct.len(), published.len(), "a drained row came again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_the_standby_proves_the_death_and_does_not_wait_for_the_ttl() {
    for mode in ["replication", "polling"] {
        let orders = two_relays(mode, TTL_LONG).await;
        let (mut first, second) = leader_and_standby(&orders).await;
        first.kill9();
        orders.wait_for(&orders.insert(20).await).await;
        wait_for_status(&second, "it leads", |status| status["role"] == "leader").await;
        orders.wait_until_marked().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_holder_is_replaced_after_its_ttl_and_stands_by_when_it_thaws() {
    let orders = two_relays("polling", TTL * 2).await;
    let (mut first, second) = leader_and_standby(&orders).await;
    let mut ids = orders.insert(50).await;
    first.freeze();
    ids.extend(orders.insert(50).await);
    wait_for_status(&second, "it leads", |status| status["role"] == "leader").await;
    orders.wait_for(&ids).await;
    first.thaw();
    let status =
        wait_for_status(&first, "it stands by", |status| status["role"] == "standby").await;
    let holder = status["lease"]["holder"].as_str().unwrap_or_default();
    assert!(holder.contains(&format!("/{}/", second.id())), "{status}");
    ids.extend(orders.insert(50).await);
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    // What the first had in flight may come twice, never more: it marked nothing under its old epoch.
    let published = orders.published();
    assert!(
        published.len() <= ids.len() + 50,
        "{} records",
        published.len()
    );
    let wrong = "SELECT count(*) FROM outboxd.ledger k WHERE NOT EXISTS \
                 (SELECT FROM outbox o WHERE k.sent @> o.seq)";
    let wrong: i64 = orders.client.query_one(wrong, &[]).await.unwrap().get(0);
    assert_eq!(wrong, 0);
}

/// The frozen one's walsender holds the slot until the server gives it up; the next one waits and says for whom.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_holder_of_the_slot_is_waited_for_and_nothing_is_lost() {
    let orders = two_relays("replication", TTL * 2).await;
    let (mut first, second) = leader_and_standby(&orders).await;
    let mut ids = orders.insert(50).await;
    wait_until_streaming(&orders).await;
    first.freeze();
    ids.extend(orders.insert(50).await);
    let waits = |status: &serde_json::Value| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["role"] == "leader" && reason.contains("is active for PID")
    };
    wait_for_status(&second, "it leads and waits for the slot", waits).await;
    first.signal("KILL");
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
}

/// A relay reads the table before it reads the slot.
async fn wait_until_streaming(orders: &Orders) {
    let slot = format!("outboxd_{}", orders.database.name);
    let sql = "SELECT active FROM pg_replication_slots WHERE slot_name = $1";
    wait_until("the slot is read", SOON, async || {
        let row = orders.client.query_opt(sql, &[&slot]).await;
        match row.map_err(|error| error.to_string())? {
            Some(row) if row.get::<_, bool>(0) => Ok(()),
            _ => Err("nobody reads it".to_owned()),
        }
    })
    .await;
}

async fn two_relays(mode: &str, ttl: Duration) -> Orders {
    let postgres = Postgres::shared(USUAL).await;
    Orders::create(postgres, "lease", |config| {
        config
            .mode(mode)
            .set("lease.ttl", format!("{}s", ttl.as_secs()))
    })
    .await
}

async fn leader_and_standby(orders: &Orders) -> (Relay, Relay) {
    let first = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(10).await).await;
    orders.wait_until_marked().await;
    let second = Relay::start(&orders.config);
    wait_for_status(&second, "it stands by", |status| {
        status["role"] == "standby"
    })
    .await;
    (first, second)
}

/// A database with the state tables, for keepers without relays.
struct Outbox {
    database: Database,
    client: Client,
}

impl Outbox {
    async fn create(postgres: &Postgres) -> Self {
        let database = postgres.create_database("lease").await;
        let client = database.client().await;
        let config = RelayConfig::of(&database.name, &database.url, "127.0.0.1:1").mode("polling");
        let config = outboxd::config::Config::parse("outboxd.toml", &config.text(), []);
        let config = config.expect("a configuration");
        migrate(&config).await;
        Self { database, client }
    }

    fn keeper(&self, ttl: Duration) -> LeaseKeeper {
        let url = UrlSource::Inline(Secret::new(self.database.url.clone()));
        LeaseKeeper::start(url, "public.outbox".to_owned(), ttl)
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// When the lease was taken or renewed, by the server's clock, in seconds.
    async fn lease_at(&self) -> f64 {
        let sql = "SELECT extract(epoch FROM at)::float8 FROM outboxd.lease";
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

async fn wait(
    state: &mut Receiver<LeaseState>,
    what: &str,
    is_so: impl FnMut(&LeaseState) -> bool,
) -> LeaseState {
    let waiting = tokio::time::timeout(SOON, state.wait_for(is_so)).await;
    let state = waiting.unwrap_or_else(|_| panic!("waited {SOON:?} until a keeper {what}"));
    state.expect("the keeper lives").clone()
}

async fn leads(state: &mut Receiver<LeaseState>) -> i64 {
    let state = wait(state, "leads", is_leader).await;
    state.epoch().expect("a leader has an epoch")
}

fn is_leader(state: &LeaseState) -> bool {
    matches!(state.role, Role::Leader { .. })
}

fn is_standby(state: &LeaseState) -> bool {
    matches!(state.role, Role::Standby { .. })
}
