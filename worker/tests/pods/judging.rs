//! What is said about specifications before there is a pod of them.

use common::appliance::FieldViolation;
use common::inquiry::Verdict;
use common::pod::PodTemplate;
use serde_json::{Value, json};
use worker::drivers::Driver as _;
use worker_core::desired::Desired;

use crate::api_server::Fault;
use crate::world::{A, World, balancer, boot, custom, permit};

fn with_template(template: &Value) -> Desired {
    let mut desired = custom();
    desired.spec.pod = Some(PodTemplate::new(template).expect("valid"));
    desired
}

fn refused(field: &str, why: &str) -> Verdict {
    Verdict::Refused(FieldViolation::new(field, why))
}

/// A pod without what differs from one attempt to the next, and without its gate.
fn alike(pod: &Value) -> Value {
    let mut pod = json!({"spec": pod["spec"], "labels": pod["metadata"]["labels"]});
    pod["labels"].as_object_mut().expect("labels").remove("rug.dev/attempt");
    pod["spec"].as_object_mut().expect("a specification").remove("schedulingGates");
    let text = pod.to_string().replace(&format!("{A}-0-1"), "POD").replace(&format!("{A}-0-0"), "POD");
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test]
async fn a_specification_is_judged_by_a_dry_run_of_the_pod_that_a_boot_makes() {
    let template = json!({"metadata": {"labels": {"team": "shop"}}, "spec": {"nodeSelector": {"disk": "ssd"}}});
    for desired in [with_template(&template), balancer(&[80])] {
        let world = World::without_kubelet().await;
        let driver = world.driver("w1").await;
        assert!(driver.judges());
        world.api.take_calls();
        assert_eq!(driver.judge(A, &desired).await.expect("answered"), Verdict::Accepted);
        assert_eq!(world.api.take_calls(), ["create pods"], "neither a token nor a Service or a Secret");
        assert_eq!((world.api.all("pods").len(), world.api.all("leases").len()), (0, 0), "nothing is made");
        boot(&driver, &permit(1), &desired, 1).await.expect("booted");
        let (judged, made) = (world.api.take_judged(), world.api.all("pods"));
        assert_eq!((judged.len(), made.len()), (1, 1));
        assert_eq!(alike(&judged[0]), alike(&made[0]));
        // One that runs by now changes nothing.
        assert_eq!(driver.judge(A, &desired).await.expect("answered"), Verdict::Accepted);
    }
}

#[tokio::test]
async fn what_the_api_server_refuses_is_told_in_its_words_and_what_only_waits_is_no_refusal() {
    let world = World::without_kubelet().await;
    let driver = world.driver("w1").await;
    let (plain, templated) = (custom(), with_template(&json!({"spec": {"nodeSelector": {"disk": "ssd"}}})));
    let cases: [(u16, &str, &str, bool); 8] = [
        (422, "Invalid", "Pod \"x\" is invalid: spec.containers[0].image: Required value", true),
        (400, "BadRequest", "strict decoding error: unknown field \"spec.nodeSelektor\"", true),
        (403, "Forbidden", "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": privileged", true),
        (400, "BadRequest", "admission webhook \"w\" does not support dry run", false),
        (403, "Forbidden", "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1", false),
        (403, "Forbidden", "pods is forbidden: User \"w\" cannot create resource \"pods\"", false),
        (
            403,
            "Forbidden",
            "pods \"x\" is forbidden: error looking up service account rug/a: serviceaccount \"a\" not found",
            false,
        ),
        (404, "NotFound", "namespaces \"t1\" not found", false),
    ];
    for (code, reason, message, is_refusal) in cases {
        for (desired, field) in [(&plain, "spec"), (&templated, "spec.pod")] {
            world.api.fault("w1", "create", "pods", 1, Fault::Refuse { code, reason, message, retry_after: None });
            let verdict = driver.judge(A, desired).await.expect("answered");
            let expected = if is_refusal { refused(field, message) } else { Verdict::Unclear(message.to_owned()) };
            assert_eq!(verdict, expected);
        }
    }
    let away = Fault::Refuse { code: 500, reason: "InternalError", message: "etcd is away", retry_after: None };
    world.api.fault("w1", "create", "pods", 99, away);
    let error = driver.judge(A, &plain).await.expect_err("it says nothing about the specification").to_string();
    assert!(error.contains("etcd is away"), "{error}");
    assert!(world.api.all("pods").is_empty());
}

#[tokio::test]
async fn what_the_driver_itself_refuses_is_told_without_a_call() {
    let world = World::without_kubelet().await;
    let driver = world.driver("w1").await;
    world.api.take_calls();
    let host = with_template(&json!({"spec": {"hostNetwork": true}}));
    let Verdict::Refused(violation) = driver.judge(A, &host).await.expect("answered") else { panic!("accepted") };
    assert_eq!(violation.field, "spec.pod");
    let why = "hostNetwork is not allowed by the worker's setting kubernetes.template_allow (`host_namespaces`)";
    assert_eq!(violation.description, why);
    let management = balancer(&[world.config("w1").management_port]);
    let Verdict::Refused(violation) = driver.judge(A, &management).await.expect("answered") else { panic!("accepted") };
    assert_eq!(violation.field, "spec");
    assert_eq!(world.api.take_calls(), Vec::<String>::new());
}
