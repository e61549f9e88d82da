//! Which reasons were said already. Pure.

/// Reasons that may take turns without being said again.
const KEPT: usize = 8;

/// The reasons that were said since things went well.
#[derive(Debug, Default)]
pub(crate) struct Told(Vec<String>);

impl Told {
    /// Whether a reason is to be said: not again while it lasts, nor while it and others take turns.
    pub(crate) fn is_news(&mut self, reason: &str) -> bool {
        if self.0.iter().any(|told| told == reason) {
            return false;
        }
        if self.0.len() == KEPT {
            self.0.remove(0);
        }
        self.0.push(reason.to_owned());
        true
    }

    /// Things went well: what comes again is said again.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_take_turns_are_said_once_each_until_things_go_well() {
        let mut told = Told::default();
        let said = |told: &mut Told| ["a", "b", "a", "b"].map(|reason| told.is_news(reason));
        assert_eq!(said(&mut told), [true, true, false, false]);
        assert_eq!(said(&mut told), [false; 4]);
        told.forget();
        assert_eq!(said(&mut told), [true, true, false, false]);
        // So many others were said since that it is worth a line.
        (0..KEPT).for_each(|other| assert!(told.is_news(&other.to_string())));
        assert!(told.is_news("a"));
    }
}
