//! The REST contract of appliances, from both sides, and what the reference appliance reads beside it.

use std::collections::BTreeSet;

use common::{Term, Token};
use worker::appliance::api::{self, Config, Labels, Problem, token_from_header, token_to_header};
use worker::decoders;

use super::{text, texts};
use crate::{Outcome, size};

pub(super) fn config_seeds() -> Vec<Vec<u8>> {
    texts([
        r#"{"generation":3,"listeners":[{"name":"a","address":"127.0.0.1","port":80,"members":[{"address":"::1","port":81}],"health_check":{"interval_ms":50,"timeout_ms":50,"fall":1,"rise":2},"limits":{"max_connections":7,"idle_timeout_ms":1000,"half_close_timeout_ms":5,"drain_timeout_ms":6},"algorithm":"source_hash","proxy_protocol":"v2","trust_proxy_from":["10.0.0.0/8"]}]}"#,
        r#"{"generation":1,"listeners":[]}"#,
    ])
}

/// A configuration that is accepted is answered as one that is accepted as the same.
pub(super) fn config(input: &[u8]) -> Outcome {
    match decoders::configuration(input) {
        Err(problem) => Outcome::refused(&problem),
        Ok(config) => {
            let answered = serde_json::to_vec(&config).expect("plain data");
            assert_eq!(decoders::configuration(&answered).as_ref(), Ok(&config));
            assert_eq!(serde_json::from_slice::<Config>(&answered).expect("what was answered"), config);
            Outcome::read(&(config.listeners.len(), size(answered.len())))
        }
    }
}

pub(super) fn proxy_seeds() -> Vec<Vec<u8>> {
    let binary = |command: &[u8], content: &[u8]| [b"\r\n\r\n\0\r\nQUIT\n", command, content].concat();
    let mut seeds = texts([
        "PROXY TCP4 192.0.2.7 203.0.113.1 4711 80\r\nGET / HTTP/1.1\r\n",
        "PROXY TCP6 2001:db8::1 ::1 1 65535\r\n",
        "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
    ]);
    seeds.push(binary(b"\x21\x11\0\x0c", b"\xc0\0\x02\x07\xcb\0\x71\x01\x12\x67\0\x50GET"));
    seeds.push(binary(b"\x21\x21\0\x24", &[7; 36]));
    seeds.push(binary(b"\x21\x31\0\x02", b"xy"));
    seeds.push(binary(b"\x20\0\0\0", b""));
    seeds
}

/// What is read of a header, written again, is read as the same; and none is longer than what came.
pub(super) fn proxy_header(input: &[u8]) -> Outcome {
    match decoders::proxy_header(input) {
        Err(problem) => Outcome::refused(&problem),
        Ok(None) => Outcome::read(&0),
        Ok(Some((length, written))) => {
            assert!(length <= input.len());
            let more = [&written[..], b"GET"].concat();
            assert_eq!(decoders::proxy_header(&more), Ok(Some((written.len(), written.clone()))));
            Outcome::read(&(size(length), written.len()))
        }
    }
}

pub(super) fn handover_seeds() -> Vec<Vec<u8>> {
    let frame = |header: &str, bytes: &[u8], descriptors: u8| {
        let lengths = [header.len() + bytes.len(), header.len()].map(|length| (length as u32).to_be_bytes());
        [&lengths.concat()[..], &[descriptors], header.as_bytes(), bytes].concat()
    };
    let connection =
        r#"{"connection":{"listener":"[::]:80","member":"192.0.2.1:8080","up":"open","down":"ending","kept_up":3}}"#;
    let ended =
        r#"{"connection":{"listener":"127.0.0.1:80","member":"[::1]:1","up":"ended","down":"open","kept_up":0}}"#;
    vec![
        frame(r#"{"take":{"token":{"term":3,"sequence":7}}}"#, b"", 0),
        frame(r#"{"superseded":{"token":{"term":3,"sequence":8}}}"#, b"", 0),
        [frame(r#"{"listener":{"address":"127.0.0.1:80"}}"#, b"", 1), frame(r#""listeners""#, b"", 0)].concat(),
        frame(r#""serving""#, b"", 0),
        [frame(connection, b"GET / HTTP", 2), frame(ended, b"", 2), frame(r#""done""#, b"", 0)].concat(),
    ]
}

/// What was read of a hand-over, written again, is read as the same.
pub(super) fn handover(input: &[u8]) -> Outcome {
    match decoders::handover(input) {
        Err(problem) => Outcome::refused(&problem),
        Ok((kinds, written)) => {
            assert_eq!(decoders::handover(&written), Ok((kinds.clone(), written.clone())));
            Outcome::read(&(kinds.into_iter().collect::<BTreeSet<_>>(), size(written.len())))
        }
    }
}

pub(super) fn status_seeds() -> Vec<Vec<u8>> {
    texts([
        r#"{"status":"ok"}"#,
        r#"{"status":"ok","conditions":{"saturated":"listener a has had all of its 3 connections","b":"c"}}"#,
        r#"{"labels":[{"name":"a","connections":1,"open":1,"failed":0,"bytes_in":1,"bytes_out":2,"members":[{"name":"b","connections":1,"open":1,"failed":0,"bytes_in":1,"bytes_out":2,"healthy":true}]}]}"#,
        r#"{"interfaces":[{"ifname":"lo","lladdr":"00:00:00:00:00:00","addresses":["127.0.0.1/8"],"mtu":65536,"state":"up"}]}"#,
    ])
}

/// What is kept of a status is short and holds nothing that a terminal would act on.
pub(super) fn status(input: &[u8]) -> Outcome {
    let said = decoders::conditions(input);
    for (name, text) in said.iter() {
        assert!(common::text::is_plain(name) && common::text::is_plain(text), "{name:?}: {text:?}");
    }
    let labels = serde_json::from_slice::<Labels>(input).ok();
    let interfaces = serde_json::from_slice::<api::Interfaces>(input).ok();
    let others = (labels.map(|labels| labels.labels.len()), interfaces.map(|all| all.interfaces.len()));
    Outcome::read(&(said.iter().count(), others, serde_json::from_slice::<api::Status>(input).is_ok()))
}

pub(super) fn refusal_seeds() -> Vec<Vec<u8>> {
    texts([
        r#"{"error":"old","token":{"term":9,"sequence":3}}"#,
        r#"{"token":"9/3","more":[]}"#,
        r#"{"error":"port 80 is in use","field":"listeners[0].port"}"#,
        "9/3",
        "18446744073709551615/18446744073709551615",
    ])
}

/// No refusal makes a worker believe in a token that no owner can have had, and none is passed on in full.
pub(super) fn refusal(input: &[u8]) -> Outcome {
    let ours = Token::new(Term::new(3), 7);
    let mut said = Vec::new();
    for status in [401, 409, 412, 422, 500] {
        let text = decoders::refusal(status, input, ours);
        assert!(common::text::is_plain(&text), "{text:?}");
        assert!(text.len() <= 8 * common::appliance::MAX_TEXT, "{} bytes", text.len());
        said.push(Outcome::refused(&text));
    }
    let header = token_from_header(&text(input));
    if let Some(token) = header {
        assert_eq!(token_from_header(&token_to_header(token)), Some(token));
    }
    Outcome::read(&(said[1], header.is_some(), serde_json::from_slice::<Problem>(input).is_ok()))
}

pub(super) fn asker_seeds() -> Vec<Vec<u8>> {
    texts([
        "X-Forwarded-For: 10.0.0.5\nX-Neutron-Network-ID: 6e97d14a-93b4-4daa-a307-36c1761e1b76\nX-Instance-ID: x\n",
        "x-forwarded-for: ::ffff:10.0.0.5\nx-neutron-router-id: 6e97d14a-93b4-4daa-a307-36c1761e1b76\n",
        "X-Forwarded-For: fd00::5, 10.0.0.5\nX-Neutron-Network-ID: n\nX-Neutron-Network-ID: n\n",
    ])
}

/// Who asks for metadata, written again, is read as the same.
pub(super) fn asker(input: &[u8]) -> Outcome {
    match decoders::metadata_asker(input) {
        Err(problem) => Outcome::refused(&problem),
        Ok(written) => {
            assert_eq!(decoders::metadata_asker(&written).as_ref(), Ok(&written));
            Outcome::read(&size(written.len()))
        }
    }
}
