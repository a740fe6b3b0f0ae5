//! The driver `openstack` against real services: what it makes, what it finds, and what becomes of calls that are lost or late.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::appliance::Name;
use common::kind::{HealthCheck, KindSpec, Limits, Listener, LoadBalancer};
use servers::wait::until;
use tokio::time::Instant;
use worker::drivers::{Driver as _, Error};
use worker_core::instance::BootState;
use worker_core::ports::PluggedPort;

use crate::lab::{PATIENCE, World, is_there, patiently, wanted};
use crate::proxy::Deed;

const SERVERS: &str = "/v2.1/servers";
const PORTS: &str = "/v2.0/ports";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_made_with_its_ports_found_by_another_worker_and_removed_to_the_last_trace() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let (driver, other) = (world.driver(|_| {})?, world.driver(|_| {})?);
    let (permit, _gate) = world.permit(1);
    let desired = world.desired(&["rug-a", "rug-b"])?;
    let instance = driver.ensure(&permit, wanted(&desired, 0, 1)).await?;
    world.is_active(&instance).await?;
    let servers = world.servers().await?;
    ensure!(servers.len() == 1 && servers[0].metadata["rug_token"] == "1/1", "{servers:?}");
    let ports = world.ports().await?;
    ensure!(ports.len() == 3 && ports.iter().all(|port| port.device_id == servers[0].id.as_str()), "{ports:?}");
    // Another worker finds it as it is, with the calls of two lists.
    let before = world.nova.all_calls() + world.neutron.all_calls();
    let found = other.observe(world.appliance).await?;
    let calls = world.nova.all_calls() + world.neutron.all_calls() - before;
    ensure!(calls <= 3, "{calls} calls");
    ensure!(found.running.len() == 1 && found.attempts == [(0, 1)], "{found:?}");
    ensure!(found.running[0].ports == instance.ports && found.running[0].handle == instance.handle, "{found:?}");
    ensure!(matches!(found.running[0].boot, BootState::UnderWay { .. }), "{found:?}");
    other.note_answer(world.appliance, &found.running[0]).await?;
    ensure!(other.observe(world.appliance).await?.running[0].boot == BootState::Over, "noted");
    // It is not made twice.
    let (next, _gate) = world.permit(2);
    let again = other.ensure(&next, wanted(&desired, 0, 1)).await?;
    ensure!(again.handle == instance.handle && world.servers().await?.len() == 1, "{again:?}");
    until(PATIENCE, "it is known to be alive", async || {
        let alive = other.is_alive(world.appliance, &again).await;
        ensure!(alive == Some(true), "{alive:?}");
        Ok(())
    })
    .await?;
    world.clean_up(&other, &next).await?;
    until(PATIENCE, "its end is known to both", async || {
        for driver in [&driver, &other] {
            let alive = driver.is_alive(world.appliance, &again).await;
            ensure!(alive == Some(false), "{alive:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_and_a_port_whose_creation_was_not_answered_are_found_and_not_made_again() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let driver = world.driver(|_| {})?;
    let (permit, _gate) = world.permit(1);
    let desired = world.desired(&["rug-a"])?;
    world.nova.next(1, "POST", SERVERS, Deed::LoseAnswer);
    world.neutron.next(1, "POST", PORTS, Deed::LoseAnswer);
    let instance = driver.ensure(&permit, wanted(&desired, 0, 1)).await?;
    ensure!(world.nova.calls("POST /v2.1/servers") == 1 && world.neutron.calls("POST /v2.0/ports") == 2, "made again");
    world.is_active(&instance).await?;
    ensure!(world.servers().await?.len() == 1 && world.ports().await?.len() == 2, "{:?}", world.ports().await?);
    world.clean_up(&driver, &permit).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_create_of_a_former_owner_doubles_nothing_once_its_delay_is_over_and_would_without() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    for waits in [true, false] {
        let world = World::new().await?;
        let (former, owner) = (world.driver(|_| {})?, world.driver(|_| {})?);
        let desired = world.desired(&[])?;
        let (permit, gate) = world.permit(1);
        // Its call arrives after six seconds.
        world.neutron.next(1, "POST", PORTS, Deed::Hold(Duration::from_secs(6)));
        let began = Instant::now();
        let call = {
            let desired = desired.clone();
            tokio::spawn(async move { former.ensure(&permit, wanted(&desired, 0, 1)).await })
        };
        until(PATIENCE, "its call is under way", async || {
            ensure!(world.neutron.calls("POST /v2.0/ports") == 1, "not yet");
            Ok(())
        })
        .await?;
        // It dies there: its lease ends, and nobody listens to the answer.
        gate.shut();
        call.abort();
        if waits {
            tokio::time::sleep(Duration::from_secs(10).saturating_sub(began.elapsed())).await;
        }
        let (next, _gate) = world.permit(2);
        let instance = patiently(async || owner.ensure(&next, wanted(&desired, 0, 1)).await).await?;
        world.is_active(&instance).await?;
        tokio::time::sleep(Duration::from_secs(10).saturating_sub(began.elapsed())).await;
        let (servers, ports) = (world.servers().await?, world.ports().await?);
        ensure!(servers.len() == 1, "{servers:?}");
        if waits {
            ensure!(ports.len() == 1, "doubled: {ports:?}");
        } else {
            ensure!(ports.len() == 2, "the delay is what prevents it: {ports:?}");
            // What is doubled all the same is removed with the next boot, and the one that is plugged is kept.
            let again = patiently(async || owner.ensure(&next, wanted(&desired, 0, 1)).await).await?;
            let left = world.ports().await?;
            ensure!(again.handle == instance.handle && left.len() == 1, "{left:?}");
            ensure!(left[0].device_id == instance.handle.as_str(), "{left:?}");
        }
        world.clean_up(&owner, &next).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_delete_of_a_former_owner_is_seen_before_anything_is_done_about_the_server() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let (former, owner) = (world.driver(|_| {})?, world.driver(|_| {})?);
    let desired = world.desired(&[])?;
    let (permit, gate) = world.permit(1);
    let instance = former.ensure(&permit, wanted(&desired, 0, 1)).await?;
    world.is_active(&instance).await?;
    world.nova.next(1, "DELETE", SERVERS, Deed::Hold(Duration::from_secs(4)));
    let call = {
        let instance = instance.clone();
        tokio::spawn(async move { former.destroy(&permit, &instance, Default::default()).await })
    };
    until(PATIENCE, "its call is under way", async || {
        let id = instance.handle.as_str();
        ensure!(world.nova.calls(&format!("DELETE /v2.1/servers/{id}")) == 1, "not yet");
        Ok(())
    })
    .await?;
    gate.shut();
    call.abort();
    // During the delay it is seen to run; once that is over it is seen to be gone, and is made again under the next attempt.
    ensure!(owner.observe(world.appliance).await?.running.len() == 1, "it still runs");
    until(PATIENCE, "it is gone", async || {
        let found = owner.observe(world.appliance).await?;
        ensure!(found.running.is_empty() && found.attempts == [(0, 1)], "{found:?}");
        Ok(())
    })
    .await?;
    let (next, _gate) = world.permit(2);
    let again = patiently(async || owner.ensure(&next, wanted(&desired, 0, 2)).await).await?;
    world.is_active(&again).await?;
    let (servers, ports) = (world.servers().await?, world.ports().await?);
    ensure!(servers.len() == 1 && ports.len() == 1, "{servers:?} {ports:?}");
    world.clean_up(&owner, &next).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_has_lost_its_lease_sends_nothing_any_more() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let driver = world.driver(|_| {})?;
    let desired = world.desired(&[])?;
    let (permit, gate) = world.permit(1);
    // Its lease ends while Neutron is slow with the port.
    world.neutron.next(1, "POST", PORTS, Deed::Hold(Duration::from_secs(2)));
    let call = {
        let (driver, desired) = (driver.clone(), desired.clone());
        tokio::spawn(async move { driver.ensure(&permit, wanted(&desired, 0, 1)).await })
    };
    until(PATIENCE, "its call is under way", async || {
        ensure!(world.neutron.calls("POST /v2.0/ports") == 1, "not yet");
        Ok(())
    })
    .await?;
    gate.shut();
    let outcome = call.await?;
    ensure!(matches!(outcome, Err(Error::Shut(_))), "{outcome:?}");
    ensure!(world.nova.calls("POST /v2.1/servers") == 0 && world.servers().await?.is_empty(), "a server was made");
    ensure!(world.ports().await?.len() == 1, "what was sent was done");
    let (next, _gate) = world.permit(2);
    world.clean_up(&driver, &next).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_plugged_and_unplugged_while_the_server_runs_also_when_an_answer_is_lost() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let driver = world.driver(|_| {})?;
    let (permit, _gate) = world.permit(1);
    let desired = world.desired(&["rug-a"])?;
    let instance = driver.ensure(&permit, wanted(&desired, 0, 1)).await?;
    world.is_active(&instance).await?;
    let b = world.port("rug-b")?;
    let now = patiently(async || driver.attach(&permit, &instance, &b).await).await?;
    ensure!(now.ports.iter().count() == 2, "{:?}", now.ports);
    let again = driver.attach(&permit, &instance, &b).await?;
    ensure!(again.ports == now.ports && world.ports().await?.len() == 3, "plugged twice");
    let found = driver.observe(world.appliance).await?.running.pop().context("it runs")?;
    ensure!(found.ports == now.ports && found.macs == now.macs, "{found:?} {now:?}");
    let a = Name::new("rug-a")?;
    let now = driver.detach(&permit, &found, &a).await?;
    let left: Vec<PluggedPort> = now.ports.iter().cloned().collect();
    ensure!(left == [PluggedPort::from(&b)] && world.ports().await?.len() == 2, "{left:?}");
    ensure!(driver.detach(&permit, &now, &a).await?.ports == now.ports, "unplugging what is not plugged");
    // The answer is lost; the port is plugged all the same, once.
    let a = world.port("rug-a")?;
    world.nova.next(1, "POST", "/v2.1/servers/", Deed::LoseAnswer);
    let now = driver.attach(&permit, &now, &a).await?;
    ensure!(now.ports.iter().count() == 2 && world.ports().await?.len() == 3, "{:?}", now.ports);
    ensure!(driver.observe(world.appliance).await?.running[0].ports == now.ports, "as it is seen");
    let nowhere = common::network_port::NetworkPort { network: "0a0a0a0a-0000-0000-0000-000000000000".into(), ..b };
    let nowhere = common::network_port::NetworkPort { name: Name::new("nowhere")?, ..nowhere };
    let refused = driver.attach(&permit, &now, &nowhere).await;
    ensure!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    world.clean_up(&driver, &permit).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nova_refuses_is_told_in_its_words_and_what_it_does_not_answer_is_a_failure() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let driver = world.driver(|_| {})?;
    let (permit, _gate) = world.permit(1);
    let desired = world.desired(&[])?;
    let quota = r#"{"forbidden": {"code": 403, "message": "Quota exceeded for instances: Requested 1, but already used 9 of 9 instances"}}"#;
    world.nova.next(1, "POST", SERVERS, Deed::Answer(403, quota));
    let refused = driver.ensure(&permit, wanted(&desired, 0, 1)).await;
    ensure!(matches!(&refused, Err(Error::Refused(text)) if text.contains("quota: Quota exceeded")), "{refused:?}");
    world.nova.next(1, "POST", SERVERS, Deed::Answer(500, "{}"));
    let failed = driver.ensure(&permit, wanted(&desired, 0, 2)).await;
    ensure!(matches!(failed, Err(Error::Failed(_))), "{failed:?}");
    // Ports of attempts that came to nothing are removed with the next one.
    world.nova.next(1, "POST", SERVERS, Deed::Answer(429, "{}"));
    let instance = driver.ensure(&permit, wanted(&desired, 0, 3)).await?;
    world.is_active(&instance).await?;
    ensure!(world.ports().await?.len() == 1, "{:?}", world.ports().await?);
    let no_image = world.driver(|config| config.image = "no such image".into())?;
    let refused = no_image.ensure(&permit, wanted(&desired, 1, 1)).await;
    ensure!(matches!(&refused, Err(Error::Refused(text)) if text.contains("no such image")), "{refused:?}");
    world.clean_up(&driver, &permit).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_nova_cannot_make_is_seen_with_its_reason_and_removed_by_the_next_boot() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    // No host is in that zone, which Nova refuses at once; with hard anti-affinity the second of a pair finds no host.
    let driver = world.driver(|config| config.anti_affinity = worker::drivers::openstack::AntiAffinity::Hard)?;
    let (permit, _gate) = world.permit(1);
    let mut desired = world.desired(&[])?;
    desired.spec.replicas = 2;
    let first = driver.ensure(&permit, wanted(&desired, 0, 1)).await?;
    world.is_active(&first).await?;
    let second = driver.ensure(&permit, wanted(&desired, 1, 1)).await?;
    let problem = until(PATIENCE, "the second is known to be broken", async || {
        let alive = driver.is_alive(world.appliance, &second).await;
        ensure!(alive == Some(false), "{alive:?}");
        let problem = driver.standing(world.appliance, &second).await.and_then(|standing| standing.problem);
        // Nova says later why it is.
        problem.filter(|problem| problem.starts_with("its server is in ERROR: ")).context("no reason")
    })
    .await?;
    ensure!(problem.len() > "its server is in ERROR: ".len(), "{problem}");
    let found = driver.observe(world.appliance).await?;
    ensure!(found.running.len() == 1 && found.attempts == [(0, 1), (1, 1)], "{found:?}");
    // Softly they are on one host where there is but one.
    let soft = world.driver(|_| {})?;
    driver.destroy(&permit, &first, Default::default()).await?;
    patiently(async || driver.forget(&permit).await).await?;
    let first = soft.ensure(&permit, wanted(&desired, 0, 2)).await?;
    let second = soft.ensure(&permit, wanted(&desired, 1, 2)).await?;
    world.is_active(&first).await?;
    world.is_active(&second).await?;
    let groups = world.client.compute().server_groups().await?;
    let group = groups.iter().find(|group| group.name == format!("rug-{}", world.appliance)).context("a group")?;
    ensure!(group.members.len() == 2 && group.policy == "soft-anti-affinity", "{group:?}");
    world.clean_up(&soft, &permit).await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_looks_at_once_share_one_listing() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let driver = world.driver(|_| {})?;
    let (permit, _gate) = world.permit(1);
    let instance = driver.ensure(&permit, wanted(&world.desired(&["rug-a"])?, 0, 1)).await?;
    world.is_active(&instance).await?;
    let before = world.nova.all_calls() + world.neutron.all_calls();
    let looks: Vec<_> = (0..200)
        .map(|_| {
            let (driver, appliance) = (driver.clone(), world.appliance);
            tokio::spawn(async move { driver.observe(appliance).await })
        })
        .collect();
    for look in looks {
        let found = look.await??;
        ensure!(found.running.len() == 1 && found.running[0].ports == instance.ports, "{found:?}");
    }
    let calls = world.nova.all_calls() + world.neutron.all_calls() - before;
    ensure!(calls < 40, "{calls} calls for 200 looks");
    world.clean_up(&driver, &permit).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_no_appliance_is_listed_and_removed_on_request() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let driver = world.driver(|_| {})?;
    let (permit, _gate) = world.permit(1);
    let instance = driver.ensure(&permit, wanted(&world.desired(&["rug-a"])?, 0, 1)).await?;
    world.is_active(&instance).await?;
    ensure!(driver.orphans(&[world.appliance].into(), Duration::ZERO).await?.is_empty(), "it is wanted");
    let others = [common::ApplianceId::from_u128(1)].into();
    ensure!(driver.orphans(&others, Duration::from_secs(3_600)).await?.is_empty(), "it is young");
    let found = driver.orphans(&others, Duration::ZERO).await?;
    ensure!(found.len() == 3, "{found:?}");
    for orphan in &found {
        driver.remove_orphan(orphan).await?;
    }
    ensure!(world.servers().await?.is_empty() && world.ports().await?.is_empty(), "left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_address_of_a_load_balancer_has_a_port_and_passes_at_those_of_its_instances() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let driver = world.driver(|_| {})?;
    let (permit, _gate) = world.permit(1);
    let mut desired = world.desired(&["rug-a"])?;
    let at = |address: [u8; 4]| Listener {
        name: "http".into(),
        address: address.into(),
        port: 80,
        members: vec![],
        health_check: HealthCheck::default(),
        limits: Limits::default(),
        algorithm: Default::default(),
        proxy_protocol: None,
        trust_proxy_from: vec![],
    };
    desired.spec.kind = KindSpec::Loadbalancer(LoadBalancer { listeners: vec![at([10, 92, 200, 7])] });
    let instance = driver.ensure(&permit, wanted(&desired, 0, 1)).await?;
    ensure!(instance.secret.is_some() && instance.addresses.management.is_some(), "{instance:?}");
    world.is_active(&instance).await?;
    for _ in 0..2 {
        driver.expose(&permit, &instance, &desired).await?;
        let ports = world.ports().await?;
        let virtual_port = ports.iter().find(|port| port.name.starts_with("RUG:VIP:")).context("no port")?;
        ensure!(
            virtual_port.fixed_ips[0].ip_address == IpAddr::from([10, 92, 200, 7]) && ports.len() == 3,
            "{ports:?}"
        );
        let own = ports.iter().find(|port| port.name.starts_with("RUG:VRRP:")).context("no port")?;
        ensure!(own.port_security_enabled == Some(true), "what does not forward is checked: {own:?}");
        ensure!(
            own.allowed_address_pairs.len() == 1 && own.allowed_address_pairs[0].ip_address == "10.92.200.7",
            "{own:?}"
        );
    }
    // Another listener: the former address is nobody's any more.
    desired.spec.kind = KindSpec::Loadbalancer(LoadBalancer { listeners: vec![at([0, 0, 0, 0])] });
    driver.expose(&permit, &instance, &desired).await?;
    let ports = world.ports().await?;
    ensure!(ports.len() == 2 && ports.iter().all(|port| port.allowed_address_pairs.is_empty()), "{ports:?}");
    desired.spec.kind = KindSpec::Loadbalancer(LoadBalancer { listeners: vec![at([192, 0, 2, 1])] });
    let refused = driver.expose(&permit, &instance, &desired).await;
    ensure!(matches!(&refused, Err(Error::Refused(text)) if text.contains("192.0.2.1")), "{refused:?}");
    let other = world.driver(|_| {})?.observe(world.appliance).await?.running.pop().context("it runs")?;
    ensure!(other.secret == instance.secret && other.addresses == instance.addresses, "{other:?}");
    world.clean_up(&driver, &permit).await
}
