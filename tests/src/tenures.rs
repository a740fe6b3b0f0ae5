//! Who looked after what from when to when.
//!
//! Workers tell in their logs, at level `debug`, when they take an appliance and when they have let go of it, each with
//! the token of the grant. All processes of a fleet share one clock, so that these moments can be compared.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use crate::fleet::Fleet;

/// Environment of workers that tell what they take and let go of.
pub const TELL_TENURES: (&str, &str) =
    ("RUG_WORKER_LOG__FILTER", "info,sqlx=warn,h2=warn,worker::session::incoming=debug");

/// One worker's time with one appliance.
#[derive(Clone, Debug)]
pub struct LoggedTenure {
    /// The worker.
    pub worker: String,
    /// Its life, as the log names it; empty when the log does not.
    pub incarnation: String,
    /// Term and sequence of the grant.
    pub token: (u64, u64),
    /// When it may have begun to act.
    pub taken: SystemTime,
    /// When it could not act any more; absent when it still may, or was killed.
    pub released: Option<SystemTime>,
}

/// What the logs of all workers of a fleet tell, by appliance, in the order of tokens.
///
/// # Errors
/// When a line cannot be read, or contradicts another.
pub fn tenures(fleet: &Fleet) -> Result<BTreeMap<String, Vec<LoggedTenure>>> {
    let mut found: BTreeMap<String, BTreeMap<(u64, u64), LoggedTenure>> = BTreeMap::new();
    let mut ends = Vec::new();
    for worker in &fleet.workers {
        let mut incarnation = String::new();
        for line in worker.log_text().lines() {
            if let Some(joined) = field(line, " incarnation=").filter(|_| line.contains(" joined ")) {
                joined.clone_into(&mut incarnation);
            }
            let Some((_, tail)) = line.split_once("worker::session::incoming: ") else { continue };
            let taken = tail.starts_with("taken ");
            if !taken && !tail.starts_with("released ") {
                continue;
            }
            let fields = tail;
            let appliance = field(fields, "appliance=").with_context(|| line.to_owned())?.to_owned();
            let token = token(field(fields, "token=").with_context(|| line.to_owned())?)?;
            let stamp = line.split_whitespace().next().unwrap_or_default();
            let stamp: prost_types::Timestamp = stamp.parse().with_context(|| line.to_owned())?;
            let at = SystemTime::try_from(stamp).with_context(|| line.to_owned())?;
            if taken {
                let (worker, incarnation) = (worker.name().to_owned(), incarnation.clone());
                let tenure = LoggedTenure { worker, incarnation, token, taken: at, released: None };
                let other = found.entry(appliance).or_default().insert(token, tenure);
                ensure!(other.is_none(), "a token was taken twice: {line}");
            } else {
                ends.push((appliance, token, at));
            }
        }
    }
    for (appliance, token, at) in ends {
        let tenure = found.get_mut(&appliance).and_then(|tenures| tenures.get_mut(&token));
        tenure.with_context(|| format!("{appliance} was released under {token:?}, and never taken"))?.released =
            Some(at);
    }
    Ok(found.into_iter().map(|(appliance, tenures)| (appliance, tenures.into_values().collect())).collect())
}

/// How long nobody looked after an appliance, from each of its owners to the next; fails where two did at once. Tenures
/// that a kill ended are passed over: nobody knows when they did.
///
/// # Errors
/// Two owners at once.
pub fn gaps(tenures: &BTreeMap<String, Vec<LoggedTenure>>) -> Result<Vec<Duration>> {
    let mut found = Vec::new();
    for (appliance, tenures) in tenures {
        for pair in tenures.windows(2) {
            let Some(released) = pair[0].released else { continue };
            let gap = pair[1].taken.duration_since(released);
            found.push(gap.ok().with_context(|| format!("{appliance} had two owners: {pair:?}"))?);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The value at this share of sorted ones; zero of none.
#[must_use]
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(at - 1).copied().unwrap_or_default()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(name)?;
    rest.split(|c: char| c.is_whitespace() || c == '}').next()
}

/// `t<term>/<sequence>`
fn token(text: &str) -> Result<(u64, u64)> {
    let (term, sequence) = text.strip_prefix('t').and_then(|rest| rest.split_once('/')).context("odd token")?;
    let sequence = sequence.trim_start_matches(|c: char| !c.is_ascii_digit());
    Ok((term.parse()?, sequence.parse()?))
}
