//! Every decoder of this package for bytes from outside, for the fuzz tests: they feed them bytes of any kind.

use common::Token;
use common::status::Details;

use crate::appliance::api::Config;
use crate::appliance::{balancer, handover, proxy};
use crate::drivers::process;
use crate::kinds::rest;
use crate::metadata_proxy;

/// Reads the record of an instance, and writes it again.
///
/// # Errors
/// What is wrong with it.
pub fn record(bytes: &[u8]) -> Result<Vec<u8>, String> {
    process::rewrite_record(bytes)
}

/// Reads a token file, and answers the newest token.
///
/// # Errors
/// What is wrong with it.
pub fn token_file(bytes: &[u8]) -> Result<Token, String> {
    process::fence::token_in(bytes)
}

/// Reads the file with the id of a state directory, and writes what it says again.
///
/// # Errors
/// That it is damaged.
pub fn site_file(text: &str) -> Result<String, String> {
    process::site::rewrite(text)
}

/// What the status of an appliance says beside that it is well.
#[must_use]
pub fn conditions(body: &[u8]) -> Details {
    rest::conditions(body)
}

/// What is shown of an appliance's refusal of a configuration.
#[must_use]
pub fn refusal(status: u16, body: &[u8], ours: Token) -> String {
    rest::refused(status, body, ours).to_string()
}

/// Reads a header of the PROXY protocol: how long it is, and the header that says the same. `None` while it is incomplete.
///
/// # Errors
/// That it is none.
pub fn proxy_header(bytes: &[u8]) -> Result<Option<(usize, Vec<u8>)>, String> {
    proxy::rewrite(bytes)
}

/// Reads what an instance gets from another one to or from which it hands its service over, up to the first message that is
/// incomplete, and writes it again. Answers the kinds of the messages as well.
///
/// # Errors
/// What is wrong with it.
pub fn handover(bytes: &[u8]) -> Result<(Vec<&'static str>, Vec<u8>), String> {
    handover::rewrite(bytes)
}

/// Reads a configuration as the reference appliance does.
///
/// # Errors
/// The field that is wrong, or that it is no configuration.
pub fn configuration(body: &[u8]) -> Result<Config, String> {
    let config: Config = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    balancer::check(&config).map_err(|invalid| invalid.field)?;
    Ok(config)
}

/// Reads who asks for metadata from lines of headers, as an appliance sends them, and writes it again.
///
/// # Errors
/// What is wrong with it.
pub fn metadata_asker(lines: &[u8]) -> Result<Vec<u8>, String> {
    metadata_proxy::rewrite_asker(lines)
}
