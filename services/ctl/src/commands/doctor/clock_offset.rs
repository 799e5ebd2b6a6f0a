//! By how much a host's clock differs from this machine's.

use crate::view::doctor::{Finding, Standing};
use canopy_runtime::clock;
use std::time::SystemTime;

/// Milliseconds. Requests carry a deadline: with more than this a host refuses them as late.
const TOLERANCE: i64 = 5000;

/// Compares the time a host gave with the middle of the question's way.
pub(super) fn look(before: SystemTime, after: SystemTime, theirs: &str) -> Finding {
    let Some(theirs) = millis(theirs) else {
        return Finding::new(
            "clock offset",
            Standing::Skipped,
            format!("\"{theirs}\" is not a time"),
        );
    };
    let (before, after) = (signed(before), signed(after));
    let offset = theirs - i64::midpoint(before, after);
    let uncertain = (after - before) / 2 + 1;
    let detail = format!("{offset:+} ms (± {uncertain} ms)");
    if offset.abs() > TOLERANCE {
        Finding::new("clock offset", Standing::Failed, detail)
            .remedy("set the clocks (chrony, systemd-timesyncd): requests are refused as late")
    } else {
        Finding::new("clock offset", Standing::Ok, detail)
    }
}

fn signed(time: SystemTime) -> i64 {
    i64::try_from(clock::unix_millis(time)).unwrap_or(i64::MAX)
}

/// Milliseconds since the epoch of RFC 3339 in UTC, as services write it.
fn millis(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    let thousandths: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times_are_read_as_they_are_written() {
        for seconds in [0, 951_782_400, 1_709_251_199, 4_102_444_800_u64] {
            let time = UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 250);
            assert_eq!(millis(&clock::rfc3339(time)), Some(signed(time)));
        }
        assert_eq!(millis("2026-01-01T00:00:00Z"), Some(1_767_225_600_000));
        assert_eq!(millis("yesterday"), None);
    }

    #[test]
    fn a_clock_that_is_off_is_a_problem() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let near = look(at(100), at(101), &clock::rfc3339(at(102)));
        assert_eq!((near.standing, near.detail.as_str()), (Standing::Ok, "+1500 ms (± 501 ms)"));
        let far = look(at(100), at(100), &clock::rfc3339(at(60)));
        assert_eq!((far.standing, far.detail.as_str()), (Standing::Failed, "-40000 ms (± 1 ms)"));
    }
}
