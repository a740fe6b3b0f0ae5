//! Drivers that workers offer in different ways: what is placed where, bound to what, and what is said of the rest.

use common::driver::{DriverCapabilities, DriverName, DriverOffers};
use common::kind::KindName;
use common::session::Hello;
use common::{ApplianceId, Profile, Site};

use super::super::*;
use super::{Puppet, World, edition, id, newcomer, profile, seed, worker};
use crate::planner::Needs;

fn other() -> DriverName {
    DriverName::new("other-cloud").expect("a name")
}

fn runs(kind: KindName, state_dir: Option<&str>) -> DriverOffers {
    let capabilities = DriverCapabilities { kinds: [kind].into(), ..DriverCapabilities::of_all_kinds(state_dir) };
    [(other(), capabilities)].into()
}

impl World {
    fn offer(&mut self, name: &str, drivers: DriverOffers) {
        let conn = self.next_conn;
        self.next_conn += 1;
        let puppet = self.puppets.entry(worker(name)).or_default();
        puppet.conn = conn;
        puppet.stream = puppet.stream.next();
        let puppet = self.puppets[&worker(name)].clone();
        let hello = self.hello_of(name, &puppet);
        self.say_hello(conn, &puppet, Hello { profile: Profile { drivers, ..profile() }, ..hello });
        self.pass(Duration::from_secs(2));
    }

    fn want(&mut self, n: u128, kind: KindName) {
        let needs = Needs { driver: other(), kind, site: None };
        self.step(Event::Created(Seed { needs, ..seed(n) }));
        self.pass(Duration::from_secs(1));
    }

    fn row(&self, id: ApplianceId) -> &TableRow {
        let table = self.machine.table();
        table.slot(id).and_then(|slot| table.get(slot)).expect("it exists")
    }

    fn summary(&self, n: u128) -> String {
        self.machine.explain(self.now, id(n)).expect("it exists").summary
    }
}

#[test]
fn what_no_worker_can_run_waits_with_the_reason_until_one_can() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.want(1, KindName::Custom);
    assert_eq!(w.summary(1), "no worker offers driver `other-cloud`");
    w.offer("w2", runs(KindName::Loadbalancer, None));
    assert_eq!(w.summary(1), "no worker's driver `other-cloud` runs kind `custom`");
    w.offer("w3", runs(KindName::Custom, None));
    assert_eq!(w.holder(1), Some("w3"));
}

#[test]
fn whether_a_grant_binds_to_a_site_is_what_its_new_owner_says() {
    let mut w = World::new(Restored::default());
    w.offer("free", runs(KindName::Custom, None));
    w.offer("bound", runs(KindName::Loadbalancer, Some("/d")));
    w.want(1, KindName::Custom);
    w.want(2, KindName::Loadbalancer);
    assert_eq!((w.holder(1), w.holder(2)), (Some("free"), Some("bound")));
    assert_eq!(w.row(id(1)).needs.site, None);
    assert_eq!(w.row(id(2)).needs.site, Some(Site::new("h1", "/d")));
}

#[test]
fn an_appliance_moves_when_its_owner_does_not_run_its_new_kind() {
    let mut w = World::new(Restored::default());
    w.offer("w1", runs(KindName::Custom, None));
    w.want(1, KindName::Custom);
    w.offer("w2", runs(KindName::Loadbalancer, None));
    assert_eq!(w.holder(1), Some("w1"));
    let kind = KindName::Loadbalancer;
    w.step(Event::Updated { id: id(1), edition: edition(2), kind, size: 10, deleting: false });
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w2"));
}

#[test]
fn what_a_worker_may_not_say_of_itself_does_not_count_and_is_shown() {
    use crate::limits::{WorkerLimit, WorkerLimits};

    let process = [DriverName::process()].into();
    let limit = WorkerLimit { name: "w1".into(), max_weight: 1, drivers: process, ..WorkerLimit::default() };
    let config = Config { limits: WorkerLimits(vec![limit]), ..Config::default() };
    let mut w = World::with(config, Term::new(1), Restored::default());
    w.puppets.insert(worker("w1"), newcomer());
    let hello = w.hello_of("w1", &newcomer());
    let conn = w.next_conn;
    w.next_conn += 1;
    w.puppets.insert(worker("w1"), Puppet { conn, ..newcomer() });
    let greedy = Profile { weight: 900, ..hello.profile.clone() };
    w.say_hello(conn, &newcomer(), Hello { profile: greedy, ..hello });
    assert_eq!(w.violations.len(), 1, "{:?}", w.violations);
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w.create(1..=4);
    w.pass(Duration::from_millis(500));
    assert!((1..=4).all(|n| w.holder(n) == Some("w2")), "they need the driver that is left out");
    let shown = w.machine.workers(w.now);
    let counted = shown[0].profile.as_ref().expect("known");
    assert_eq!((counted.weight, counted.drivers.len(), shown[0].limited.len()), (1, 1, 2), "{shown:?}");
    assert!(shown[1].limited.is_empty());
}
