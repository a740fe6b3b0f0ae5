//! Bearer tokens (JWT) of clients that have no certificate.
//!
//! A token counts when a key of the issuer has signed it, by an algorithm with a public key that is one for that key; when
//! issuer and audience are the configured ones; and while it is valid by its own times. What is in it beyond that says
//! who the caller is (`sub`) and, by one claim and rules, which roles it has. Tokens never make anybody a worker or a
//! coordinator: these have certificates.
//!
//! Keys come from a file or over `https://`, and are fetched again every [`Config::refresh`] and when a token names a key
//! that is not known ([`keys`]).

mod keys;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::access::{NamePattern, NameRule, Role, RoleTemplate, SubjectName};
use common::appliance::FieldViolation;
use common::text::escaped;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Grants;
use super::config::check_roles;
pub use keys::KeyError;
use keys::{KeyStore, Location};

/// Longest token. Headers in all may have some 16 KiB.
const MAX_TOKEN: usize = 8 << 10;
/// Most values of the claim that are looked at.
const MAX_VALUES: usize = 1_000;
/// Longest `sub`, in bytes, as `OpenID Connect` Core 1.0, section 2 has it. A longer one is refused instead of cut: two
/// callers that begin alike must not become one.
const MAX_SUBJECT: usize = 255;

/// Tokens of clients that have no certificate. Off while `jwks` is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Keys of the issuer (a JWK set): path of a file, or address that begins with `https://`.
    pub jwks: String,
    /// PEM file with the CAs that the server of `jwks` is checked against, such as the system's bundle.
    pub ca: PathBuf,
    /// The issuer: what tokens have as `iss`.
    pub issuer: String,
    /// Who tokens are for: what they have in `aud`.
    pub audience: String,
    /// Claim that roles are made of: a text or a list of texts. A path with dots leads into objects.
    pub claim: String,
    /// Which values of the claim have which roles. Without rules the values are roles themselves.
    pub rules: Vec<RuleConfig>,
    /// How often the keys are fetched. Longer accepts a key for longer that the issuer has withdrawn.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub refresh: Duration,
    /// Difference between the clocks here and at the issuer that is allowed for.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub leeway: Duration,
}

/// Gives roles to tokens by a value of their claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RuleConfig {
    /// The value. One `*` stands for any text without `/`.
    pub value: String,
    /// The roles. A `*` in one is what the `*` in the value stood for.
    pub roles: Vec<RoleTemplate>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            jwks: String::new(),
            ca: PathBuf::new(),
            issuer: String::new(),
            audience: String::new(),
            claim: "rug_roles".to_owned(),
            rules: Vec::new(),
            refresh: Duration::from_secs(300),
            leeway: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Whether no tokens are accepted.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.jwks.is_empty()
    }

    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if self.is_off() {
            return found;
        }
        let mut violated = |field: String, problem: String| found.push(FieldViolation::new(field, problem));
        if let Err(problem) = Location::of(self) {
            violated("jwks".to_owned(), problem);
        }
        for (field, text) in [("issuer", &self.issuer), ("audience", &self.audience), ("claim", &self.claim)] {
            if text.is_empty() {
                violated(field.to_owned(), "must be set with jwks".to_owned());
            }
        }
        for (field, value, most) in [("refresh", self.refresh, 86_400), ("leeway", self.leeway, 300)] {
            let least = if field == "refresh" { Duration::from_secs(1) } else { Duration::ZERO };
            if value < least || value > Duration::from_secs(most) {
                violated(field.to_owned(), format!("must be {least:?} to {most}s, is {value:?}"));
            }
        }
        for (n, rule) in self.rules.iter().enumerate() {
            if let Err((field, problem)) = rule.parse() {
                violated(format!("rules[{n}].{field}"), problem);
            }
        }
        found
    }
}

impl RuleConfig {
    fn parse(&self) -> Result<NameRule, (&'static str, String)> {
        let name = NamePattern::claim(&self.value).map_err(|e| ("value", e.to_string()))?;
        check_roles(&self.roles, name.captures())?;
        let certified = |role: &RoleTemplate| role.fill("a").is_ok_and(|role| is_certified(&role));
        if self.roles.iter().any(certified) {
            let problem = "a token cannot make anybody a worker or a coordinator; these have certificates";
            return Err(("roles", problem.to_owned()));
        }
        Ok(NameRule { name, roles: self.roles.clone() })
    }
}

/// Whether only a certificate can give this role.
const fn is_certified(role: &Role) -> bool {
    matches!(role, Role::Worker(_) | Role::Coordinator(_))
}

/// Checks tokens. Cheap to clone; clones share the keys.
#[derive(Clone, Debug)]
pub struct Tokens {
    keys: KeyStore,
    validation: Validation,
    claim: String,
    /// Empty: values of the claim are roles.
    rules: Vec<NameRule>,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who it is about, printable.
    pub name: String,
    /// The roles.
    pub grants: Grants,
}

/// Why a token does not count. Never quotes the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenProblem {
    /// No keys have been fetched yet.
    #[error("there are no keys to check it with yet")]
    NoKeys,
    /// Too long to be looked at.
    #[error("it has {0} bytes, at most {MAX_TOKEN} are read")]
    TooLong(usize),
    /// None of the keys is the one it names, or it names none and there are several.
    #[error("its key is not one of the issuer's")]
    UnknownKey,
    /// The algorithm is none with a public key, or not one for its key.
    #[error("its algorithm is not one that its key is for")]
    Algorithm,
    /// No key of the issuer has signed it.
    #[error("its signature is not right")]
    Signature,
    /// It is too old.
    #[error("it has expired")]
    Expired,
    /// It is not valid yet.
    #[error("it is not valid yet; are the clocks right?")]
    Early,
    /// From another issuer.
    #[error("it is of another issuer")]
    Issuer,
    /// For somebody else.
    #[error("it is for another audience")]
    Audience,
    /// A claim is missing that it must have.
    #[error("it has no claim `{0}`")]
    Missing(String),
    /// It names somebody by a text that is too long.
    #[error("its `sub` has {0} bytes, at most {MAX_SUBJECT} are allowed")]
    LongSubject(usize),
    /// No token at all.
    #[error("it is not a JSON Web Token")]
    Malformed,
}

impl Tokens {
    /// Starts to fetch the keys, for as long as the result or a clone of it lives. Without keys tokens are refused with
    /// [`TokenProblem::NoKeys`]. `None` when tokens are off. Needs a Tokio runtime.
    ///
    /// # Errors
    /// A file with keys that cannot be read, or settings that [`Config::validate`] refuses.
    pub fn start(config: &Config) -> Result<Option<Self>, KeyError> {
        if config.is_off() {
            return Ok(None);
        }
        let keys = KeyStore::start(Location::of(config).map_err(KeyError::Settings)?, config.refresh)?;
        Ok(Some(Self::with(config, keys)))
    }

    /// Accepts tokens by these keys alone, for the fuzz tests.
    ///
    /// # Errors
    /// The set has no key that can be used.
    pub(crate) fn fixed(config: &Config, set: &[u8]) -> Result<Self, KeyError> {
        Ok(Self::with(config, KeyStore::fixed(set)?))
    }

    /// Keys that tokens are checked with now.
    pub(crate) fn keys(&self) -> usize {
        self.keys.count()
    }

    fn with(config: &Config, keys: KeyStore) -> Self {
        // The algorithms are set for each token, to those of its key.
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&config.issuer]);
        validation.set_audience(&[&config.audience]);
        validation.leeway = config.leeway.as_secs();
        validation.validate_nbf = true;
        let rules = config.rules.iter().filter_map(|rule| rule.parse().ok()).collect();
        Self { keys, validation, claim: config.claim.clone(), rules }
    }

    /// Checks a token.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn check(&self, token: &str) -> Result<Verified, TokenProblem> {
        if token.len() > MAX_TOKEN {
            return Err(TokenProblem::TooLong(token.len()));
        }
        let header = decode_header(token).map_err(|e| header_problem(token, e.kind()))?;
        let key = self.keys.find(header.kid.as_deref())?;
        if !key.algorithms.contains(&header.alg) {
            return Err(TokenProblem::Algorithm);
        }
        let validation = Validation { algorithms: vec![header.alg], ..self.validation.clone() };
        let claims = decode::<Map<String, Value>>(token, &key.key, &validation).map_err(|e| problem(e.kind()))?.claims;
        self.verified(&claims)
    }

    /// What the claims of a token say that is otherwise in order.
    ///
    /// # Errors
    /// They name nobody.
    pub(crate) fn verified(&self, claims: &Map<String, Value>) -> Result<Verified, TokenProblem> {
        let text = |claim: &str| claims.get(claim).and_then(Value::as_str).unwrap_or_default();
        let name = match text("sub") {
            "" => return Err(TokenProblem::Missing("sub".to_owned())),
            long if long.len() > MAX_SUBJECT => return Err(TokenProblem::LongSubject(long.len())),
            name => escaped(name),
        };
        let roles = self.values(claims).into_iter().flat_map(|value| self.roles(value));
        let grants = Grants::of(roles.filter(|role| !is_certified(role)));
        Ok(Verified { name: format!("{name} (token)"), grants })
    }

    /// The values of the claim that roles are made of.
    fn values<'a>(&self, claims: &'a Map<String, Value>) -> Vec<&'a str> {
        let mut steps = self.claim.split('.');
        // A claim whose name has dots in it, such as a URL, is found as a whole.
        let found = claims.get(&self.claim).or_else(|| {
            let first = claims.get(steps.next()?)?;
            steps.try_fold(first, |value, step| value.get(step))
        });
        match found {
            Some(Value::String(value)) => vec![value],
            Some(Value::Array(values)) => values.iter().take(MAX_VALUES).filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    fn roles(&self, value: &str) -> Vec<Role> {
        if self.rules.is_empty() {
            return value.parse().into_iter().collect();
        }
        self.rules.iter().flat_map(|rule| rule.roles_of(SubjectName::Claim(value))).collect()
    }
}

/// What is wrong with a header that cannot be read. The library takes an algorithm that it does not know, `none` among
/// them, for no header at all.
fn header_problem(token: &str, kind: &ErrorKind) -> TokenProblem {
    let header = token.split_once('.').and_then(|(header, _)| URL_SAFE_NO_PAD.decode(header).ok());
    let header: Option<Map<String, Value>> = header.and_then(|json| serde_json::from_slice(&json).ok());
    let unknown = header.and_then(|header| header.get("alg")?.as_str()?.parse::<Algorithm>().err());
    unknown.map_or_else(|| problem(kind), |_| TokenProblem::Algorithm)
}

fn problem(kind: &ErrorKind) -> TokenProblem {
    match kind {
        ErrorKind::ExpiredSignature => TokenProblem::Expired,
        ErrorKind::ImmatureSignature => TokenProblem::Early,
        ErrorKind::InvalidIssuer => TokenProblem::Issuer,
        ErrorKind::InvalidAudience => TokenProblem::Audience,
        ErrorKind::InvalidSignature => TokenProblem::Signature,
        ErrorKind::MissingRequiredClaim(claim) => TokenProblem::Missing(claim.clone()),
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenProblem::Algorithm,
        _ => TokenProblem::Malformed,
    }
}
