//! Every target. A new decoder gets one here, in the file of where its input comes from.

use crate::Target;

mod files;
mod rest;
mod session;
mod shims;
mod store;
mod trust;

const fn target(name: &'static str, seeds: fn() -> Vec<Vec<u8>>, feed: fn(&[u8]) -> crate::Outcome) -> Target {
    Target { name, seeds, feed }
}

/// Every target.
pub const TARGETS: [Target; 32] = [
    target("session-up", session::up_seeds, session::up),
    target("session-down", session::down_seeds, session::down),
    target("admin-appliance", session::appliance_seeds, session::appliance),
    target("admin-update", session::update_seeds, session::update),
    target("admin-reference", session::reference_seeds, session::reference),
    target("admin-status", session::status_seeds, session::status),
    target("page-token", store::page_token_seeds, store::page_token),
    target("grant-row", store::grant_row_seeds, store::grant_row),
    target("stored-spec", store::spec_seeds, store::spec),
    target("store-url", store::url_seeds, store::url),
    target("zookeeper-profile", store::profile_seeds, store::profile),
    target("zookeeper-lease", store::lease_seeds, store::lease),
    target("zookeeper-contenders", store::contender_seeds, store::contenders),
    target("coordination-url", store::coordination_seeds, store::coordination),
    target("appliance-config", rest::config_seeds, rest::config),
    target("proxy-header", rest::proxy_seeds, rest::proxy_header),
    target("handover", rest::handover_seeds, rest::handover),
    target("appliance-status", rest::status_seeds, rest::status),
    target("appliance-refusal", rest::refusal_seeds, rest::refusal),
    target("metadata-asker", rest::asker_seeds, rest::asker),
    target("instance-record", files::record_seeds, files::record),
    target("token-file", files::token_seeds, files::token),
    target("site-file", files::site_seeds, files::site),
    target("shim-order", shims::order_seeds, shims::order),
    target("shim-state", shims::state_seeds, shims::state),
    target("documents", files::document_seeds, files::documents),
    target("settings", files::settings_seeds, files::settings),
    target("certificate", trust::certificate_seeds, trust::certificate),
    target("revocation-list", trust::revocation_seeds, trust::revocation_list),
    target("bearer-token", trust::token_seeds, trust::token),
    target("token-claims", trust::claim_seeds, trust::claims),
    target("token-keys", trust::key_seeds, trust::keys),
];

/// Seeds that are texts.
fn texts<const N: usize>(texts: [&str; N]) -> Vec<Vec<u8>> {
    texts.into_iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// What a decoder of texts is fed; bytes that are none are replaced, as they would be before they got there.
fn text(input: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(input)
}
