//! What is decided about one object, as a table; and the whole source against an API server in memory and a leader without a store.

mod decisions;
mod fake;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use common::appliance::{Spec, Timing};
use common::cluster::ClusterIdentity;
use common::driver::DriverName;
use common::kind::{Custom, KindSpec, Probe};
use common::status::{Details, InstanceStatus, Phase, Status};
use common::{ApplianceId, Generation, Term};
use kubernetes::kube::core::DynamicObject;
use serde_json::{Value, json};

use super::resource::Resource;
use crate::record::Record;
use crate::views::{AssignmentView, CatalogEntry};

/// A custom appliance that runs this.
fn custom(command: &str) -> Value {
    json!({"kind": "custom", "driver": "simulated", "replicas": 1, "spec": {"command": command, "probe": "process"}})
}

fn cluster() -> ClusterIdentity {
    ClusterIdentity { id: uuid::Uuid::from_u128(1), name: "test".parse().ok() }
}

/// The object `shop/web` with this specification; `more` is put into its metadata.
fn object(spec: Value, more: Value) -> Resource {
    let mut metadata =
        json!({"namespace": "shop", "name": "web", "uid": "u1", "resourceVersion": "7", "generation": 3});
    for (name, value) in more.as_object().into_iter().flatten() {
        metadata[name] = value.clone();
    }
    let value = json!({"apiVersion": "rug.dev/v1alpha1", "kind": "Appliance", "metadata": metadata, "spec": spec});
    let object: DynamicObject = serde_json::from_value(value).expect("an object");
    Resource::read(object).expect("whole")
}

/// The appliance that [`custom`] asks for.
fn record(id: u128, command: &str, managed_by: Option<&str>) -> Record {
    let custom = Custom { command: command.into(), probe: Probe::Process, ..Custom::default() };
    Record {
        id: ApplianceId::from_u128(id),
        tenant: "shop".parse().expect("a name"),
        name: "web".parse().expect("a name"),
        driver: DriverName::simulated(),
        placement_key: ApplianceId::from_u128(id).to_string(),
        labels: BTreeMap::new(),
        spec: Spec {
            replicas: 1,
            probe_interval: None,
            timing: Timing::default(),
            image: None,
            ports: vec![],
            pod: None,
            kind: KindSpec::Custom(custom),
        },
        generation: Generation::new(1),
        written: Term::new(1),
        revision: 0,
        deleting: false,
        managed_by: managed_by.map(|by| by.parse().expect("a manager")),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}

/// A status in which every instance runs.
fn running(generation: Generation, phase: Phase) -> Status {
    let instance = InstanceStatus {
        ordinal: 0,
        name: "web-0-1".into(),
        alive: Some(true),
        details: Details::default(),
        started_at_unix_ms: 0,
        address: None,
        configured: Some(generation),
        ports: vec![],
    };
    Status { phase, observed_generation: generation, instances: vec![instance], ..Status::default() }
}

fn entry(record: Record, status: Option<Status>) -> CatalogEntry {
    let worker = status.as_ref().map(|_| "w1".parse().expect("a name"));
    CatalogEntry {
        record: Arc::new(record),
        status: status.map(|status| (Arc::new(status), SystemTime::UNIX_EPOCH)),
        assignment: AssignmentView { worker, ..AssignmentView::default() },
    }
}
