//! Durations as Go writes them: `10s`, `24h30m`, `1.5h`, `500ms`, `0`.

use std::time::Duration;

/// The units in nanoseconds; the micro sign has two code points.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("\u{b5}s", 1e3),
    ("\u{3bc}s", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// Ten years in nanoseconds: beyond, a unit was mistaken, and sums of times would overflow.
const LONGEST: f64 = 10.0 * 366.0 * 24.0 * 3600e9;

const NOT_A_DURATION: &str = "is not a duration; write 10s, 1m30s, 500ms or 0";

/// Reads a duration.
///
/// # Errors
/// Says what is wrong, as the end of a sentence that begins with the text.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.starts_with('-') {
        return Err("is negative");
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if !rest.is_empty() && !rest.contains(|c| !is_numeric(c)) {
        return Err("has no unit; for seconds, write an s behind the number");
    }
    let mut nanoseconds = 0.0;
    loop {
        let (amount, behind) = rest.split_at(rest.find(|c| !is_numeric(c)).unwrap_or(rest.len()));
        let (name, next) = behind.split_at(behind.find(is_numeric).unwrap_or(behind.len()));
        let unit = UNITS.iter().find(|unit| unit.0 == name).ok_or(NOT_A_DURATION)?.1;
        nanoseconds += amount.parse::<f64>().map_err(|_| NOT_A_DURATION)? * unit;
        if next.is_empty() {
            break;
        }
        rest = next;
    }
    if nanoseconds > LONGEST {
        return Err("is longer than ten years");
    }
    Ok(Duration::from_nanos(nanoseconds as u64))
}

fn is_numeric(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}
