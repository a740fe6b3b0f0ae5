//! Whether a node is lost: asked for only where a pod on it is not well, and not more often than every few seconds.
//!
//! Nodes belong to no namespace, so that reading them takes a cluster role. Without the right nothing is said of nodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubernetes::Error;
use kubernetes::k8s_openapi::api::core::v1::Node;
use kubernetes::kube::Client;
use tokio::time::Instant;

use super::api;

/// How long what is known of a node counts.
const FRESH: Duration = Duration::from_secs(10);
/// How long a question may be under way before another one is asked.
const ASKS: Duration = Duration::from_secs(30);
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
    /// What is wrong with a node, as far as that was known last. It is asked for beside, one call for a node at a time: this is asked
    /// before every probe.
    pub(super) fn problem(self: &Arc<Self>, client: &Client, node: &str) -> Option<String> {
        let now = Instant::now();
        let mut all = self.lock();
        if all.len() >= MAX_NODES && !all.contains_key(node) {
            all.clear();
        }
        let known = all.entry(node.to_owned()).or_insert(NodeState { until: now, problem: None });
        if known.until <= now {
            known.until = now + ASKS;
            let (nodes, client, node) = (Arc::clone(self), client.clone(), node.to_owned());
            tokio::spawn(async move { nodes.ask(&client, node).await });
        }
        known.problem.clone()
    }

    async fn ask(&self, client: &Client, node: String) {
        let found = api::get_node::<Node>(client, &node).await;
        let (problem, lasts) = match &found {
            Ok(Some(found)) => (problem(&node, found), FRESH),
            Ok(None) => (Some(format!("NodeLost: node {node} is gone")), FRESH),
            Err(Error::Forbidden(_)) => (None, FORBIDDEN),
            Err(_) => (None, FRESH),
        };
        self.lock().insert(node, NodeState { until: Instant::now() + lasts, problem });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, NodeState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
