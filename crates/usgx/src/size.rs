//! Sizes as people write them: `64M`, `1G`, `4096`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Size(pub(crate) u64);

/// Units, the largest first. They are powers of two, as EPC sizes are.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
        let unit = UNITS.iter().find_map(|&(letter, shift)| Some((bare.strip_suffix(letter)?, shift)));
        let (digits, shift) = unit.unwrap_or((bare, 0));
        let wrong =
            || format!("'{text}' is not a size; write bytes (67108864) or a number with K, M, G or T (64M)");
        let count: u64 = digits.trim().parse().map_err(|_| wrong())?;
        let bytes =
            count.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is more than a computer has"))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in UNITS {
            let unit = 1u64 << shift;
            if self.0 >= unit {
                return if self.0.is_multiple_of(unit) {
                    write!(out, "{} {letter}iB", self.0 / unit)
                } else {
                    write!(out, "{:.1} {letter}iB", self.0 as f64 / unit as f64)
                };
            }
        }
        write!(out, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64M", 64 << 20),
            ("64MiB", 64 << 20),
            ("1g", 1 << 30),
            (" 8 k ", 8192),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse::<Size>().map(|size| size.0), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["", "M", "-1", "1.5G", "64X", "0x1000"] {
            assert!(text.parse::<Size>().expect_err(text).contains("64M"), "{text}");
        }
        assert!("99999999T".parse::<Size>().is_err());
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        assert_eq!(Size(64 << 20).to_string(), "64 MiB");
        assert_eq!(Size((1 << 20) + (1 << 19)).to_string(), "1.5 MiB");
        assert_eq!(Size(100).to_string(), "100 bytes");
    }
}
