//! What operators can change about logs and traces while processes run.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A share, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(f64);

// It is never NaN.
impl Eq for Ratio {}

/// The rule of a [`Ratio`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a number from 0 to 1")]
pub struct NoRatio;

impl Ratio {
    /// All.
    pub const ALL: Self = Self(1.0);
    /// None.
    pub const NONE: Self = Self(0.0);

    /// The number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Ratio {
    type Error = NoRatio;

    fn try_from(number: f64) -> Result<Self, NoRatio> {
        if (0.0..=1.0).contains(&number) { Ok(Self(number)) } else { Err(NoRatio) }
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> Self {
        ratio.0
    }
}

impl FromStr for Ratio {
    type Err = NoRatio;

    fn from_str(text: &str) -> Result<Self, NoRatio> {
        text.parse::<f64>().map_err(|_| NoRatio)?.try_into()
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one process shall log and sample instead of what it is configured to. It replaces the order before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TelemetryOrder {
    /// What is logged beside what the configuration says.
    pub log: Option<LogOrder>,
    /// Which spans are kept.
    pub sampling: Option<SamplingOrder>,
}

/// What is logged beside what the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOrder {
    /// In the syntax of `RUST_LOG`; wins over the configured filter where the two are about the same module.
    pub filter: String,
    /// For so long; until the next order when absent.
    pub lasts: Option<Duration>,
}

/// Which spans are kept. What is absent is as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SamplingOrder {
    /// Share of traces that are kept whatever happens in them.
    pub ratio: Option<Ratio>,
    /// What takes longer is kept.
    pub slow: Option<Duration>,
    /// For so long; until the next order when absent.
    pub lasts: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_a_share() {
        for bad in ["", "-0.1", "1.1", "nan", "inf", "x"] {
            assert_eq!(bad.parse::<Ratio>(), Err(NoRatio), "{bad}");
        }
        assert_eq!("0.25".parse::<Ratio>().map(Ratio::get), Ok(0.25));
    }
}
