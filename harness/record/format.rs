//! How a number becomes text, in one place, so that every rendering shows the same digits.
//!
//! Digits follow from the uncertainty: a column shows as many decimals as its most certain cell
//! supports, so that numbers line up and no digit is noise in all of them.

/// Stands for an absent value.
pub const ABSENT: &str = "–";

/// Decimals at which an uncertainty shows two digits, or one from 3 on (0.012, 0.05).
pub fn decimals_for(uncertainty: f64) -> Option<usize> {
    if !(uncertainty.is_finite() && uncertainty > 0.0) {
        return None;
    }
    let exponent = uncertainty.log10().floor();
    let leading = uncertainty / 10f64.powf(exponent);
    let digits = if leading < 3.0 { 2.0 } else { 1.0 };
    Some((digits - 1.0 - exponent).clamp(0.0, 6.0) as usize)
}

/// Decimals for a column: what the smallest uncertainty supports, within `least..=most`.
pub fn column_decimals(
    uncertainties: impl IntoIterator<Item = Option<f64>>,
    least: usize,
    most: usize,
) -> Option<usize> {
    uncertainties
        .into_iter()
        .flatten()
        .filter_map(decimals_for)
        .max()
        .map(|d| d.clamp(least, most))
}

/// A number with a fixed count of decimals and a true minus sign.
pub fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        return "not a number".into();
    }
    if value.is_infinite() {
        return "infinite".into();
    }
    // Perplexity of a broken model can have 300 digits.
    if value.abs() >= 1e7 {
        return format!("{value:.2e}").replace('-', "−");
    }
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|b| matches!(b, b'0' | b'.')) => rest.into(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

/// As [`number`], with a plus sign where positive.
pub fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    let is_zero = text.bytes().all(|b| matches!(b, b'0' | b'.'));
    if value > 0.0 && value.is_finite() && !is_zero {
        format!("+{text}")
    } else {
        text
    }
}

/// The change of perplexity in % that a difference of mean NLL in nats amounts to.
pub fn percent(delta_nats: f64) -> f64 {
    100.0 * delta_nats.exp_m1()
}

/// `[+0.9, +1.5]`
pub fn interval(low: f64, high: f64, decimals: usize) -> String {
    format!("[{}, {}]", signed(low, decimals), signed(high, decimals))
}

/// `± 1.2`
pub fn plus_minus(uncertainty: f64, decimals: usize) -> String {
    format!("± {}", number(uncertainty, decimals))
}

/// A count with a space between thousands.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A divergence in nats, two significant digits; powers of ten below 0.0001.
pub fn nats(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        return format!("{value:.1e}").replace('-', "−");
    }
    number(value, decimals_of_two_digits(value))
}

fn decimals_of_two_digits(value: f64) -> usize {
    let exponent = value.abs().log10().floor();
    if exponent.is_finite() {
        (1.0 - exponent).clamp(0.0, 6.0) as usize
    } else {
        2
    }
}

/// Seconds, three significant digits.
pub fn seconds(value: f64) -> String {
    number(value, three_digits(value))
}

/// A ratio such as `1.8×`.
pub fn times(ratio: f64) -> String {
    format!("{}×", number(ratio, if ratio < 10.0 { 1 } else { 0 }))
}

/// Decimals that show three significant digits of `value`, two decimals at most.
pub fn three_digits(value: f64) -> usize {
    match value.abs() {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    }
}

/// The unit that a whole column or axis of bytes is shown in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByteUnit {
    pub name: &'static str,
    pub bytes: f64,
    pub decimals: usize,
}

impl ByteUnit {
    /// MiB up to 10 GiB, then GiB.
    pub fn for_largest(bytes: impl IntoIterator<Item = u64>) -> Self {
        const MIB: f64 = 1024.0 * 1024.0;
        let largest = bytes.into_iter().max().unwrap_or(0) as f64;
        let (name, unit) = if largest >= 10.0 * 1024.0 * MIB {
            ("GiB", 1024.0 * MIB)
        } else {
            ("MiB", MIB)
        };
        ByteUnit {
            name,
            bytes: unit,
            decimals: if largest / unit >= 1000.0 { 0 } else { 2 },
        }
    }

    /// The number alone; the unit stands in the header.
    pub fn number(self, bytes: u64) -> String {
        number(bytes as f64 / self.bytes, self.decimals)
    }

    /// The number with its unit.
    pub fn with_unit(self, bytes: u64) -> String {
        format!("{} {}", self.number(bytes), self.name)
    }
}

/// Text for terminals and logs that show ASCII only; control characters are dropped, since a
/// name may carry an escape sequence.
pub fn ascii(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '–' | '−' | '—' => plain.push('-'),
            '±' => plain.push_str("+/-"),
            '×' => plain.push('x'),
            '‘' | '’' => plain.push('\''),
            '“' | '”' => plain.push('"'),
            'Δ' => plain.push('d'),
            '…' => plain.push_str("..."),
            '·' => plain.push('|'),
            '\u{a0}' | '\u{202f}' | '\n' | '\t' => plain.push(' '),
            c if c.is_control() => {}
            c if c.is_ascii() => plain.push(c),
            _ => plain.push('?'),
        }
    }
    plain
}

/// At most `most` characters, the middle replaced by `…`: ends of ids tell them apart.
pub fn shortened(text: &str, most: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= most {
        return text.into();
    }
    let tail = most / 2;
    let head = most - tail - 1;
    let mut short: String = chars[..head].iter().collect();
    short.push('…');
    short.extend(&chars[chars.len() - tail..]);
    short
}

/// Text on one line, for cells and sentences.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
