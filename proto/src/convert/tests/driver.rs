//! Drivers that workers offer: of this version, of the version before, of newer ones, and offers that are refused.

use super::super::worker::{Reader, profile_to_wire};
use super::*;

fn published() -> Profile {
    Profile {
        weight: 1,
        zone: String::new(),
        host: "h".into(),
        drivers: offers(5),
        version: "9".into(),
        pid: 1,
        process: None,
        lease: Duration::from_secs(1),
    }
}

fn read(message: worker_wire::Profile) -> Result<Profile, String> {
    Reader { message: "Hello" }.profile(Some(message)).map_err(|error| error.to_string())
}

#[test]
fn a_coordinator_of_the_version_before_finds_the_fields_it_reads() {
    let message = profile_to_wire(published());
    assert_eq!(message.drivers, ["other-cloud.v2", "process"]);
    assert_eq!(message.state_dir, "/var/lib/rug");
    assert_eq!(message.holds, std::collections::HashMap::new(), "it does not know that driver");
    let simulated =
        DriverCapabilities { fence_delay: Some(Duration::from_secs(2)), ..DriverCapabilities::of_all_kinds(None) };
    let message = profile_to_wire(Profile { drivers: [(DriverName::simulated(), simulated)].into(), ..published() });
    assert_eq!(message.holds["simulated"].seconds, 2);
    assert_eq!(message.state_dir, "");
}

#[test]
fn a_worker_of_the_version_before_offers_what_its_drivers_could_do() {
    // The kinds that there were then.
    let of = |state_dir: Option<&str>| DriverCapabilities {
        kinds: common::kind::KindName::PREVIOUS.into(),
        ..DriverCapabilities::of_all_kinds(state_dir)
    };
    let drivers = DriverOffers::from([
        (DriverName::process(), of(Some("/var/lib/rug"))),
        (DriverName::simulated(), DriverCapabilities { fence_delay: Some(Duration::from_millis(1_500)), ..of(None) }),
    ]);
    let mut message = profile_to_wire(Profile { drivers: drivers.clone(), ..published() });
    message.offers.clear();
    message.drivers.extend(["hovercraft".into(), "No Name".into()]);
    message.holds.insert("hovercraft".into(), prost_types::Duration { seconds: 5, nanos: 0 });
    assert_eq!(read(message.clone()).expect("readable").drivers, drivers);
    message.state_dir = "relative".into();
    assert!(read(message).expect_err("refused").starts_with("Hello: profile.state_dir: must be an absolute path"));
}

#[test]
fn kinds_of_a_newer_worker_are_left_out() {
    let mut message = profile_to_wire(published());
    message.offers[0].kinds.push("hovercraft".into());
    assert_eq!(read(message), Ok(published()));
}

#[test]
fn what_cannot_be_an_offer_is_refused() {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    type Change = Box<dyn Fn(&mut Vec<wire::DriverOffer>)>;
    let rows: [(Change, &str); 8] = [
        (Box::new(|o| o[1].name = "Process".into()), "profile.offers[1].name: `Process` is not the name of a driver"),
        (Box::new(|o| o[1] = o[0].clone()), "profile.offers[1].name: is offered twice"),
        (Box::new(|o| o[1].state_dir = Some("rel".into())), "profile.offers[1].state_dir: must be an absolute path"),
        (Box::new(|o| o[1].site = "0".into()), "profile.offers[1].site: must be 32 hexadecimal digits"),
        (Box::new(move |o| o[0].fence_delay = seconds(-1)), "profile.offers[0].fence_delay: "),
        (Box::new(move |o| o[0].fence_delay = seconds(90_000)), "profile.offers[0].fence_delay: 90000 s is more than"),
        (Box::new(|o| o[0].kinds = vec!["custom".into(); 257]), "profile.offers[0].kinds: has more than 256 entries"),
        (
            Box::new(|o| {
                let one = o[0].clone();
                *o = (0..65).map(|n| wire::DriverOffer { name: format!("d{n}"), ..one.clone() }).collect();
            }),
            "profile.offers: has 65 entries, at most 64 are allowed",
        ),
    ];
    for (change, expected) in rows {
        let mut message = profile_to_wire(published());
        change(&mut message.offers);
        let error = read(message).expect_err(expected);
        assert!(error.starts_with(&format!("Hello: {expected}")), "{error}");
    }
}
