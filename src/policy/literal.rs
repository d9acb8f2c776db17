//! Typed values of conditions: decimals, points in time, networks, bytes.

use std::net::IpAddr;

const NANOS: i128 = 1_000_000_000;
const DAY_S: i64 = 86_400;

/// A decimal number with at most 18 digits before and 9 after the point, in billionths, exactly.
pub(super) fn decimal(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return None,
        None => (digits, ""),
    };
    if whole.is_empty() || whole.len() > 18 || fraction.len() > 9 {
        return None;
    }
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let billionths: i128 = format!("{whole}{fraction:0<9}").parse().ok()?;
    Some(if negative { -billionths } else { billionths })
}

/// A point in time in nanoseconds since 1970: ISO 8601 as in W3C's note on date and time formats (a day or a month
/// is its beginning in UTC, a time of day needs a zone), or epoch seconds. A year alone is refused, since it could be
/// either.
///
/// Source: IAM User Guide, 'Date condition operators'.
pub(super) fn date(text: &str) -> Option<i128> {
    let is_year = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_year {
        return None;
    }
    if let Some(epoch) = decimal(text) {
        return Some(epoch);
    }
    let (day, time) = match text.split_once(['T', 't']) {
        Some((day, time)) => (day, Some(time)),
        None => (text, None),
    };
    let mut fields = day.split('-');
    let year = digits(fields.next()?, 4)?;
    let month = digits(fields.next()?, 2)?;
    let day_of_month = match fields.next() {
        Some(field) => digits(field, 2)?,
        None if time.is_none() => 1,
        None => return None,
    };
    if fields.next().is_some() || !(1..=12).contains(&month) || !(1..=month_length(year, month)).contains(&day_of_month)
    {
        return None;
    }
    let midnight = i128::from(days_from_civil(year, month, day_of_month) * DAY_S) * NANOS;
    Some(midnight + time.map_or(Some(0), time_of_day)?)
}

/// `hh:mm[:ss[.fraction]]` and `Z` or `±hh:mm`, in nanoseconds after midnight UTC.
fn time_of_day(text: &str) -> Option<i128> {
    let (clock, offset_s) = if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        (clock, 0)
    } else {
        let at = text.rfind(['+', '-'])?;
        let (clock, zone) = text.split_at_checked(at)?;
        let (hours, minutes) = zone.get(1..)?.split_once(':')?;
        let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
        if hours > 23 || minutes > 59 {
            return None;
        }
        let seconds = hours * 3600 + minutes * 60;
        (clock, if zone.starts_with('-') { -seconds } else { seconds })
    };
    let (clock, fraction) = match clock.split_once('.') {
        Some((clock, fraction)) => (clock, Some(fraction)),
        None => (clock, None),
    };
    let mut fields = clock.split(':');
    let hours = digits(fields.next()?, 2)?;
    let minutes = digits(fields.next()?, 2)?;
    let seconds = match fields.next() {
        Some(field) => digits(field, 2)?,
        None if fraction.is_none() => 0,
        None => return None,
    };
    if fields.next().is_some() || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    let nanos = match fraction {
        Some(fraction) => decimal(&format!("0.{fraction}"))?,
        None => 0,
    };
    Some(i128::from(hours * 3600 + minutes * 60 + seconds - offset_s) * NANOS + nanos)
}

fn digits(text: &str, length: usize) -> Option<i64> {
    let all = text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    if all { text.parse().ok() } else { None }
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn month_length(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar. Years begin in March, so that a leap day is a year's last.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The same point in time in whole seconds since 1970, the second that it lies in.
pub fn parse_time(text: &str) -> Option<i64> {
    i64::try_from(date(text)?.div_euclid(NANOS)).ok()
}

/// Seconds since 1970 in ISO 8601, UTC.
pub fn format_seconds(seconds: i64) -> String {
    // What a year of four digits cannot say is said as its end.
    iso8601(seconds.clamp(0, 253_402_300_799))
}

/// `now` as AWS writes `aws:CurrentTime`: `2026-01-31T12:00:00Z`.
pub(super) fn iso8601(now_s: i64) -> String {
    let days = now_s.div_euclid(DAY_S) + 719_468;
    let second = now_s.rem_euclid(DAY_S);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}Z")
}

/// An address or a network in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    bits: u128,
    length: u32,
    is_v6: bool,
}

impl Network {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let (bits, widest, is_v6) = bits_of(address.parse().ok()?);
        let length = match length {
            Some(length) if length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit()) => length.parse().ok()?,
            Some(_) => return None,
            None => widest,
        };
        (length <= widest).then_some(Self { bits, length, is_v6 })
    }

    /// None where `address` is none.
    pub(super) fn contains(&self, address: &str) -> Option<bool> {
        let (bits, widest, is_v6) = bits_of(address.parse().ok()?);
        let differing = (bits ^ self.bits).checked_shr(widest - self.length.min(widest)).unwrap_or(0);
        Some(is_v6 == self.is_v6 && differing == 0)
    }
}

fn bits_of(address: IpAddr) -> (u128, u32, bool) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32, false),
        IpAddr::V6(v6) => (v6.to_bits(), 128, true),
    }
}

/// Base 64 with padding (RFC 4648, section 4).
pub fn base64(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let unpadded = text.trim_end_matches('=');
    if text.len() - unpadded.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut window, mut have) = (0_u32, 0_u32);
    for symbol in unpadded.bytes() {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        window = (window << 6 | u32::from(value)) & 0xffff;
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push(u8::try_from(window >> have & 0xff).ok()?);
        }
    }
    (window & ((1 << have) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        assert_eq!(decimal("0"), Some(0));
        assert_eq!(decimal("-1.5"), Some(-1_500_000_000));
        assert_eq!(decimal("0.1"), decimal("0.100"));
        assert_eq!(decimal("999999999999999999"), Some(999_999_999_999_999_999 * NANOS));
        for bad in
            ["", "-", ".", "1.", ".5", "1e3", "+1", " 1", "1 ", "0x1", "9999999999999999999", "0.0000000001", "--1"]
        {
            assert_eq!(decimal(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates_are_those_of_date_1() {
        // date -u -d ... +%s
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29", 951_782_400),
            ("2024-02", 1_706_745_600),
            ("2026-07-31T23:59:59Z", 1_785_542_399),
            ("2026-07-31T23:59Z", 1_785_542_340),
            ("2026-08-01T01:59:59+02:00", 1_785_542_399),
            ("2026-07-31T18:59:59-05:00", 1_785_542_399),
            ("1969-12-31T23:59:59Z", -1),
            ("1785542399", 1_785_542_399),
            ("-1", -1),
        ] {
            assert_eq!(date(text), Some(i128::from(seconds) * NANOS), "{text}");
        }
        assert_eq!(date("1970-01-01T00:00:00.25Z"), Some(NANOS / 4));
        assert_eq!(date("1970-01-01t00:00:00z"), Some(0));
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for bad in [
            "",
            "2026",
            "2026-13-01",
            "2026-00-01",
            "2026-02-29",
            "2026-04-31",
            "2026-01-00",
            "2026-1-1",
            "26-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00Z",
            "2026-01-01T00:00.5Z",
            "2026-01-01T00:00:00+2:00",
            "2026-01-01T00:00:00+0200",
            "2026-01T00:00Z",
            "2026-01-01 00:00:00Z",
            "2026-01-01T",
            "T",
            "2026-01-01-01",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+24:00",
            "\u{662}\u{660}26-01-01",
        ] {
            assert_eq!(date(bad), None, "{bad}");
        }
    }

    #[test]
    fn time_prints_and_reads_back() {
        for now in [0, -1, 951_782_399, 951_782_400, 1_785_542_399, 4_102_444_800, -62_135_596_800, 253_402_300_799] {
            assert_eq!(date(&iso8601(now)), Some(i128::from(now) * NANOS), "{}", iso8601(now));
        }
        assert_eq!(iso8601(1_785_542_399), "2026-07-31T23:59:59Z");
        // Absurd clocks print something, and do not panic.
        assert!(!iso8601(i64::MAX).is_empty() && !iso8601(i64::MIN).is_empty());
    }

    #[test]
    fn networks_contain_their_addresses() {
        let net = |text| Network::parse(text).unwrap();
        assert_eq!(net("10.0.0.0/8").contains("10.255.0.1"), Some(true));
        assert_eq!(net("10.0.0.0/8").contains("11.0.0.1"), Some(false));
        assert_eq!(net("10.0.0.1").contains("10.0.0.1"), Some(true));
        assert_eq!(net("10.0.0.1").contains("10.0.0.2"), Some(false));
        assert_eq!(net("0.0.0.0/0").contains("203.0.113.9"), Some(true));
        assert_eq!(net("::/0").contains("2001:db8::1"), Some(true));
        assert_eq!(net("2001:db8::/32").contains("2001:db9::1"), Some(false));
        assert_eq!(net("::/0").contains("10.0.0.1"), Some(false));
        assert_eq!(net("0.0.0.0/0").contains("::1"), Some(false));
        assert_eq!(net("0.0.0.0/0").contains("host"), None);
        for bad in ["", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/+8", "1.2.3.4/0008"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64("//79"), Some(vec![0xff, 0xfe, 0xfd]));
        for bad in ["Zg", "Zg=", "Zh==", "====", "Z===", "Zm9=", "Z g=", "Zm8-"] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }
}
