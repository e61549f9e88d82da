//! Pauses that grow, in turns.

/// The first one.
const PAUSE: u64 = 1;

/// When something is done next, and how long the pause after that is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pause {
    pub(super) turn: u64,
    pub(super) turns: u64,
}

impl Pause {
    pub(super) fn from(turn: u64) -> Self {
        Self {
            turn: turn + PAUSE,
            turns: PAUSE,
        }
    }

    /// Whether it is over; then a longer one begins.
    pub(super) fn is_over(&mut self, turn: u64, turns_max: u64) -> bool {
        if turn < self.turn {
            return false;
        }
        self.turns = (self.turns * 2).clamp(PAUSE, turns_max);
        self.turn = turn + self.turns;
        true
    }
}
