//! Which episodes of a trouble that comes and goes are said. Pure.

use std::time::Duration;

const SAY_EVERY: Duration = Duration::from_secs(60);

/// One episode a minute is said, with its end; the others are counted. One that lasts is said once the minute is over.
#[derive(Debug, Default)]
pub(crate) struct Episodes {
    /// When one was said last.
    said_at: Option<Duration>,
    open: Option<Open>,
    /// Those since then that were not said.
    unsaid: u64,
}

/// An episode that has not ended.
#[derive(Clone, Copy, Debug)]
struct Open {
    began_at: Duration,
    is_said: bool,
}

impl Episodes {
    /// How many there were since the last one that was said, this one included; `None` where it is not to be said now.
    ///
    /// Times are those of one clock that never goes back.
    pub(crate) fn begin(&mut self, now: Duration) -> Option<u64> {
        self.unsaid += 1;
        self.open = Some(Open {
            began_at: now,
            is_said: false,
        });
        self.goes_on(now)
    }

    /// The same, of an episode that goes on.
    pub(crate) fn goes_on(&mut self, now: Duration) -> Option<u64> {
        let open = self.open.as_mut().filter(|open| !open.is_said)?;
        let is_early = |at: Duration| now.saturating_sub(at) < SAY_EVERY;
        if self.said_at.is_some_and(is_early) {
            return None;
        }
        open.is_said = true;
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }

    /// How long the one lasted whose beginning was said; `None` where none is open.
    pub(crate) fn end(&mut self, now: Duration) -> Option<Duration> {
        let open = self.open.take().filter(|open| open.is_said)?;
        Some(now.saturating_sub(open.began_at))
    }

    /// Nobody asks for the end of this one any more.
    pub(crate) fn forget(&mut self) {
        self.open = None;
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

    #[test]
    fn an_episode_that_lasts_is_said_however_soon_it_came_after_another() {
        let mut episodes = Episodes::default();
        let at = Duration::from_secs;
        assert_eq!(episodes.begin(at(0)), Some(1));
        assert_eq!(episodes.end(at(6)), Some(at(6)));
        assert_eq!(episodes.begin(at(14)), None);
        assert_eq!(episodes.goes_on(at(59)), None);
        assert_eq!(episodes.goes_on(at(60)), Some(1));
        assert_eq!(episodes.goes_on(at(61)), None);
        // From its beginning on, not from when it was said.
        assert_eq!(episodes.end(at(99)), Some(at(85)));
    }
}
