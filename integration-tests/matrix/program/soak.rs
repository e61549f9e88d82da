//! `make soak`: random faults on one relay under load, three of them at a time, from a seed.
//!
//! A seed gives the sequence of faults, not the timing of processes: the same seed is the same attack, and most often
//! the same finding.

use std::time::{Duration, Instant};

use super::report;
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, Stop, USUAL};
use crate::harness::proxy::Proxy;
use crate::harness::relay::Relay;
use crate::matrix::rig::{Marks, Pair, Rig, SOON, TRANSACTION_ROWS, WINDOW_ROWS, await_publishing};
use crate::matrix::scene::{Scene, Size};
use crate::matrix::tally::Tally;

/// Between two judgements; the log and the truth of a round are read whole.
const ROUND: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillRelay,
    FreezeRelay,
    StopRelay,
    CrashPostgres,
    RestartPostgres,
    TerminateBackends,
    CutConnections,
    HoldAnswers,
    SlowNetwork,
    KillBroker,
    FreezeBroker,
}

const FAULTS: [Fault; 11] = [
    Fault::KillRelay,
    Fault::FreezeRelay,
    Fault::StopRelay,
    Fault::CrashPostgres,
    Fault::RestartPostgres,
    Fault::TerminateBackends,
    Fault::CutConnections,
    Fault::HoldAnswers,
    Fault::SlowNetwork,
    Fault::KillBroker,
    Fault::FreezeBroker,
];

/// The servers of one round and the relay between them.
struct Round {
    postgres: Postgres,
    kafka: Kafka,
    rig: Rig,
    proxy: Proxy,
    relay: Relay,
    /// It was asked to, and drains.
    is_stopping: bool,
    /// Faults after which a window may be repeated.
    kills: usize,
}

/// Runs rounds for so many minutes, every mode with every mark in turn; whether all of them were green.
pub async fn run(minutes: u64) -> bool {
    let seed = std::env::var("SEED").ok().filter(|seed| !seed.is_empty());
    let seed = seed.map_or_else(
        || fastrand::u64(..1 << 32),
        |seed| seed.parse().expect("SEED: a number"),
    );
    println!("soak: {minutes} minutes from SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut sum = Tally::default();
    let began_at = Instant::now();
    let ends_at = began_at + Duration::from_secs(minutes * 60);
    for number in 1.. {
        let lasts = ROUND.min(ends_at.saturating_duration_since(Instant::now()));
        if lasts.is_zero() {
            break;
        }
        let marks = Marks::ROTATION[number / 2 % Marks::ROTATION.len()];
        let scene = Scene::with(Size::Full, marks);
        let pair = match number % 2 {
            1 => scene.streamed(),
            _ => scene.polled(),
        };
        soak(&scene, pair, lasts, &mut random).await;
        let tally = scene.finish();
        println!(
            "round {number}, {} with {}: {}",
            pair.0,
            pair.1,
            report::verdict(&tally)
        );
        tally.broken.iter().for_each(|text| println!("{text}"));
        sum.add(tally);
    }
    println!(
        "\nsoak, {:.0} minutes, SEED={seed}\n",
        began_at.elapsed().as_secs_f64() / 60.0
    );
    println!(
        "{}",
        report::sum("80", "any three faults at once", &sum, began_at.elapsed())
    );
    sum.is_green()
}

/// A round in each mode, from a seed that is told.
pub async fn mixed(scene: &Scene) {
    let seed = fastrand::u64(..1 << 32);
    scene.remark(format!("SEED={seed}"));
    let mut random = fastrand::Rng::with_seed(seed);
    for pair in [scene.streamed(), scene.polled()] {
        soak(scene, pair, ROUND / scene.pick(4, 2, 1), &mut random).await;
    }
}

async fn soak(scene: &Scene, pair: Pair, lasts: Duration, random: &mut fastrand::Rng) {
    let mut round = Round::new(pair).await;
    let load = round.rig.load().await;
    await_publishing(&round.relay, 0, SOON).await;
    let ends_at = Instant::now() + lasts;
    while Instant::now() < ends_at {
        let faults: Vec<Fault> = (0..3)
            .map(|_| FAULTS[random.usize(..FAULTS.len())])
            .collect();
        println!("    {faults:?}");
        for fault in &faults {
            round.begin(*fault).await;
            scene.ran();
            tokio::time::sleep(Duration::from_millis(random.u64(0..2_000))).await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..4_000))).await;
        for fault in faults {
            round.end(fault);
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..4_000))).await;
    }
    let duplicates_max = round.kills * (WINDOW_ROWS + TRANSACTION_ROWS);
    load.stop().await;
    round.rig.verdict(scene, duplicates_max).await;
}

impl Round {
    async fn new(pair: Pair) -> Self {
        let (postgres, kafka) = (Postgres::start(USUAL), Kafka::start());
        let mut rig = Rig::new(pair, &postgres, &kafka).await;
        let proxy = rig.through_proxy().await;
        let relay = rig.relay();
        Self {
            postgres,
            kafka,
            rig,
            proxy,
            relay,
            is_stopping: false,
            kills: 0,
        }
    }

    /// A fault that another one forestalls, such as stopping what is stopped, does nothing.
    async fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::KillRelay => {
                self.relay.kill9();
                self.kills += 1;
            }
            // Its lease may end meanwhile, and with it the producer.
            Fault::FreezeRelay => {
                self.relay.freeze();
                self.kills += 1;
            }
            // With Kafka away, what is in flight is given up when the grace ends.
            Fault::StopRelay => {
                self.relay.signal("TERM");
                self.is_stopping = true;
                self.kills += 1;
            }
            Fault::CrashPostgres => self.bounce(Stop::Immediate),
            Fault::RestartPostgres => self.bounce(Stop::Fast),
            Fault::TerminateBackends => self.terminate_backends().await,
            Fault::CutConnections => self.proxy.cut(),
            Fault::HoldAnswers => self.proxy.set(|weather| weather.to_client.is_held = true),
            Fault::SlowNetwork => self.proxy.set(|weather| {
                weather.to_client.delay = Duration::from_millis(200);
                weather.to_server.delay = Duration::from_millis(200);
            }),
            Fault::KillBroker => {
                if self.kafka.is_running() {
                    self.kafka.kill();
                }
            }
            Fault::FreezeBroker => {
                if self.kafka.is_running() {
                    self.kafka.freeze();
                    self.kills += 1;
                }
            }
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::KillRelay | Fault::StopRelay | Fault::FreezeRelay => {
                self.relay.thaw();
                if std::mem::take(&mut self.is_stopping) {
                    let ended = self.relay.wait_exit(2 * SOON);
                    assert!(ended.is_some(), "a relay that was asked to stop has not");
                }
                if !self.relay.is_running() {
                    self.relay.restart();
                }
            }
            Fault::HoldAnswers | Fault::SlowNetwork => self.proxy.clear(),
            Fault::KillBroker | Fault::FreezeBroker => match self.kafka.is_running() {
                true => self.kafka.thaw(),
                false => self.kafka.restart(),
            },
            _ => {}
        }
    }

    fn bounce(&mut self, stop: Stop) {
        self.postgres.stop(stop);
        self.postgres.restart();
    }

    async fn terminate_backends(&self) {
        let client = self.rig.client().await;
        for pid in self.rig.backends(&client).await {
            let _ = client
                .execute("SELECT pg_terminate_backend($1)", &[&pid])
                .await;
        }
    }
}
