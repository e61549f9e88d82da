//! What a failing seed did: its schedule with all steps left out that are not needed, told event by event.

use std::fmt::Write as _;

use super::mutations::Mutation;
use super::schedule::Schedule;
use super::world::World;

/// Attempts to leave steps out.
const ATTEMPTS_MAX: usize = 3_000;

/// Runs one schedule; says which promise was broken, if one was.
pub fn verdict(schedule: &Schedule, mutation: Mutation) -> Option<String> {
    World::new(schedule.setting, mutation, None).run(schedule)
}

/// Leaves steps out for as long as a promise is broken.
fn shrink(mut schedule: Schedule, mutation: Mutation) -> Schedule {
    let mut attempts = 0;
    let mut size = schedule.steps.len() / 2;
    while size > 0 {
        let mut from = 0;
        while from < schedule.steps.len() && attempts < ATTEMPTS_MAX {
            let mut shorter = schedule.clone();
            let to = (from + size).min(shorter.steps.len());
            shorter.steps.drain(from..to);
            attempts += 1;
            if verdict(&shorter, mutation).is_some() {
                schedule = shorter;
            } else {
                from = to;
            }
        }
        size /= 2;
    }
    schedule
}

/// Tells what happens under a seed that breaks a promise.
pub fn told(seed: u64, mutation: Mutation) -> String {
    let whole = Schedule::of(seed);
    let steps = whole.steps.len();
    let schedule = match verdict(&whole, mutation) {
        Some(_) => shrink(whole, mutation),
        None => whole,
    };
    let mut world = World::new(schedule.setting, mutation, Some(Vec::new()));
    let broken = world.run(&schedule);
    let mut text = format!(
        "seed {seed}, {} of {steps} steps, {:?}\n",
        schedule.steps.len(),
        schedule.setting
    );
    for (number, event) in world.trace.iter().flatten().enumerate() {
        let _ = writeln!(text, "{number:5}  {event}");
    }
    let _ = writeln!(
        text,
        "{}",
        broken.unwrap_or_else(|| "every promise holds".to_owned())
    );
    text
}
