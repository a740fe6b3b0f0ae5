//! Who may do what, as tables.

use std::collections::BTreeSet;

use common::access::{Role, RoleTemplate, SubjectName};
use common::{CoordinatorId, WorkerId};
use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::config::{OpenService, RuleConfig};
use super::permission::{CALLS, of_path};
use super::{Config, Grants, Permission, Policy, Principal, Scope, permission};

fn role(text: &str) -> Role {
    text.parse().expect("a role")
}

fn grants(roles: &[&str]) -> Grants {
    Grants::of(roles.iter().map(|text| role(text)))
}

/// Every call of every service that is served, from the compiled descriptors.
fn served() -> BTreeSet<(String, String)> {
    let sets = [
        proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).expect("built in").file);
    let calls = files.flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let name = format!("{package}.{}", service.name());
            service.method.into_iter().map(move |method| (name.clone(), method.name().to_owned()))
        })
    });
    calls.collect()
}

#[test]
fn every_call_has_a_row_and_every_row_a_call() {
    let rows: BTreeSet<_> = CALLS.iter().map(|c| (c.service.to_owned(), c.method.to_owned())).collect();
    assert_eq!(rows.len(), CALLS.len(), "a call has two rows");
    assert_eq!(rows, served(), "rows in permission.rs on the left, calls in the .proto files on the right");
}

#[test]
fn a_path_is_a_call_or_nothing() {
    assert_eq!(of_path("/rug.admin.v1.Workers/Evict").map(|c| c.permission), Some(Permission::Operate));
    for odd in ["", "/", "rug.admin.v1.Workers/Evict", "/rug.admin.v1.Workers/", "/rug.admin.v1.Workers/evict", "//"] {
        assert!(of_path(odd).is_none(), "{odd}");
    }
}

#[test]
fn the_page_about_roles_has_the_table_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/roles.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let (begin, end) =
        ("<!-- table of calls: made from coordinator/src/access/permission.rs -->\n", "<!-- end of table -->");
    let (before, rest) = page.split_once(begin).expect("the begin of the table is marked");
    let (table, after) = rest.split_once(end).expect("the end of the table is marked");
    if table == permission::matrix() {
        return;
    }
    if std::env::var_os("RUG_WRITE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{begin}{}{end}{after}", permission::matrix())).expect("written");
        return;
    }
    panic!("docs/roles.md is out of date; write it anew with RUG_WRITE_DOCS=1 and this test");
}

#[test]
fn scopes_are_all_or_the_tenants_of_an_editor() {
    let tenants = |names: &[&str]| Some(Scope::Tenants(names.iter().map(|n| n.parse().expect("a name")).collect()));
    let cases = [
        (vec!["admin"], Permission::EditAppliances, Some(Scope::All)),
        (vec!["editor:a", "editor:b"], Permission::EditAppliances, tenants(&["a", "b"])),
        (vec!["editor:a", "viewer"], Permission::ReadAppliances, Some(Scope::All)),
        (vec!["editor:a", "viewer"], Permission::EditAppliances, tenants(&["a"])),
        (vec!["operator", "editor:a"], Permission::RebuildAppliances, Some(Scope::All)),
        (vec!["operator"], Permission::EditAppliances, None),
        (vec!["viewer"], Permission::CheckAppliances, None),
        (vec!["viewer"], Permission::Operate, None),
        (vec!["admin"], Permission::JoinAsWorker, None),
        (vec!["worker:w1"], Permission::ReadCluster, None),
        (vec!["coordinator:c1"], Permission::ReadCluster, None),
        (vec!["coordinator:c1"], Permission::JoinAsWorker, None),
        (vec!["worker:w1"], Permission::JoinAsWorker, Some(Scope::All)),
        (vec![], Permission::Health, None),
    ];
    for (roles, permission, expected) in cases {
        assert_eq!(grants(&roles).scope(permission), expected, "{roles:?} {permission:?}");
    }
    assert_eq!(Grants::Everything.scope(Permission::JoinAsWorker), Some(Scope::All));
}

#[test]
fn secrets_are_shown_to_whoever_could_change_them() {
    let (a, b) = ("a".parse().expect("a name"), "b".parse().expect("a name"));
    for (roles, in_a, in_b) in [
        (vec!["admin"], true, true),
        (vec!["operator", "viewer"], false, false),
        (vec!["editor:a", "viewer"], true, false),
        (vec!["worker:w1", "coordinator:c1"], false, false),
    ] {
        let grants = grants(&roles);
        assert_eq!((grants.sees_secrets(&a), grants.sees_secrets(&b)), (in_a, in_b), "{roles:?}");
    }
}

#[test]
fn a_worker_is_itself_and_a_coordinator_is_no_worker() {
    let (w1, w2) = (WorkerId::new("w1").expect("a name"), WorkerId::new("w2").expect("a name"));
    let c1 = CoordinatorId::new("c1").expect("a name");
    let worker = grants(&["worker:w1"]);
    assert!(worker.is_worker(&w1) && !worker.is_worker(&w2) && !worker.is_coordinator(&c1));
    let coordinator = grants(&["coordinator:c1", "admin"]);
    assert!(!coordinator.is_worker(&w1) && coordinator.is_coordinator(&c1));
    assert!(!coordinator.is_coordinator(&CoordinatorId::new("c2").expect("a name")));
}

#[test]
fn roles_travel_in_a_header_but_nobody_becomes_a_worker_by_it() {
    let original = grants(&["editor:a", "viewer"]);
    assert_eq!(Grants::from_header(&original.to_header()), Some(original));
    assert_eq!(Grants::from_header(&Grants::Everything.to_header()), Some(grants(&["admin"])));
    assert_eq!(Grants::from_header(""), Some(Grants::none()));
    assert_eq!(Grants::from_header("worker:w1,coordinator:c1,viewer"), Some(grants(&["viewer"])));
    for odd in ["king", "admin,", "everything", "admin;viewer"] {
        assert_eq!(Grants::from_header(odd).is_some(), odd == "admin,", "{odd}");
    }
    let many = Grants::of((0..200).map(|n| role(&format!("editor:t{n}"))));
    assert_eq!(Grants::from_header(&many.to_header()), Some(many.clone()));
    assert!(many.to_header().len() < 8 << 10);
}

#[test]
fn a_refusal_names_the_caller_what_is_needed_and_what_there_is() {
    let caller = Principal { name: "worker-2 at 10.0.0.7:1".into(), grants: grants(&["worker:worker-2"]) };
    let call = of_path("/rug.admin.v1.Workers/Evict").expect("a call");
    let expected = "worker-2 at 10.0.0.7:1 may not call rug.admin.v1.Workers/Evict: that needs admin, operator, and its roles are: worker:worker-2";
    assert_eq!(caller.allow(call).expect_err("refused").to_string(), expected);
}

#[test]
fn configured_rules_replace_the_built_in_ones() {
    let built_in = Policy::new(&Config::default());
    let names = [SubjectName::Uri("rug://worker/w1"), SubjectName::Common("ops-1"), SubjectName::Dns("c1.rug")];
    assert_eq!(built_in.grants(names), grants(&["worker:w1"]));
    let rule = |uri: &str, dns: &str, common_name: &str, roles: &[&str]| RuleConfig {
        uri: uri.into(),
        dns: dns.into(),
        common_name: common_name.into(),
        roles: roles.iter().map(|r| RoleTemplate::new(*r)).collect(),
    };
    let rules = vec![
        rule("", "*.rug", "", &["coordinator:*"]),
        rule("", "", "ops-*", &["operator", "editor:web"]),
        rule("spiffe://d/worker/*", "", "", &["worker:*"]),
    ];
    let config = Config { rules, ..Config::default() };
    assert_eq!(config.validate(), []);
    assert_eq!(Policy::new(&config).grants(names), grants(&["coordinator:c1", "operator", "editor:web"]));
    assert_eq!(Policy::new(&config).grants([]), Grants::none());
    let cases = [
        (rule("", "", "", &["admin"]), "rules[0].uri: exactly one of uri, dns and common_name must be set"),
        (rule("a://b", "c", "", &["admin"]), "rules[0].uri: exactly one"),
        (rule("worker/*", "", "", &["worker:*"]), "rules[0].uri: `worker/*` is not a URI"),
        (rule("", "*", "", &["admin"]), "rules[0].dns: must have characters beside `*`"),
        (rule("", "", "a*b*", &["admin"]), "rules[0].common_name: has more than one `*`"),
        (rule("", "", "a", &[]), "rules[0].roles: must name at least one"),
        (rule("", "", "a", &["king"]), "rules[0].roles: `king` is not a role"),
        (rule("", "", "a", &["worker:*"]), "rules[0].roles: `worker:*`: the name that the rule matches has no `*`"),
    ];
    for (rule, expected) in cases {
        let found = Config { rules: vec![rule], ..Config::default() }.validate();
        assert!(found.len() == 1 && found[0].to_string().starts_with(expected), "{found:?}");
    }
}

#[test]
fn only_what_is_configured_is_open() {
    let policy = |anonymous| Policy::new(&Config { anonymous, ..Config::default() });
    let default = Policy::new(&Config::default());
    assert!(default.is_open(Permission::Health) && !default.is_open(Permission::Reflection));
    let closed = policy(vec![]);
    let all = [OpenService::Health, OpenService::Reflection];
    let open = policy(all.to_vec());
    for call in CALLS {
        assert!(!closed.is_open(call.permission));
        let plumbing = matches!(call.permission, Permission::Health | Permission::Reflection);
        assert_eq!(open.is_open(call.permission), plumbing, "{call:?}");
    }
}
