//! Quantities with their units, as users write them and as they are shown.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: write {example}")]
pub struct InvalidQuantity {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// Splits `"1.5 GiB"` into the digits' value in thousandths and the unit. Thousandths keep it exact.
fn split(text: &str) -> Option<(u128, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 3 || number.ends_with('.') {
        return None;
    }
    let mut thousandths = u128::from(whole.parse::<u64>().ok()?) * 1000;
    if !fraction.is_empty() {
        thousandths += format!("{fraction:0<3}").parse::<u128>().ok()?;
    }
    Some((thousandths, unit.trim()))
}

fn scaled(text: &str, factor: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let (thousandths, unit) = split(text)?;
    let product = thousandths * u128::from(factor(unit)?);
    if !product.is_multiple_of(1000) {
        return None;
    }
    u64::try_from(product / 1000).ok()
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $what:literal, $example:literal, $factor:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, JsonSchema)]
        #[schemars(with = "String")]
        pub struct $name(u64);

        impl FromStr for $name {
            type Err = InvalidQuantity;

            fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
                scaled(text, $factor).map(Self).ok_or_else(|| InvalidQuantity {
                    text: text.chars().take(40).collect(),
                    what: $what,
                    example: $example,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

quantity!(
    /// An amount of memory or storage. Written with binary units (`512MiB`, `1.5GiB`) or in bytes (`4096B`).
    ByteSize, "size", "512MiB, 4GiB or 4096B", |unit| Some(match unit {
        "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        _ => return None,
    })
);

impl ByteSize {
    /// So many bytes.
    pub const fn bytes(count: u64) -> Self {
        Self(count)
    }

    /// So many MiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// The amount in bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// For people: three digits or so and a unit, rounded. (`Display` is exact and can be parsed again.)
    pub fn human(self) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < units.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 || value >= 100.0 {
            format!("{value:.0} {}", units[unit])
        } else {
            format!("{value:.1} {}", units[unit])
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            0 => (0, "B"),
            n if n.is_multiple_of(1 << 30) => (n >> 30, "GiB"),
            n if n.is_multiple_of(1 << 20) => (n >> 20, "MiB"),
            n if n.is_multiple_of(1 << 10) => (n >> 10, "KiB"),
            n => (n, "B"),
        };
        f.pad(&format!("{value}{unit}"))
    }
}

quantity!(
    /// How fast a link is or may be used, in bits per second. Written `200Mbit`, `1Gbit`, `9600bit`.
    Bandwidth, "bandwidth", "200Mbit or 1Gbit", |unit| Some(match unit {
        "bit" => 1,
        "Kbit" => 1_000,
        "Mbit" => 1_000_000,
        "Gbit" => 1_000_000_000,
        _ => return None,
    })
);

impl Bandwidth {
    /// So many bits per second.
    pub const fn bits_per_second(bits: u64) -> Self {
        Self(bits)
    }

    /// The rate in bits per second.
    pub const fn as_bits_per_second(self) -> u64 {
        self.0
    }

    /// The rate in bytes per second, rounded down.
    pub const fn as_bytes_per_second(self) -> u64 {
        self.0 / 8
    }

    /// For people: rounded. (`Display` is exact and can be parsed again.)
    pub fn human(self) -> String {
        match self.0 {
            n if n >= 1_000_000_000 => format!("{:.1} Gbit/s", n as f64 / 1e9),
            n if n >= 1_000_000 => format!("{:.0} Mbit/s", n as f64 / 1e6),
            n if n >= 1_000 => format!("{:.0} kbit/s", n as f64 / 1e3),
            n => format!("{n} bit/s"),
        }
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            0 => (0, "bit"),
            n if n.is_multiple_of(1_000_000_000) => (n / 1_000_000_000, "Gbit"),
            n if n.is_multiple_of(1_000_000) => (n / 1_000_000, "Mbit"),
            n if n.is_multiple_of(1_000) => (n / 1_000, "Kbit"),
            n => (n, "bit"),
        };
        f.pad(&format!("{value}{unit}"))
    }
}

quantity!(
    /// A span of time in whole milliseconds. Written `300ms`, `1.5s`, `10m`, `2h`.
    Millis, "time", "300ms, 1.5s, 10m or 2h", |unit| Some(match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    })
);

impl Millis {
    /// So many milliseconds.
    pub const fn new(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// The span in milliseconds.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The span as the standard library's type.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// For people: `87 ms`, `1.4 s`, `3 min 20 s`.
    pub fn human(self) -> String {
        match self.0 {
            n if n < 1_000 => format!("{n} ms"),
            n if n < 60_000 => format!("{:.1} s", n as f64 / 1e3),
            n => format!("{} min {} s", n / 60_000, n % 60_000 / 1_000),
        }
    }
}

impl From<Duration> for Millis {
    /// Rounded to the nearest millisecond.
    fn from(span: Duration) -> Self {
        Self(u64::try_from((span.as_micros() + 500) / 1000).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            0 => (0, "ms"),
            n if n.is_multiple_of(3_600_000) => (n / 3_600_000, "h"),
            n if n.is_multiple_of(60_000) => (n / 60_000, "m"),
            n if n.is_multiple_of(1_000) => (n / 1_000, "s"),
            n => (n, "ms"),
        };
        f.pad(&format!("{value}{unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_exact_or_refused() {
        assert_eq!("1.5GiB".parse::<ByteSize>().unwrap().as_bytes(), 3 << 29);
        assert_eq!("512 MiB".parse::<ByteSize>().unwrap(), ByteSize::mib(512));
        assert_eq!("1.5s".parse::<Millis>().unwrap(), Millis::new(1500));
        assert_eq!("200Mbit".parse::<Bandwidth>().unwrap().as_bytes_per_second(), 25_000_000);
        for bad in
            ["", "12", "-1B", "1.B", "1.0001KiB", "0.1B", "99999999TiB", "1 GB", "GiB", "1e3B", "1..2B"]
        {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read_back(n: u64) {
            prop_assert_eq!(ByteSize(n).to_string().parse(), Ok(ByteSize(n)));
            prop_assert_eq!(Bandwidth(n).to_string().parse(), Ok(Bandwidth(n)));
            prop_assert_eq!(Millis(n).to_string().parse(), Ok(Millis(n)));
        }
    }
}
