//! Which episodes of a trouble that comes and goes are said. Pure.

use std::time::Duration;

const SAY_EVERY: Duration = Duration::from_secs(60);

/// One episode a minute is said, with its end; the others are counted.
#[derive(Debug, Default)]
pub struct Episodes {
    /// When the last one that was said began.
    said_at: Option<Duration>,
    /// That one has not ended.
    is_open: bool,
    /// Those since then that were not said.
    unsaid: u64,
}

impl Episodes {
    /// How many there were since the last one that was said, this one included; `None` where it is not to be said.
    ///
    /// Times are those of one clock that never goes back.
    pub fn begin(&mut self, now: Duration) -> Option<u64> {
        let is_due = |at: Duration| now.saturating_sub(at) >= SAY_EVERY;
        if !self.said_at.is_none_or(is_due) {
            self.unsaid += 1;
            return None;
        }
        (self.said_at, self.is_open) = (Some(now), true);
        Some(std::mem::take(&mut self.unsaid) + 1)
    }

    /// How long the one lasted whose beginning was said; `None` where none is open.
    pub fn end(&mut self, now: Duration) -> Option<Duration> {
        let began_at = self.said_at.filter(|_| self.is_open)?;
        self.is_open = false;
        Some(now.saturating_sub(began_at))
    }

    /// Nobody asks for the end of this one any more.
    pub fn forget(&mut self) {
        self.is_open = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_episode_a_minute_is_said_with_its_end_and_the_others_are_counted() {
        let mut episodes = Episodes::default();
        let at = Duration::from_secs;
        assert_eq!(episodes.end(at(1)), None);
        assert_eq!(episodes.begin(at(10)), Some(1));
        assert_eq!(episodes.end(at(14)), Some(at(4)));
        assert_eq!(episodes.end(at(15)), None);
        for second in 15..70 {
            assert_eq!(episodes.begin(at(second)), None);
            assert_eq!(episodes.end(at(second)), None);
        }
        assert_eq!(episodes.begin(at(70)), Some(56));
        assert_eq!(episodes.end(at(200)), Some(at(130)));
        assert_eq!(episodes.begin(at(200)), Some(1));
        episodes.forget();
        assert_eq!(episodes.end(at(201)), None);
    }
}
