//! Every span as data: its name, where it comes from, what it tells. The page about spans is made from it, and tests with a collector
//! hold it against what the programs export.

use std::fmt::Write as _;

/// The page, from the folder of the repository.
pub const PAGE: &str = "docs/observability/spans.md";

/// One kind of span.
#[derive(Clone, Copy, Debug)]
pub struct SpanKindDoc {
    /// Its name; `*` stands for what differs.
    pub name: &'static str,
    /// Programs that make it.
    pub programs: &'static [&'static str],
    /// Its parent, in words.
    pub parent: &'static str,
    /// `client`, `server` or `internal`.
    pub kind: &'static str,
    /// Its attributes.
    pub attributes: &'static [&'static str],
    /// What it is about, from when to when.
    pub about: &'static str,
}

const COORDINATOR: &[&str] = &["rug-coordinator"];
const WORKER: &[&str] = &["rug-worker"];

/// All of them.
pub const SPANS: &[SpanKindDoc] = &[
    SpanKindDoc {
        name: "rebalance",
        programs: COORDINATOR,
        parent: "none: the root of a rebalance",
        kind: "internal",
        attributes: &["rebalance", "cause", "outcome", "moves", "moves_done", "term", "ended_by"],
        about: "From when what set it off was noticed until new owners have seen what came to them. Exported once, by the leader that \
                ends it. Events: `superseded`, `resumed`. Links: the rebalance it took over from, or that took over from it.",
    },
    SpanKindDoc {
        name: "plan",
        programs: COORDINATOR,
        parent: "`rebalance`",
        kind: "internal",
        attributes: &["moves"],
        about: "A step of the leader that planned moves of the rebalance.",
    },
    SpanKindDoc {
        name: "delta",
        programs: COORDINATOR,
        parent: "`rebalance`",
        kind: "internal",
        attributes: &["worker", "entries", "acknowledged"],
        about: "From when a message to a worker was sent until that has acknowledged it; `acknowledged` is there, and false, if it did not.",
    },
    SpanKindDoc {
        name: "hand-off",
        programs: COORDINATOR,
        parent: "`rebalance`",
        kind: "internal",
        attributes: &["appliance", "from", "to"],
        about: "From the word to the old owner (or, where it is gone, from when the new one is being stored) until the new one has seen how the \
                appliance is. Event `owned`: the new one has it. An error where it was given up, or not seen.",
    },
    SpanKindDoc {
        name: "commit",
        programs: COORDINATOR,
        parent: "`hand-off`",
        kind: "client",
        attributes: &["appliance", "db.system.name", "db.operation.name"],
        about: "The new owner is being stored, until that is durable.",
    },
    SpanKindDoc {
        name: "release",
        programs: WORKER,
        parent: "`hand-off` of the coordinator",
        kind: "internal",
        attributes: &["appliance", "worker", "token"],
        about: "The old owner was asked, until nothing of it acts on the appliance any more.",
    },
    SpanKindDoc {
        name: "adopt",
        programs: WORKER,
        parent: "`hand-off` of the coordinator",
        kind: "internal",
        attributes: &["appliance", "worker", "token", "outcome"],
        about: "The new owner has taken the appliance, until a first probe has an answer. An error where the probe failed or nothing ran.",
    },
    SpanKindDoc {
        name: "lifecycle",
        programs: WORKER,
        parent: "none, or the call it follows from",
        kind: "internal",
        attributes: &["appliance", "first", "cause"],
        about: "What is done about one appliance until it is as it shall be. Linked to the hand-off that brought it, if one did.",
    },
    SpanKindDoc {
        name: "*",
        programs: WORKER,
        parent: "`lifecycle` or `adopt`; a probe by itself has none",
        kind: "internal",
        attributes: &["appliance", "step", "outcome"],
        about: "One step, by its name: `observe`, `boot`, `configure`, `replug`, `probe`, `destroy`, `forget`.",
    },
    SpanKindDoc {
        name: "*/*",
        programs: WORKER,
        parent: "a step",
        kind: "client",
        attributes: &["rpc.system", "rpc.service", "rpc.method"],
        about: "One call of a driver: `process/ensure`, say. `rpc.system` is `rug.driver`.",
    },
    SpanKindDoc {
        name: "GET",
        programs: WORKER,
        parent: "a step",
        kind: "client",
        attributes: &["http.request.method", "url.path", "server.address", "server.port", "http.response.status_code"],
        about: "A question to an appliance. Only with the filter `debug` for `worker::kinds`.",
    },
    SpanKindDoc {
        name: "PUT",
        programs: WORKER,
        parent: "a step",
        kind: "client",
        attributes: &["http.request.method", "url.path", "server.address", "server.port", "http.response.status_code"],
        about: "A configuration that is sent to an appliance.",
    },
    SpanKindDoc {
        name: "metadata",
        programs: WORKER,
        parent: "none",
        kind: "server",
        attributes: &["http.request.method", "url.path", "http.response.status_code", "appliance", "server", "outcome"],
        about: "A request for metadata that an appliance passed on, until it was answered by Nova or refused. Below it is the question to \
                Neutron, where one was asked.",
    },
    SpanKindDoc {
        name: "rug.worker.v1.Session/Open",
        programs: &["rug-coordinator", "rug-worker"],
        parent: "none; of the coordinator's, the worker's",
        kind: "client, server",
        attributes: &["rpc.system", "rpc.service", "rpc.method", "server.address", "rpc.grpc.status_code"],
        about: "A worker opens its stream.",
    },
    SpanKindDoc {
        name: "rug.worker.v1.Session/Judge",
        programs: &["rug-coordinator", "rug-worker"],
        parent: "of the coordinator's, the call that changes an appliance; of the worker's, the coordinator's",
        kind: "client, server",
        attributes: &["rpc.system", "rpc.service", "rpc.method", "worker", "outcome"],
        about: "A worker is asked on its stream what is against a specification. `outcome` is `accepted`, `refused`, `unclear` or \
                `unanswered`; an error where there was no answer. Calls of the API server are below the worker's.",
    },
    SpanKindDoc {
        name: "rug.admin.v1.*/*",
        programs: COORDINATOR,
        parent: "the caller's span",
        kind: "server, client",
        attributes: &["rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code", "server.address"],
        about: "A call of the admin API; of kind client where a standby passes it on to the leader.",
    },
    SpanKindDoc {
        name: "grpc.*/*",
        programs: COORDINATOR,
        parent: "the caller's span",
        kind: "server",
        attributes: &["rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code"],
        about: "A call of the health or the reflection service.",
    },
    SpanKindDoc {
        name: "store transaction",
        programs: COORDINATOR,
        parent: "the call it is made for",
        kind: "client",
        attributes: &["db.system.name", "db.operation.name", "db.operation.batch.size"],
        about: "A change of an appliance is being stored.",
    },
    SpanKindDoc {
        name: "overwrite lease",
        programs: COORDINATOR,
        parent: "none",
        kind: "client",
        attributes: &["rpc.system", "worker"],
        about: "The lease of a worker is taken away in ZooKeeper.",
    },
    SpanKindDoc {
        name: "reconcile custom resource",
        programs: COORDINATOR,
        parent: "none",
        kind: "internal",
        attributes: &["resource", "generation", "outcome"],
        about: "A custom resource that is not as it should be is looked at: its finalizer is set, its appliance changed, its status shown. \
                The change of the appliance is below it, and so are calls of the API server.",
    },
];

/// Whether `name` is what a pattern stands for: `*` is any text without `/`.
fn matches(pattern: &str, name: &str) -> bool {
    let (patterns, names): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), name.split('/').collect());
    patterns.len() == names.len()
        && patterns.iter().zip(names).all(|(pattern, name)| match pattern.split_once('*') {
            Some((start, end)) => {
                name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
            }
            None => *pattern == name,
        })
}

/// What is wrong with a span of a program, if anything: it is not in the table, or has an attribute that is not.
#[must_use]
pub fn undocumented<'a>(program: &str, name: &str, attributes: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Names stand before patterns that would fit them.
    let of_program = SPANS.iter().filter(|span| span.programs.contains(&program));
    let mut fitting: Vec<_> = of_program.filter(|span| matches(span.name, name)).collect();
    fitting.sort_by_key(|span| span.name.matches('*').count());
    let Some(span) = fitting.first() else {
        return Some(format!("{program} makes `{name}`, which is not in the table"));
    };
    let unknown = attributes.into_iter().find(|attribute| !span.attributes.contains(attribute));
    unknown.map(|attribute| format!("`{name}` of {program} has `{attribute}`, which is not in the table"))
}

/// The table as the page has it.
#[must_use]
pub fn table() -> String {
    let mut text =
        String::from("| span | program | parent | kind | attributes | meaning |\n|---|---|---|---|---|---|\n");
    for span in SPANS {
        let list = |all: &[&str]| all.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} |",
            span.name,
            list(span.programs),
            span.parent,
            span.kind,
            list(span.attributes),
            span.about
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_about_spans_is_what_the_table_says() {
        let repository = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        crate::reference::check(&repository.join(PAGE), "spans", &table())
            .unwrap_or_else(|problem| panic!("{problem}"));
    }

    #[test]
    fn a_span_is_found_by_its_name_or_by_the_pattern_that_fits() {
        assert_eq!(undocumented("rug-worker", "adopt", ["appliance", "token"]), None);
        assert_eq!(undocumented("rug-worker", "process/ensure", ["rpc.method"]), None);
        assert_eq!(undocumented("rug-coordinator", "rug.admin.v1.Workers/List", []), None);
        assert!(undocumented("rug-coordinator", "adopt", []).is_some(), "of workers");
        assert!(undocumented("rug-worker", "adopt", ["secret"]).is_some());
        assert!(undocumented("rug-coordinator", "a/b/c", []).is_some());
    }
}
