//! What the API server has to say about a pod before there is one: a dry run of the pod that a boot would make.
//!
//! | answer | verdict |
//! |---|---|
//! | the driver cannot make such a pod, or may not (`template_allow`) | refused |
//! | 400, 413, 422: fields that are wrong or unknown | refused |
//! | 403 of a policy: Pod Security, limits of the namespace, a webhook | refused |
//! | 403 for want of a right of this worker, or of quota | unclear |
//! | the namespace, a service account or a priority class is not there (yet), or the namespace goes away | unclear |
//! | a webhook that cannot take part in dry runs | unclear |
//! | anything else, and no answer | not known |
//!
//! Refused is what stays wrong until the specification, the settings of the workers or a policy of the cluster change. What only waits for
//! room or for something to be made is no reason to refuse a change: the first boot shows it, and tries again.

use common::appliance::FieldViolation;
use common::inquiry::Verdict;
use common::{ApplianceId, Token};
use kubernetes::Error as ApiError;
use kubernetes::k8s_openapi::api::core::v1::Pod;
use worker_core::desired::{Desired, boot_digest};

use super::api::{self, Resource};
use super::pod::PodPlan;
use super::{Inner, failed};
use crate::drivers::{Error, Wanted};

/// Attempts begin at 1: no pod of an instance has this in its name.
const NO_ATTEMPT: u32 = 0;

/// What the API server and its admission plugins write where something else has to be there first, goes away just now, or keeps it from
/// saying anything.
const CIRCUMSTANCES: [&str; 4] = [" not found", " was found", "it is being terminated", "does not support dry run"];

impl Inner {
    /// What is against pods of this. Services and Secrets of load balancers are not tried: Rug alone decides what is in them.
    pub(super) async fn judge(&self, appliance: ApplianceId, desired: &Desired) -> Result<Verdict, Error> {
        let field = if desired.spec.pod.is_some() { "spec.pod" } else { "spec" };
        // What the driver itself refuses may name the field already.
        let refused = |why: String| {
            let own = why.strip_prefix(field).and_then(|rest| rest.strip_prefix(": "));
            Ok(Verdict::Refused(FieldViolation::new(field, own.unwrap_or(&why))))
        };
        let digest = boot_digest(desired, false);
        let wanted = Wanted { ordinal: 0, attempt: NO_ATTEMPT, desired, boot_digest: &digest, beside: None };
        // The plan that a boot makes. No owner has this token: nothing is made that could be taken for an owner's.
        let plan = match PodPlan::new(&self.config, &self.namespace, appliance, Token::default(), &wanted) {
            Ok(plan) => plan,
            Err(Error::Refused(why)) => return refused(why),
            Err(error) => return Err(error),
        };
        match api::create::<Pod>(&self.client, Resource::Pods, &plan.namespace, &plan.pod, true).await {
            // One of this name that is there would have been looked at before its name was.
            Ok(_) | Err(ApiError::AlreadyExists(_)) => Ok(Verdict::Accepted),
            Err(ApiError::Invalid(why)) if !is_circumstance(&why) => refused(why),
            Err(ApiError::Invalid(why) | ApiError::Forbidden(why) | ApiError::Quota(why) | ApiError::NotFound(why)) => {
                Ok(Verdict::Unclear(why))
            }
            Err(error) => Err(failed("dry run", error)),
        }
    }
}

fn is_circumstance(why: &str) -> bool {
    CIRCUMSTANCES.iter().any(|text| why.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_not_there_yet_is_told_from_what_is_wrong() {
        for circumstance in [
            r#"pods "x" is forbidden: error looking up service account a/b: serviceaccount "b" not found"#,
            r#"pods "x" is forbidden: no PriorityClass with name high was found"#,
            r#"pods "x" is forbidden: unable to create new content in namespace a because it is being terminated"#,
            r#"admission webhook "w" does not support dry run"#,
        ] {
            assert!(is_circumstance(circumstance), "{circumstance}");
        }
        for wrong in [
            r#"pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged"#,
            r#"Pod "x" is invalid: spec.containers[0].image: Required value"#,
            r#"strict decoding error: unknown field "spec.tolerance""#,
        ] {
            assert!(!is_circumstance(wrong), "{wrong}");
        }
    }
}
