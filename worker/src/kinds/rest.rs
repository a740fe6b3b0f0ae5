//! Speaks the REST contract: configures and probes an instance at its management address, each call with the secret of the
//! instance, where it has one, and each change with the token of the grant, so that the appliance itself refuses a former owner.

use std::net::SocketAddr;

use common::Token;
use serde::Deserialize;
use worker_core::instance::Instance;

use super::http::{HttpAnswer, HttpClient};
use crate::appliance::api::{INSTANCE_HEADER, Problem, TOKEN_HEADER, path, token_from_header, token_to_header};
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
        409 => Err(Error::Superseded(in_force(&answer.body, permit.token()))),
        401 | 403 => Err(Error::Failed("the instance does not accept its secret".into())),
        status @ (400 | 422) => Err(Error::Refused(explain(status, &answer))),
        status => Err(Error::Failed(explain(status, &answer))),
    }
}

/// Whether the instance says that it is well.
pub(super) async fn probe(client: &HttpClient, instance: &Instance) -> Result<(), Error> {
    let address = management(instance)?;
    let answer = client.get(address, path::STATUS, instance.secret.as_ref()).await;
    match answer.map_err(|error| Error::Failed(format!("{} at {address}: {error}", path::STATUS)))?.status.as_u16() {
        200 => Ok(()),
        status => Err(Error::Failed(format!("{} at {address} answered {status}", path::STATUS))),
    }
}

fn management(instance: &Instance) -> Result<SocketAddr, Error> {
    instance
        .addresses
        .management
        .ok_or_else(|| Error::Failed("the instance has not opened its management address yet".into()))
}

fn problem(answer: &HttpAnswer) -> Option<Problem> {
    serde_json::from_slice(&answer.body).ok()
}

fn explain(status: u16, answer: &HttpAnswer) -> String {
    match problem(answer) {
        Some(Problem { error, field: Some(field), .. }) => format!("{field}: {error}"),
        Some(Problem { error, .. }) => error,
        None => format!("{} answered {status}", path::CONFIG),
    }
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
}
