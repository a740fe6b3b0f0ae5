//! What says who somebody is: certificates, revocation lists, bearer tokens and the keys they are signed with.

use std::sync::OnceLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coordinator::decoders;
use runtime::tls::{self, Identity};

use super::{text, texts};
use crate::{Outcome, size};

/// A certificate with a common name, and DNS, IP and URI names.
const CERTIFICATE: &[u8] = include_bytes!("certificate.der");
/// A CA, and a list of two certificates that it has revoked.
const AUTHORITY: &[u8] = include_bytes!("authority.der");
const REVOKED: &[u8] = include_bytes!("revoked.der");
/// Keys of an issuer, and tokens; see the folder.
const KEYS: &str = include_str!("../../../data/tokens/jwks.json");
const TOKENS: &str = include_str!("../../../data/tokens/tokens.txt");

pub(super) fn certificate_seeds() -> Vec<Vec<u8>> {
    vec![CERTIFICATE.to_vec()]
}

pub(super) fn certificate(input: &[u8]) -> Outcome {
    match Identity::of(&input.into()) {
        Ok(identity) => {
            let shown = identity.to_string();
            assert!(!shown.contains(char::is_control), "{shown:?}");
            Outcome::read(&(identity.names.len(), identity.common_name.is_some()))
        }
        Err(problem) => Outcome::refused(&problem),
    }
}

pub(super) fn revocation_seeds() -> Vec<Vec<u8>> {
    vec![REVOKED.to_vec(), pem(REVOKED), [pem(REVOKED), pem(REVOKED)].concat()]
}

fn pem(der: &[u8]) -> Vec<u8> {
    format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", BASE64_STANDARD.encode(der)).into_bytes()
}

/// Bytes that are no PEM are fed as the content of one, so that mutations reach what is inside.
pub(super) fn revocation_list(input: &[u8]) -> Outcome {
    static PROVIDER: OnceLock<()> = OnceLock::new();
    PROVIDER.get_or_init(tls::install_provider);
    let wrapped;
    let input = if input.starts_with(b"-----") {
        input
    } else {
        wrapped = pem(input);
        &wrapped
    };
    match tls::read_revocation_lists(input, &AUTHORITY.into()) {
        Ok((lists, due)) => Outcome::read(&(size(lists), size(due))),
        Err(problem) => Outcome::refused(&problem),
    }
}

pub(super) fn token_seeds() -> Vec<Vec<u8>> {
    TOKENS.lines().map(|token| token.as_bytes().to_vec()).collect()
}

/// No token counts but the one that was signed, however it is bent; and no refusal repeats it.
pub(super) fn token(input: &[u8]) -> Outcome {
    let input = text(input);
    match decoders::bearer_token(&input, KEYS.as_bytes()) {
        Ok(found) => {
            assert_eq!(found, ("jane (token)".to_owned(), "editor:web,viewer".to_owned()));
            assert!(TOKENS.lines().next().is_some_and(|good| claims_of(good) == claims_of(&input)), "{input}");
            Outcome::read(&"counts")
        }
        Err(problem) => {
            assert!(problem.len() < 200 && (input.len() < 20 || !problem.contains(&*input)), "{problem}");
            Outcome::refused(&problem)
        }
    }
}

/// The part of a token that is signed: the signature itself can be written in more than one way.
fn claims_of(token: &str) -> Option<&str> {
    token.rsplit_once('.').map(|(signed, _)| signed)
}

pub(super) fn claim_seeds() -> Vec<Vec<u8>> {
    texts([
        r#"{"iss":"https://issuer.example.org","aud":"rug","sub":"jane","exp":4102444800,"rug_roles":["viewer","editor:web"]}"#,
        r#"{"sub":"a","rug_roles":"admin"}"#,
        r#"{"sub":"ja\u202ene\n","rug_roles":["worker:w1","coordinator:c1","operator",7,null,{"a":[]}]}"#,
        r#"{"sub":7}"#,
    ])
}

/// Claims make nobody a worker or a coordinator, and a name that can be printed.
pub(super) fn claims(input: &[u8]) -> Outcome {
    match decoders::token_claims(input, KEYS.as_bytes()) {
        Ok((name, roles)) => {
            assert!(common::text::is_plain(&name) && name.len() <= 1_000, "{name:?}");
            assert!(!roles.contains("worker:") && !roles.contains("coordinator:"), "{roles}");
            Outcome::read(&(size(name.len()), roles))
        }
        Err(problem) => Outcome::refused(&problem),
    }
}

pub(super) fn key_seeds() -> Vec<Vec<u8>> {
    let mut seeds = texts([
        r#"{"keys":[{"kty":"oct","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQ","kid":"k1"}]}"#,
        r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"r","use":"sig","alg":"RS256"},{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
        r#"{"keys":[]}"#,
    ]);
    seeds.push(KEYS.as_bytes().to_vec());
    seeds
}

pub(super) fn keys(input: &[u8]) -> Outcome {
    match decoders::token_keys(input) {
        Ok(keys) => Outcome::read(&size(keys)),
        Err(problem) => Outcome::refused(&problem),
    }
}
