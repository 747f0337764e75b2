//! How a value of the command line is written: seconds, shares and bytes.

/// A positive number of seconds.
pub(super) fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        // A year is longer than any run and still fits every clock.
        Ok(s) if s > 0.0 && s <= 366.0 * 86400.0 => Ok(s),
        _ => Err("expected a positive number of seconds".into()),
    }
}

/// A share between 0 and 1, or a percentage.
pub(super) fn share(text: &str) -> std::result::Result<f64, String> {
    let (number, unit) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent, 0.01),
        None => (text, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(share) if share > 0.0 && share * unit < 1.0 => Ok(share * unit),
        _ => Err("expected a share between 0 and 1, such as 0.02 or 2%".into()),
    }
}

/// A number of bytes, with K, M or G for powers of 1024.
pub(super) fn bytes(text: &str) -> std::result::Result<usize, String> {
    let expected = || "expected a positive number of bytes, such as 12M or 1500000".to_string();
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(['b', 'i']);
    let (digits, factor) = match digits.strip_suffix(['k', 'm', 'g']) {
        Some(rest) => (
            rest,
            match digits.as_bytes()[rest.len()] {
                b'k' => 1usize << 10,
                b'm' => 1 << 20,
                _ => 1 << 30,
            },
        ),
        None => (digits, 1),
    };
    let number: usize = digits.trim().parse().map_err(|_| expected())?;
    number
        .checked_mul(factor)
        .filter(|n| *n > 0)
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, n) in [
            ("1500", 1500),
            ("12M", 12 << 20),
            ("12MiB", 12 << 20),
            ("3k", 3 << 10),
            ("2 GB", 2 << 30),
        ] {
            assert_eq!(bytes(text), Ok(n), "{text}");
        }
        for bad in ["", "0", "-1", "M", "1T", "99999999999G", "1.5M"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        for (text, s) in [("0.02", 0.02), ("2%", 0.02), ("1.5 %", 0.015)] {
            assert!((share(text).unwrap() - s).abs() < 1e-12, "{text}");
        }
        for bad in ["0", "-1", "1", "100%", "nan", "x", "%"] {
            assert!(share(bad).is_err(), "{bad}");
        }
        assert_eq!(seconds("0.5"), Ok(0.5));
        for bad in ["0", "-1", "nan", "inf", "x", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
