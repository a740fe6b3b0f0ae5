//! What instances have printed, as kubelets keep it and the API server passes it on.
//!
//! A place in it is a pod, the time of the last line that was read, and how many lines of that time were: logs of pods have times and no
//! offsets, and the API server begins at a whole second. A pod that is gone has taken its log with it.

use std::fmt::Write as _;

use common::inquiry::{LogPart, LogQuery, MAX_LOG_PART};
use kubernetes::Error as ApiError;

use super::view::PodView;
use super::{Inner, api, failed};
use crate::drivers::Error;

/// How much is asked for at a time; more, where all of it is of the second that was read before.
const ASKED: [usize; 2] = [1 << 20, 16 << 20];

/// Up to where the log of a pod was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    attempt: u32,
    uid: String,
    /// As in the log; empty before the first line.
    time: String,
    /// Lines of that time that were read.
    lines: usize,
}

impl Place {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('|');
        let place = Self {
            attempt: parts.next()?.parse().ok()?,
            uid: parts.next()?.to_owned(),
            time: parts.next()?.to_owned(),
            lines: parts.next()?.parse().ok()?,
        };
        let is_time = place.time.bytes().all(|byte| byte.is_ascii_digit() || b"-:.TZ+".contains(&byte));
        (parts.next().is_none() && is_time).then_some(place)
    }

    fn text(&self) -> String {
        format!("{}|{}|{}|{}", self.attempt, self.uid, self.time, self.lines)
    }
}

impl Inner {
    /// Part of what the instances of an ordinal have printed.
    pub(super) async fn read_log(&self, query: &LogQuery) -> Result<LogPart, Error> {
        let mut pods = self.cache.of_appliance(query.appliance);
        pods.retain(|pod| pod.key.ordinal == query.ordinal && !pod.gated);
        pods.sort_by_key(|pod| pod.key.attempt);
        let asked = Place::read(&query.place);
        let at = match &asked {
            Some(place) => pods.iter().position(|pod| pod.uid == place.uid),
            None if query.previous => Some(0),
            None => pods.len().checked_sub(1),
        };
        let (pod, lost) = match (at.and_then(|at| pods.get(at)), &asked) {
            (Some(pod), _) => (pod, false),
            // That pod has gone, and what was not read of its log with it.
            (None, Some(place)) => match pods.iter().find(|pod| pod.key.attempt > place.attempt) {
                Some(next) => (next, true),
                None => return Ok(LogPart { place: query.place.clone(), ..LogPart::default() }),
            },
            (None, None) => return Ok(LogPart::default()),
        };
        let begin = Place { attempt: pod.key.attempt, uid: pod.uid.clone(), ..Place::default() };
        let from = asked.filter(|place| place.uid == pod.uid).unwrap_or(begin);
        let mut part = self.part_of(pod, &from, query).await?;
        part.lost |= lost;
        // What it printed last can still come.
        let next = pods.iter().find(|next| next.key.attempt > pod.key.attempt).filter(|_| pod.ended && !part.more);
        if let Some(next) = next {
            let begin = Place { attempt: next.key.attempt, uid: next.uid.clone(), ..Place::default() };
            (part.place, part.more) = (begin.text(), true);
        }
        Ok(part)
    }

    async fn part_of(&self, pod: &PodView, from: &Place, query: &LogQuery) -> Result<LogPart, Error> {
        for limit in ASKED {
            let mut options = format!("container=appliance&timestamps=true&limitBytes={limit}");
            if from.time.is_empty() {
                if let Some(since) = query.since.filter(|_| query.place.is_empty()) {
                    let _ = write!(options, "&sinceSeconds={}", since.as_secs().max(1));
                }
                if let Some(lines) = query.tail.filter(|_| query.place.is_empty()) {
                    let _ = write!(options, "&tailLines={lines}");
                }
            } else {
                let _ = write!(options, "&sinceTime={}", from.time.replace('+', "%2B"));
            }
            let text = match api::read_log(&self.client, &pod.namespace, &pod.key.name(), &options).await {
                Ok(text) => text,
                // It does not run yet, or is gone by now.
                Err(ApiError::NotFound(_) | ApiError::Invalid(_)) => String::new(),
                Err(error) => return Err(failed("read the log of pod", error)),
            };
            let is_cut = text.len() >= limit;
            if let Some(part) = take(&text, from, is_cut) {
                return Ok(part);
            }
        }
        let most = ASKED[ASKED.len() - 1] >> 20;
        Err(Error::Failed(format!("{} printed more than {most} MiB in one second", pod.key.name())))
    }
}

/// What follows a place in lines with times, of which the last one may be cut; `None` when all of them were read before and there are more.
fn take(text: &str, from: &Place, is_cut: bool) -> Option<LogPart> {
    let mut place = from.clone();
    let mut part = LogPart::default();
    let mut same = 0;
    // A line without its end is being written, or was cut.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let Some((time, printed)) = line.split_once(' ') else { continue };
        if !from.time.is_empty() {
            if order(time) < order(&from.time) {
                continue;
            }
            if order(time) == order(&from.time) {
                same += 1;
                if same <= from.lines {
                    continue;
                }
            }
        }
        if part.data.len() + printed.len() > MAX_LOG_PART && !part.data.is_empty() {
            part.more = true;
            break;
        }
        let printed = printed.as_bytes();
        if printed.len() > MAX_LOG_PART {
            part.lost = true;
        }
        part.data.extend_from_slice(&printed[..printed.len().min(MAX_LOG_PART)]);
        place.lines = if order(time) == order(&place.time) { place.lines + 1 } else { 1 };
        time.clone_into(&mut place.time);
    }
    if is_cut && place == *from {
        return None;
    }
    part.more |= is_cut;
    part.place = place.text();
    Some(part)
}

/// Times of one log in their order: with as many digits of the second as there may be.
fn order(time: &str) -> String {
    let (second, rest) = time.split_once('.').unwrap_or((time.trim_end_matches('Z'), ""));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    format!("{second}.{digits:0<9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(time: &str, lines: usize) -> Place {
        Place { attempt: 3, uid: "u-1".into(), time: time.into(), lines }
    }

    #[test]
    fn places_are_read_as_they_were_written_and_nothing_else_is() {
        let of = place("2026-12-01T10:00:00.25Z", 2);
        assert_eq!(Place::read(&of.text()), Some(of));
        for odd in ["", "7:99", "3|u|&follow=true|1", "3|u|2026|x", "3|u|2026|1|"] {
            assert_eq!(Place::read(odd), None, "{odd}");
        }
    }

    #[test]
    fn reading_goes_on_after_the_lines_that_were_read() {
        let log = "2026-12-01T10:00:00.1Z a\n2026-12-01T10:00:00.25Z b\n2026-12-01T10:00:00.250000000Z c d\n2026-12-01T10:00:01Z e\n2026-12-01T10:00:02Z no en";
        let all = take(log, &place("", 0), false).expect("a part");
        assert_eq!((all.data.as_slice(), all.more), (&b"a\nb\nc d\ne\n"[..], false));
        assert_eq!(all.place, "3|u-1|2026-12-01T10:00:01Z|1");
        let rest = take(log, &place("2026-12-01T10:00:00.250Z", 1), false).expect("a part");
        assert_eq!(rest.data, b"c d\ne\n");
        let none = take(log, &Place::read(&all.place).expect("a place"), false).expect("a part");
        assert_eq!((none.data.len(), none.place), (0, all.place));
        // All that was sent is known, and there is more.
        assert_eq!(take("2026-12-01T10:00:00Z a\n", &place("2026-12-01T10:00:00Z", 1), true), None);
    }

    #[test]
    fn a_part_is_bounded_and_a_line_that_is_too_long_is_cut_and_told() {
        let line = |n: u32| format!("2026-12-01T10:00:{n:02}Z {}\n", "x".repeat(60_000));
        let log: String = (0..3).map(line).collect();
        let first = take(&log, &place("", 0), false).expect("a part");
        assert!(first.more && first.data.len() == 120_002, "{first:?}");
        let second = take(&log, &Place::read(&first.place).expect("a place"), false).expect("a part");
        assert!(!second.more && second.data.len() == 60_001, "{second:?}");
        let long =
            take(&format!("2026-12-01T10:00:00Z {}\n", "y".repeat(200_000)), &place("", 0), false).expect("a part");
        assert!(long.lost && long.data.len() == MAX_LOG_PART, "{long:?}");
    }
}
