//! Every call passes here before anything else happens with it: who makes it, and may they?
//!
//! | peer | is |
//! |---|---|
//! | of the Unix socket, checked by its user id | allowed everything |
//! | plain TCP, which only `insecure = true` opens | allowed everything |
//! | with a certificate | what the rules of `[authorization]` make of its names |
//! | with a token | what the rules for tokens make of its claims, whatever certificate there is beside it |
//! | with neither | refused, except for what is open to everybody |
//!
//! A coordinator that stands by forwards calls with its own certificate and names the caller and its roles in headers. Those
//! count only from a peer whose certificate says that it is that coordinator; from anybody else they are removed. Sessions
//! of workers are never forwarded, and count by certificate alone.
//!
//! What passes carries its [`Access`], by which the services find appliances. Refusals are in the log with target `audit`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use common::CoordinatorId;
use common::appliance::Name;
use common::text::{self, escaped};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use runtime::log_limit::LogLimit;
use tonic::Status;
use tonic::body::Body;
use tracing::info;

use super::forward::{FORWARDED_BY, FORWARDED_FOR};
use super::incoming::{PeerAddress, PeerIdentity, PeerInfo};
use super::layer::{Answer, Around, Calls, Next, at_once};
use super::status;
use crate::access::permission::{self, Call};
use crate::access::tokens::{TokenProblem, Tokens};
use crate::access::{Grants, Permission, Policy, Principal, Scope};

/// Header: the roles of the caller of a forwarded call.
pub(super) const FORWARDED_ROLES: HeaderName = HeaderName::from_static("rug-forwarded-roles");
/// Stands between the name of a caller and that of the coordinator that forwards its call.
const BY_WAY: &str = " by way of ";
/// Longest caller's name, in bytes, that is accepted from another coordinator: more than any that is made.
const MAX_CALLER: usize = 4 << 10;
/// Callers whose refusals are limited in the log each for itself, so that none can drown the refusals of another. Reading
/// has a limit beside that of everything else, so that nobody hides a change it tried behind reading. While there are so
/// many, all others share one limit.
const MAX_LIMITS: usize = 1_000;

/// Who makes a call, and about which appliances it may be. An extension of every request that is let through.
#[derive(Clone, Debug)]
pub struct Access {
    principal: Arc<Principal>,
    scope: Scope,
    call: &'static Call,
    /// The peer of the connection: the caller itself, or a coordinator.
    peer: PeerInfo,
    /// See [`Access::caller_key`].
    caller: Arc<str>,
    /// Where refusals are logged.
    gate: Arc<Authorize>,
}

impl Access {
    /// The caller, for the audit trail.
    pub(super) fn actor(&self) -> &str {
        &self.principal.name
    }

    /// Whose share of what is bounded for each caller this call takes: that of a name, or of an address without one. The
    /// same, whichever coordinator the caller asks.
    pub(super) fn caller_key(&self) -> Arc<str> {
        Arc::clone(&self.caller)
    }

    /// What the caller may do.
    pub fn grants(&self) -> &Grants {
        &self.principal.grants
    }

    /// The same call, as far as the caller has this permission, too.
    pub(super) fn narrowed(self, permission: Permission) -> Result<Self, Status> {
        match self.grants().scope(permission) {
            Some(scope) => Ok(Self { scope, ..self }),
            None => Err(self.refuse(&format!("it needs {}, and there is no role", permission.holders()))),
        }
    }

    /// The appliances that this call may be about.
    pub(super) const fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether values that may be secrets are shown, of appliances of this tenant.
    pub(super) fn sees_secrets(&self, tenant: &Name) -> bool {
        self.principal.grants.sees_secrets(tenant)
    }

    /// Refuses a call that names a tenant the caller may not use. That says nothing about what there is in it.
    pub(super) fn check_tenant(&self, tenant: &Name) -> Result<(), Status> {
        if self.scope.contains(tenant) {
            return Ok(());
        }
        Err(self.refuse(&format!("tenant {tenant} is none of those")))
    }

    /// Refuses the call for what is in it, and logs that.
    pub(crate) fn refuse(&self, why: &str) -> Status {
        let Call { service, method, .. } = self.call;
        let Principal { name, grants } = &*self.principal;
        let text = format!("{name} may not make this call {service}/{method}: {why} that its roles allow: {grants}");
        let refusal = status::permission_denied(&text);
        self.gate.log(&self.peer, Some(&self.principal), self.call, &refusal);
        refusal
    }
}

/// The access that the layer gave to a request.
///
/// # Errors
/// There is none: the service is served without [`Authorize`], and answers nobody.
pub(crate) fn access_of(extensions: &http::Extensions) -> Result<&Access, Status> {
    extensions.get().ok_or_else(|| status::permission_denied("the caller was not identified"))
}

/// Lets calls through to those who may make them, by a policy and, if any are accepted, the claims of tokens. Goes around
/// [`Forwarder`](super::Forwarder).
pub struct Authorize {
    policy: Policy,
    tokens: Option<Tokens>,
    /// Limits of the log lines about refusals, by [`log_key`] and whether it was to read: whoever is refused may try as often as it likes.
    limits: Mutex<HashMap<String, Arc<LogLimit>>>,
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorize").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// A call that may be made.
struct Admitted {
    access: Access,
    /// By a coordinator, for somebody else.
    forwarded: bool,
}

/// Decides about a call, and logs a refusal.
fn admit(gate: &Arc<Authorize>, request: &Request<Body>) -> Result<Admitted, Status> {
    let path = request.uri().path();
    let call = permission::of_path(path).ok_or_else(|| status::unknown_call(path))?;
    let Some(peer) = request.extensions().get::<PeerInfo>() else {
        return Err(status::permission_denied("the peer of the connection is not known"));
    };
    let log = |caller: Option<&Principal>, refusal: &Status| gate.log(peer, caller, call, refusal);
    let found = gate.caller(call, peer, request.headers()).inspect_err(|refusal| log(None, refusal));
    let (caller, forwarded) = found?;
    let scope = gate.scope(call, peer, &caller, forwarded).inspect_err(|refusal| log(Some(&caller), refusal))?;
    let key = if forwarded { original_key(&caller.name) } else { log_key(peer, Some(&caller)) };
    let (caller, principal) = (key.into(), Arc::new(caller));
    let access = Access { principal, scope, call, peer: peer.clone(), caller, gate: Arc::clone(gate) };
    Ok(Admitted { access, forwarded })
}

/// What a peer may do by itself, without a token.
pub(super) fn grants_of(policy: &Policy, accepts_tokens: bool, peer: &PeerInfo) -> Grants {
    match &peer.identity {
        PeerIdentity::Certificate(identity) => policy.grants(identity.certificate_names()),
        PeerIdentity::Local(_) => Grants::Everything,
        // Tokens need TLS: this is a client without a certificate.
        PeerIdentity::Unverified if accepts_tokens => Grants::none(),
        PeerIdentity::Unverified => Grants::Everything,
    }
}

/// Whose refusals are limited together: those of a verified token or certificate, else those of an address. Calls that
/// a coordinator forwards count as its own.
fn log_key(peer: &PeerInfo, caller: Option<&Principal>) -> String {
    let proven = caller.and_then(|caller| caller.name.strip_suffix(&format!(" at {}", peer.address)));
    proven.map_or_else(|| peer.key(), str::to_owned)
}

/// The name, or else the address without a port, of the caller that a coordinator names.
fn original_key(name: &str) -> String {
    let original = name.rsplit_once(BY_WAY).map_or(name, |(original, _)| original);
    match (original.rsplit_once(" at "), original.parse()) {
        (Some((name, _)), _) => name.to_owned(),
        (None, Ok(address)) => PeerAddress::Tcp(address).network(),
        // A user of that coordinator's host; the process does not matter.
        (None, Err(_)) => original.split_once(',').map_or(original, |(user, _)| user).to_owned(),
    }
}

impl Around for Authorize {
    fn around<S: Calls>(self: &Arc<Self>, mut request: Request<Body>, next: Next<S>) -> Answer {
        match admit(self, &request) {
            Ok(admitted) => {
                let headers = request.headers_mut();
                headers.remove(header::AUTHORIZATION);
                headers.remove(FORWARDED_FOR);
                headers.remove(FORWARDED_ROLES);
                if !admitted.forwarded {
                    headers.remove(FORWARDED_BY);
                }
                request.extensions_mut().insert(admitted.access);
                next.call(request)
            }
            Err(status) => at_once(&status),
        }
    }
}

impl Authorize {
    /// Applies `policy`, to the claims of tokens by `tokens` if any are accepted.
    #[must_use]
    pub fn new(policy: Policy, tokens: Option<Tokens>) -> Self {
        Self { policy, tokens, limits: Mutex::default() }
    }

    /// Logs a refusal, unless there were too many of this caller just before.
    fn log(&self, peer: &PeerInfo, caller: Option<&Principal>, call: &Call, refusal: &Status) {
        let Call { service, method, permission, .. } = call;
        let call = format!("{service}/{method}");
        let reads = matches!(permission, Permission::ReadAppliances | Permission::ReadCluster | Permission::Identify);
        let key = format!("{} {reads}", log_key(peer, caller));
        let limit = {
            let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
            if limits.len() >= MAX_LIMITS && !limits.contains_key(&key) {
                limits.retain(|_, limit| !limit.is_idle());
            }
            // Whoever has many addresses must not get the lines of each of them anew.
            let key = if limits.len() >= MAX_LIMITS && !limits.contains_key(&key) { String::new() } else { key };
            Arc::clone(limits.entry(key).or_default())
        };
        if let Some(skipped) = limit.take() {
            let (code, skipped) = (refusal.code(), (skipped > 0).then_some(skipped));
            info!(target: "audit", %peer, call, ?code, skipped, "refused: {}", refusal.message());
        }
    }

    /// For which appliances the caller may make the call.
    fn scope(&self, call: &Call, peer: &PeerInfo, caller: &Principal, forwarded: bool) -> Result<Scope, Status> {
        match caller.allow(call) {
            Ok(scope) => Ok(scope),
            Err(_) if self.policy.is_open(call.permission) => Ok(Scope::All),
            Err(denied) => Err(self.explain(call, peer, caller, &denied.to_string(), forwarded)),
        }
    }

    /// Who makes the call, and whether a coordinator forwards it.
    fn caller(&self, call: &Call, peer: &PeerInfo, headers: &HeaderMap) -> Result<(Principal, bool), Status> {
        let by_certificate = || Principal { name: peer.to_string(), grants: self.grants(peer) };
        // Neither is ever forwarded, and a worker is who its certificate says.
        if matches!(call.permission, Permission::JoinAsWorker) {
            return Ok((by_certificate(), false));
        }
        if headers.contains_key(header::AUTHORIZATION) && !self.policy.is_open(call.permission) {
            return self.by_token(peer, headers).map(|caller| (caller, false));
        }
        let direct = by_certificate();
        match forwarded(&direct, headers)? {
            Some(original) => Ok((original, true)),
            None => Ok((direct, false)),
        }
    }

    fn grants(&self, peer: &PeerInfo) -> Grants {
        grants_of(&self.policy, self.tokens.is_some(), peer)
    }

    /// The caller that a token names.
    fn by_token(&self, peer: &PeerInfo, headers: &HeaderMap) -> Result<Principal, Status> {
        let unauthenticated = |text: &str| Err(status::unauthenticated(text));
        let Some(tokens) = &self.tokens else {
            return unauthenticated("this coordinator accepts no tokens: [authorization.tokens] is not set there");
        };
        let mut all = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (all.next(), all.next()) else {
            return unauthenticated("there is more than one `authorization` header");
        };
        let bearer = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let Some(token) = bearer else {
            return unauthenticated("the `authorization` header is not `Bearer` with a token");
        };
        match tokens.check(token) {
            Ok(found) => {
                let name = format!("{} at {}", found.name, peer.address);
                Ok(Principal { name, grants: found.grants })
            }
            Err(TokenProblem::NoKeys) => Err(status::no_keys()),
            Err(problem) => unauthenticated(&format!("the token is refused: {problem}")),
        }
    }

    /// The status of a refusal; a caller without any role is told what gives it one.
    fn explain(&self, call: &Call, peer: &PeerInfo, caller: &Principal, denied: &str, forwarded: bool) -> Status {
        match &peer.identity {
            PeerIdentity::Unverified
                if self.tokens.is_some() && matches!(call.permission, Permission::JoinAsWorker) =>
            {
                status::unauthenticated("a session of a worker needs a client certificate, and no token counts for it")
            }
            PeerIdentity::Unverified if self.tokens.is_some() && caller.name == peer.to_string() => {
                status::unauthenticated("this call needs a token or a client certificate")
            }
            PeerIdentity::Certificate(identity)
                if caller.grants.is_empty() && !forwarded && caller.name == peer.to_string() =>
            {
                let text = format!("{denied}; no rule gives a role to the certificate {identity}");
                status::permission_denied(&text)
            }
            _ => status::permission_denied(denied),
        }
    }
}

/// The original caller, when `peer` is a coordinator that forwards a call. Headers of others are not looked at.
fn forwarded(peer: &Principal, headers: &HeaderMap) -> Result<Option<Principal>, Status> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| std::str::from_utf8(v.as_bytes()).ok());
    let by = text(&FORWARDED_BY).and_then(|by| CoordinatorId::new(by).ok());
    let Some(by) = by.filter(|by| peer.grants.is_coordinator(by)) else { return Ok(None) };
    let original = text(&FORWARDED_FOR).filter(|caller| caller.len() <= MAX_CALLER).map(escaped);
    let original = original.unwrap_or(Cow::Borrowed("unknown caller"));
    let name = format!("{original}{BY_WAY}{by} ({})", peer.name);
    let grants = match text(&FORWARDED_ROLES) {
        Some(roles) => Grants::from_header(roles),
        // A coordinator of an earlier version. Where peers are not told apart anyway, nothing is lost.
        None => (peer.grants == Grants::Everything).then_some(Grants::Everything),
    };
    let grants = grants.ok_or_else(|| {
        let text =
            format!("{name}: the call was forwarded without the roles of its caller; is {by} of an earlier version?");
        status::permission_denied(&text)
    })?;
    Ok(Some(Principal { name, grants }))
}

/// Names the caller of a request in its headers, for the coordinator that it is forwarded to.
pub(super) fn name_caller(headers: &mut HeaderMap, access: Option<&Access>) {
    let Some(access) = access else { return };
    let name = text::clip(access.actor(), MAX_CALLER).to_owned();
    let values = [(FORWARDED_FOR, name), (FORWARDED_ROLES, access.grants().to_header())];
    for (header, text) in values {
        // Names have letters of all scripts, and whoever has one keeps its own share of what is limited.
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.insert(header, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_limited_by_token_and_else_by_address() {
        let key = |address: &str, name: Option<&str>| {
            let address = PeerAddress::Tcp(address.parse().expect("an address"));
            let name = name.map_or_else(|| address.to_string(), |name| format!("{name} at {address}"));
            let peer = PeerInfo { address, identity: PeerIdentity::Unverified };
            log_key(&peer, Some(&Principal { name, grants: Grants::none() }))
        };
        assert_eq!(key("10.0.0.1:5000", Some("jane (token)")), "jane (token)");
        assert_eq!(key("10.0.0.1:5000", None), "10.0.0.1");
        assert_eq!(key("[::ffff:10.0.0.1]:5000", None), "10.0.0.1");
        assert_eq!(key("[2001:db8::1:2:3:4]:5000", None), "2001:db8:0:0::/64");
    }

    #[test]
    fn a_name_of_another_script_arrives_as_it_is_by_way_of_a_standby() {
        let address = PeerAddress::Tcp("10.0.0.1:5000".parse().expect("an address"));
        let peer = PeerInfo { address, identity: PeerIdentity::Unverified };
        let name = format!("{} (token) at 10.0.0.1:5000", "\u{5f20}\u{4f1f}".repeat(40));
        let access = Access {
            principal: Arc::new(Principal { name: name.clone(), grants: Grants::Everything }),
            scope: Scope::All,
            call: permission::of_path("/rug.admin.v1.Appliances/List").expect("a call"),
            caller: "".into(),
            gate: Arc::new(Authorize::new(Policy::new(&crate::access::Config::default()), None)),
            peer,
        };
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED_BY, HeaderValue::from_static("c2"));
        name_caller(&mut headers, Some(&access));
        let standby = Principal { name: "c2 at 10.0.0.2:6000".to_owned(), grants: Grants::Everything };
        let arrived = forwarded(&standby, &headers).expect("in order").expect("forwarded");
        assert_eq!(arrived.name, format!("{name} by way of c2 (c2 at 10.0.0.2:6000)"));
        assert_eq!(original_key(&arrived.name), name.rsplit_once(" at ").expect("an address").0);
    }

    #[test]
    fn a_caller_has_the_same_key_whichever_coordinator_it_asks() {
        for (name, key) in [
            ("jane (token) at 10.0.0.1:5000 by way of c2 (c2 at 10.0.0.2:6000)", "jane (token)"),
            ("jane at work at [::1]:5000 by way of c2 (c2 at 10.0.0.2:6000)", "jane at work"),
            ("10.0.0.1:5000 by way of c2 (10.0.0.2:6000)", "10.0.0.1"),
            ("local user 0, pid 77 by way of c2 (c2 at 10.0.0.2:6000)", "local user 0"),
            ("unknown caller by way of c2 (c2)", "unknown caller"),
        ] {
            assert_eq!(original_key(name), key);
        }
    }
}
