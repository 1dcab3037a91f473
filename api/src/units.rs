//! Quantities as Docker users write them.

/// Parses a size in bytes: a number with an optional suffix b, k, m, g or t (powers of 1024, either case, `KiB` and `kb` too).
///
/// # Errors
/// What is wrong with it, in one clause.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, suffix) = lower.split_at(digits);
    let factor: u64 = match suffix {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(format!("{text:?} has no unit that is known (b, k, m, g, t)")),
    };
    let bytes = match number.split_once('.') {
        None => number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)),
        Some((whole, fraction)) => fractional(whole, fraction, factor),
    };
    bytes.ok_or_else(|| format!("{text:?} is not a size"))
}

fn fractional(whole: &str, fraction: &str, factor: u64) -> Option<u64> {
    if fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let scale = 10u64.pow(u32::try_from(fraction.len()).ok()?);
    let part: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = u128::from(part) * u128::from(factor) / u128::from(scale);
    whole.checked_mul(factor)?.checked_add(u64::try_from(part).ok()?)
}

/// Parses a number of CPUs with up to three decimals into thousandths.
///
/// # Errors
/// What is wrong with it, in one clause.
pub fn parse_milli_cpus(text: &str) -> Result<u32, String> {
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    let number = || {
        let digits = |s: &str| s.len() <= 6 && s.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
            return None;
        }
        let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let thousandths: u32 = format!("{fraction:0<3}")[..3].parse().ok()?;
        whole.checked_mul(1000)?.checked_add(thousandths)
    };
    match number() {
        Some(0) => Err(format!("{text:?} CPUs is no CPU at all")),
        Some(milli) => Ok(milli),
        None => Err(format!("{text:?} is not a number of CPUs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let good = [
            ("512m", 512 << 20),
            ("1g", 1 << 30),
            ("64MiB", 64 << 20),
            ("7", 7),
            ("1.5k", 1536),
            (".5g", 1 << 29),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "-1", "1x", "1e3", "99999999999t", "1.2.3m", "0x10", "1.0000000001g"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus() {
        for (text, milli) in [("1", 1000), ("0.5", 500), (".25", 250), ("2.", 2000), ("1.2345", 1234)] {
            assert_eq!(parse_milli_cpus(text), Ok(milli), "{text}");
        }
        for text in ["", ".", "0", "0.0001", "-1", "1,5", "x", "99999999"] {
            assert!(parse_milli_cpus(text).is_err(), "{text}");
        }
    }
}
