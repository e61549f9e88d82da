//! Points in time as PostgreSQL sends them: signed microseconds since 2000.

use std::time::{Duration, SystemTime};

/// Between the epochs of Unix and of PostgreSQL.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// Understands a point in time; the Unix epoch where it can't be represented.
pub(crate) fn from_micros(micros: i64) -> SystemTime {
    let epoch = SystemTime::UNIX_EPOCH + EPOCH;
    let distance = Duration::from_micros(micros.unsigned_abs());
    let time = if micros < 0 {
        epoch.checked_sub(distance)
    } else {
        epoch.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Tells a point in time; 0 before 2000.
pub(crate) fn to_micros(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH + EPOCH);
    since_epoch.map_or(0, |since| since.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_in_time_comes_back_as_it_was() {
        for micros in [0, 1, 846_000_000_000_000] {
            assert_eq!(to_micros(from_micros(micros)), micros);
        }
        assert_eq!(from_micros(0), SystemTime::UNIX_EPOCH + EPOCH);
        assert_eq!(
            from_micros(-1),
            SystemTime::UNIX_EPOCH + EPOCH - Duration::from_micros(1)
        );
        assert!(from_micros(i64::MIN) < SystemTime::UNIX_EPOCH);
    }
}
