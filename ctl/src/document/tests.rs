//! Which documents are accepted, which are refused and with which message; printed documents can be applied again.

use super::*;

const FLEET: &str = "\
name: web
tenant: demo
kind: loadbalancer
labels: {app: web}
replicas: 2
probe_interval: 5s
probe_timeout: 500ms
boot_timeout: 2m
settle_time: 0s
ports:
  - {name: external, network: net-1, addresses: [10.0.0.3/24, 'fd00::3']}
  - {name: internal, network: net-2}
spec:
  listeners:
    - {name: http, port: 8080, members: [{port: 8081}, {address: 127.0.0.1, port: 8082}],
       health_check: {interval: 1s, timeout: 500ms, fall: 2, rise: 1}}
---
kind: custom
name: web-1
spec: {command: python3, args: [-m, http.server, '{port}'], env: {LANG: C}, port: 8081, probe: {http: {path: /}}}
---
kind: custom
name: web-2
spec:
  command: sleep
  probe: {exec: {command: [test, -e, /x]}}
  env_from: [/etc/rug/env/db]
  user: www-data
  group: '33'
  working_dir: /srv
  limits: {nofile: 1024, nproc: 7, core: 0, memory: 512MiB, cpu: 150%}
  nice: -5
  no_new_privileges: true
  stop_signal: INT
  stop_timeout: 0s
---
kind: custom
name: web-3
spec: {command: sleep, probe: none}
";

/// The problems of a text; empty when it is valid.
fn problems(text: &str) -> Vec<String> {
    parse("f.yaml", text, None).err().unwrap_or_default()
}

fn custom_with(more: &str) -> String {
    format!("name: a\nkind: custom\n{more}\nspec:\n  command: sleep\n  args: ['9']\n")
}

#[test]
fn all_fields_of_a_fleet_are_read() {
    let fleet = parse("f.yaml", FLEET, None).expect("valid");
    assert_eq!(
        fleet.iter().map(Document::label).collect::<Vec<_>>(),
        ["demo/loadbalancer/web", "custom/web-1", "custom/web-2", "custom/web-3"]
    );
    let spec = fleet[0].appliance.spec.as_ref().expect("set");
    assert_eq!(spec.replicas, Some(2));
    assert_eq!(spec.probe_interval, Some(prost_types::Duration { seconds: 5, nanos: 0 }));
    assert_eq!(spec.probe_timeout, Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 }));
    assert_eq!(spec.boot_timeout, Some(prost_types::Duration { seconds: 120, nanos: 0 }));
    assert_eq!(spec.settle_time, Some(prost_types::Duration::default()));
    let names: Vec<_> = spec.ports.iter().map(|port| (port.name.as_str(), port.network.as_str())).collect();
    assert_eq!(names, [("external", "net-1"), ("internal", "net-2")]);
    assert_eq!(spec.ports[0].addresses, ["10.0.0.3/24", "fd00::3"]);
    let Some(v1::spec::Kind::Loadbalancer(lb)) = &spec.kind else { panic!("not a load balancer: {spec:?}") };
    assert_eq!(lb.listeners[0].members[1], v1::Member { address: "127.0.0.1".into(), port: 8082 });
    let check = lb.listeners[0].health_check.as_ref().expect("set");
    assert_eq!(check.timeout, Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 }));
    let Some(v1::spec::Kind::Custom(custom)) = &fleet[1].appliance.spec.as_ref().expect("set").kind else {
        panic!("not custom")
    };
    assert_eq!(custom.args, ["-m", "http.server", "{port}"]);
    assert_eq!(custom.port, Some(8081));
    let Some(v1::spec::Kind::Custom(custom)) = &fleet[2].appliance.spec.as_ref().expect("set").kind else {
        panic!("not custom")
    };
    let limits = v1::ProcessLimits {
        nofile: Some(1024),
        nproc: Some(7),
        core: Some(0),
        memory: Some(512 << 20),
        cpu_percent: Some(150),
    };
    assert_eq!((custom.limits, custom.nice, custom.no_new_privileges), (Some(limits), Some(-5), true));
    assert_eq!(
        (custom.stop_signal.as_str(), custom.user.as_str(), custom.group.as_str()),
        ("SIGINT", "www-data", "33")
    );
}

#[test]
fn values_of_the_environment_are_shown_only_where_a_document_is_wanted() {
    let text = "name: a\nkind: custom\nspec: {command: x, env: {PASSWORD: hush}}\n";
    let appliance = &parse("f.yaml", text, None).expect("valid")[0].appliance;
    let shown = |secrets| serde_json::to_string(&view::Appliance::full(appliance, secrets)).expect("plain data");
    assert!(shown(view::Secrets::Shown).contains(r#""PASSWORD":"hush""#));
    assert!(shown(view::Secrets::Hidden).contains(r#""PASSWORD":"<hidden>""#));
}

#[test]
fn printed_documents_can_be_applied_again() {
    for document in parse("f.yaml", FLEET, None).expect("valid") {
        let mut sent = document.appliance;
        sent.driver = "process".into();
        let status = v1::Status { phase: v1::Phase::Configured.into(), ..v1::Status::default() };
        let known = v1::Appliance { generation: 3, status: Some(status), ..sent.clone() };
        let yaml =
            serde_saphyr::to_string(&view::Appliance::document(&known, view::Secrets::Shown)).expect("plain data");
        let json =
            serde_json::to_string(&vec![view::Appliance::full(&known, view::Secrets::Shown)]).expect("plain data");
        for text in [yaml, json] {
            let read = parse("again.yaml", &text, None).unwrap_or_else(|e| panic!("{e:?} in {text}"));
            assert_eq!(read[0].appliance, sent, "{text}");
        }
    }
}

#[test]
fn probes_have_short_forms() {
    for (text, probe) in [
        ("tcp", v1::probe::Probe::Tcp(v1::TcpProbe {})),
        ("{tcp: {}}", v1::probe::Probe::Tcp(v1::TcpProbe {})),
        ("http", v1::probe::Probe::Http(v1::HttpProbe { path: "/".into() })),
        ("process", v1::probe::Probe::Process(v1::ProcessProbe {})),
        ("{process: {}}", v1::probe::Probe::Process(v1::ProcessProbe {})),
        ("{http: {path: /x}}", v1::probe::Probe::Http(v1::HttpProbe { path: "/x".into() })),
    ] {
        let text = format!("{}  probe: {text}\n", custom_with(""));
        let read = parse("f.yaml", &text, None).expect("valid");
        let Some(v1::spec::Kind::Custom(custom)) = &read[0].appliance.spec.as_ref().expect("set").kind else {
            panic!("not custom")
        };
        assert_eq!(custom.probe.as_ref().and_then(|p| p.probe.clone()), Some(probe), "{text}");
    }
}

#[test]
fn invalid_input_is_refused_with_line_and_field() {
    for (text, message) in [
        (
            "name: a\nkind: routr\nspec: {}\n",
            "f.yaml:2: kind: unknown kind `routr`; known are loadbalancer, custom, router",
        ),
        (&custom_with("id: 12-34"), "f.yaml:3: id: `12-34` is not a UUID: invalid group count: expected 5, found 2"),
        (&custom_with("replicas: -2"), "f.yaml:3: replicas: must be a whole number from 1 to 16, is a number"),
        (&custom_with("replicas: two"), "f.yaml:3: replicas: must be a whole number from 1 to 16, is a text"),
        (
            &custom_with("replica: 2"),
            "f.yaml:3: replica: unknown field; known are name, tenant, cluster, id, kind, driver, placement_key, labels, \
             replicas, probe_interval, probe_timeout, boot_timeout, settle_time, image, ports, pod, spec, managed_by, status",
        ),
        (
            &custom_with("probe_interval: 5"),
            "f.yaml:3: probe_interval: must be a duration with its unit, such as 5s or 500ms, is a number",
        ),
        (&custom_with("labels: {v: 1}"), "f.yaml:3: labels.v: must be text (put it in quotes), is a number"),
        (&custom_with("labels: [v]"), "f.yaml:3: labels: must be a mapping of names to texts, is a list"),
        (
            &custom_with("driver: My VM"),
            "f.yaml:3: driver: `My VM` is not the name of a driver: 1 to 63 of a-z 0-9 - . that start with a letter and \
             end with a letter or digit",
        ),
        ("kind: custom\nspec: {command: a}\n", "f.yaml:1: name: is required"),
        (
            "name: A b\nkind: custom\nspec: {command: a}\n",
            "f.yaml:1: name: `A b` is not a name: 1 to 63 of a-z 0-9 - . _ that start and end with a letter or digit",
        ),
        (&custom_with("ports: [{name: a}]"), "f.yaml:3: ports[0].network: is required"),
        (
            &custom_with("ports:\n- {name: a, network: n,\n   addresses: [10.0.0.0/33]}"),
            "f.yaml:5: ports[0].addresses[0]: `10.0.0.0/33` is not an IP address, with or without the length of a prefix",
        ),
        (
            &custom_with("ports: [{name: a, network: n, mac: aa}]"),
            "f.yaml:3: ports[0].mac: `aa` is not the hardware address of one interface: six bytes in hexadecimal, as in \
             fa:16:3e:00:00:01",
        ),
        ("name: a\nspec: {command: a}\n", "f.yaml:1: kind: is required"),
        ("name: a\nkind: custom\n", "f.yaml:1: spec: is required"),
        ("name: a\nkind: custom\nspec: {}\n", "f.yaml:3: spec.command: is required"),
        ("name: a\nkind: custom\nspec: []\n", "f.yaml:3: spec: must be a mapping, is a list"),
        (
            "name: a\nkind: custom\nspec:\n  command: a\n  args: [x,\n    8]\n",
            "f.yaml:6: spec.args[1]: must be text (put it in quotes), is a number",
        ),
        (
            "name: a\nkind: custom\nspec:\n  command: a\n  probe: ping\n",
            "f.yaml:5: spec.probe: unknown probe `ping`; known are tcp, http, process, none, and exec with a \
             command",
        ),
        (
            "name: a\nkind: loadbalancer\nspec:\n  listeners:\n  - port: 80\n    members:\n    - prot: 80\n      port: 1\n",
            "f.yaml:7: spec.listeners[0].members[0].prot: unknown field; known are address, port",
        ),
        (
            "name: a\nkind: loadbalancer\nspec:\n  listeners:\n  - port: 80000\n",
            "f.yaml:5: spec.listeners[0].port: must be a whole number from 1 to 65535, is a number",
        ),
        (
            "name: a\nkind: loadbalancer\nspec:\n  listeners:\n  - {port: 80, address: localhost}\n",
            "f.yaml:5: spec.listeners[0].address: `localhost` is not an IP address",
        ),
        ("- 1\n", "f.yaml:1: must be a mapping, is a number"),
        ("", "f.yaml: contains no document"),
        ("---\n---\n# nothing\n", "f.yaml: contains no document"),
    ] {
        assert_eq!(problems(text), [message], "{text}");
    }
}

#[test]
fn a_document_may_be_for_one_cluster_only() {
    let documents = parse("f.yaml", "name: a\nkind: custom\ncluster: prod\nspec: {command: a}\n", None).expect("valid");
    check_cluster(&documents, &"cluster prod", |meant| meant.to_string() == "prod").expect("it is");
    let failure = check_cluster(&documents, &"cluster test", |_| false).expect_err("it is not");
    let expected = "f.yaml:3: cluster: is for cluster prod, and this is cluster test\nnothing was changed";
    assert_eq!((failure.exit, failure.to_string().as_str()), (crate::error::Exit::Usage, expected));
    let documents = parse("f.yaml", "name: a\nkind: custom\nspec: {command: a}\n", None).expect("valid");
    check_cluster(&documents, &"any", |_| false).expect("it is for any");
}

#[test]
fn broken_yaml_names_its_line() {
    for (text, line) in [
        ("name: a\nkind: [custom\n", ""),
        ("name: a\n\tkind: b\n", "1: "),
        ("name: a\nname: b\n", "2: "),
        ("name: a\nspec: {a: b\n---\nname: b\n", ""),
        ("name: a\nkind: *nowhere\n", "2: "),
        ("name: a\n- b\n", "2: "),
    ] {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("f.yaml:{line}")) && !found[0].contains('\n'), "{found:?}");
        assert!(!found[0].contains(" at line "), "the line stands in front: {found:?}");
    }
}

#[test]
fn all_problems_of_all_documents_are_reported_together() {
    let found = problems("name: a\nkind: custom\nreplicas: 0\nspec: {}\n---\nname: b\nkind: x\n");
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[2].starts_with("f.yaml:7: kind: "), "{found:?}");
}

#[test]
fn duplicate_names_and_ids_are_refused() {
    let one = custom_with("");
    let id = "id: 6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11";
    let text = format!("{one}---\n{one}---\n{}", custom_with(&format!("tenant: t\n{id}")));
    let again = text.clone() + "---\n" + &custom_with(&format!("tenant: u\n{id}"));
    let documents = parse("f.yaml", &again, None).expect("each is valid");
    let mut found = Vec::new();
    find_duplicates(&documents, &mut found);
    assert_eq!(
        found,
        [
            "f.yaml:8: name: `a` of tenant `default` is already the document at f.yaml:1",
            "f.yaml:26: id: is already the id of the document at f.yaml:15",
        ]
    );
}

#[test]
fn files_are_read_up_to_four_mebibytes() {
    let big = vec![b'#'; 10 << 20];
    let failure = load("big.yaml", big.as_slice()).expect_err("too large");
    assert_eq!(failure.to_string(), "big.yaml: is larger than 4 MiB, the most that is read");
    assert_eq!(failure.exit, crate::error::Exit::Usage);
    assert!(load("ok.yaml", &big[..MAX_FILE]).is_ok());
    let failure = load("bin.yaml", b"a: b\n\xff".as_slice()).expect_err("not text");
    assert_eq!(failure.to_string(), "bin.yaml:2: is not UTF-8 text");
}

#[test]
fn a_missing_file_is_a_usage_error() {
    let failure = read(&["/nonexistent/fleet.yaml".to_owned()], None).expect_err("missing");
    assert_eq!(failure.exit, crate::error::Exit::Usage);
    assert!(failure.to_string().starts_with("/nonexistent/fleet.yaml: "), "{failure}");
}

#[test]
fn fields_of_server_errors_are_located_in_the_file() {
    let fleet = parse("f.yaml", FLEET, None).expect("valid");
    for (document, api, place) in [
        (0, "spec.replicas", "f.yaml:5: replicas"),
        (0, "appliance.spec.ports[1].mac", "f.yaml:12: ports[1].mac"),
        (0, "appliance.spec.loadbalancer.listeners[0].port", "f.yaml:15: spec.listeners[0].port"),
        (0, "spec.loadbalancer.listeners[0].health_check.fall", "f.yaml:16: spec.listeners[0].health_check.fall"),
        (0, "spec.loadbalancer.listeners[0].address", "f.yaml:15: spec.listeners[0].address"),
        (0, "spec.loadbalancer", "f.yaml:13: spec"),
        (1, "spec.custom.port", "f.yaml:20: spec.port"),
        (1, "tenant", "f.yaml:18: tenant"),
    ] {
        assert_eq!(fleet[document].locate(api), place);
    }
}

#[test]
fn files_with_many_documents_are_accepted() {
    let text: String = (0..6000).map(|i| format!("name: a{i}\nkind: custom\nspec: {{command: x}}\n---\n")).collect();
    assert_eq!(parse("f.yaml", &text, None).expect("valid").len(), 6000);
}

#[test]
fn the_examples_in_the_documentation_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let files = std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("readable").path());
    let files: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "yaml")).collect();
    assert!(files.len() >= 3, "{files:?}");
    let names: Vec<_> = files.iter().map(|f| f.to_string_lossy().into_owned()).collect();
    assert!(read(&names, None).expect("valid").len() >= 5);
}
