//! Files: records of the process driver, documents, settings.

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use runtime::config::Settings;
use worker::decoders;

use super::{text, texts};
use crate::{Outcome, size};

pub(super) fn record_seeds() -> Vec<Vec<u8>> {
    texts([
        r#"{"state":{"running":{"pid":7,"start_ticks":9,"boot":"b"}},"picked_port":4000,"instance":{"ordinal":1,"attempt":2,"boot_digest":"d","pid":null,"started_at_unix_ms":5,"management":null,"address":"127.0.0.1:4000"},"serves_management":false}"#,
        r#"{"state":"starting","picked_port":null,"instance":{"ordinal":0,"attempt":1,"boot_digest":"","started_at_unix_ms":5,"address":null},"serves_management":true}"#,
        r#"{"state":"ended","picked_port":null,"instance":{"ordinal":0,"attempt":1,"boot_digest":"","started_at_unix_ms":5,"address":"[::1]:1"},"serves_management":true}"#,
    ])
}

/// A record that was read is written as one that is read and written the same.
pub(super) fn record(input: &[u8]) -> Outcome {
    match decoders::record(input) {
        Err(problem) => Outcome::refused(&problem),
        Ok(written) => {
            assert_eq!(decoders::record(&written).as_ref(), Ok(&written));
            Outcome::read(&size(written.len()))
        }
    }
}

pub(super) fn token_seeds() -> Vec<Vec<u8>> {
    texts([
        r#"{"token":{"term":3,"sequence":7},"forgotten_at_unix_ms":null}"#,
        r#"{"token":{"term":3,"sequence":7},"forgotten_at_unix_ms":9}   "#,
    ])
}

pub(super) fn token(input: &[u8]) -> Outcome {
    match decoders::token_file(input) {
        Ok(token) => Outcome::read(&(token.term.get() > 0, token.sequence > 0)),
        Err(problem) => Outcome::refused(&problem),
    }
}

pub(super) fn site_seeds() -> Vec<Vec<u8>> {
    texts([
        "id=000102030405060708090a0b0c0d0e0f\npath=/var/lib/rug-worker\nmachine=101112131415161718191a1b1c1d1e1f\n",
        "new=1\npath=/x=y\nid=000102030405060708090a0b0c0d0e0f\n",
    ])
}

/// A file that was read is written as one that is read and written the same.
pub(super) fn site(input: &[u8]) -> Outcome {
    match decoders::site_file(&text(input)) {
        Err(problem) => Outcome::refused(&problem),
        Ok(written) => {
            assert_eq!(decoders::site_file(&written).as_ref(), Ok(&written));
            Outcome::read(&size(written.len()))
        }
    }
}

pub(super) fn document_seeds() -> Vec<Vec<u8>> {
    texts([
        "name: web\ntenant: demo\nkind: loadbalancer\nlabels: {app: web}\nreplicas: 2\nprobe_interval: 5s\nprobe_timeout: 1s\nboot_timeout: 1m\nsettle_time: 2s\nspec:\n  listeners:\n  \
         - {name: http, port: 8080, address: 0.0.0.0, members: [{port: 8081}], health_check: {interval: 1s, fall: 2},\n     \
         limits: {max_connections: 7, idle_timeout: 1m, drain_timeout: 10s},\n    \
         algorithm: source_hash, proxy_protocol: v2, trust_proxy_from: [10.0.0.0/8]}\n---\nname: b\nkind: custom\nspec: {command: x, probe: http}\n",
        "- name: a\n  kind: custom\n  id: 5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a\n  placement_key: k\n  image: i\n  driver: simulated\n  \
         ports:\n  - {name: e, network: n, addresses: [203.0.113.7/24], mac: 'fa:16:3e:00:00:01'}\n  \
         spec:\n    command: sh\n    args: [-c, '{port}']\n    env: {DEBUG: 'on'}\n    port: 80\n    probe: {http: {path: /}}\n",
        "name: a\nkind: custom\nspec:\n  command: x\n  probe: {exec: {command: [test, -e, /x]}}\n  env_from: [/etc/e]\n  user: u\n  group: '33'\n  \
         working_dir: /srv\n  limits: {nofile: 1024, nproc: 7, core: 0, memory: 512MiB, cpu: 150%}\n  nice: -5\n  \
         no_new_privileges: true\n  stop_signal: INT\n  stop_timeout: 1s\n---\nname: b\nkind: custom\nspec: {command: x, probe: none}\n",
        r#"[{"name":"a","kind":"custom","spec":{"command":"x","probe":{"process":{}}},"status":{"phase":"up"}}]"#,
    ])
}

/// A document that was read is written as one that is read and written the same.
pub(super) fn documents(input: &[u8]) -> Outcome {
    match ctl::rewrite(&text(input)) {
        Err(problems) => problems.first().map_or_else(|| Outcome::refused(""), |problem| Outcome::refused(problem)),
        Ok(documents) => {
            for document in &documents {
                assert_eq!(ctl::rewrite(document), Ok(vec![document.clone()]));
            }
            Outcome::read(&(documents.len(), size(input.len())))
        }
    }
}

pub(super) fn settings_seeds() -> Vec<Vec<u8>> {
    let own = |text: Result<String, serde_json::Error>| text.unwrap_or_default();
    let mut seeds = texts([
        "name = \"c1\"\nstate_dir = \"/d\"\n[store]\nurl = \"sqlite:/d/rug.db\"\n[machine]\ndebounce = \"500ms\"\n[log]\n",
        "name = \"w1\"\nweight = 2\n[session]\nlease = \"10s\"\n[coordination]\nurl = \"zookeeper://zk1:2181\"\n[process]\nstate_dir = \"/d\"\n",
    ]);
    seeds.push(own(serde_json::to_string(&coordinator::config::Config::default())).into_bytes());
    seeds
}

/// Settings that are read are checked without a panic, and read again from what is written of them.
pub(super) fn settings(input: &[u8]) -> Outcome {
    let text = text(input);
    let both = (settings_of::<coordinator::config::Config>(&text), settings_of::<worker::config::Config>(&text));
    Outcome::read(&both)
}

fn settings_of<T: Settings>(text: &str) -> Outcome {
    let read = Figment::from(Serialized::defaults(T::default())).merge(Toml::string(text)).extract::<T>();
    match read {
        Err(error) => Outcome::refused(&error.to_string()),
        Ok(mut config) => {
            config.complete();
            let found = config.validate();
            let written = serde_json::to_value(&config).expect("plain data");
            let again = Figment::from(Serialized::defaults(&written)).extract::<T>().expect("what was written");
            assert_eq!(serde_json::to_value(&again).expect("plain data"), written);
            found.first().map_or_else(|| Outcome::read(&"valid"), |violation| Outcome::refused(&violation.to_string()))
        }
    }
}
