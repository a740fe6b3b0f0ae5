//! Certificates of a release: a CA of its own, and one certificate for each part, in secrets.
//!
//! The chart makes the secrets, empty; this fills and renews them, so that it needs no right but to read and patch these. What is to be
//! done is decided by [`plan`], from what the secrets hold and the time; each write names the version of the secret that it saw, so that
//! two jobs at once make one set of certificates. Programs read changed files without a restart (docs/tls.md).

mod issue;
mod plan;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use kubernetes::k8s_openapi::ByteString;
use kubernetes::k8s_openapi::api::core::v1::Secret;
use kubernetes::kube::api::{Patch, PatchParams};
use kubernetes::kube::{Api, Client};
use serde_json::json;

pub use plan::{Plan, SecretData, Step};

/// How often everything is read again after another writer was faster.
const TRIES: usize = 5;

/// How long a call to the API server may take.
const CALL: Duration = Duration::from_secs(20);

/// Makes and renews what the plan in `file` says, in the namespace of the service account.
///
/// # Errors
/// The plan cannot be read, or the API server refuses; what was written by then stays, and is of use.
pub async fn keep(file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let plan: Plan = serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))?;
    let client = Client::try_default().await.context("set up a client")?;
    let secrets: Api<Secret> = Api::default_namespaced(client);
    for _ in 0..TRIES {
        if write(&plan, &secrets).await? {
            return Ok(());
        }
        eprintln!("another job was faster; reading everything again");
    }
    bail!("other writers were faster {TRIES} times")
}

/// One round; `false` when somebody else has changed a secret meanwhile.
async fn write(plan: &Plan, secrets: &Api<Secret>) -> anyhow::Result<bool> {
    let mut found = BTreeMap::new();
    let mut versions = BTreeMap::new();
    for name in plan.secrets() {
        let reading = tokio::time::timeout(CALL, secrets.get(name)).await;
        let secret =
            reading.context("the API server does not answer")?.with_context(|| format!("read secret {name}"))?;
        let data = secret.data.unwrap_or_default().into_iter().map(|(key, ByteString(value))| (key, value));
        found.insert(name.to_owned(), data.collect::<SecretData>());
        versions.insert(name.to_owned(), secret.metadata.resource_version);
    }
    let steps = plan.steps(&found, SystemTime::now())?;
    if steps.is_empty() {
        eprintln!("nothing is to be renewed");
    }
    // In this order: the CA is stored before what it signed, and is trusted before it signs.
    for Step { secret, why, data } in steps {
        let data: BTreeMap<_, _> =
            data.into_iter().map(|(key, value)| (key, value.map(|bytes| json!(ByteString(bytes))))).collect();
        let version = versions.get(&secret);
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "data": data}));
        let writing = tokio::time::timeout(CALL, secrets.patch(&secret, &PatchParams::default(), &patch)).await;
        match writing.context("the API server does not answer")? {
            Ok(_) => eprintln!("{secret}: {why}"),
            Err(kubernetes::kube::Error::Api(status)) if status.code == 409 => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("write secret {secret}")),
        }
    }
    Ok(true)
}
