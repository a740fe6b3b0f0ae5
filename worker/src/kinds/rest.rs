//! Speaks the REST contract: configures and probes an instance at its management address, each call with the secret of the
//! instance, where it has one, and each change with the token of the grant, so that the appliance itself refuses a former owner.

use std::net::SocketAddr;

use common::appliance::MAX_TEXT;
use common::status::{Details, MAX_DETAIL_TEXT};
use common::text::{clip, escaped};
use common::{PLAUSIBLE_TERMS, Token};
use serde::Deserialize;
use worker_core::instance::Instance;

use super::http::{HttpClient, MOST};
use crate::appliance::api::{INSTANCE_HEADER, Problem, Status, TOKEN_HEADER, path, token_from_header, token_to_header};
use crate::error::Error;
use crate::gate::Permit;

/// Puts a configuration in place.
pub(super) async fn configure(
    client: &HttpClient,
    permit: &Permit,
    instance: &Instance,
    configuration: &serde_json::Value,
) -> Result<(), Error> {
    let body = serde_json::to_vec(configuration).map_err(|error| Error::Refused(error.to_string()))?;
    let address = management(instance)?;
    permit.check()?;
    let name = Instance::name(permit.appliance(), instance.ordinal, instance.attempt);
    let headers = [(TOKEN_HEADER, token_to_header(permit.token())), (INSTANCE_HEADER, name)];
    let answer = client.put(address, path::CONFIG, instance.secret.as_ref(), headers, body).await?;
    match answer.status.as_u16() {
        200..300 => Ok(()),
        status => Err(refused(status, &answer.body, permit.token())),
    }
}

/// What a refusal of a configuration under `ours` means.
pub(crate) fn refused(status: u16, body: &[u8], ours: Token) -> Error {
    match status {
        401 | 403 => Error::Failed("the instance does not accept its secret".into()),
        409 => superseded(body, ours),
        400 | 422 => Error::Refused(explain(status, body)),
        status => Error::Failed(explain(status, body)),
    }
}

/// Whether the instance says that it is well. Answers what else it says about itself.
pub(super) async fn probe(client: &HttpClient, instance: &Instance) -> Result<Details, Error> {
    let address = management(instance)?;
    let answer = client.get(address, path::STATUS, instance.secret.as_ref()).await;
    let answer = answer.map_err(|error| Error::Failed(format!("{} at {address}: {error}", path::STATUS)))?;
    match answer.status.as_u16() {
        200 => Ok(conditions(&answer.body)),
        404 => probe_old(client, address, instance).await,
        status => Err(Error::Failed(format!("{} at {address} answered {status}", path::STATUS))),
    }
}

/// Whether an appliance that has no status is well: those of Astara answer with the rules of their firewall.
async fn probe_old(client: &HttpClient, address: SocketAddr, instance: &Instance) -> Result<Details, Error> {
    let at = |problem: String| Error::Failed(format!("{} at {address}: {problem}", path::RULES));
    let answer = client.get(address, path::RULES, instance.secret.as_ref()).await;
    match answer.map_err(|error| at(error.to_string()))?.status.as_u16() {
        200 => Ok(Details::default()),
        status => Err(at(format!("answered {status}, and {} 404", path::STATUS))),
    }
}

/// What a status says beside that the instance is well: nothing in other forms and too long ones, since the contract promises only
/// that 200 means alive.
pub(crate) fn conditions(body: &[u8]) -> Details {
    let said = (body.len() <= MOST).then(|| serde_json::from_slice::<Status>(body).ok()).flatten();
    let said = said.map(|status| status.conditions).unwrap_or_default();
    said.into_iter().map(|(name, text)| (plain(&name), plain(&text))).collect()
}

/// A text of an appliance, as it may be shown and stored.
fn plain(text: &str) -> String {
    escaped(clip(text, MAX_DETAIL_TEXT)).into_owned()
}

pub(super) fn management(instance: &Instance) -> Result<SocketAddr, Error> {
    instance
        .addresses
        .management
        .ok_or_else(|| Error::Failed("the instance has not opened its management address yet".into()))
}

fn explain(status: u16, body: &[u8]) -> String {
    let shown = |text: &str| escaped(clip(text, MAX_TEXT)).into_owned();
    match serde_json::from_slice(body).ok() {
        Some(Problem { error, field: Some(field), .. }) => shown(&format!("{field}: {error}")),
        Some(Problem { error, .. }) => shown(&error),
        None => format!("{} answered {status}", path::CONFIG),
    }
}

/// What a refusal for a newer token means. A token that no cluster can have reached, or one that does not tell of a newer owner at
/// all, is a problem of the appliance: passed on as a newer term it would be followed.
fn superseded(body: &[u8], ours: Token) -> Error {
    let newer = in_force(body, ours);
    if newer.term.get().saturating_sub(ours.term.get()) > PLAUSIBLE_TERMS || newer.sequence == u64::MAX {
        return Error::Failed(format!(
            "it claims that token {newer} is in force, which no owner can have had; ours is {ours}"
        ));
    }
    Error::Superseded(newer)
}

/// The token that an appliance refused `ours` for, in any of the forms it may be written in. Of appliances that do not say
/// which one they have, or name one that is no newer, the least that supersedes ours.
fn in_force(body: &[u8], ours: Token) -> Token {
    let body: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let named = body.as_ref().and_then(|body| body.get("token")).and_then(|token| match token {
        serde_json::Value::String(text) => token_from_header(text),
        other => Token::deserialize(other).ok(),
    });
    let least = Token::new(ours.term, ours.sequence.saturating_add(1));
    named.filter(|named| *named > ours).unwrap_or(least)
}

#[cfg(test)]
mod tests {
    use common::Term;

    use super::*;

    #[test]
    fn the_token_in_force_is_read_wherever_an_appliance_says_it() {
        let token = |term, sequence| Token::new(Term::new(term), sequence);
        let ours = token(3, 7);
        let cases = [
            (r#"{"error": "old", "token": {"term": 9, "sequence": 3}}"#, token(9, 3)),
            (r#"{"token": {"term": 9, "sequence": 3}}"#, token(9, 3)),
            (r#"{"token": "9/3", "more": []}"#, token(9, 3)),
            (r#"{"token": {"term": 3, "sequence": 6}}"#, token(3, 8)),
            (r#"{"token": "t9"}"#, token(3, 8)),
            (r#"{"error": "old"}"#, token(3, 8)),
            ("conflict", token(3, 8)),
        ];
        for (body, newer) in cases {
            assert_eq!(in_force(body.as_bytes(), ours), newer, "{body}");
        }
    }

    #[test]
    fn a_token_that_no_owner_can_have_had_is_a_problem_and_no_news() {
        let ours = Token::new(Term::new(3), 7);
        let most = u64::MAX;
        for token in [format!("{most}/{most}"), format!("{}/1", 4 + PLAUSIBLE_TERMS), format!("3/{most}")] {
            let error = superseded(format!(r#"{{"token": "{token}"}}"#).as_bytes(), ours);
            assert!(matches!(&error, Error::Failed(text) if text.contains("no owner can have had")), "{error:?}");
        }
        let newer = Token::new(Term::new(9), 3);
        assert!(matches!(superseded(br#"{"token": "9/3"}"#, ours), Error::Superseded(token) if token == newer));
    }

    #[test]
    fn of_what_an_instance_says_about_itself_little_is_kept_and_nothing_cheats() {
        let of = |body: &str| conditions(body.as_bytes());
        for body in
            ["", "ok", "[]", r#"{"status":"ok"}"#, r#"{"status":1,"conditions":{"a":"b"}}"#, r#"{"conditions":[]}"#]
        {
            assert_eq!(of(body), Details::default(), "{body}");
        }
        let said = of(r#"{"status":"ok","conditions":{"saturated":"a\u001b[2J"},"more":1}"#);
        assert_eq!(said.get("saturated"), Some(r"a\u{1b}[2J"));
        let many: Vec<_> = (0..1000).map(|n| format!(r#""{n}":"{}""#, "x".repeat(40))).collect();
        assert_eq!(
            of(&format!(r#"{{"conditions":{{{}}}}}"#, many.join(","))).iter().count(),
            common::status::MAX_DETAILS
        );
        let long = format!(r#"{{"conditions":{{"a":"{}"}}}}"#, "x".repeat(MOST));
        assert_eq!(of(&long), Details::default());
    }
}
