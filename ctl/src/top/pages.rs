//! The list of appliances, of which one page at a time is here.
//!
//! A page is asked for when it is looked at, and again after a while as long as it is; the other pages are on the server.

use std::time::{Duration, SystemTime};

use common::selector::LabelSelector;
use proto::admin::v1;

use super::input::Order;
use crate::commands::filter;
use crate::document::view;

/// Appliances of a page.
pub(crate) const PAGE_ROWS: usize = 100;
/// Shortest time from one look at a page to the next when something has changed, and the time without any change.
const AGAIN: Duration = Duration::from_secs(2);
const ANYWAY: Duration = Duration::from_secs(15);

/// One appliance as a row has it; its specification is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApplianceRow {
    pub(crate) id: String,
    /// Its name with kind and tenant.
    pub(crate) label: String,
    pub(crate) tenant: String,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) phase: &'static str,
    pub(crate) ready: String,
    pub(crate) worker: String,
    pub(crate) created: Option<prost_types::Timestamp>,
    /// Why it is not well, or has no worker; empty when it is and has.
    pub(crate) problem: String,
}

impl From<&v1::Appliance> for ApplianceRow {
    fn from(appliance: &v1::Appliance) -> Self {
        let assignment = appliance.assignment.clone().unwrap_or_default();
        let status = appliance.status.as_ref();
        let problem = match assignment.worker.is_empty() {
            true => assignment.reason,
            false => status.map(|status| status.last_error.clone()).unwrap_or_default(),
        };
        Self {
            id: appliance.id.clone(),
            label: view::full_label(appliance),
            tenant: appliance.tenant.clone(),
            name: appliance.name.clone(),
            kind: view::kind(appliance),
            phase: view::phase(appliance),
            ready: crate::commands::appliance::ready(appliance),
            worker: assignment.worker,
            created: appliance.create_time,
            problem,
        }
    }
}

/// Which row is selected once a page has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Landing {
    #[default]
    Stay,
    First,
    Last,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// As it was typed.
    pub(crate) typed: String,
    filter: v1::ApplianceFilter,
    /// Tokens of the pages up to this one; the first one has none.
    before: Vec<String>,
    token: String,
    next: String,
    pub(crate) rows: Vec<ApplianceRow>,
    /// Those that match on all pages.
    pub(crate) total: u64,
    /// Number of the page that was asked for, while there is no answer.
    asked: Option<u64>,
    number: u64,
    landing: Landing,
    looked: Option<SystemTime>,
    /// The cluster has changed since.
    is_stale: bool,
    /// Why the last page did not come.
    pub(crate) failure: String,
}

impl Pages {
    /// Position of the first row among all that match.
    pub(crate) fn first(&self) -> usize {
        self.before.len() * PAGE_ROWS
    }

    /// Notes that appliances may have changed.
    pub(crate) const fn note_change(&mut self) {
        self.is_stale = true;
    }

    /// Another filter, from the first page on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn search(&mut self, text: &str, home: Option<&str>) -> Result<Order, String> {
        let filter = parse(text, home)?;
        *self = Self { typed: text.trim().to_owned(), filter, number: self.number, ..Self::default() };
        self.landing = Landing::First;
        Ok(self.ask())
    }

    fn ask(&mut self) -> Order {
        self.number += 1;
        self.asked = Some(self.number);
        Order::Page { number: self.number, filter: self.filter.clone(), token: self.token.clone() }
    }

    /// Asks for the page again when it is due.
    pub(crate) fn look(&mut self, now: SystemTime) -> Option<Order> {
        if self.asked.is_some() {
            return None;
        }
        let after = if self.is_stale { AGAIN } else { ANYWAY };
        let due = self.looked.is_none_or(|at| now.duration_since(at).is_ok_and(|since| since >= after));
        due.then(|| self.ask())
    }

    /// The next page, if there is one.
    pub(crate) fn forward(&mut self) -> Option<Order> {
        if self.asked.is_some() || self.next.is_empty() {
            return None;
        }
        self.before.push(std::mem::replace(&mut self.token, std::mem::take(&mut self.next)));
        self.landing = Landing::First;
        Some(self.ask())
    }

    /// The page before, if there is one.
    pub(crate) fn back(&mut self) -> Option<Order> {
        if self.asked.is_some() {
            return None;
        }
        self.token = self.before.pop()?;
        self.landing = Landing::Last;
        Some(self.ask())
    }

    /// The first page.
    pub(crate) fn rewind(&mut self) -> Option<Order> {
        if self.asked.is_some() || self.before.is_empty() {
            return None;
        }
        self.before.clear();
        self.token.clear();
        self.landing = Landing::First;
        Some(self.ask())
    }

    /// Takes an answer; returns the id of the row to select, if that is another one now. An answer to an earlier question is left out.
    pub(crate) fn take(
        &mut self,
        number: u64,
        page: Result<Box<v1::ListAppliancesResponse>, String>,
        now: SystemTime,
    ) -> Option<String> {
        if self.asked != Some(number) {
            return None;
        }
        self.asked = None;
        self.looked = Some(now);
        self.is_stale = false;
        let landing = std::mem::take(&mut self.landing);
        match page {
            Ok(page) => {
                self.failure.clear();
                self.rows = page.appliances.iter().map(ApplianceRow::from).collect();
                self.total = page.total_size;
                self.next = page.next_page_token;
            }
            Err(failure) => self.failure = failure,
        }
        let row = match landing {
            Landing::Stay => None,
            Landing::First => self.rows.first(),
            Landing::Last => self.rows.last(),
        };
        row.map(|row| row.id.clone())
    }
}

/// Reads a filter: words that all must hold. `tenant=`, `kind=`, `driver=`, `worker=` and `phase=` are about those, any other
/// word with `=`, `!=` or a `!` in front is about labels, and a word alone is what names begin with.
pub(crate) fn parse(text: &str, home: Option<&str>) -> Result<v1::ApplianceFilter, String> {
    let mut found =
        v1::ApplianceFilter { tenant: home.unwrap_or_default().to_owned(), ..v1::ApplianceFilter::default() };
    let mut conditions = Vec::new();
    for word in text.split_whitespace() {
        match word.split_once('=') {
            None if !word.starts_with('!') => word.clone_into(&mut found.name_prefix),
            Some(("tenant", value)) => value.clone_into(&mut found.tenant),
            Some(("kind", value)) => value.clone_into(&mut found.kind),
            Some(("driver", value)) => value.clone_into(&mut found.driver),
            Some(("worker", value)) => value.clone_into(&mut found.worker),
            Some(("phase", value)) => {
                let phase = filter::parse_phase(value).map_err(|why| format!("phase={value}: {why}"))?;
                found.phases.push(phase.into());
            }
            _ => {
                let selector = word.parse::<LabelSelector>().map_err(|why| why.to_string())?;
                conditions.extend_from_slice(selector.conditions());
            }
        }
    }
    found.selector = LabelSelector::new(conditions).to_string();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn page(names: &[&str], next: &str) -> Result<Box<v1::ListAppliancesResponse>, String> {
        let appliance =
            |name: &&str| v1::Appliance { id: (*name).into(), name: (*name).into(), ..v1::Appliance::default() };
        Ok(Box::new(v1::ListAppliancesResponse {
            appliances: names.iter().map(appliance).collect(),
            next_page_token: next.into(),
            total_size: 4,
        }))
    }

    fn number(order: Option<Order>) -> (u64, String) {
        match order {
            Some(Order::Page { number, token, .. }) => (number, token),
            other => panic!("no page is asked for: {other:?}"),
        }
    }

    #[test]
    fn pages_are_walked_in_both_directions() {
        let mut pages = Pages::default();
        let (first, _) = number(pages.look(at(0)));
        assert_eq!(pages.forward(), None, "nothing is known yet");
        assert_eq!(pages.take(first, page(&["a", "b"], "t2"), at(0)), None);
        let (second, token) = number(pages.forward());
        assert_eq!(token, "t2");
        assert_eq!(pages.take(first, page(&["x"], ""), at(0)), None, "an answer to an earlier question");
        assert_eq!(pages.take(second, page(&["c", "d"], ""), at(0)), Some("c".into()));
        assert_eq!((pages.first(), pages.forward()), (PAGE_ROWS, None));
        let (third, token) = number(pages.back());
        assert_eq!(token, "");
        assert_eq!(pages.take(third, page(&["a", "b"], "t2"), at(0)), Some("b".into()));
        assert_eq!((pages.first(), pages.back()), (0, None));
    }

    #[test]
    fn a_page_is_asked_for_again_after_a_change_or_a_while() {
        let mut pages = Pages::default();
        let (first, _) = number(pages.look(at(0)));
        assert_eq!(pages.look(at(60)), None, "there is no answer yet");
        pages.take(first, page(&["a"], ""), at(60));
        assert_eq!(pages.look(at(63)), None);
        pages.note_change();
        assert_eq!(pages.look(at(61)), None);
        let (second, _) = number(pages.look(at(62)));
        pages.take(second, Err("no answer".into()), at(62));
        assert_eq!((pages.rows.len(), pages.failure.as_str()), (1, "no answer"), "what was there stays");
        assert!(pages.look(at(62) + ANYWAY).is_some());
    }

    #[test]
    fn a_filter_is_a_line_of_words() {
        let filter = parse("web phase=error worker=w1 app=shop tier!=db !old", Some("demo")).expect("valid");
        assert_eq!(
            (filter.tenant.as_str(), filter.name_prefix.as_str(), filter.worker.as_str()),
            ("demo", "web", "w1")
        );
        assert_eq!(filter.phases, [i32::from(v1::Phase::Error)]);
        assert_eq!(filter.selector, "app=shop,tier!=db,!old");
        assert!(parse("app=a(b", None).is_err());
        assert!(parse("phase=asleep", None).expect_err("no phase").contains("down, booting"));
    }
}
