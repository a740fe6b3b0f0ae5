//! Runs of the job over ten years.

use std::time::UNIX_EPOCH;

use super::*;

type Held = BTreeMap<String, SecretData>;

fn plan() -> Plan {
    let text = r#"{"ca": "ca", "ca_name": "r", "ca_days": 365, "days": 90, "renew_before_days": 30, "certificates": [
        {"secret": "c", "common_name": "r-coordinator", "dns": ["r.ns.svc", "*.r-headless.ns.svc"], "ips": ["127.0.0.1"],
         "uris": ["rug://coordinator/r-0"]},
        {"secret": "w", "common_name": "r-worker", "dns": [], "ips": [], "uris": ["rug://worker/r-worker-0", "rug://worker/r-worker-1"]}
    ]}"#;
    serde_json::from_str(text).expect("readable")
}

fn at(days: u32) -> SystemTime {
    UNIX_EPOCH + DAY * 20_000 + DAY * days
}

/// What a run of the job does, as `secret: why`.
fn run(plan: &Plan, held: &mut Held, now: SystemTime) -> Vec<String> {
    let steps = plan.steps(held, now).expect("made");
    let said = steps.iter().map(|step| format!("{}: {}", step.secret, step.why)).collect();
    for step in steps {
        let secret = held.entry(step.secret).or_default();
        for (key, value) in step.data {
            match value {
                Some(value) => drop(secret.insert(key, value)),
                None => drop(secret.remove(&key)),
            }
        }
    }
    said
}

fn first(held: &Held, secret: &str) -> Seen {
    Seen::first(&held[secret]["tls.crt"]).expect("a certificate")
}

#[test]
fn empty_secrets_are_filled_and_then_left_alone() {
    let (plan, mut held) = (plan(), Held::new());
    assert_eq!(run(&plan, &mut held, at(0)), ["ca: made", "c: made", "w: made"]);
    let coordinator = first(&held, "c");
    assert_eq!(coordinator.identity.common_name.as_deref(), Some("r-coordinator"));
    let names = ["*.r-headless.ns.svc", "127.0.0.1", "r.ns.svc", "rug://coordinator/r-0"];
    assert_eq!(coordinator.names().iter().map(String::as_str).collect::<Vec<_>>(), names);
    assert_eq!(held["c"]["ca.crt"], held["ca"]["ca.crt"]);
    assert!(!held["w"].contains_key("next.key") && held["w"].len() == 3, "no key of a CA leaves its secret");
    assert_eq!(run(&plan, &mut held, at(0)), [""; 0]);
    assert_eq!(run(&plan, &mut held, at(59)), [""; 0]);
}

#[test]
fn certificates_are_renewed_before_their_end_and_when_names_change() {
    let (mut plan, mut held) = (plan(), Held::new());
    run(&plan, &mut held, at(0));
    let before = first(&held, "w").identity.not_after;
    plan.certificates[1].uris.push("rug://worker/r-worker-2".to_owned());
    assert_eq!(run(&plan, &mut held, at(1)), ["w: made anew, as its names have changed"]);
    assert!(first(&held, "w").identity.not_after > before);
    assert_eq!(run(&plan, &mut held, at(60)), ["c: renewed, as it would have ended soon"]);
    assert_eq!(run(&plan, &mut held, at(61)), ["w: renewed, as it would have ended soon"]);
}

#[test]
fn a_key_that_is_gone_is_made_anew_with_all_that_depends_on_it() {
    let (plan, mut held) = (plan(), Held::new());
    run(&plan, &mut held, at(0));
    held.get_mut("c").expect("there").remove("tls.key");
    assert_eq!(run(&plan, &mut held, at(1)), ["c: made, as its key was missing"]);
    held.insert("ca".to_owned(), SecretData::new());
    let said = ["ca: made", "c: made anew, as its CA is gone", "w: made anew, as its CA is gone"];
    assert_eq!(run(&plan, &mut held, at(2)), said);
}

#[test]
fn a_ca_is_trusted_before_it_signs_and_as_long_as_what_it_signed_counts() {
    let (plan, mut held) = (plan(), Held::new());
    for day in 0..1_500 {
        let trusted_before = held.get("w").and_then(|w| w.get("ca.crt")).cloned().unwrap_or_default();
        run(&plan, &mut held, at(day));
        let trusted = Seen::all(&held["w"]["ca.crt"]);
        assert!((1..=3).contains(&trusted.len()), "day {day}: {} CAs", trusted.len());
        for part in ["c", "w"] {
            let seen = first(&held, part);
            assert!(seen.left(at(day)) > DAY * 30, "day {day}: {part} would end");
            let signer = |bundle: &[u8]| {
                Seen::all(bundle).into_iter().find(|(ca, _)| ca.key_id == seen.signed_by).map(|(ca, _)| ca)
            };
            let ca =
                signer(&held["w"]["ca.crt"]).unwrap_or_else(|| panic!("day {day}: {part} is signed by a stranger"));
            assert!(ca.identity.not_after >= seen.identity.not_after, "day {day}: {part} outlives its CA");
            // Others may still have what they read a day ago.
            assert!(day == 0 || signer(&trusted_before).is_some(), "day {day}: {part} is not trusted everywhere yet");
        }
    }
    assert!(!held["c"].contains_key("next.key"));
}
