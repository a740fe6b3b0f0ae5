//! What is kept of a pod: as much of it as decisions and people need.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::pod::MAIN_CONTAINER;
use common::status::{Details, EndCause, InstanceEnd};
use common::text::{clip, escaped};
use common::{Timestamp, Token};
use kubernetes::k8s_openapi::api::core::v1::{
    ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodSpec, PodStatus,
};
use kubernetes::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::clock;
use worker_core::instance::{Addresses, BootState, Handle, Instance, ManagementSecret};

use super::names::{CONFIGURED, GATE, PodKey, annotation, label, read_token};

/// Longest reason that is kept, in bytes.
const MAX_REASON: usize = 512;

/// A pod of Rug's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodView {
    pub(super) key: PodKey,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) token: Option<Token>,
    /// It has the label by which watches select it, with the right value.
    pub(super) labelled: bool,
    /// Namespace of the anchors of the installation that made it, where it says so.
    pub(super) anchors: Option<String>,
    pub(super) boot_digest: String,
    pub(super) answered: bool,
    /// It has not been released to run.
    pub(super) gated: bool,
    /// Its gates beside the one of Rug, which are for others to remove.
    pub(super) other_gates: Vec<String>,
    /// None of its containers can run any more.
    pub(super) over: bool,
    /// The appliance's container has ended.
    pub(super) ended: bool,
    /// It is being deleted, with this grace period in seconds.
    pub(super) deleting: Option<i64>,
    /// The time to end that it was made with, in seconds.
    pub(super) grace: Option<i64>,
    /// It is ready, as its kubelet says.
    pub(super) ready: bool,
    /// Its readiness waits for the word that it was configured.
    pub(super) awaits_configuration: bool,
    pub(super) ip: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) management_port: Option<u16>,
    pub(super) node: Option<String>,
    pub(super) created_unix_ms: u64,
    pub(super) started_unix_ms: u64,
    pub(super) exec_probe: Option<String>,
    /// Why it cannot be reached, or does not run, in the API's words.
    pub(super) problem: Option<String>,
    /// How its main container ended.
    pub(super) end: Option<InstanceEnd>,
}

impl PodView {
    /// What is kept of a pod; `None` for one that is not an instance.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let metadata = &pod.metadata;
        let key = PodKey::read(metadata.name.as_deref()?)?;
        let labelled = |name: &str| metadata.labels.as_ref().and_then(|all| all.get(name));
        let appliance = labelled(label::APPLIANCE);
        let note = |name: &str| metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
        let spec = pod.spec.as_ref();
        let gates: Vec<_> = spec.and_then(|spec| spec.scheduling_gates.as_ref()).into_iter().flatten().collect();
        let nothing = PodStatus::default();
        let status = pod.status.as_ref().unwrap_or(&nothing);
        let terminated = main_container(status).and_then(|main| main.state.as_ref()?.terminated.as_ref());
        let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        let created_unix_ms = metadata.creation_timestamp.as_ref().map_or(0, unix_ms);
        let started =
            main_container(status).and_then(|main| main.state.as_ref()?.running.as_ref()?.started_at.as_ref());
        Some(Self {
            key,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            uid: metadata.uid.clone()?,
            version: metadata.resource_version.clone()?,
            token: note(annotation::TOKEN).and_then(read_token),
            labelled: appliance.is_some_and(|id| *id == key.appliance.to_string()),
            anchors: labelled(label::ANCHORS).cloned(),
            boot_digest: note(annotation::BOOT_DIGEST).unwrap_or_default().to_owned(),
            answered: note(annotation::ANSWERED).is_some(),
            gated: gates.iter().any(|gate| gate.name == GATE),
            other_gates: gates.iter().filter(|gate| gate.name != GATE).map(|gate| gate.name.clone()).collect(),
            over,
            ended: over || terminated.is_some(),
            deleting: metadata
                .deletion_timestamp
                .as_ref()
                .map(|_| metadata.deletion_grace_period_seconds.unwrap_or_default()),
            grace: spec.and_then(|spec| spec.termination_grace_period_seconds),
            ready: condition(status, "Ready").is_some_and(|ready| ready.status == "True"),
            awaits_configuration: spec.is_some_and(awaits_configuration)
                && condition(status, CONFIGURED).is_none_or(|configured| configured.status != "True"),
            ip: status.pod_ip.as_ref().and_then(|ip| ip.parse().ok()),
            port: note(annotation::PORT).and_then(|port| port.parse().ok()),
            management_port: note(annotation::MANAGEMENT_PORT).and_then(|port| port.parse().ok()),
            node: spec.and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty()),
            created_unix_ms,
            started_unix_ms: started.or(status.start_time.as_ref()).map_or(created_unix_ms, unix_ms),
            exec_probe: note(annotation::EXEC_PROBE).map(str::to_owned),
            problem: problem(pod, status).map(|text| bounded(&text)),
            end: terminated.map(|end| end_of(key, end)),
        })
    }

    /// Whether it counts as an instance that runs: it was released, and the API does not say that it has ended.
    pub(super) const fn runs(&self) -> bool {
        !self.gated && !self.ended
    }

    /// Whether its appliance has ended by itself and other containers of it run on.
    pub(super) const fn has_outlived(&self) -> bool {
        self.ended && !self.over && self.deleting.is_none()
    }

    /// Where it can be reached, once it has an address.
    pub(super) fn addresses(&self) -> Addresses {
        let at = |port: Option<u16>| Some(SocketAddr::new(self.ip?, port?));
        Addresses { management: at(self.management_port), service: at(self.port) }
    }

    /// The instance that it is.
    pub(super) fn instance(&self, secret: Option<ManagementSecret>) -> Instance {
        let details = [("namespace", Some(&self.namespace)), ("node", self.node.as_ref())];
        let details: Details = details.into_iter().filter_map(|(name, text)| Some((name, text?))).collect();
        Instance {
            ordinal: self.key.ordinal,
            attempt: self.key.attempt,
            boot_digest: self.boot_digest.clone(),
            handle: Handle::new(format!("{}/{}", self.namespace, self.uid)).unwrap_or_default(),
            started_at_unix_ms: self.started_unix_ms,
            boot: if self.answered {
                BootState::Over
            } else {
                BootState::UnderWay { since: since(self.created_unix_ms) }
            },
            addresses: self.addresses(),
            secret,
            hands_over: false,
            has_own_address: true,
            is_spare: false,
            details,
            ..Instance::default()
        }
    }
}

/// When something of that age began, on the clock of this host. A wrong wall clock makes a boot look too old or just begun: it is
/// probed several times in either case before it counts as failed.
fn since(unix_ms: u64) -> Timestamp {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = wall.saturating_sub(Duration::from_millis(unix_ms));
    let nanos = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
    Timestamp::from_nanos(clock::now().as_nanos().saturating_sub(nanos))
}

fn unix_ms(time: &Time) -> u64 {
    u64::try_from(time.0.as_millisecond()).unwrap_or_default()
}

fn main_container(status: &PodStatus) -> Option<&ContainerStatus> {
    status.container_statuses.as_ref()?.iter().find(|container| container.name == MAIN_CONTAINER)
}

/// Whether a pod has the readiness gate of load balancers. One that a worker of the version before made has none.
fn awaits_configuration(spec: &PodSpec) -> bool {
    spec.readiness_gates.iter().flatten().any(|gate| gate.condition_type == CONFIGURED)
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

fn bounded(text: &str) -> String {
    clip(&escaped(clip(text, MAX_REASON)), MAX_REASON).to_owned()
}

/// `reason: message`, of what there is.
fn words(reason: Option<&str>, message: Option<&str>) -> Option<String> {
    let given = |text: Option<&str>| text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    match (given(reason), given(message)) {
        (Some(reason), Some(message)) => Some(format!("{reason}: {message}")),
        (reason, message) => reason.or(message),
    }
}

/// What keeps a pod from serving, the most telling first.
fn problem(pod: &Pod, status: &PodStatus) -> Option<String> {
    let main = main_container(status);
    let terminated = main.and_then(|main| main.state.as_ref()?.terminated.as_ref());
    if let Some(end) = terminated.filter(|_| status.reason.is_none()) {
        return Some(format!("{} (exit {})", end.reason.as_deref().unwrap_or("ended"), end.exit_code));
    }
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        let disrupted = condition(status, "DisruptionTarget").filter(|condition| condition.status == "True");
        let why = disrupted.and_then(|condition| words(condition.reason.as_deref(), condition.message.as_deref()));
        return words(status.reason.as_deref(), status.message.as_deref()).or(why).or_else(|| status.phase.clone());
    }
    // NodeLost is one of these.
    if let Some(lost) = words(status.reason.as_deref(), status.message.as_deref()) {
        return Some(lost);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_owned());
    }
    if let Some(scheduled) = condition(status, "PodScheduled").filter(|condition| condition.status == "False") {
        return words(scheduled.reason.as_deref(), scheduled.message.as_deref());
    }
    let init = status.init_container_statuses.iter().flatten().map(|container| (container, "init container "));
    let others = status.container_statuses.iter().flatten().map(|container| (container, "container "));
    for (container, sort) in init.chain(others) {
        let Some(state) = &container.state else { continue };
        let of = |text: String| {
            if container.name == MAIN_CONTAINER { text } else { format!("{sort}{}: {text}", container.name) }
        };
        if let Some(waiting) = &state.waiting
            && let Some(text) = words(waiting.reason.as_deref(), waiting.message.as_deref())
        {
            return Some(of(text));
        }
        if let Some(end) = state.terminated.as_ref().filter(|end| end.exit_code != 0) {
            return Some(of(format!("{} (exit {})", end.reason.as_deref().unwrap_or("ended"), end.exit_code)));
        }
    }
    match status.phase.as_deref() {
        None | Some("Pending") => Some("it is pending".to_owned()),
        _ => None,
    }
}

/// How the container ended. Its message is the end of its log where it left none itself.
fn end_of(key: PodKey, end: &ContainerStateTerminated) -> InstanceEnd {
    let cause = match end.signal.filter(|signal| *signal != 0) {
        Some(signal) => EndCause::Signal(signal),
        None => EndCause::Exit(end.exit_code),
    };
    InstanceEnd {
        instance: key.name(),
        at_unix_ms: end.finished_at.as_ref().map_or(0, unix_ms),
        cause,
        out_of_memory: end.reason.as_deref() == Some("OOMKilled"),
        last_lines: end.message.iter().flat_map(|text| text.lines()).map(str::to_owned).collect(),
    }
    .bounded()
}

#[cfg(test)]
mod tests {
    use common::ApplianceId;
    use serde_json::{Value, json};

    use super::*;

    fn view(status: Value, deleting: bool) -> PodView {
        let key = PodKey { appliance: ApplianceId::from_u128(7), ordinal: 0, attempt: 1 };
        let mut pod = json!({
            "metadata": {
                "name": key.name(), "namespace": "n", "uid": "u", "resourceVersion": "5",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"rug.dev/token": "1/2", "rug.dev/port": "80"},
            },
            "spec": {"containers": []},
            "status": status,
        });
        if deleting {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        PodView::of(&serde_json::from_value(pod).expect("a pod")).expect("an instance")
    }

    fn container(state: Value) -> Value {
        json!([{"name": "appliance", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}])
    }

    #[test]
    fn what_keeps_a_pod_from_serving_is_told_in_the_words_of_the_api() {
        let unschedulable = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient cpu."},
        ]});
        let waiting = |reason: &str| json!({"phase": "Pending", "containerStatuses": container(json!({"waiting": {"reason": reason, "message": "x"}}))});
        let oom = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "a\nb\n"}});
        for (status, problem) in [
            (unschedulable, Some("Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.")),
            (waiting("ImagePullBackOff"), Some("ImagePullBackOff: x")),
            (waiting("CreateContainerConfigError"), Some("CreateContainerConfigError: x")),
            (json!({"phase": "Failed", "containerStatuses": container(oom)}), Some("OOMKilled (exit 137)")),
            (
                json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}),
                Some("Evicted: low on memory"),
            ),
            (json!({"phase": "Running", "reason": "NodeLost", "message": "Node n1"}), Some("NodeLost: Node n1")),
            (json!({"phase": "Running", "podIP": "10.0.0.1"}), None),
            (json!({}), Some("it is pending")),
        ] {
            assert_eq!(view(status.clone(), false).problem.as_deref(), problem, "{status}");
        }
        assert_eq!(view(json!({"phase": "Running"}), true).problem.as_deref(), Some("it is being deleted"));
    }

    #[test]
    fn a_pod_runs_until_the_api_says_that_it_cannot() {
        let running = view(json!({"phase": "Running", "podIP": "10.0.0.1"}), false);
        assert!(running.runs());
        assert_eq!(running.instance(None).addresses.service, Some(([10, 0, 0, 1], 80).into()));
        assert!(matches!(running.instance(None).boot, BootState::UnderWay { .. }));
        assert!(view(json!({"phase": "Running", "reason": "NodeLost"}), true).runs(), "nobody says that it has ended");
        let status = json!({"phase": "Failed", "containerStatuses": container(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "a\nb\n"}}))});
        let failed = view(status, false);
        assert!(failed.over && !failed.runs());
        assert_eq!(failed.end.expect("it ended").to_string(), "exit status 137, out of memory; last output: a | b");
        let sidecars_run_on =
            json!({"phase": "Running", "containerStatuses": container(json!({"terminated": {"exitCode": 0}}))});
        let ended = view(sidecars_run_on, false);
        assert!(ended.ended && !ended.over && ended.has_outlived());
    }
}
