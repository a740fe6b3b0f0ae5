//! The warm pool against a real Nova and Neutron: who gets a spare, and what becomes of one whose taker dies.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::appliance::Name;
use common::kind::StopRecipe;
use common::{ApplianceId, Term, Token};
use runtime::clock;
use servers::wait::until;
use worker::drivers::openstack::OpenStackDriver;
use worker::drivers::{Driver as _, Error};
use worker::gate::{Permit, SharedGate};
use worker_core::desired::Desired;
use worker_core::instance::{BootState, Instance};

use crate::lab::{PATIENCE, World, is_there, patiently, wanted};
use crate::proxy::Deed;

const SERVERS: &str = "/v2.1/servers";

/// A world with a pool of spares that have answered.
async fn pool(size: u16) -> Result<(World, OpenStackDriver, Vec<Instance>)> {
    let world = World::new().await?;
    let driver = world.driver(|config| config.spare_tenants = ["spares".to_owned()].into())?;
    let spare = spare(&world, size)?;
    let (permit, _gate) = world.permit(1);
    let mut pool = Vec::new();
    for ordinal in 0..size {
        pool.push(driver.ensure(&permit, wanted(&spare, ordinal, 1)).await?);
    }
    for instance in &pool {
        ensure!(instance.is_spare, "{instance:?}");
        world.is_active(instance).await?;
        driver.note_answer(world.appliance, instance).await?;
    }
    Ok((world, driver, pool))
}

fn spare(world: &World, size: u16) -> Result<Desired> {
    let mut spare = world.desired(&[])?;
    spare.tenant = Name::new("spares")?;
    spare.spec.replicas = size;
    Ok(spare)
}

/// Another appliance in the same cloud, and a permit for it that does not end.
fn other(sequence: u64) -> (ApplianceId, Permit) {
    let appliance = ApplianceId::from_u128(rand::random());
    let (gate, token) = (SharedGate::new(), Token::new(Term::new(1), sequence));
    gate.extend(clock::now() + Duration::from_secs(3_600));
    gate.admit(appliance, token, Duration::ZERO);
    let permit = gate.pass(appliance, token).expect("the gate is open");
    std::mem::forget(gate);
    (appliance, permit)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_want_a_spare_at_once_each_gets_another_or_none() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let (world, driver, pool) = pool(3).await?;
    let desired = world.desired(&["rug-a"])?;
    // Each by a driver of its own, as workers have.
    let claims: Vec<_> = (0..6)
        .map(|n| {
            let (appliance, permit) = other(100 + n);
            let driver = world.driver(|config| config.spare_tenants = ["spares".to_owned()].into())?;
            let (desired, own, shared) = (desired.clone(), permit.clone(), driver.clone());
            let claim = tokio::spawn(async move { driver.ensure(&own, wanted(&desired, 0, 1)).await });
            Ok((appliance, permit, shared, claim))
        })
        .collect::<Result<_>>()?;
    let mut handles = std::collections::BTreeSet::new();
    let mut from_pool = 0;
    let mut done = Vec::new();
    for (appliance, permit, driver, claim) in claims {
        let instance = claim.await??;
        ensure!(handles.insert(instance.handle.as_str().to_owned()), "one server for two");
        ensure!(!instance.is_spare, "{instance:?}");
        if let Some(spare) = pool.iter().find(|spare| spare.handle == instance.handle) {
            from_pool += 1;
            // Up at once, with the secret it was started with, and without ports, which are plugged now.
            ensure!(instance.boot == BootState::Over && instance.secret == spare.secret, "{instance:?} {spare:?}");
            ensure!(instance.addresses == spare.addresses && instance.ports.iter().count() == 0, "{instance:?}");
            let port = world.port("rug-a")?;
            let now = patiently(async || driver.attach(&permit, &instance, &port).await).await?;
            ensure!(now.ports.iter().count() == 1 && now.macs.len() == 1, "{now:?}");
            ensure!(driver.is_taken(world.appliance, spare).await == Some(true), "the pool is told");
            ensure!(driver.is_alive(world.appliance, spare).await == Some(false), "it is not the pool's any more");
        }
        let found = driver.observe(appliance).await?;
        ensure!(found.running.len() == 1 && found.running[0].handle == instance.handle, "{found:?}");
        done.push((appliance, permit, driver));
    }
    ensure!(from_pool == 3, "{from_pool} of 3 spares were taken");
    ensure!(driver.observe(world.appliance).await?.running.is_empty(), "spares are left");
    // The pool is removed: what was taken stays.
    let (permit, _gate) = world.permit(2);
    for spare in &pool {
        driver.destroy(&permit, spare, StopRecipe::default()).await?;
    }
    world.clean_up(&driver, &permit).await?;
    for (appliance, permit, driver) in done {
        let running = driver.observe(appliance).await?.running;
        ensure!(running.len() == 1, "{running:?}");
        driver.destroy(&permit, &running[0], StopRecipe::default()).await?;
        patiently(async || driver.forget(&permit).await).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_that_was_taken_and_not_finished_is_found_and_one_that_is_ended_is_not_taken() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let (world, driver, pool) = pool(2).await?;
    let desired = world.desired(&[])?;
    // Its taker dies after the port is its own: the answer about the metadata is lost, and nothing follows.
    let (appliance, permit) = other(100);
    world.nova.next(1, "POST", "/v2.1/servers/", Deed::Answer(503, "{}"));
    let died = driver.ensure(&permit, wanted(&desired, 0, 1)).await;
    ensure!(died.is_err(), "{died:?}");
    ensure!(driver.observe(appliance).await?.running.is_empty(), "it has not got its name");
    // Its next owner has another attempt, and gets the same server.
    let (next, calls) =
        (world.driver(|config| config.spare_tenants = ["spares".to_owned()].into())?, world.nova.all_calls());
    let instance = patiently(async || next.ensure(&permit, wanted(&desired, 0, 2)).await).await?;
    ensure!(pool.iter().any(|spare| spare.handle == instance.handle), "a third server: {instance:?}");
    ensure!(instance.attempt == 2 && world.nova.all_calls() > calls, "{instance:?}");
    let about = format!("rug:{}:{appliance}", world.cluster);
    let ports = world.client.network().ports(&[("description", &about)]).await?;
    ensure!(ports.len() == 1 && ports[0].device_id == instance.handle.as_str(), "{ports:?}");

    // The other one is being ended by the pool while somebody wants it: its port has been withdrawn.
    let left = pool.iter().find(|spare| spare.handle != instance.handle).context("a second")?;
    world.nova.next(1, "DELETE", SERVERS, Deed::Hold(Duration::from_secs(3)));
    let (pool_permit, _gate) = world.permit(2);
    let ends = {
        let (driver, left, permit) = (driver.clone(), left.clone(), pool_permit.clone());
        tokio::spawn(async move { driver.destroy(&permit, &left, StopRecipe::default()).await })
    };
    until(PATIENCE, "its end is asked for", async || {
        ensure!(world.nova.calls(&format!("DELETE /v2.1/servers/{}", left.handle.as_str())) == 1, "not yet");
        Ok(())
    })
    .await?;
    let (third, third_permit) = other(101);
    let booted = patiently(async || next.ensure(&third_permit, wanted(&desired, 0, 1)).await).await?;
    ensure!(booted.handle != left.handle, "it is being ended");
    ends.await??;
    world.clean_up(&driver, &pool_permit).await?;
    for (appliance, permit) in [(appliance, permit), (third, third_permit)] {
        for instance in driver.observe(appliance).await?.running {
            driver.destroy(&permit, &instance, StopRecipe::default()).await?;
        }
        patiently(async || driver.forget(&permit).await).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_of_another_flavor_or_with_ports_is_not_for_everybody() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let (world, _driver, pool) = pool(1).await?;
    let picky = world.driver(|config| {
        config.spare_tenants = ["spares".to_owned()].into();
        config.flavor = "lab.small".to_owned();
    })?;
    let (_, permit) = other(100);
    let desired = world.desired(&[])?;
    let instance = patiently(async || picky.ensure(&permit, wanted(&desired, 0, 1)).await).await?;
    ensure!(instance.handle != pool[0].handle, "it has another flavor");
    picky.destroy(&permit, &instance, StopRecipe::default()).await?;
    patiently(async || picky.forget(&permit).await).await?;
    let mut odd = spare(&world, 1)?;
    odd.spec.ports = vec![world.port("rug-a")?];
    let (permit, _gate) = world.permit(2);
    let refused = picky.ensure(&permit, wanted(&odd, 1, 1)).await;
    ensure!(matches!(&refused, Err(Error::Refused(text)) if text.contains("no ports of networks")), "{refused:?}");
    world.clean_up(&picky, &permit).await
}
