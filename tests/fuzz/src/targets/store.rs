//! What stands in the database and in ZooKeeper, where both are, and where a list goes on.

use common::appliance::{Name, Spec};
use coordination::zookeeper::decoders as zookeeper;
use coordinator::decoders;

use super::{text, texts};
use crate::{Outcome, size};

pub(super) fn page_token_seeds() -> Vec<Vec<u8>> {
    let name = |text: &str| Name::new(text).expect("a name");
    let token = decoders::make_page_token(&name("default"), &name("web-1"), 17);
    vec![token.into_bytes(), b"612f622f63".to_vec(), b"zz".to_vec(), "\u{e4}".as_bytes().to_vec()]
}

/// A token that is accepted is the one that is made of what it says, but for how its digits are written.
pub(super) fn page_token(input: &[u8]) -> Outcome {
    let token = text(input);
    match decoders::page_token(&token) {
        Some(again) => {
            assert_eq!(decoders::page_token(&again), Some(again.clone()));
            Outcome::read(&size(again.len()))
        }
        None => Outcome::read(&(token.is_empty(), token.is_ascii(), token.len() % 2, size(token.len()))),
    }
}

pub(super) fn grant_row_seeds() -> Vec<Vec<u8>> {
    decoders::grant_rows()
}

pub(super) fn grant_row(input: &[u8]) -> Outcome {
    match decoders::grant_row(input) {
        Ok(entries) => Outcome::read(&(entries, size(input.len()))),
        Err(problem) => Outcome::refused(&problem),
    }
}

pub(super) fn spec_seeds() -> Vec<Vec<u8>> {
    texts([
        r#"{"replicas":1,"probe_interval":null,"image":null,"kind":{"custom":{"command":"x","args":["{port}"],"env":{"A":"b"},"port":1,"probe":{"http":{"path":"/"}}}}}"#,
        r#"{"replicas":2,"probe_interval":{"secs":1,"nanos":0},"timing":{"probe_timeout":{"secs":1,"nanos":0},"boot_timeout":{"secs":9,"nanos":0},"settle_time":{"secs":2,"nanos":0}},"image":"i","kind":{"loadbalancer":{"listeners":[{"name":"a","address":"::1","port":80,"members":[{"address":"127.0.0.1","port":1}],"limits":{"max_connections":7,"drain_timeout":{"secs":9,"nanos":0}},"algorithm":"least_connections","proxy_protocol":"v1","trust_proxy_from":["10.0.0.0/8"]}]}}}"#,
        r#"{"replicas":1,"probe_interval":null,"image":null,"ports":[{"name":"a","network":"n","addresses":["10.0.0.1/8"],"mac":"fa:16:3e:00:00:01"}],"pod":{"metadata":{"labels":{"a":"b"}},"spec":{"x":[1,0.5,true,null]}},"kind":{"custom":{"command":"x","probe":"tcp"}}}"#,
        r#"{"replicas":1,"kind":{"custom":{"command":"x","probe":{"exec":{"command":["a","b"]}},"env_from":["/e"],"user":"u","group":"g","working_dir":"/w","limits":{"nofile":9,"nproc":9,"core":0,"memory":1048576,"cpu_percent":5},"nice":-1,"no_new_privileges":true,"stop_signal":"SIGINT","stop_timeout":{"secs":1,"nanos":0}}}}"#,
        r#"{"replicas":1,"kind":{"custom":{"command":"x","probe":"none"}}}"#,
    ])
}

/// A specification as it is stored: what is read is stored as it was, and checked without a panic whatever it says.
pub(super) fn spec(input: &[u8]) -> Outcome {
    match serde_json::from_slice::<Spec>(input) {
        Err(error) => Outcome::refused(&error.to_string()),
        Ok(spec) => {
            let stored = serde_json::to_vec(&spec).expect("plain data");
            assert_eq!(serde_json::from_slice::<Spec>(&stored).expect("what was stored"), spec);
            let mut found = common::appliance::Violations::default();
            spec.validate_at("spec", &mut found);
            let _ = (spec.kind.launch(1), spec.kind.configuration(common::Generation::new(1), 1), spec.kind.probe());
            Outcome::read(&(spec.kind.name(), found.is_empty(), size(stored.len())))
        }
    }
}

pub(super) fn url_seeds() -> Vec<Vec<u8>> {
    texts([
        "sqlite:/var/lib/rug/rug.db",
        "postgres://rug:SECRET@db1:5432/rug?sslmode=verify-full&options[statement_timeout]=5s",
        "postgresql:///rug?host=/run/postgresql&user=rug",
        "mysql://rug:SECRET@db1/rug?ssl-mode=required",
        "mariadb://[::1]:3306/rug",
    ])
}

/// A password is in no error, and in no URL that is shown.
pub(super) fn url(input: &[u8]) -> Outcome {
    let url = text(input);
    let read = decoders::store_url(&url);
    let shown = match &read {
        Ok(shown) | Err(shown) => shown,
    };
    if has_password(&url) && !url.starts_with("sqlite:") {
        assert!(!shown.contains("SECRET"), "{shown}");
    }
    match read {
        Ok(shown) => Outcome::read(&shown.split(':').next()),
        Err(problem) => Outcome::refused(&problem),
    }
}

/// Whether the only secret of a URL is where a password stands.
fn has_password(url: &str) -> bool {
    let (_, rest) = url.split_once("://").unwrap_or_default();
    rest.starts_with("rug:SECRET@") && url.matches("SECRET").count() == 1
}

pub(super) fn profile_seeds() -> Vec<Vec<u8>> {
    let published = zookeeper::publish(&zookeeper::profile(&[]));
    // {"weight": 2, "drivers": ["process"], "hold_ms": {"simulated": 5}, "state_dir": "/d", "pid": 7}
    let before =
        b"\x85\xa6weight\x02\xa7drivers\x91\xa7process\xa7hold_ms\x81\xa9simulated\x05\xa9state_dir\xa2/d\xa3pid\x07";
    // {"weight": 1, "offers": {"process": {"state_dir": "/d", "fence_delay_ms": 9, "kinds": ["custom"]}}}
    let offers = b"\x82\xa6weight\x01\xa6offers\x81\xa7process\x83\xa9state_dir\xa2/d\xaefence_delay_ms\x09\xa5kinds\x91\xa6custom";
    vec![published, before.to_vec(), offers.to_vec()]
}

/// What is read is published as what is read the same.
pub(super) fn profile(input: &[u8]) -> Outcome {
    let read = zookeeper::profile(input);
    let once = zookeeper::profile(&zookeeper::publish(&read));
    assert_eq!(zookeeper::profile(&zookeeper::publish(&once)), once);
    assert_eq!((&once.zone, &once.host, once.pid), (&read.zone, &read.host, read.pid));
    Outcome::read(&(
        read.drivers.len(),
        read.weight.min(2),
        read.zone.is_empty(),
        read.pid == 0,
        zookeeper::address(input).len().min(3),
    ))
}

pub(super) fn lease_seeds() -> Vec<Vec<u8>> {
    vec![
        b"\x83\xa4beat\x07\xa8lease_ms\xcd\x27\x10\xa7session\xd3\x01\x02\x03\x04\x05\x06\x07\x08".to_vec(),
        b"\x83\xa7evicted\xc3\xa2by\xa2c1\xa8lease_ms\xcd\x27\x10".to_vec(),
        b"evicted by hand".to_vec(),
        b"\x81\xa7address\xb5https://c1.local:7470/".to_vec(),
    ]
}

pub(super) fn lease(input: &[u8]) -> Outcome {
    let (evicted, lease_ms) = zookeeper::lease(input);
    Outcome::read(&(
        evicted,
        size(usize::try_from(lease_ms).unwrap_or(usize::MAX)),
        zookeeper::address(input).is_empty(),
    ))
}

pub(super) fn contender_seeds() -> Vec<Vec<u8>> {
    let id = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";
    vec![
        format!("{id}__lock__0000000003\n{id}__lock__0000000001").into_bytes(),
        format!("{id}__lock__-2147483648\nother").into_bytes(),
    ]
}

/// Only contenders are kept, each once, and their order does not depend on the one they came in.
pub(super) fn contenders(input: &[u8]) -> Outcome {
    let names: Vec<String> = text(input).lines().take(100).map(str::to_owned).collect();
    let ordered = zookeeper::contenders(names.clone());
    assert_eq!(zookeeper::contenders(names.into_iter().rev().collect()), ordered);
    assert_eq!(zookeeper::contenders(ordered.clone()), ordered);
    Outcome::read(&ordered.len())
}

pub(super) fn coordination_seeds() -> Vec<Vec<u8>> {
    texts([
        "embedded",
        "zookeeper://zk1:2181,zk2:2181,[::1]:2181/rug/prod?timeout=6&namespace=tooz",
        "kazoo://rug:SECRET@zk1:2181?hosts=zk2:2181&hosts=zk3",
    ])
}

/// A password is in no error, and in no URL that is shown.
pub(super) fn coordination(input: &[u8]) -> Outcome {
    let url = text(input).into_owned();
    let settings = coordination::url::Config { url: url.clone(), ..Default::default() };
    let (shown, read) = (settings.shown(), zookeeper::url(&settings));
    if has_password(&url) {
        assert!(!shown.contains("SECRET"), "{shown}");
        assert!(!format!("{read:?}").contains("SECRET"), "{read:?}");
    }
    match read {
        Ok(()) => Outcome::read(&size(url.len())),
        Err(problem) => Outcome::refused(&problem),
    }
}
