//! An API server in this process, as far as the driver asks for one: it keeps objects, versions and uids, holds to preconditions, and has
//! watches that can expire. A stand-in kubelet runs what is released. Each client has a path of its own, so that requests of one of them
//! can be held up, lost or refused.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use axum::{Router, extract::State};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

/// What is done with a request that is held up.
type Gate = Arc<Notify>;

/// What happens to some requests.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// They are answered with this.
    Refuse { code: u16, reason: &'static str, message: &'static str, retry_after: Option<u32> },
    /// They take effect and are not answered.
    LoseAnswer,
    /// They wait, before anything is done, until this is told.
    Hold(Gate),
}

/// Which requests a fault is for, and how many of them.
#[derive(Clone, Debug)]
pub(crate) struct FaultRule {
    pub(crate) client: &'static str,
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) times: usize,
    pub(crate) fault: Fault,
}

#[derive(Debug, Default)]
struct Store {
    version: u64,
    uids: u64,
    /// By resource, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    events: Vec<StoredEvent>,
    /// Events up to this version are gone.
    compacted: u64,
    faults: Vec<FaultRule>,
    calls: Vec<(String, String, String)>,
    held: usize,
    /// Lists that go on, by the token of the next page: every page is of one version.
    pages: HashMap<String, (u64, Vec<Value>)>,
    /// What was only to be judged.
    judged: Vec<Value>,
    /// A policy takes the gates of new pods away.
    strips_gates: bool,
    /// Lines that pods have printed, with their times, by name.
    logs: HashMap<String, Vec<String>>,
    /// Preconditions are not looked at: shows what a test is worth.
    careless: bool,
    /// Watches are refused and broken off.
    watches_down: bool,
    /// Watches of an earlier one end.
    generation: u64,
}

#[derive(Clone, Debug)]
struct StoredEvent {
    version: u64,
    kind: &'static str,
    resource: String,
    namespace: String,
    object: Value,
    /// As it was before.
    previous: Option<Value>,
}

/// The server.
#[derive(Clone, Debug)]
pub(crate) struct ApiServer {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
    pub(crate) address: SocketAddr,
}

struct Asked {
    client: String,
    verb: &'static str,
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
    query: HashMap<String, String>,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let server = Self { store: Arc::default(), changed: watch::Sender::new(0), address };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("whole")
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Does this to the next requests of that sort.
    pub(crate) fn fault(
        &self,
        client: &'static str,
        verb: &'static str,
        resource: &'static str,
        times: usize,
        fault: Fault,
    ) {
        self.store().faults.push(FaultRule { client, verb, resource, times, fault });
    }

    /// Holds up the next request of that sort. Answers what lets it go on.
    pub(crate) fn hold(&self, client: &'static str, verb: &'static str, resource: &'static str) -> Gate {
        let gate = Gate::default();
        self.fault(client, verb, resource, 1, Fault::Hold(Arc::clone(&gate)));
        gate
    }

    pub(crate) fn clear_faults(&self) {
        self.store().faults.clear();
    }

    /// Waits until so many requests are held up.
    pub(crate) async fn held(&self, count: usize) {
        self.until("a request is held up", |store| store.held >= count).await;
    }

    async fn until(&self, what: &str, holds: impl Fn(&Store) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !holds(&self.store()) {
                changed.changed().await.expect("the server lives");
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("{what} within 20 s"));
    }

    /// A pod prints a line, which begins with its time.
    pub(crate) fn print(&self, pod: &str, line: &str) {
        self.store().logs.entry(pod.to_owned()).or_default().push(line.to_owned());
    }

    /// Does without preconditions.
    pub(crate) fn be_careless(&self) {
        self.store().careless = true;
    }

    /// Has a policy that takes the gates of new pods away.
    pub(crate) fn strip_gates(&self) {
        self.store().strips_gates = true;
    }

    /// Puts the data back to a copy that was made some versions ago: what there is was older then, and versions count anew.
    pub(crate) fn put_back(&self, versions: u64) {
        let mut store = self.store();
        store.version -= versions;
        store.compacted = 0;
        store.events.clear();
        let version = store.version.to_string();
        for object in store.objects.values_mut() {
            object["metadata"]["resourceVersion"] = version.clone().into();
        }
        drop(store);
        self.tell();
    }

    /// Makes a pod as somebody else would.
    pub(crate) fn insert_pod(&self, name: &str, labels: Value) {
        let mut store = self.store();
        store.uids += 1;
        let uid = format!("uid-{}", store.uids);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "rug", "uid": uid, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": []}, "status": {"phase": "Pending"},
        });
        store.put("ADDED", ("pods".to_owned(), "rug".to_owned(), name.to_owned()), pod);
        drop(store);
        self.tell();
    }

    /// Makes another pod like one there is.
    pub(crate) fn copy_pod(&self, from: &str, to: &str) {
        let mut store = self.store();
        store.uids += 1;
        let uid = format!("uid-{}", store.uids);
        let found = store.objects.iter().find(|(key, _)| key.0 == "pods" && key.2 == from);
        let ((_, namespace, _), mut pod) = found.map(|(key, pod)| (key.clone(), pod.clone())).expect("it is there");
        pod["metadata"]["name"] = to.into();
        pod["metadata"]["uid"] = uid.into();
        store.put("ADDED", ("pods".to_owned(), namespace, to.to_owned()), pod);
        drop(store);
        self.tell();
    }

    pub(crate) fn set_watches_down(&self, down: bool) {
        self.store().watches_down = down;
        self.tell();
    }

    /// Forgets old events, so that watches of them expire.
    pub(crate) fn compact(&self) {
        let mut store = self.store();
        store.compacted = store.version;
        store.events.clear();
    }

    /// Forgets old events and breaks every watch off once, so that they begin with a list.
    pub(crate) fn compact_and_break(&self) {
        let mut store = self.store();
        store.compacted = store.version + 1;
        store.version += 1;
        store.events.clear();
        store.generation += 1;
        drop(store);
        self.tell();
    }

    /// Calls by verb and resource since the last time, without watches and lists.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.store().calls);
        let counts = |verb: &str| !matches!(verb, "watch" | "list");
        calls
            .into_iter()
            .filter(|(_, verb, _)| counts(verb))
            .map(|(_, verb, resource)| format!("{verb} {resource}"))
            .collect()
    }

    /// What was only to be judged since the last time.
    pub(crate) fn take_judged(&self) -> Vec<Value> {
        std::mem::take(&mut self.store().judged)
    }

    pub(crate) fn lists(&self) -> usize {
        self.store().calls.iter().filter(|(_, verb, _)| verb == "list").count()
    }

    /// Every object of a resource.
    pub(crate) fn all(&self, resource: &str) -> Vec<Value> {
        self.store()
            .objects
            .iter()
            .filter(|((known, ..), _)| known == resource)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Pods that could run: released, and not ended.
    pub(crate) fn running(&self) -> Vec<String> {
        let runs = |pod: &&Value| {
            let gated = pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
            !gated && !matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"))
        };
        let pods = self.all("pods");
        pods.iter().filter(runs).map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Changes an object as another client would.
    pub(crate) fn change(&self, resource: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut store = self.store();
        let key = store.objects.keys().find(|key| key.0 == resource && key.2 == name).cloned().expect("it is there");
        let mut object = store.objects[&key].clone();
        change(&mut object);
        store.put("MODIFIED", key, object);
        drop(store);
        self.tell();
    }

    /// Removes an object.
    pub(crate) fn remove(&self, resource: &str, name: &str) {
        let mut store = self.store();
        let key = store.objects.keys().find(|key| key.0 == resource && key.2 == name).cloned();
        if let Some(key) = key {
            store.remove(&key);
        }
        drop(store);
        self.tell();
    }

    /// A kubelet: runs what is released, and ends what is deleted.
    pub(crate) fn kubelet(&self) -> tokio::task::JoinHandle<()> {
        let server = self.clone();
        tokio::spawn(async move {
            let mut changed = server.changed.subscribe();
            loop {
                for pod in server.all("pods") {
                    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                    let gated = pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
                    if !pod["metadata"]["deletionTimestamp"].is_null() {
                        server.remove("pods", &name);
                    } else if !gated && pod["status"]["phase"] == "Pending" {
                        server.run(&name);
                    }
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    /// Says that a pod runs on a node.
    pub(crate) fn run(&self, name: &str) {
        self.change("pods", name, |pod| {
            pod["spec"]["nodeName"] = "n1".into();
            pod["status"] = json!({
                "phase": "Running", "podIP": "127.0.0.1",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{
                    "name": "appliance", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                }],
            });
        });
    }
}

impl Store {
    fn put(&mut self, kind: &'static str, key: (String, String, String), mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let previous = self.objects.get(&key).cloned();
        self.event(kind, &key, &object, previous);
        self.objects.insert(key, object.clone());
        object
    }

    fn remove(&mut self, key: &(String, String, String)) {
        if let Some(mut object) = self.objects.remove(key) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.event("DELETED", key, &object, None);
            // What belongs to it goes with it.
            let uid = object["metadata"]["uid"].clone();
            let owned = |object: &Value| {
                object["metadata"]["ownerReferences"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|owner| owner["uid"] == uid))
            };
            let gone: Vec<_> =
                self.objects.iter().filter(|(_, object)| owned(object)).map(|(key, _)| key.clone()).collect();
            gone.iter().for_each(|key| self.remove(key));
        }
    }

    fn event(&mut self, kind: &'static str, key: &(String, String, String), object: &Value, previous: Option<Value>) {
        let (resource, namespace, object) = (key.0.clone(), key.1.clone(), object.clone());
        self.events.push(StoredEvent { version: self.version, kind, resource, namespace, object, previous });
    }

    fn fault(&mut self, asked: &Asked) -> Option<Fault> {
        let fits = |rule: &&mut FaultRule| {
            rule.times > 0
                && (rule.client == "*" || rule.client == asked.client)
                && (rule.verb == "*" || rule.verb == asked.verb)
                && (rule.resource == "*" || rule.resource == asked.resource)
        };
        let rule = self.faults.iter_mut().find(fits)?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

fn asked(method: &Method, uri: &Uri) -> Option<Asked> {
    let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
    let client = parts.next()?.to_owned();
    match parts.next()? {
        "api" => _ = parts.next()?,
        _ => _ = (parts.next()?, parts.next()?),
    }
    let mut resource = parts.next()?;
    let mut namespace = None;
    if resource == "namespaces" {
        namespace = Some(parts.next()?.to_owned());
        resource = parts.next()?;
    }
    let name = parts.next().map(str::to_owned);
    let part = parts.next();
    let (is_status, is_log) = (part == Some("status"), part == Some("log"));
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let query: HashMap<_, _> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let verb = match (method.as_str(), &name) {
        ("GET", _) if query.contains_key("watch") => "watch",
        ("GET", Some(_)) => "get",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        _ => "delete",
    };
    let resource = match (is_status, is_log) {
        (true, _) => format!("{resource}/status"),
        (_, true) => format!("{resource}/log"),
        _ => resource.to_owned(),
    };
    Some(Asked { client, verb, resource, namespace, name, query })
}

impl Asked {
    /// Whether the labels of an object are asked for: those of a name, or of a name and value.
    fn selects(&self, object: &Value) -> bool {
        let Some(selector) = self.query.get("labelSelector") else { return true };
        let selector = selector.replace("%2F", "/").replace("%3D", "=");
        let labels = &object["metadata"]["labels"];
        match selector.split_once('=') {
            Some((name, value)) => labels[name] == value,
            None => !labels[selector.as_str()].is_null(),
        }
    }
}

impl StoredEvent {
    /// What a watch is told: an object that it does not select any more is deleted to it, one that it selects now is added.
    fn told(&self, asked: &Asked) -> Option<String> {
        let was = self.previous.as_ref().map(|previous| asked.selects(previous));
        let (kind, object) = match (asked.selects(&self.object), was) {
            (true, Some(false)) => ("ADDED", self.object.clone()),
            (true, _) => (self.kind, self.object.clone()),
            (false, Some(true)) => {
                let mut last = self.previous.clone()?;
                last["metadata"]["resourceVersion"] = self.version.to_string().into();
                ("DELETED", last)
            }
            (false, _) => return None,
        };
        Some(format!("{}\n", json!({"type": kind, "object": object})))
    }
}

/// A strategic merge of conditions: by their types. Nothing else of an object is changed by way of its status.
fn merge_conditions(object: &mut Value, sent: &Value) {
    let known = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let new = sent["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let kept = known.into_iter().filter(|old| new.iter().all(|new| new["type"] != old["type"]));
    object["status"]["conditions"] = kept.chain(new.iter().cloned()).collect();
}

fn status(code: u16, reason: &str, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message});
    json_response(code, &status)
}

fn json_response(code: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(code).expect("a status");
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .expect("a response")
}

/// As a kubelet answers: from the second on that was asked for, the last lines, and so many bytes.
fn log_response(lines: &[String], query: &HashMap<String, String>) -> Response {
    let since = query.get("sinceTime").map(|time| time[..19].to_owned()).unwrap_or_default();
    let kept: Vec<&String> = lines.iter().filter(|line| line[..19] >= *since).collect();
    let tail = query.get("tailLines").and_then(|tail| tail.parse().ok()).unwrap_or(usize::MAX);
    let mut text: String = kept[kept.len().saturating_sub(tail)..].iter().map(|line| format!("{line}\n")).collect();
    text.truncate(query.get("limitBytes").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX));
    Response::builder().status(200).body(Body::from(text)).expect("a response")
}

async fn answer(State(server): State<ApiServer>, method: Method, uri: Uri, body: Bytes) -> Response {
    let Some(asked) = asked(&method, &uri) else { return status(404, "NotFound", "no such path") };
    let fault = {
        let mut store = server.store();
        store.calls.push((asked.client.clone(), asked.verb.to_owned(), asked.resource.clone()));
        store.fault(&asked)
    };
    let mut lose = false;
    match fault {
        None => {}
        Some(Fault::Refuse { code, reason, message, retry_after }) => {
            let mut response = status(code, reason, message);
            if let Some(seconds) = retry_after {
                response.headers_mut().insert("retry-after", seconds.into());
            }
            return response;
        }
        Some(Fault::LoseAnswer) => lose = true,
        Some(Fault::Hold(gate)) => {
            server.store().held += 1;
            server.tell();
            gate.notified().await;
        }
    }
    let response = if asked.verb == "watch" { server.watch(asked) } else { server.carry_out(&asked, &body) };
    server.tell();
    if lose {
        std::future::pending::<()>().await;
    }
    response
}

impl ApiServer {
    fn carry_out(&self, asked: &Asked, body: &[u8]) -> Response {
        let mut store = self.store();
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let namespace = asked.namespace.clone().unwrap_or_default();
        let name =
            asked.name.clone().or_else(|| sent["metadata"]["name"].as_str().map(str::to_owned)).unwrap_or_default();
        let (resource, is_status) = match asked.resource.strip_suffix("/status") {
            Some(resource) => (resource, true),
            None => (asked.resource.as_str(), false),
        };
        let key = (resource.to_owned(), namespace.clone(), name.clone());
        let found = store.objects.get(&key).cloned();
        let not_found = || status(404, "NotFound", &format!("{} {name:?} not found", asked.resource));
        let careless = store.careless;
        let conflict = |wanted: &Value, has: &Value| !careless && !wanted.is_null() && wanted != has;
        let refused = |what: &str| status(409, "Conflict", &format!("the object has been modified: {what}"));
        if asked.resource == "pods/log" {
            return match store.logs.get(&name) {
                Some(lines) => log_response(lines, &asked.query),
                None => status(400, "BadRequest", "container \"appliance\" is waiting to start"),
            };
        }
        match asked.verb {
            "list" => {
                let of = |(resource, known, _): &(String, String, String)| {
                    *resource == asked.resource && asked.namespace.as_ref().is_none_or(|namespace| namespace == known)
                };
                let selected = |(key, object): &(&(String, String, String), &Value)| of(key) && asked.selects(object);
                let limit: usize = asked.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
                let goes_on = asked.query.get("continue").and_then(|token| store.pages.remove(token));
                let (version, mut page) = goes_on.unwrap_or_else(|| {
                    (store.version, store.objects.iter().filter(selected).map(|(_, object)| object.clone()).collect())
                });
                let rest = page.split_off(limit.min(page.len()));
                let mut next = String::new();
                if !rest.is_empty() {
                    next = format!("{version}-{}", rest.len());
                    store.pages.insert(next.clone(), (version, rest));
                }
                let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
                json_response(200, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": page}))
            }
            "get" => found.map_or_else(not_found, |object| json_response(200, &object)),
            "create" if found.is_some() => status(409, "AlreadyExists", &format!("{name:?} already exists")),
            "create" => {
                let mut object = sent;
                store.uids += 1;
                object["metadata"]["namespace"] = namespace.into();
                object["metadata"]["uid"] = format!("uid-{}", store.uids).into();
                object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
                if let Some(texts) = object["stringData"].as_object().cloned() {
                    for (name, text) in texts {
                        object["data"][name] = base64(text.as_str().unwrap_or_default().as_bytes()).into();
                    }
                    object.as_object_mut().expect("an object").remove("stringData");
                }
                if asked.resource == "pods" {
                    object["status"] = json!({"phase": "Pending"});
                    if store.strips_gates {
                        object["spec"]["schedulingGates"] = json!([]);
                    }
                }
                if asked.query.contains_key("dryRun") {
                    store.judged.push(object.clone());
                    object["metadata"]["resourceVersion"] = "0".into();
                    return json_response(201, &object);
                }
                json_response(201, &store.put("ADDED", key, object))
            }
            "update" => {
                let Some(found) = found else {
                    // Leases may be made by an update; one that names a uid is about another object.
                    if asked.resource != "leases" || !sent["metadata"]["uid"].is_null() {
                        let precondition = "Precondition failed: UID in precondition: it does not exist";
                        return if asked.resource == "leases" {
                            status(409, "Conflict", precondition)
                        } else {
                            not_found()
                        };
                    }
                    let mut object = sent;
                    store.uids += 1;
                    object["metadata"]["uid"] = format!("uid-{}", store.uids).into();
                    return json_response(201, &store.put("ADDED", key, object));
                };
                let (wanted, has) = (&sent["metadata"], &found["metadata"]);
                if conflict(&wanted["uid"], &has["uid"])
                    || conflict(&wanted["resourceVersion"], &has["resourceVersion"])
                {
                    return refused("update");
                }
                let mut object = sent;
                object["metadata"]["uid"] = found["metadata"]["uid"].clone();
                object["metadata"]["creationTimestamp"] = found["metadata"]["creationTimestamp"].clone();
                json_response(200, &store.put("MODIFIED", key, object))
            }
            "patch" => {
                let Some(found) = found else { return not_found() };
                let (wanted, has) = (&sent["metadata"], &found["metadata"]);
                if conflict(&wanted["resourceVersion"], &has["resourceVersion"]) {
                    return refused("patch");
                }
                if conflict(&wanted["uid"], &has["uid"]) {
                    return status(422, "Invalid", "metadata.uid: Invalid value: field is immutable");
                }
                let mut object = found.clone();
                if is_status {
                    merge_conditions(&mut object, &sent);
                } else {
                    merge_patch(&mut object, &sent);
                }
                object["metadata"]["uid"] = found["metadata"]["uid"].clone();
                json_response(200, &store.put("MODIFIED", key, object))
            }
            _ => {
                let Some(found) = found else { return not_found() };
                let (wanted, has) = (&sent["preconditions"], &found["metadata"]);
                if conflict(&wanted["uid"], &has["uid"])
                    || conflict(&wanted["resourceVersion"], &has["resourceVersion"])
                {
                    return refused("delete");
                }
                let on_node = !found["spec"]["nodeName"].is_null();
                let grace = sent["gracePeriodSeconds"].as_i64().unwrap_or(30);
                if asked.resource == "pods" && on_node && grace > 0 {
                    let mut object = found;
                    object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:01Z".into();
                    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
                    return json_response(200, &store.put("MODIFIED", key, object));
                }
                store.remove(&key);
                json_response(200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
        }
    }

    fn watch(&self, asked: Asked) -> Response {
        let from: u64 = asked.query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        {
            let store = self.store();
            if store.watches_down {
                return status(503, "ServiceUnavailable", "watches are down");
            }
            if from < store.compacted {
                return status(410, "Expired", "too old resource version");
            }
        }
        let (server, changed) = (self.clone(), self.changed.subscribe());
        let generation = self.store().generation;
        let state = (server, changed, from, asked);
        let lines = futures::stream::unfold(state, move |(server, mut changed, mut from, asked)| async move {
            loop {
                let mut text = String::new();
                {
                    let store = server.store();
                    if store.watches_down || store.generation != generation {
                        return None;
                    }
                    let of = |event: &&StoredEvent| {
                        let here = asked.namespace.as_ref().is_none_or(|namespace| *namespace == event.namespace);
                        event.version > from && event.resource == asked.resource && here
                    };
                    text.extend(store.events.iter().filter(of).filter_map(|event| event.told(&asked)));
                    from = store.version;
                }
                if !text.is_empty() {
                    return Some((Ok::<_, std::io::Error>(text), (server, changed, from, asked)));
                }
                match tokio::time::timeout(Duration::from_millis(500), changed.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return None,
                    Err(_) => {
                        let bookmark = json!({"type": "BOOKMARK", "object": {
                            "kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": from.to_string()},
                        }});
                        return Some((Ok(format!("{bookmark}\n")), (server, changed, from, asked)));
                    }
                }
            }
        });
        Response::builder().body(Body::from_stream(lines)).expect("a response")
    }
}

fn merge_patch(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().expect("an object").remove(name);
        } else {
            merge_patch(&mut target[name.as_str()], value);
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
