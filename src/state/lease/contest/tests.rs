use proptest::prelude::*;

use super::*;
use crate::simulator::lease::{Asked, Contender, Part, Statement, execute};

const fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

fn row(epoch: i64, renewals: i64) -> LeaseRow {
    LeaseRow {
        owner: "a".to_owned(),
        epoch,
        renewals,
        released: false,
        ttl: ms(4000),
    }
}

fn taken(epoch: i64, renewals: i64) -> Decision {
    Decision::Take {
        expected: Some(Version { epoch, renewals }),
    }
}

fn waits(free_in: u64) -> Decision {
    Decision::Wait {
        holder: "a".to_owned(),
        free_in: ms(free_in),
    }
}

#[test]
fn a_lease_without_row_or_released_is_free_at_once() {
    let mut standby = Standby::default();
    let nothing = standby.observe(ms(0), None, 1, Life::Unknown);
    assert_eq!(nothing, Decision::Take { expected: None });
    let released = LeaseRow {
        released: true,
        ..row(3, 9)
    };
    let free = standby.observe(ms(0), Some(&released), 1, Life::Unknown);
    assert_eq!(free, taken(3, 9));
}

#[test]
fn the_lease_of_a_dead_process_is_free_at_once() {
    let mut standby = Standby::default();
    let free = standby.observe(ms(0), Some(&row(3, 9)), 1, Life::Dead);
    assert_eq!(free, taken(3, 9));
}

#[test]
fn a_row_must_stand_still_for_a_ttl_over_one_connection() {
    let mut standby = Standby::default();
    let mut observe = |at, renewals, connection| {
        standby.observe(ms(at), Some(&row(3, renewals)), connection, Life::Unknown)
    };
    assert_eq!(observe(1000, 9, 1), waits(4000));
    assert_eq!(observe(4999, 9, 1), waits(1));
    assert_eq!(observe(5000, 10, 1), waits(4000), "it was renewed");
    assert_eq!(observe(8999, 10, 2), waits(4000), "another connection");
    assert_eq!(observe(12_999, 10, 2), taken(3, 10));
}

#[test]
fn a_holder_counts_from_the_sending_of_its_last_renewal() {
    let mut holder = Holder::new(7, ms(4000), ms(100));
    assert!(holder.may_publish(ms(4099)));
    assert!(!holder.may_publish(ms(4100)));
    holder.renewed(ms(5000));
    assert!(holder.may_publish(ms(8999)));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Everything that goes on without delay: send, execute and receive, the take included.
    Turn,
    Send,
    Execute,
    Receive,
    Disconnect,
    /// The server executes a statement of a connection that its relay has given up.
    ExecuteLate,
    Kill,
    Stop,
}

fn steps() -> impl Strategy<Value = Vec<(u64, usize, Step)>> {
    let step = prop_oneof![
        16 => Just(Step::Turn),
        8 => Just(Step::Send),
        8 => Just(Step::Execute),
        8 => Just(Step::Receive),
        1 => Just(Step::Disconnect),
        1 => Just(Step::ExecuteLate),
        1 => Just(Step::Kill),
        1 => Just(Step::Stop),
    ];
    let delay = prop_oneof![8 => 0..300_u64, 4 => 300..1500_u64, 1 => 1500..9000_u64];
    prop::collection::vec((delay, 0..3_usize, step), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Any delay between two steps of a relay is a freeze; an outage is a time without `Execute`.
    #[test]
    fn two_relays_never_publish_at_the_same_time(
        steps in steps(),
        ttls in prop::array::uniform3(500..4000_u64),
    ) {
        let mut relays: Vec<Contender> =
            ttls.iter().enumerate().map(|(number, ttl)| Contender::new(number as u64 + 1, ms(*ttl))).collect();
        let (mut table, mut late, mut dead) = (None, Vec::new(), Vec::new());
        let mut now = Duration::ZERO;
        for (delay, number, step) in steps {
            now += ms(delay);
            let relay = &mut relays[number];
            match step {
                Step::Turn => relay.turn(&mut table, now, &dead),
                Step::Send => relay.send(now),
                Step::Execute => {
                    if let Some(asked) = relay.asked.as_mut().filter(|asked| asked.answer.is_none()) {
                        execute(&mut table, asked);
                    }
                }
                Step::Receive => relay.receive(now, &dead),
                Step::Disconnect => {
                    late.extend(relay.asked.take());
                    relay.connection += 1;
                }
                Step::ExecuteLate => {
                    if let Some(mut asked) = late.pop().filter(|asked: &Asked| asked.answer.is_none()) {
                        execute(&mut table, &mut asked);
                    }
                }
                Step::Kill => {
                    late.extend(relay.asked.take());
                    dead.push(relay.owner());
                    relay.incarnation += 1;
                    relay.connection += 1;
                    relay.part = Part::Standby(Standby::default());
                }
                Step::Stop => {
                    relay.part = Part::Standby(Standby::default());
                    relay.ask(Statement::Release, now);
                    // A keeper that releases ends: its name is never used again.
                    relay.incarnation += 1;
                }
            }
            let publishing = relays.iter().filter(|relay| relay.publishes(now)).count();
            prop_assert!(publishing <= 1, "{publishing} publish at {now:?}");
        }
    }

    /// Every relay tries to connect at least once a second, which is what the keeper does.
    #[test]
    fn an_outage_of_postgresql_never_changes_the_holder(
        outages in prop::collection::vec((1..300_u64, 1..600_u64), 1..20),
        retries in prop::collection::vec(1..10_u64, 50),
    ) {
        let mut relays = [Contender::new(1, ms(4000)), Contender::new(2, ms(4000))];
        let mut table = None;
        let mut next = [0_u64, 1];
        let mut retries = retries.into_iter().cycle();
        let (mut tick, mut was_up) = (0_u64, true);
        for (up, down) in outages {
            for is_up in std::iter::repeat_n(true, up as usize)
                .chain(std::iter::repeat_n(false, down as usize))
            {
                let now = ms(tick * 100);
                for (relay, next) in relays.iter_mut().zip(&mut next) {
                    if was_up && !is_up {
                        relay.asked = None;
                        relay.connection += 1;
                    }
                    if *next > tick {
                        continue;
                    }
                    *next = tick + retries.next().expect("it cycles");
                    if is_up {
                        relay.turn(&mut table, now, &[]);
                    }
                }
                was_up = is_up;
                tick += 1;
            }
        }
        let row = table.expect("it was taken");
        prop_assert_eq!((row.owner.as_str(), row.epoch), ("1000", 1));
    }
}
