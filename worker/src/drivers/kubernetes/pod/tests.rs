use common::Edition;
use common::appliance::{Name, Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, HealthCheck, KindSpec, Limits, Listener, LoadBalancer, Probe, ProcessOptions};
use common::{Generation, Term};
use kubernetes::k8s_openapi::api::core::v1::Pod;

use super::*;

fn desired(image: Option<&str>, pod: Option<Value>, kind: KindSpec) -> Desired {
    let name = Name::new("web").expect("a name");
    Desired {
        name: name.clone(),
        tenant: name,
        driver: DriverName::new("kubernetes").expect("a name"),
        edition: Edition::new(Generation::new(1), Term::new(1)),
        revision: 0,
        deleting: false,
        spec: Spec {
            replicas: 1,
            probe_interval: None,
            timing: Timing::default(),
            image: image.map(str::to_owned),
            ports: vec![],
            pod: pod.map(|pod| PodTemplate::new(&pod).expect("valid")),
            kind,
        },
    }
}

fn custom(change: impl FnOnce(&mut Custom)) -> KindSpec {
    let env = BTreeMap::from([("AT".to_owned(), "{port} $(HOME)".to_owned())]);
    let mut custom = Custom { command: "serve".into(), args: vec!["{ordinal}".into()], env, ..Custom::default() };
    change(&mut custom);
    KindSpec::Custom(custom)
}

fn plan(config: &Config, desired: &Desired) -> Result<Value, Error> {
    let wanted = Wanted { ordinal: 2, attempt: 3, desired, boot_digest: "digest", beside: None };
    let token = Token::new(Term::new(1), 2);
    let plan = PodPlan::new(config, "rug", ApplianceId::from_u128(7), token, &wanted)?;
    // What the types of this version of the API know is of the right type.
    serde_json::from_value::<Pod>(plan.pod.clone()).expect("a pod");
    Ok(plan.pod)
}

#[test]
fn a_command_is_a_gated_pod_that_says_what_it_is() {
    let pod = plan(&Config::default(), &desired(Some("debian"), None, custom(|_| {}))).expect("possible");
    assert_eq!(pod["metadata"]["name"], "00000000-0000-0000-0000-000000000007-2-3");
    assert_eq!(pod["metadata"]["labels"]["rug.dev/ordinal"], "2");
    assert_eq!(pod["metadata"]["annotations"]["rug.dev/token"], "1/2");
    let spec = &pod["spec"];
    assert_eq!(spec["schedulingGates"], json!([{"name": "rug.dev/owner"}]));
    assert_eq!((&spec["restartPolicy"], &spec["automountServiceAccountToken"]), (&json!("Never"), &json!(false)));
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    let main = &spec["containers"][0];
    assert_eq!((&main["image"], &main["command"], &main["args"]), (&json!("debian"), &json!(["serve"]), &json!(["2"])));
    assert_eq!(main["env"][0], json!({"name": "AT", "value": "8080 $$(HOME)"}));
    assert_eq!(main["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
}

#[test]
fn what_a_pod_cannot_have_is_refused_with_the_field() {
    let config = Config::default();
    let refused = |image, kind| match plan(&config, &desired(image, None, kind)) {
        Err(Error::Refused(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(refused(None, custom(|_| {})).contains("spec.image is not given"));
    let with = |change: fn(&mut ProcessOptions)| {
        let mut options = ProcessOptions::NONE;
        change(&mut options);
        refused(Some("x"), custom(|custom| custom.process = options.boxed()))
    };
    assert!(with(|options| options.env_from = vec!["/x".into()]).starts_with("spec.custom.env_from"));
    assert!(with(|options| options.nice = Some(1)).starts_with("spec.custom.nice"));
    assert!(with(|options| options.user = Some("www-data".into())).starts_with("spec.custom.user"));
}

#[test]
fn a_template_adds_to_the_pod_and_takes_nothing_of_rugs_away() {
    let template = json!({
        "metadata": {"labels": {"team": "a"}, "annotations": {"x": "y"}},
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "k"}],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "securityContext": {"runAsUser": 7},
            "containers": [
                {
                    "name": "appliance",
                    "resources": {"limits": {"memory": "1Gi"}},
                    "env": [{"name": "AT", "value": "z"}, {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                },
                {"name": "side", "image": "side"},
            ],
        },
    });
    let config = Config { node_selector: BTreeMap::from([("zone".into(), "a".into())]), ..Config::default() };
    let pod = plan(&config, &desired(Some("debian"), Some(template), custom(|_| {}))).expect("possible");
    assert_eq!((&pod["metadata"]["labels"]["team"], &pod["metadata"]["annotations"]["x"]), (&json!("a"), &json!("y")));
    let spec = &pod["spec"];
    assert_eq!(spec["nodeSelector"], json!({"disk": "ssd", "zone": "a"}));
    assert_eq!(spec["securityContext"]["runAsUser"], 7);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    let main = &spec["containers"][0];
    assert_eq!(main["command"], json!(["serve"]));
    assert_eq!(main["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(main["env"][0]["value"], "8080 $$(HOME)", "a variable of the specification stays");
    assert!(main["env"].as_array().expect("a list").iter().any(|variable| variable["name"] == "PASSWORD"));
    assert_eq!(main["volumeMounts"][0]["mountPath"], "/data");
    assert_eq!(spec["containers"][1]["name"], "side");
    assert_eq!(spec["schedulingGates"], json!([{"name": "rug.dev/owner"}]));
}

#[test]
fn a_command_that_probes_is_the_readiness_of_the_pod() {
    let probe = Probe::Exec { command: vec!["check".into(), "{ordinal}".into()] };
    let kind = custom(|custom| {
        custom.probe = probe;
        custom.env.clear();
    });
    let pod = plan(&Config::default(), &desired(Some("debian"), None, kind)).expect("possible");
    assert_eq!(pod["spec"]["containers"][0]["readinessProbe"]["exec"]["command"], json!(["check", "2"]));
    assert_eq!(pod["metadata"]["annotations"]["rug.dev/exec-probe"], r#"["check","2"]"#);
}

#[test]
fn a_load_balancer_has_a_file_of_its_secret_and_a_management_port() {
    let listener = Listener {
        name: "l".into(),
        address: [0, 0, 0, 0].into(),
        port: 80,
        members: vec![],
        health_check: HealthCheck::default(),
        limits: Limits::default(),
        algorithm: Default::default(),
        proxy_protocol: None,
        trust_proxy_from: vec![],
    };
    let kind = KindSpec::Loadbalancer(LoadBalancer { listeners: vec![listener] });
    let taken = Config { appliance_image: "rug".into(), management_port: 80, ..Config::default() };
    let refused = plan(&taken, &desired(None, None, kind.clone())).expect_err("its port is taken");
    assert!(refused.to_string().contains("kubernetes.management_port"), "{refused}");
    let config = Config { appliance_image: "rug".into(), ..Config::default() };
    let pod = plan(&config, &desired(None, None, kind.clone())).expect("possible");
    assert_eq!(pod["metadata"]["labels"]["rug.dev/anchors"], "rug");
    let spec = &pod["spec"];
    assert_eq!(spec["volumes"][1]["secret"]["secretName"], pod["metadata"]["name"]);
    assert_eq!(spec["securityContext"]["fsGroup"], 65_532);
    let args = spec["containers"][0]["args"].as_array().expect("a list");
    assert!(args.contains(&json!("0.0.0.0:8079")) && args.contains(&json!("/run/rug/secret/secret")), "{args:?}");
    assert_eq!(pod["metadata"]["annotations"]["rug.dev/port"], "80", "every instance listens at the first one's ports");
    let gate = |kind: &str| json!({"conditionType": kind});
    assert_eq!(spec["readinessGates"], json!([gate("rug.dev/configured")]));
    let other = json!({"spec": {"readinessGates": [gate("example.com/seen")]}});
    let pod = plan(&config, &desired(None, Some(other), kind)).expect("possible");
    assert_eq!(pod["spec"]["readinessGates"], json!([gate("example.com/seen"), gate("rug.dev/configured")]));
}
