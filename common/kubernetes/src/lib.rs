//! What coordinators and workers share of Kubernetes: one client, set up and bounded in one way.

pub use k8s_openapi;
pub use kube;
