//! Rules that match names in certificates, and claims of tokens.

use std::fmt;

use super::{Role, RoleTemplate};

/// One name of somebody, from a certificate or a token. The kinds are kept apart: a DNS name that looks like a URI is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectName<'a> {
    /// Common name of the subject.
    Common(&'a str),
    /// DNS name among the alternative names.
    Dns(&'a str),
    /// URI among the alternative names, such as a SPIFFE id.
    Uri(&'a str),
    /// Value of a claim in a token.
    Claim(&'a str),
}

/// Which names a rule is about. At most one `*`, which stands for one or more characters, but never for `/`, and in DNS
/// names not for `.` either, so that it is one label or one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    kind: PatternKind,
    before: String,
    /// What follows the `*`; `None` when there is none.
    after: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PatternKind {
    Common,
    Dns,
    Uri,
    Claim,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No text, or nothing but `*`, which every certificate would match.
    #[error("must have characters beside `*`: otherwise every name would match")]
    Everything,
    /// More than one `*`.
    #[error("has more than one `*`")]
    Wildcards,
    /// A URI without a scheme.
    #[error("`{0}` is not a URI with a scheme, such as spiffe://example.org/worker/*")]
    Uri(String),
}

impl NamePattern {
    /// A pattern for the common name of the subject.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn common_name(text: &str) -> Result<Self, PatternError> {
        Self::of(PatternKind::Common, text)
    }

    /// A pattern for values of a claim.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn claim(text: &str) -> Result<Self, PatternError> {
        Self::of(PatternKind::Claim, text)
    }

    /// A pattern for DNS names; letters match in either case.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn dns(text: &str) -> Result<Self, PatternError> {
        Self::of(PatternKind::Dns, &text.to_ascii_lowercase())
    }

    /// A pattern for URIs, compared as they are. A `*` cannot be part of the scheme or the authority.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn uri(text: &str) -> Result<Self, PatternError> {
        let no_uri = || PatternError::Uri(text.chars().take(80).collect());
        let (scheme, rest) = text.split_once("://").ok_or_else(no_uri)?;
        let authority = rest.split('/').next().unwrap_or_default();
        if scheme.is_empty() || authority.is_empty() || scheme.contains('*') || authority.contains('*') {
            return Err(no_uri());
        }
        Self::of(PatternKind::Uri, text)
    }

    /// A pattern for URIs or, when the text has no `://`, for DNS names.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn uri_or_dns(text: &str) -> Result<Self, PatternError> {
        if text.contains("://") { Self::uri(text) } else { Self::dns(text) }
    }

    fn of(kind: PatternKind, text: &str) -> Result<Self, PatternError> {
        let (before, after) = match text.split_once('*') {
            None => (text, None),
            Some((before, after)) => (before, Some(after)),
        };
        if after.is_some_and(|after| after.contains('*')) {
            return Err(PatternError::Wildcards);
        }
        if before.is_empty() && after.is_none_or(str::is_empty) {
            return Err(PatternError::Everything);
        }
        Ok(Self { kind, before: before.to_owned(), after: after.map(str::to_owned) })
    }

    /// Whether the pattern has a `*`.
    #[must_use]
    pub const fn captures(&self) -> bool {
        self.after.is_some()
    }

    /// What the `*` stands for in `name`, empty without one; `None` when the name does not match.
    #[must_use]
    pub fn capture(&self, name: SubjectName<'_>) -> Option<String> {
        let text = match (self.kind, name) {
            (PatternKind::Common, SubjectName::Common(text))
            | (PatternKind::Uri, SubjectName::Uri(text))
            | (PatternKind::Claim, SubjectName::Claim(text)) => text.to_owned(),
            (PatternKind::Dns, SubjectName::Dns(text)) => text.to_ascii_lowercase(),
            _ => return None,
        };
        let Some(after) = &self.after else {
            return (text == self.before).then(String::new);
        };
        let captured = text.strip_prefix(&self.before)?.strip_suffix(after.as_str())?;
        let odd = |c: char| c == '/' || (self.kind == PatternKind::Dns && c == '.');
        (!captured.is_empty() && !captured.contains(odd)).then(|| captured.to_owned())
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.before)?;
        if let Some(after) = &self.after {
            write!(f, "*{after}")?;
        }
        Ok(())
    }
}

/// Gives roles to whoever has a matching name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRule {
    /// The name.
    pub name: NamePattern,
    /// The roles; a `*` in one is what the `*` in the name stood for.
    pub roles: Vec<RoleTemplate>,
}

impl NameRule {
    /// The roles that this rule gives to a name. A captured part that is not what the role needs gives no role.
    pub fn roles_of(&self, name: SubjectName<'_>) -> impl Iterator<Item = Role> + '_ {
        let captured = self.name.capture(name);
        captured.into_iter().flat_map(|captured| {
            let roles: Vec<_> = self.roles.iter().filter_map(|role| role.fill(&captured).ok()).collect();
            roles
        })
    }
}

/// The rules that apply when none are configured:
///
/// | URI in the certificate | role |
/// |---|---|
/// | `rug://role/admin`, `rug://role/operator`, `rug://role/viewer` | that role |
/// | `rug://editor/<tenant>` | `editor:<tenant>` |
/// | `rug://worker/<name>` | `worker:<name>` |
/// | `rug://coordinator/<name>` | `coordinator:<name>` |
#[must_use]
pub fn built_in_rules() -> Vec<NameRule> {
    let rule = |path: &str, after: Option<&str>, role: &str| NameRule {
        name: NamePattern { kind: PatternKind::Uri, before: format!("rug://{path}"), after: after.map(str::to_owned) },
        roles: vec![RoleTemplate::new(role)],
    };
    let named = |role: &str| rule(&format!("role/{role}"), None, role);
    let captured = |kind: &str| rule(&format!("{kind}/"), Some(""), &format!("{kind}:*"));
    vec![
        named("admin"),
        named("operator"),
        named("viewer"),
        captured("editor"),
        captured("worker"),
        captured("coordinator"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(pattern: &str, name: &str) -> Option<String> {
        NamePattern::uri(pattern).expect("a pattern").capture(SubjectName::Uri(name))
    }

    #[test]
    fn a_wildcard_is_one_segment() {
        let pattern = "spiffe://example.org/rug/worker/*";
        let matches = |name: &str| uri(pattern, name);
        assert_eq!(matches("spiffe://example.org/rug/worker/w1").as_deref(), Some("w1"));
        for name in [
            "spiffe://example.org/rug/worker/",
            "spiffe://example.org/rug/worker/a/b",
            "spiffe://example.org/rug/worker",
            "spiffe://example.com/rug/worker/w1",
            "SPIFFE://example.org/rug/worker/w1",
            " spiffe://example.org/rug/worker/w1",
        ] {
            assert_eq!(matches(name), None, "{name}");
        }
        assert_eq!(uri("spiffe://d/*/rug-worker", "spiffe://d/w1/rug-worker").as_deref(), Some("w1"));
        // Prefix and suffix do not overlap.
        assert_eq!(uri("x://d/aa*aa", "x://d/aaa"), None);
        assert_eq!(uri("x://d/exact", "x://d/exact").as_deref(), Some(""));
        assert_eq!(uri("x://d/exact", "x://d/exact2"), None);
    }

    #[test]
    fn names_of_other_kinds_do_not_match() {
        let pattern = NamePattern::uri("rug://worker/*").expect("a pattern");
        assert_eq!(pattern.capture(SubjectName::Dns("rug://worker/w1")), None);
        assert_eq!(pattern.capture(SubjectName::Common("rug://worker/w1")), None);
        let pattern = NamePattern::dns("*.Workers.example.org").expect("a pattern");
        let dns = |name| pattern.capture(SubjectName::Dns(name));
        assert_eq!(dns("W1.workers.example.ORG").as_deref(), Some("w1"));
        assert_eq!(dns("a.b.workers.example.org"), None);
        let pattern = NamePattern::common_name("ops-*").expect("a pattern");
        assert_eq!(pattern.capture(SubjectName::Common("ops-jane.doe")).as_deref(), Some("jane.doe"));
    }

    #[test]
    fn patterns_that_match_everything_are_refused() {
        assert_eq!(NamePattern::common_name("*"), Err(PatternError::Everything));
        assert_eq!(NamePattern::dns(""), Err(PatternError::Everything));
        assert_eq!(NamePattern::dns("*.*"), Err(PatternError::Wildcards));
        for odd in ["no-scheme", "://a", "x://", "x://*", "x://*/a", "*://a/b", "x:///a"] {
            assert!(matches!(NamePattern::uri(odd), Err(PatternError::Uri(_))), "{odd}");
        }
    }

    #[test]
    fn built_in_rules_give_the_roles_that_certificates_name() {
        let roles = |name: &str| -> Vec<String> {
            let rules = built_in_rules();
            rules.iter().flat_map(|r| r.roles_of(SubjectName::Uri(name))).map(|r| r.to_string()).collect()
        };
        for (name, role) in [
            ("rug://role/admin", "admin"),
            ("rug://role/operator", "operator"),
            ("rug://role/viewer", "viewer"),
            ("rug://editor/web", "editor:web"),
            ("rug://worker/worker-1", "worker:worker-1"),
            ("rug://coordinator/c1", "coordinator:c1"),
        ] {
            assert_eq!(roles(name), [role]);
        }
        for name in [
            "rug://role/king",
            "rug://role/worker:w1",
            "rug://worker/leader",
            "rug://editor/A",
            "rug://worker/a b\u{7f}",
        ] {
            assert!(roles(name).is_empty(), "{name}: {:?}", roles(name));
        }
    }
}
