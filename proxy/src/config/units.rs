//! Durations and sizes as people write them: `2s`, `500ms`, `1h30m`; `16MiB`, `16MB`, `8192`.

use std::time::Duration;

/// The longest duration a configuration may ask for: ten years, so that adding one to a clock never overflows.
pub const MAX_DURATION: Duration = Duration::from_secs(3650 * 86_400);

/// Units from long to short, in microseconds.
const TIME_UNITS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

const SIZE_UNITS: [(&str, u64); 10] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads `1h30m`; the error is the problem in words.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut micros: u64 = 0;
    let mut smaller_than = u64::MAX;
    if rest.is_empty() {
        return Err(format!("{text:?} is not a duration"));
    }
    while !rest.is_empty() {
        let (number, tail) = split_digits(rest);
        let (unit, tail) = split_letters(tail);
        let Ok(number) = number.parse::<u64>() else {
            return Err(format!("{text:?} is not a duration"));
        };
        if unit.is_empty() {
            return Err(format!("{text:?} has no unit"));
        }
        let Some((_, scale)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("{text:?}: {unit:?} is not a unit of time"));
        };
        if *scale >= smaller_than {
            return Err(format!("{text:?} is not in the order of days, hours, minutes, seconds"));
        }
        smaller_than = *scale;
        micros = number
            .checked_mul(*scale)
            .and_then(|more| micros.checked_add(more))
            .filter(|micros| Duration::from_micros(*micros) <= MAX_DURATION)
            .ok_or_else(|| format!("{text:?} is longer than ten years"))?;
        rest = tail;
    }
    Ok(Duration::from_micros(micros))
}

/// As [`parse_duration`] reads it, parts below a microsecond dropped.
pub fn show_duration(duration: Duration) -> String {
    let mut micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if micros == 0 {
        return "0s".into();
    }
    let mut shown = String::new();
    for (unit, scale) in TIME_UNITS {
        let part = micros / scale;
        if part > 0 {
            shown.push_str(&format!("{part}{unit}"));
            micros %= scale;
        }
    }
    shown
}

/// Reads `16MiB`; a bare number is bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_digits(text.trim());
    let Ok(number) = number.parse::<u64>() else {
        return Err(format!("{text:?} is not a size"));
    };
    let unit = unit.trim_start();
    let scale = match unit {
        "" => 1,
        unit => match SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, scale)) => *scale,
            None => return Err(format!("{text:?}: {unit:?} is not a unit of size")),
        },
    };
    number
        .checked_mul(scale)
        .filter(|bytes| *bytes <= i64::MAX as u64)
        .ok_or_else(|| format!("{text:?} is larger than 8 EiB"))
}

/// In the largest binary unit that divides it.
pub fn show_size(bytes: u64) -> String {
    let unit =
        SIZE_UNITS.iter().rev().find(|(name, scale)| name.ends_with("iB") && bytes > 0 && bytes.is_multiple_of(*scale));
    match unit {
        Some((name, scale)) => format!("{}{name}", bytes / scale),
        None => bytes.to_string(),
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn split_letters(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("2s", 2_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("1m0s250ms", 60_250),
            (" 3s ", 3_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn wrong_durations_say_why() {
        for (text, problem) in [
            ("30", "\"30\" has no unit"),
            ("", "\"\" is not a duration"),
            ("soon", "\"soon\" is not a duration"),
            ("-1s", "\"-1s\" is not a duration"),
            ("1.5s", "\"1.5s\": \".\" is not a unit of time"),
            ("5 parsecs", "\"5 parsecs\": \" parsecs\" is not a unit of time"),
            ("30m1h", "\"30m1h\" is not in the order of days, hours, minutes, seconds"),
            ("1s1s", "\"1s1s\" is not in the order of days, hours, minutes, seconds"),
            ("4000d", "\"4000d\" is longer than ten years"),
            ("99999999999999999999s", "\"99999999999999999999s\" is not a duration"),
        ] {
            assert_eq!(parse_duration(text), Err(problem.into()), "{text}");
        }
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("8192", 8192), ("16MiB", 16 << 20), ("16MB", 16_000_000), ("1 GiB", 1 << 30), ("5kB", 5000)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_size("16mb"), Err("\"16mb\": \"mb\" is not a unit of size".into()));
        assert_eq!(parse_size("MiB"), Err("\"MiB\" is not a size".into()));
        assert_eq!(parse_size("9000000TiB"), Err("\"9000000TiB\" is larger than 8 EiB".into()));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(micros in 0..=MAX_DURATION.as_micros() as u64, bytes in 0..=i64::MAX as u64) {
            let duration = Duration::from_micros(micros);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }
    }
}
