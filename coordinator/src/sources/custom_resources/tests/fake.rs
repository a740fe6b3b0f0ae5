//! An API server in memory: lists, watches, merge patches, status by server-side apply, finalizers, events; and what goes wrong.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes};
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kubernetes::kube::{self, Client};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

type Key = (String, String);

/// The server. Clones are the same one.
#[derive(Clone)]
pub(super) struct FakeApi {
    state: Arc<Mutex<State>>,
    /// Raised with every change, and by what ends watches.
    changed: watch::Sender<(u64, u64)>,
}

#[derive(Default)]
struct State {
    version: u64,
    uids: u64,
    objects: BTreeMap<Key, Value>,
    /// Every change: version, sort, object.
    log: Vec<(u64, &'static str, Value)>,
    /// Versions below are forgotten.
    oldest: u64,
    /// A watch from a forgotten version is refused instead of being told.
    refuses_old: bool,
    missing: bool,
    /// Answers to writes, before they are looked at.
    faults: VecDeque<u16>,
    events: Vec<Value>,
    writes: BTreeMap<&'static str, usize>,
}

impl FakeApi {
    pub(super) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new((0, 0)) }
    }

    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ------------------------------------------------------------------------------------------------- what people do

    /// Applies an object; its status and finalizers stay.
    pub(super) fn apply(&self, namespace: &str, name: &str, spec: Value) {
        self.apply_with(namespace, name, spec, json!({}));
    }

    pub(super) fn apply_with(&self, namespace: &str, name: &str, spec: Value, annotations: Value) {
        let mut state = self.state();
        let key = (namespace.to_owned(), name.to_owned());
        let (sort, object) = match state.objects.get(&key).cloned() {
            Some(mut object) => {
                if object["spec"] != spec {
                    object["metadata"]["generation"] =
                        json!(object["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
                }
                object["spec"] = spec;
                object["metadata"]["annotations"] = annotations;
                ("MODIFIED", object)
            }
            None => {
                state.uids += 1;
                let uid = format!("00000000-0000-0000-0000-{:012}", state.uids);
                let metadata = json!({
                    "namespace": namespace, "name": name, "uid": uid, "generation": 1, "annotations": annotations,
                });
                let object = json!({
                    "apiVersion": "rug.dev/v1alpha1", "kind": "Appliance", "metadata": metadata, "spec": spec,
                });
                ("ADDED", object)
            }
        };
        self.put(state, sort, key, object);
    }

    /// Deletes an object, which stays while it has finalizers.
    pub(super) fn delete(&self, namespace: &str, name: &str) {
        let state = self.state();
        let key = (namespace.to_owned(), name.to_owned());
        let Some(mut object) = state.objects.get(&key).cloned() else { return };
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.put(state, "MODIFIED", key, object);
    }

    /// Takes all finalizers away, by hand.
    pub(super) fn strip(&self, namespace: &str, name: &str) {
        let state = self.state();
        let key = (namespace.to_owned(), name.to_owned());
        let Some(mut object) = state.objects.get(&key).cloned() else { return };
        object["metadata"]["finalizers"] = json!([]);
        self.put(state, "MODIFIED", key, object);
    }

    pub(super) fn object(&self, namespace: &str, name: &str) -> Option<Value> {
        self.state().objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(super) fn objects(&self) -> Vec<Value> {
        self.state().objects.values().cloned().collect()
    }

    /// Status and reason of a condition.
    pub(super) fn condition(&self, namespace: &str, name: &str, kind: &str) -> Option<(String, String)> {
        let object = self.object(namespace, name)?;
        let conditions = object["status"]["conditions"].as_array()?;
        let condition = conditions.iter().find(|condition| condition["type"] == kind)?;
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason")))
    }

    pub(super) fn events(&self) -> Vec<Value> {
        self.state().events.clone()
    }

    /// How many writes of a sort were carried out.
    pub(super) fn writes(&self, sort: &'static str) -> usize {
        self.state().writes.get(sort).copied().unwrap_or_default()
    }

    /// Waits until something holds.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let most = std::time::Duration::from_secs(600);
        let objects = || {
            serde_json::to_string_pretty(&self.objects().into_iter().take(3).collect::<Vec<_>>()).unwrap_or_default()
        };
        tokio::time::timeout(most, wait).await.unwrap_or_else(|_| panic!("not {what}: {}", objects()));
    }

    // -------------------------------------------------------------------------------------------------- what goes wrong

    /// The next writes are answered so.
    pub(super) fn fail_writes(&self, codes: impl IntoIterator<Item = u16>) {
        self.state().faults.extend(codes);
    }

    /// Watches end, and what was is forgotten: they cannot go on from where they were.
    pub(super) fn forget(&self, refuse: bool) {
        let mut state = self.state();
        state.version += 10;
        state.oldest = state.version;
        state.refuses_old = refuse;
        state.log.clear();
        drop(state);
        self.changed.send_modify(|(_, cuts)| *cuts += 1);
    }

    /// The definition of the resource is there, or is not.
    pub(super) fn set_missing(&self, missing: bool) {
        self.state().missing = missing;
        self.changed.send_modify(|(_, cuts)| *cuts += 1);
    }

    // ------------------------------------------------------------------------------------------------------ the server

    /// Stores an object under a new version, or removes it when nothing holds it any more.
    fn put(&self, mut state: MutexGuard<'_, State>, sort: &'static str, key: Key, mut object: Value) -> Value {
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
        let gone = object["metadata"]["deletionTimestamp"].is_string() && !held;
        if state.objects.get(&key) == Some(&object) && !gone {
            return object;
        }
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let version = state.version;
        if gone {
            state.objects.remove(&key);
            state.log.push((version, "DELETED", object.clone()));
        } else {
            state.objects.insert(key, object.clone());
            state.log.push((version, sort, object.clone()));
        }
        drop(state);
        self.changed.send_modify(|(changes, _)| *changes = version);
        object
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query: BTreeMap<String, String> =
            url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        if parts.method == Method::POST && path.ends_with("/events") {
            let event: Value = serde_json::from_slice(&body).expect("an event");
            self.state().events.push(event.clone());
            return json_answer(201, &event);
        }
        let rest = path.strip_prefix("/apis/rug.dev/v1alpha1/").unwrap_or_else(|| panic!("unknown path {path}"));
        if self.state().missing {
            return error(404, "the server could not find the requested resource");
        }
        match (parts.method, rest.split('/').collect::<Vec<_>>().as_slice()) {
            (Method::GET, ["appliances"]) => self.read(&query, None),
            (Method::GET, ["namespaces", namespace, "appliances"]) => self.read(&query, Some((*namespace).to_owned())),
            (Method::PATCH, ["namespaces", namespace, "appliances", name]) => self.patch(namespace, name, &body, false),
            (Method::PATCH, ["namespaces", namespace, "appliances", name, "status"]) => {
                assert_eq!(query.get("fieldManager").map(String::as_str), Some("rug"));
                self.patch(namespace, name, &body, true)
            }
            (method, _) => panic!("unknown call {method} {path}"),
        }
    }

    fn read(&self, query: &BTreeMap<String, String>, namespace: Option<String>) -> Response<Body> {
        if query.get("watch").is_some_and(|watch| watch == "true") {
            return self.watch(query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0), namespace);
        }
        let state = self.state();
        let fits =
            |object: &&Value| namespace.as_ref().is_none_or(|namespace| object["metadata"]["namespace"] == *namespace);
        let items: Vec<_> = state.objects.values().filter(fits).cloned().collect();
        json_answer(
            200,
            &json!({
                "apiVersion": "rug.dev/v1alpha1", "kind": "ApplianceList",
                "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
            }),
        )
    }

    fn watch(&self, from: u64, namespace: Option<String>) -> Response<Body> {
        {
            let state = self.state();
            if from < state.oldest && state.refuses_old {
                return error(410, "too old resource version");
            }
            if from < state.oldest {
                let told = json!({"type": "ERROR", "object": status(410, "too old resource version")});
                return Response::new(Body::from(told.to_string() + "\n"));
            }
        }
        let cuts = self.changed.borrow().1;
        let start = (self.clone(), self.changed.subscribe(), from, namespace);
        let stream = futures::stream::unfold(start, move |(api, mut changed, from, namespace)| async move {
            loop {
                if changed.borrow_and_update().1 != cuts {
                    return None;
                }
                let next = api.state().log.iter().find(|(version, ..)| *version > from).cloned();
                match next {
                    Some((version, sort, object)) => {
                        let fits =
                            namespace.as_ref().is_none_or(|namespace| object["metadata"]["namespace"] == *namespace);
                        let line = if fits {
                            json!({"type": sort, "object": object}).to_string() + "\n"
                        } else {
                            String::new()
                        };
                        return Some((Ok::<_, Infallible>(Bytes::from(line)), (api, changed, version, namespace)));
                    }
                    None => changed.changed().await.ok()?,
                }
            }
        });
        Response::new(Body::from_stream(stream.boxed()))
    }

    fn patch(&self, namespace: &str, name: &str, body: &[u8], of_status: bool) -> Response<Body> {
        let mut state = self.state();
        if let Some(code) = state.faults.pop_front() {
            return error(code, "as the test has it");
        }
        let key = (namespace.to_owned(), name.to_owned());
        let Some(mut object) = state.objects.get(&key).cloned() else { return error(404, "not found") };
        let patch: Value = serde_json::from_slice(body).expect("a patch");
        for field in ["uid", "resourceVersion"] {
            assert!(patch["metadata"][field].is_string(), "writes are conditional: {patch}");
            if object["metadata"][field] != patch["metadata"][field] {
                return error(409, "the object has been modified");
            }
        }
        let sort = if of_status { "status" } else { "finalizers" };
        *state.writes.entry(sort).or_default() += 1;
        if of_status {
            object["status"] = patch["status"].clone();
        } else {
            object["metadata"]["finalizers"] = patch["metadata"]["finalizers"].clone();
        }
        let object = self.put(state, "MODIFIED", key, object);
        json_answer(200, &object)
    }
}

fn status(code: u16, message: &str) -> Value {
    let details = if code == 429 { json!({"retryAfterSeconds": 1}) } else { Value::Object(Map::new()) };
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": message, "reason": "",
        "details": details,
    })
}

fn error(code: u16, message: &str) -> Response<Body> {
    json_answer(code, &status(code, message))
}

fn json_answer(code: u16, value: &Value) -> Response<Body> {
    let mut answer = Response::new(Body::from(value.to_string()));
    *answer.status_mut() = code.try_into().expect("a code");
    answer
}
