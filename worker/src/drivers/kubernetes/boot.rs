//! How a pod comes to run: made with a gate, written down, released.
//!
//! | step | what a former owner's late call can do |
//! |---|---|
//! | make the pod with a gate | leave a pod that never runs: no anchor names it, and it is removed as an orphan |
//! | write it into the anchor, naming the version that the claim left | nothing: a newer claim has changed that version |
//! | remove the gate, naming uid and version of the pod | nothing: whoever claims a journal with this pod changes its version |

use kubernetes::Error as ApiError;
use kubernetes::k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use worker_core::instance::Instance;

use super::anchor::JournalInstance;
use super::api::{self, Resource};
use super::ownership::{Held, TRIES, check_token};
use super::pod::PodPlan;
use super::view::PodView;
use super::{Inner, failed, service};
use crate::drivers::{Error, Wanted};
use crate::gate::Permit;

/// What stands at an ordinal.
enum Place {
    /// Nothing that may run.
    Free,
    /// The instance that is wanted.
    Taken(Box<PodView>),
    /// The pod that is wanted, not released yet.
    Waiting(Box<PodView>),
}

impl Inner {
    pub(super) async fn ensure(&self, permit: &Permit, wanted: &Wanted<'_>) -> Result<Instance, Error> {
        if wanted.beside.is_some() {
            return Err(Error::Refused("pods do not hand their service over".into()));
        }
        let plan = self.plan(permit, wanted)?;
        let (mut held, claimed) = self.hold(permit).await?;
        let mut waiting = None;
        let at_ordinal = claimed.anchor.journal.instances.into_iter().filter(|entry| entry.ordinal == wanted.ordinal);
        for entry in at_ordinal {
            match self.place(permit, wanted, &entry).await? {
                Place::Free => {}
                Place::Taken(view) => return self.instance(&view).await,
                Place::Waiting(view) => waiting = Some(*view),
            }
        }
        let view = match waiting {
            Some(view) => view,
            None => {
                self.remove_unreleased(permit, &plan).await;
                let made = self.make(permit, wanted, &plan).await?;
                if let Err(error) = self.prepare(permit, &mut held, &plan, &made).await {
                    // It has its gate and never runs. An orphan sweep would find it after a while.
                    if let Err(left) = self.begin_removal(permit, &made).await {
                        tracing::debug!(pod = made.key.name(), error = %left, "a pod that was not released is left");
                    }
                    return Err(error);
                }
                made
            }
        };
        let view = self.release(permit, view).await?;
        self.instance(&view).await
    }

    /// Gives a pod that was made what it needs, and writes it down.
    async fn prepare(&self, permit: &Permit, held: &mut Held, plan: &PodPlan, made: &PodView) -> Result<(), Error> {
        if plan.has_management {
            let secret = service::make_secret(self, permit, made).await?;
            self.keep_secret(&made.uid, &secret);
        }
        self.write_down(permit, held, plan, made).await
    }

    /// Begins to remove what earlier boots at this ordinal left: pods with their gate, as far as the watch knows of them.
    async fn remove_unreleased(&self, permit: &Permit, plan: &PodPlan) {
        for view in self.cache.of_appliance(plan.key.appliance) {
            // One of the wanted name is dealt with where the new one is made, and one without a token is not Rug's.
            let is_left = view.key.ordinal == plan.key.ordinal && view.key != plan.key;
            if is_left && view.gated && view.token.is_some() {
                _ = self.begin_removal(permit, &view).await;
            }
        }
    }

    /// What the journal has at the ordinal of a new instance. Pods there that cannot run are removed.
    async fn place(&self, permit: &Permit, wanted: &Wanted<'_>, entry: &JournalInstance) -> Result<Place, Error> {
        let key = entry.key(permit.appliance());
        let Some(view) = self.current(key, &entry.namespace, &entry.uid).await? else { return Ok(Place::Free) };
        let is_it = entry.attempt == wanted.attempt && view.deleting.is_none();
        if is_it && view.runs() {
            return Ok(Place::Taken(Box::new(view)));
        }
        if is_it && view.gated && view.boot_digest == wanted.boot_digest {
            return Ok(Place::Waiting(Box::new(view)));
        }
        if !view.runs() || view.deleting.is_some() {
            // It never ran, has ended, or is about to; where something of it may still run that is waited for.
            self.remove(permit, &view).await?;
            return Ok(Place::Free);
        }
        let (attempt, ordinal) = (entry.attempt, entry.ordinal);
        Err(Error::Failed(format!("attempt {attempt} still runs at ordinal {ordinal}")))
    }

    /// Makes the pod, which cannot run yet.
    async fn make(&self, permit: &Permit, wanted: &Wanted<'_>, plan: &PodPlan) -> Result<PodView, Error> {
        let name = plan.key.name();
        for _ in 0..TRIES {
            permit.check()?;
            let made: Result<Pod, ApiError> =
                api::create(&self.client, Resource::Pods, &plan.namespace, &plan.pod, false).await;
            let error = match made {
                Ok(pod) => return self.made(permit, &pod).await,
                Err(error) => error,
            };
            // It may be there all the same, or a pod of the same name that an owner left.
            if error.is_without_effect() && !matches!(error, ApiError::AlreadyExists(_)) {
                return Err(failed("create pod", error));
            }
            let found: Option<Pod> = api::get(&self.client, Resource::Pods, &plan.namespace, &name)
                .await
                .map_err(|_| failed("create pod", error.clone()))?;
            let Some(view) = found.as_ref().and_then(PodView::of) else {
                if matches!(error, ApiError::AlreadyExists(_)) {
                    continue;
                }
                return Err(failed("create pod", error));
            };
            check_token(view.token, permit)?;
            let is_ours = view.gated && view.token == Some(permit.token()) && view.boot_digest == wanted.boot_digest;
            if is_ours && view.deleting.is_none() {
                self.cache.put(view.clone());
                return Ok(view);
            }
            if !view.gated && view.token == Some(permit.token()) {
                // The anchor does not name it, so that this worker has not released it.
                return Err(self.without_gate(permit, &view).await);
            }
            if view.runs() && view.token.is_some() {
                return Err(Error::Failed(format!("a pod {name} runs that the anchor of the appliance does not name")));
            }
            if view.token.is_none() {
                return Err(Error::Refused(format!("there is a pod {name} that is not Rug's")));
            }
            self.remove(permit, &view).await?;
        }
        Err(Error::Failed(format!("there is a pod {name} each time that it is made")))
    }

    async fn made(&self, permit: &Permit, pod: &Pod) -> Result<PodView, Error> {
        let view = PodView::of(pod).ok_or_else(|| Error::Failed("the API server answered another object".into()))?;
        if !view.gated {
            return Err(self.without_gate(permit, &view).await);
        }
        self.cache.put(view.clone());
        Ok(view)
    }

    /// Deletes a pod that was made just now and has no gate: nothing fences it, and it must not run.
    async fn without_gate(&self, permit: &Permit, made: &PodView) -> Error {
        let left = match self.delete(permit, made.clone(), 1).await {
            Ok(_) => String::new(),
            Err(error) => format!("; it is still there: {error}"),
        };
        Error::Refused(format!(
            "the pod was made without its scheduling gate: a policy of the cluster must have removed it{left}"
        ))
    }

    /// Writes the pod into the anchor. From then on every owner knows that it may run.
    async fn write_down(&self, permit: &Permit, held: &mut Held, plan: &PodPlan, made: &PodView) -> Result<(), Error> {
        let entry = JournalInstance {
            ordinal: plan.key.ordinal,
            attempt: plan.key.attempt,
            uid: made.uid.clone(),
            namespace: plan.namespace.clone(),
        };
        self.change_journal(permit, held, |journal| {
            let mut changed = journal.with(entry.clone());
            if plan.has_management {
                changed.services.insert(plan.namespace.clone());
            }
            changed
        })
        .await
    }

    /// Removes the gate of a pod that the anchor names.
    async fn release(&self, permit: &Permit, mut seen: PodView) -> Result<PodView, Error> {
        for _ in 0..TRIES {
            if !seen.gated {
                return Ok(seen);
            }
            let others: Vec<Value> = seen.other_gates.iter().map(|name| json!({"name": name})).collect();
            match self.change_pod(permit, &seen, json!({"spec": {"schedulingGates": others}})).await? {
                Some(view) => {
                    self.cache.put(view.clone());
                    seen = view;
                }
                None => {
                    let (key, namespace, uid) = (seen.key, seen.namespace.clone(), seen.uid.clone());
                    let Some(view) = self.read(key, &namespace, &uid).await? else {
                        return Err(Error::Failed(format!("pod {} was deleted before it ran", key.name())));
                    };
                    check_token(view.token, permit)?;
                    seen = view;
                }
            }
        }
        Err(Error::Failed(format!("pod {} changed each time that it was read", seen.key.name())))
    }
}
