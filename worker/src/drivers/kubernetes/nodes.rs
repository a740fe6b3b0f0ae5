//! Whether a node is lost: asked for only where a pod on it is not well, and not more often than every few seconds.
//!
//! Nodes belong to no namespace, so that reading them takes a cluster role. Without the right nothing is said of nodes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kubernetes::Error;
use kubernetes::k8s_openapi::api::core::v1::Node;
use kubernetes::kube::Client;
use tokio::time::Instant;

use super::api;

/// How long what is known of a node counts.
const FRESH: Duration = Duration::from_secs(10);
/// How long it is not asked again after a refusal.
const FORBIDDEN: Duration = Duration::from_secs(600);
/// Nodes that are kept.
const MAX_NODES: usize = 5_000;

/// What is known of nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes(Mutex<HashMap<String, NodeState>>);

#[derive(Clone, Debug)]
struct NodeState {
    until: Instant,
    problem: Option<String>,
}

impl Nodes {
    /// What is wrong with a node, if that is known.
    pub(super) async fn problem(&self, client: &Client, node: &str) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned();
        if let Some(known) = known.filter(|known| known.until > Instant::now()) {
            return known.problem;
        }
        let found = api::get_node::<Node>(client, node).await;
        let (problem, lasts) = match &found {
            Ok(Some(found)) => (problem(node, found), FRESH),
            Ok(None) => (Some(format!("NodeLost: node {node} is gone")), FRESH),
            Err(Error::Forbidden(_)) => (None, FORBIDDEN),
            Err(_) => (None, FRESH),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_NODES {
            all.clear();
        }
        all.insert(node.to_owned(), NodeState { until: Instant::now() + lasts, problem: problem.clone() });
        problem
    }
}

fn problem(name: &str, node: &Node) -> Option<String> {
    let ready = node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready")?;
    if ready.status == "True" {
        return None;
    }
    let since = ready.last_transition_time.as_ref().map(|time| format!(" since {}", time.0)).unwrap_or_default();
    let why = ready.message.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
    Some(format!("NodeLost: node {name} has not been ready{since}{why}"))
}
