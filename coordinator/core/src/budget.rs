//! Budgets of disruption: how many appliances of a group may be unavailable for another one to be made unavailable on purpose.
//!
//! A rule says which appliances it is about, how they are grouped and how many of a group may be unavailable. Whatever makes an
//! appliance unavailable counts: it has no owner, is on the move, has not acted on its newest specification or is not
//! `Configured`. What Rug does on its own account, or on an operator's (moves, rebuilds, rollouts), asks [`Ledger::refuses`] first.
//! One that is unavailable already may be taken on at once: that makes no further one unavailable. What ends by itself, as with
//! the death of a worker, asks nobody, and is counted.
//!
//! What is being removed counts nowhere: it is not missed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use common::appliance::Name;
use common::kind::KindName;
use common::mutant::{self, Mutant};
use common::selector::LabelSelector;
use common::{ModeSubject, WorkerId};
use serde::{Deserialize, Serialize};

use crate::slot::Slot;

/// Most rules. Each change of an appliance asks each of them.
pub const MAX_BUDGETS: usize = 64;

/// Which appliances a rule is about: those for which everything holds that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetScope {
    /// They are of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
    /// They are of this kind.
    #[serde(skip_serializing_if = "Option::is_none", with = "kind_name")]
    pub kind: Option<KindName>,
    /// Their owner is in this zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// They have these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelSelector>,
}

/// A kind by its name.
mod kind_name {
    use common::kind::KindName;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, clippy::ref_option, reason = "as serde calls it")]
    pub(super) fn serialize<S: Serializer>(kind: &Option<KindName>, to: S) -> Result<S::Ok, S::Error> {
        kind.map(KindName::as_str).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<KindName>, D::Error> {
        let Some(name) = Option::<String>::deserialize(from)? else { return Ok(None) };
        let unknown = || de::Error::custom(format_args!("there is no kind `{name}`"));
        KindName::find(&name).map(Some).ok_or_else(unknown)
    }
}

/// Which appliances are counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetGroup {
    /// All that the rule is about.
    #[default]
    All,
    /// Those of each tenant.
    Tenant,
    /// Those of each kind.
    Kind,
    /// Those of each zone.
    Zone,
}

impl BudgetGroup {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::All, Self::Tenant, Self::Kind, Self::Zone];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Tenant => "tenant",
            Self::Kind => "kind",
            Self::Zone => "zone",
        }
    }
}

/// How many of a group may be unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxUnavailable {
    /// So many.
    Count(u32),
    /// This part of the group in percent, rounded up, as for the `PodDisruptionBudget` of Kubernetes.
    Percent(u8),
}

impl MaxUnavailable {
    /// How many that are of a group of this size.
    #[must_use]
    pub const fn of(self, size: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            // At most as many as there are.
            Self::Percent(percent) => ((size as u64 * percent as u64).div_ceil(100)) as u32,
        }
    }
}

impl fmt::Display for MaxUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Which appliances it is about.
    #[serde(default)]
    pub scope: BudgetScope,
    /// Which of them are counted together.
    #[serde(default)]
    pub per: BudgetGroup,
    /// How many of a group may be unavailable.
    pub max_unavailable: MaxUnavailable,
}

/// What rules go by about one appliance.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Tenant and labels.
    pub subject: &'a ModeSubject,
    /// What it is.
    pub kind: KindName,
    /// The zone of its owner, and while it moves those of the former and the next one. A worker that publishes none is in
    /// zone "", and what has no owner is in none.
    pub zones: [Option<&'a str>; 3],
    /// It is unavailable.
    pub down: bool,
}

/// A rule keeps an appliance from being made unavailable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetSpent {
    /// The rule.
    pub budget: Name,
    /// How it groups appliances.
    pub per: BudgetGroup,
    /// The group, as the tenant; empty for all.
    pub group: String,
    /// How many of the group are unavailable.
    pub down: u32,
    /// How many may be.
    pub most: u32,
}

impl fmt::Display for BudgetSpent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { budget, per, group, down, most } = self;
        write!(f, "budget {budget} allows {most} unavailable")?;
        if *per != BudgetGroup::All {
            write!(f, " in {} {}", per.name(), if group.is_empty() { "(none)" } else { group })?;
        }
        write!(f, ", and {down} {}", if *down == 1 { "is" } else { "are" })
    }
}

/// How a group stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCount {
    /// Appliances.
    pub size: u32,
    /// Those of them that are unavailable.
    pub down: u32,
}

/// How a rule stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetView {
    /// Its name.
    pub name: Name,
    /// The rule.
    pub budget: Budget,
    /// Appliances that it is about.
    pub covered: u64,
    /// Those of them that are unavailable.
    pub down: u64,
    /// Groups.
    pub groups: u64,
    /// Groups of which no further one may become unavailable.
    pub spent: u64,
    /// Moves that the last plan did not begin because of it.
    pub held: u64,
}

/// A rule and one group of it.
type GroupKey = (Name, String);

/// What is counted of one appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    groups: Vec<GroupKey>,
    down: bool,
}

/// The rules, and how many are unavailable in each group.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    rules: BTreeMap<Name, Budget>,
    groups: HashMap<GroupKey, GroupCount>,
    /// Empty as long as there are no rules.
    rows: HashMap<Slot, Counted>,
    /// Moves that each rule kept from being begun since the last plan.
    held: BTreeMap<Name, u64>,
    /// What is about to be made unavailable by somebody who has asked.
    reserved: BTreeSet<Slot>,
}

impl Ledger {
    /// Whether there are rules: without any nothing is counted.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.rules.is_empty()
    }

    /// Replaces the rules. Nothing is counted then: every appliance is to be [noted](Self::note) anew.
    pub fn set_rules(&mut self, rules: BTreeMap<Name, Budget>) {
        self.rules = rules;
        self.groups.clear();
        self.rows.clear();
        self.held.clear();
    }

    /// Takes in how an appliance is. Returns whether that made room where somebody waits for some.
    pub fn note(&mut self, slot: Slot, facts: Option<&Facts<'_>>) -> bool {
        if facts.is_none() {
            self.reserved.remove(&slot);
        }
        if self.is_idle() {
            return false;
        }
        let now = facts
            .map(|facts| Counted { groups: self.groups_of(facts), down: facts.down || self.reserved.contains(&slot) });
        let now = now.filter(|counted| !counted.groups.is_empty());
        if self.rows.get(&slot) == now.as_ref() {
            return false;
        }
        let before = self.rows.remove(&slot);
        let made_room = before.as_ref().is_some_and(|before| {
            before.down && now.as_ref().is_none_or(|now| !now.down || now.groups != before.groups)
        });
        if let Some(Counted { groups, down }) = &before {
            for key in groups {
                let Some(count) = self.groups.get_mut(key) else { continue };
                count.size -= 1;
                count.down -= u32::from(*down);
                if count.size == 0 {
                    self.groups.remove(key);
                }
            }
        }
        if let Some(counted) = now {
            for key in &counted.groups {
                let count = self.groups.entry(key.clone()).or_default();
                count.size += 1;
                count.down += u32::from(counted.down);
            }
            self.rows.insert(slot, counted);
        }
        made_room && !self.held.is_empty()
    }

    fn groups_of(&self, facts: &Facts<'_>) -> Vec<GroupKey> {
        let mut groups = Vec::new();
        for (name, budget) in &self.rules {
            let in_zone = |zone: &String| facts.zones.iter().flatten().any(|of| of == zone);
            let BudgetScope { tenant, kind, zone, labels } = &budget.scope;
            let covers = tenant.as_ref().is_none_or(|tenant| *tenant == facts.subject.tenant)
                && kind.is_none_or(|kind| kind == facts.kind)
                && zone.as_ref().is_none_or(in_zone)
                && labels.as_ref().is_none_or(|labels| labels.selects(&facts.subject.labels));
            if !covers {
                continue;
            }
            match budget.per {
                BudgetGroup::All => groups.push((name.clone(), String::new())),
                BudgetGroup::Tenant => groups.push((name.clone(), facts.subject.tenant.to_string())),
                BudgetGroup::Kind => groups.push((name.clone(), facts.kind.as_str().to_owned())),
                BudgetGroup::Zone => {
                    let zones: BTreeSet<&str> = facts.zones.iter().flatten().copied().collect();
                    groups.extend(zones.into_iter().map(|zone| (name.clone(), zone.to_owned())));
                }
            }
        }
        groups
    }

    /// The rule that keeps an appliance from being made unavailable, if one does; also one by which it would be counted while it moves
    /// to `next`, as `facts` say.
    #[must_use]
    pub fn refuses(&self, slot: Slot, facts: &Facts<'_>) -> Option<BudgetSpent> {
        if self.is_idle() {
            return None;
        }
        let known = self.rows.get(&slot);
        if facts.down || known.is_some_and(|row| row.down) {
            return None;
        }
        self.groups_of(facts).into_iter().find_map(|key| {
            let counted = known.is_some_and(|row| row.groups.contains(&key));
            let GroupCount { size, down } = self.groups.get(&key).copied().unwrap_or_default();
            let budget = self.rules.get(&key.0)?;
            let most = budget.max_unavailable.of(size + u32::from(!counted));
            let down = if mutant::is(Mutant::BudgetIgnoresDown) { 0 } else { down };
            let (name, group) = key;
            (down >= most).then_some(BudgetSpent { budget: name, per: budget.per, group, down, most })
        })
    }

    /// A move was not begun because of a rule.
    pub fn hold(&mut self, budget: &Name) {
        *self.held.entry(budget.clone()).or_default() += 1;
    }

    /// A new plan is carried out: what is held is counted anew.
    pub fn release_held(&mut self) {
        self.held.clear();
    }

    /// Whether a rule keeps moves from being begun.
    #[must_use]
    pub fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// Somebody is about to make an appliance unavailable, or has not done so after all. It is to be [noted](Self::note) then.
    pub fn reserve(&mut self, slot: Slot, reserved: bool) {
        if reserved {
            self.reserved.insert(slot);
        } else {
            self.reserved.remove(&slot);
        }
    }

    /// Whether somebody is about to make an appliance unavailable.
    #[must_use]
    pub fn is_reserved(&self, slot: Slot) -> bool {
        self.reserved.contains(&slot)
    }

    /// How each rule stands.
    #[must_use]
    pub fn views(&self) -> Vec<BudgetView> {
        let view = |(name, budget): (&Name, &Budget)| BudgetView {
            name: name.clone(),
            budget: budget.clone(),
            covered: 0,
            down: 0,
            groups: 0,
            spent: 0,
            held: self.held.get(name).copied().unwrap_or_default(),
        };
        let mut views: BTreeMap<&Name, BudgetView> = self.rules.iter().map(|rule| (rule.0, view(rule))).collect();
        for ((name, _), count) in &self.groups {
            let Some(view) = views.get_mut(name) else { continue };
            view.covered += u64::from(count.size);
            view.down += u64::from(count.down);
            view.groups += 1;
            view.spent += u64::from(count.down >= view.budget.max_unavailable.of(count.size));
        }
        views.into_values().collect()
    }

    /// How many are unavailable in each group, for checks.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(Name, String), GroupCount> {
        self.groups.iter().map(|(key, count)| (key.clone(), *count)).collect()
    }

    /// How many may be unavailable in a group of this size.
    #[must_use]
    pub fn most(&self, budget: &Name, size: u32) -> u32 {
        self.rules.get(budget).map_or(u32::MAX, |budget| budget.max_unavailable.of(size))
    }

    /// The groups that an appliance is counted in.
    pub fn groups_at(&self, slot: Slot) -> impl Iterator<Item = &(Name, String)> {
        self.rows.get(&slot).into_iter().flat_map(|row| &row.groups)
    }
}

/// The zones that an appliance is counted in, by the workers it is with, was with and goes to.
pub(crate) fn zones<'a>(
    workers: [Option<&WorkerId>; 3],
    zone_of: impl Fn(&WorkerId) -> Option<&'a str>,
) -> [Option<&'a str>; 3] {
    workers.map(|worker| worker.and_then(&zone_of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a valid name")
    }

    fn subject(tenant: &str, color: &str) -> ModeSubject {
        ModeSubject { tenant: name(tenant), labels: [("color".to_owned(), color.to_owned())].into() }
    }

    fn facts<'a>(subject: &'a ModeSubject, zone: &'a str, down: bool) -> Facts<'a> {
        Facts { subject, kind: KindName::Custom, zones: [Some(zone), None, None], down }
    }

    fn ledger(rules: &[(&str, Budget)]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.set_rules(rules.iter().map(|(text, budget)| (name(text), budget.clone())).collect());
        ledger
    }

    const fn rule(scope: BudgetScope, per: BudgetGroup, max_unavailable: MaxUnavailable) -> Budget {
        Budget { scope, per, max_unavailable }
    }

    #[test]
    fn what_is_down_already_counts_and_may_be_taken_on() {
        let mut it = ledger(&[("one", rule(BudgetScope::default(), BudgetGroup::Tenant, MaxUnavailable::Count(1)))]);
        let (a, b) = (subject("a", "red"), subject("b", "red"));
        it.note(Slot(1), Some(&facts(&a, "z", false)));
        it.note(Slot(2), Some(&facts(&a, "z", true)));
        it.note(Slot(3), Some(&facts(&b, "z", false)));
        let spent = it.refuses(Slot(1), &facts(&a, "z", false)).expect("one is down");
        assert_eq!((spent.group.as_str(), spent.down, spent.most), ("a", 1, 1));
        assert_eq!(spent.to_string(), "budget one allows 1 unavailable in tenant a, and 1 is");
        assert_eq!(it.refuses(Slot(2), &facts(&a, "z", true)), None, "it is down itself");
        assert_eq!(it.refuses(Slot(3), &facts(&b, "z", false)), None, "another tenant");
        it.hold(&name("one"));
        assert!(it.note(Slot(2), Some(&facts(&a, "z", false))), "somebody waits for that");
        assert_eq!(it.refuses(Slot(1), &facts(&a, "z", false)), None);
        assert_eq!(it.views()[0].covered, 3);
    }

    #[test]
    fn what_somebody_is_about_to_do_counts_from_the_moment_it_is_said() {
        let mut it = ledger(&[("one", rule(BudgetScope::default(), BudgetGroup::All, MaxUnavailable::Count(1)))]);
        let a = subject("a", "red");
        (1..=2).for_each(|slot| _ = it.note(Slot(slot), Some(&facts(&a, "", false))));
        it.reserve(Slot(1), true);
        it.note(Slot(1), Some(&facts(&a, "", false)));
        assert!(it.refuses(Slot(2), &facts(&a, "", false)).is_some());
        it.note(Slot(1), None);
        assert!(!it.is_reserved(Slot(1)), "it is gone");
        assert_eq!(it.refuses(Slot(2), &facts(&a, "", false)), None);
    }

    #[test]
    fn a_move_is_counted_in_both_zones() {
        let mut it = ledger(&[("zones", rule(BudgetScope::default(), BudgetGroup::Zone, MaxUnavailable::Count(1)))]);
        let a = subject("a", "red");
        it.note(Slot(1), Some(&facts(&a, "east", false)));
        it.note(Slot(2), Some(&facts(&a, "west", true)));
        let moving = Facts { zones: [Some("east"), None, Some("west")], ..facts(&a, "east", false) };
        assert_eq!(it.refuses(Slot(1), &moving).map(|spent| spent.group), Some("west".to_owned()));
        it.note(Slot(1), Some(&Facts { down: true, ..moving }));
        let counts = it.counts();
        assert_eq!(counts[&(name("zones"), "east".to_owned())], GroupCount { size: 1, down: 1 });
        assert_eq!(counts[&(name("zones"), "west".to_owned())], GroupCount { size: 2, down: 2 });
    }

    #[test]
    fn everything_that_a_scope_names_has_to_hold() {
        let red = BudgetScope {
            tenant: Some(name("a")),
            labels: Some("color=red".parse().expect("a selector")),
            ..BudgetScope::default()
        };
        let east = BudgetScope { zone: Some("east".into()), ..BudgetScope::default() };
        let mut it = ledger(&[
            ("red", rule(red, BudgetGroup::All, MaxUnavailable::Percent(10))),
            ("east", rule(east, BudgetGroup::Kind, MaxUnavailable::Count(0))),
        ]);
        let (red, blue) = (subject("a", "red"), subject("a", "blue"));
        it.note(Slot(1), Some(&facts(&red, "west", false)));
        it.note(Slot(2), Some(&facts(&blue, "east", false)));
        let covered: Vec<_> = it.views().into_iter().map(|view| (view.name.to_string(), view.covered)).collect();
        assert_eq!(covered, [("east".to_owned(), 1), ("red".to_owned(), 1)]);
        assert_eq!(it.refuses(Slot(1), &facts(&red, "west", false)), None, "a tenth of one, rounded up, is one");
        let spent = it.refuses(Slot(2), &facts(&blue, "east", false)).expect("none may be");
        assert_eq!((spent.most, spent.group.as_str()), (0, KindName::Custom.as_str()));
        assert_eq!((MaxUnavailable::Percent(34).of(10), MaxUnavailable::Percent(100).of(7)), (4, 7));
    }
}
