//! Every decoder of this package for bytes from outside, for the fuzz tests: they feed them bytes of any kind.

use common::appliance::Name;

use crate::access::tokens::{self, Tokens, Verified};
use crate::catalog::Filter;
use crate::store;

/// Reads the token of a page of appliances. `None` when it is refused or empty, else the token that is made of what it says.
#[must_use]
pub fn page_token(token: &str) -> Option<String> {
    crate::grpc::reseal(token, &Filter::default())
}

/// The token of a page that begins after this appliance.
#[must_use]
pub fn make_page_token(tenant: &Name, name: &Name, total: u64) -> String {
    crate::grpc::make_token(tenant.clone(), name.clone(), total, &Filter::default())
}

/// Reads a packed row of the log of grants, or of a snapshot of it, and counts its entries. Its checksum is put right before: no
/// mutation of a row would get past it.
///
/// # Errors
/// What is wrong with the row.
pub fn grant_row(row: &[u8]) -> Result<usize, String> {
    store::read_mended_row(row)
}

/// Packed rows as they are stored.
#[must_use]
pub fn grant_rows() -> Vec<Vec<u8>> {
    store::sample_rows()
}

/// Reads the URL of a store, and answers how it is shown.
///
/// # Errors
/// How it is shown, and what is wrong with it.
pub fn store_url(url: &str) -> Result<String, String> {
    store::check_url(url)
}

/// Checks a bearer token by a set of keys, and answers who it is about and which roles it gives.
///
/// # Errors
/// Why the token does not count, or the set of keys cannot be used.
pub fn bearer_token(token: &str, keys: &[u8]) -> Result<(String, String), String> {
    let tokens = Tokens::fixed(&token_settings(), keys).map_err(|e| e.to_string())?;
    tokens.check(token).map(shown).map_err(|e| e.to_string())
}

/// Reads the claims of a token as if it had been signed, with rules and a claim within an object.
///
/// # Errors
/// Why it does not count.
pub fn token_claims(claims: &[u8], keys: &[u8]) -> Result<(String, String), String> {
    let tokens = Tokens::fixed(&token_settings(), keys).map_err(|e| e.to_string())?;
    let claims = serde_json::from_slice(claims).map_err(|_| "no claims".to_owned())?;
    tokens.verified(&claims).map(shown).map_err(|e| e.to_string())
}

/// Reads a set of keys, and answers how many can be used.
///
/// # Errors
/// Why none can.
pub fn token_keys(set: &[u8]) -> Result<usize, String> {
    Tokens::fixed(&token_settings(), set).map(|tokens| tokens.keys()).map_err(|e| e.to_string())
}

fn token_settings() -> tokens::Config {
    tokens::Config {
        jwks: "keys".to_owned(),
        issuer: "https://issuer.example.org".to_owned(),
        audience: "rug".to_owned(),
        ..tokens::Config::default()
    }
}

fn shown(verified: Verified) -> (String, String) {
    (verified.name, verified.grants.to_string())
}
