//! Tokens that count and those that do not, with keys made for the test.

use std::time::{SystemTime, UNIX_EPOCH};

use common::access::Role;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use runtime::tls::testing::{self, Authority};
use serde_json::json;
use tempfile::TempDir;

use super::*;

const ISSUER: &str = "https://issuer.example.org";

struct Issuer {
    key: EncodingKey,
    id: &'static str,
}

impl Issuer {
    fn new(id: &'static str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        Self { key: EncodingKey::from_ec_der(&key.serialize_der()), id }
    }

    fn jwk(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).expect("a public key");
        jwk.common.key_id = Some(self.id.to_owned());
        jwk
    }

    /// A token with these claims beside those that every one needs.
    fn token(&self, claims: Value) -> String {
        let mut all = json!({"iss": ISSUER, "aud": "rug", "sub": "jane", "exp": now() + 600});
        let (Some(all_of), Value::Object(claims)) = (all.as_object_mut(), claims) else { panic!("objects") };
        all_of.extend(claims);
        all_of.retain(|_, value| !value.is_null());
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, &all, &self.key).expect("signed")
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn write(dir: &TempDir, keys: Vec<Jwk>) -> Config {
    let path = dir.path().join("jwks.json");
    std::fs::write(&path, serde_json::to_string(&JwkSet { keys }).expect("JSON")).expect("written");
    Config {
        jwks: path.display().to_string(),
        issuer: ISSUER.into(),
        audience: "rug".into(),
        refresh: Duration::from_secs(1),
        ..Config::default()
    }
}

fn start(config: &Config) -> Tokens {
    assert_eq!(config.validate(), []);
    Tokens::start(config).expect("keys").expect("on")
}

fn roles(texts: &[&str]) -> Grants {
    Grants::of(texts.iter().map(|text| text.parse::<Role>().expect("a role")))
}

#[tokio::test]
async fn a_token_says_who_it_is_and_which_roles_it_has() {
    let (dir, issuer) = (tempfile::tempdir().expect("a folder"), Issuer::new("k1"));
    let config = write(&dir, vec![issuer.jwk()]);
    let tokens = start(&config);
    let token = issuer.token(json!({"rug_roles": ["editor:web", "viewer", "king", 7, "worker:w1", "coordinator:c1"]}));
    let found = tokens.check(&token).expect("in order");
    assert_eq!(found, Verified { name: "jane (token)".into(), grants: roles(&["editor:web", "viewer"]) });
    let named = tokens.check(&issuer.token(json!({"sub": "ja\u{202e}ne\u{200b}\n"}))).expect("in order");
    assert_eq!(named.name, r"ja\u{202e}ne\u{200b}\n (token)", "what is not seen is shown");
    // No claim, no roles.
    assert_eq!(tokens.check(&issuer.token(json!({}))).expect("in order").grants, Grants::none());

    let rule = |value: &str, roles: &[&str]| RuleConfig {
        value: value.into(),
        roles: roles.iter().map(|role| RoleTemplate::new(*role)).collect(),
    };
    let rules = vec![rule("rug-admins", &["admin"]), rule("rug-team-*", &["editor:*", "viewer"])];
    let config = Config { claim: "realm_access.roles".into(), rules, ..config };
    let tokens = start(&config);
    let token = issuer.token(json!({"realm_access": {"roles": ["rug-team-web", "admin", "rug-admins2"]}}));
    assert_eq!(tokens.check(&token).expect("in order").grants, roles(&["editor:web", "viewer"]));
    let rules = vec![rule("x", &["worker:w1"])];
    let problem = Config { rules, ..config }.validate();
    assert!(problem[0].to_string().starts_with("rules[0].roles: a token cannot make anybody a worker"), "{problem:?}");
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_said_and_the_token_is_not() {
    let (dir, issuer) = (tempfile::tempdir().expect("a folder"), Issuer::new("k1"));
    let tokens = start(&write(&dir, vec![issuer.jwk()]));
    let cases = [
        (json!({"exp": now() - 120}), TokenProblem::Expired),
        (json!({"exp": null}), TokenProblem::Missing("exp".into())),
        (json!({"nbf": now() + 120}), TokenProblem::Early),
        (json!({"iss": "https://other.example.org"}), TokenProblem::Issuer),
        (json!({"iss": null}), TokenProblem::Missing("iss".into())),
        (json!({"aud": "other"}), TokenProblem::Audience),
        (json!({"aud": null}), TokenProblem::Missing("aud".into())),
        (json!({"sub": null}), TokenProblem::Missing("sub".into())),
    ];
    for (claims, expected) in cases {
        assert_eq!(tokens.check(&issuer.token(claims.clone())), Err(expected), "{claims}");
    }
    // Within the leeway, and for several audiences.
    assert!(tokens.check(&issuer.token(json!({"exp": now() - 5, "aud": ["a", "rug"]}))).is_ok());
    // Another key under the same id.
    let forged = Issuer::new("k1").token(json!({"rug_roles": "admin"}));
    assert_eq!(tokens.check(&forged), Err(TokenProblem::Signature));
    assert_eq!(tokens.check(&Issuer::new("k2").token(json!({}))), Err(TokenProblem::UnknownKey));
    // Signed with the public key as if it were a secret, and not signed at all.
    let secret = serde_json::to_vec(&issuer.jwk()).expect("JSON");
    let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::HS256) };
    let claims = json!({"iss": ISSUER, "aud": "rug", "sub": "jane", "exp": now() + 600, "rug_roles": "admin"});
    let confused = encode(&header, &claims, &EncodingKey::from_secret(&secret).expect("a secret")).expect("signed");
    assert_eq!(tokens.check(&confused), Err(TokenProblem::Algorithm));
    let unsigned = "eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.eyJzdWIiOiJqYW5lIn0.";
    assert_eq!(tokens.check(unsigned), Err(TokenProblem::Algorithm));
    // Cut off, two names could become one.
    let long = issuer.token(json!({"sub": "j".repeat(MAX_SUBJECT + 1)}));
    assert_eq!(tokens.check(&long), Err(TokenProblem::LongSubject(MAX_SUBJECT + 1)));
    assert!(tokens.check(&issuer.token(json!({"sub": "j".repeat(MAX_SUBJECT)}))).is_ok());
    for odd in ["", ".", "a.b.c", "a.b", "\u{0}"] {
        assert_eq!(tokens.check(odd), Err(TokenProblem::Malformed), "{odd:?}");
    }
    assert_eq!(tokens.check(&"a".repeat(MAX_TOKEN + 1)), Err(TokenProblem::TooLong(MAX_TOKEN + 1)));
}

#[tokio::test]
async fn a_key_that_is_replaced_in_the_file_counts_and_the_old_one_does_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let (old, new) = (Issuer::new("k1"), Issuer::new("k2"));
    let tokens = start(&write(&dir, vec![old.jwk()]));
    let (first, second) = (old.token(json!({})), new.token(json!({})));
    assert!(tokens.check(&first).is_ok() && tokens.check(&second).is_err());
    std::fs::write(dir.path().join("jwks.json"), "{ half").expect("written");
    let seen = async {
        while tokens.keys.failed() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen).await.expect("the half-written file is read");
    assert!(tokens.check(&first).is_ok(), "the keys of before go on");
    let _ = write(&dir, vec![new.jwk()]);
    let changed = async {
        while tokens.check(&second).is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), changed).await.expect("the new key is taken over");
    assert_eq!(tokens.check(&first), Err(TokenProblem::UnknownKey));
}

#[tokio::test]
async fn keys_are_fetched_over_tls_and_a_server_that_fails_is_asked_again() {
    runtime::tls::install_provider();
    let (dir, issuer) = (tempfile::tempdir().expect("a folder"), Issuer::new("k1"));
    let ca = Authority::new("web ca");
    let config = write(&dir, vec![issuer.jwk()]);
    let set = std::fs::read_to_string(&config.jwks).expect("just written");
    let full = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{set}", set.len());
    let answers = vec!["HTTP/1.1 302 Found\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n".to_owned(), full];
    let port = testing::serve_web(&ca.issue("issuer", &["localhost"]), answers).await;
    let file = ca.issue("nobody", &[]).write(dir.path(), &ca).ca;
    let tokens = start(&Config { jwks: format!("https://localhost:{port}/keys"), ca: file, ..config });
    let token = issuer.token(json!({"rug_roles": "viewer"}));
    assert_eq!(tokens.check(&token), Err(TokenProblem::NoKeys));
    let fetched = async {
        while tokens.check(&token).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), fetched).await.expect("the second answer has the keys");
}

#[tokio::test]
async fn keys_that_are_none_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut encryption = Issuer::new("k1").jwk();
    encryption.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Encryption);
    let config = write(&dir, vec![encryption]);
    let problem = Tokens::start(&config).expect_err("no key for signatures").to_string();
    assert!(problem.contains("no key for signatures"), "{problem}");
    // A shared secret is no key to check others by.
    let set = r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQ", "kid": "k1"}]}"#;
    std::fs::write(dir.path().join("jwks.json"), set).expect("written");
    assert!(Tokens::start(&config).is_err());
    for (jwks, expected) in [
        ("http://issuer.example.org/keys", "jwks: must be a file, or an address that begins with https://"),
        ("https://user:pw@issuer.example.org/keys", "jwks: must not have credentials in it"),
        (
            "https://issuer.example.org/keys",
            "jwks: needs `ca`, the CAs that its server is checked against, such as /etc/ssl/certs/ca-certificates.crt",
        ),
    ] {
        let found = Config { jwks: jwks.into(), ..config.clone() }.validate();
        assert_eq!(found[0].to_string(), expected);
    }
    let found = Config { issuer: String::new(), refresh: Duration::ZERO, ..config }.validate();
    let fields: Vec<_> = found.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["issuer", "refresh"]);
}
