//! A driver whose calls are measured.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use common::appliance::Name;
use common::inquiry::{LogPart, LogQuery, Verdict};
use common::kind::{KindName, StopRecipe};
use common::network_port::NetworkPort;
use common::status::InstanceEnd;
use common::{ApplianceId, SiteId};
use worker_core::desired::Desired;
use worker_core::instance::{Instance, Observation};

use super::execution::Execution;
use super::{Driver, DriverFencing, EndSender, Error, Standing, Wanted};
use crate::gate::Permit;
use crate::metrics;

/// Passes every call on to a driver, and measures those that take time. [`Driver::is_alive`] and [`Driver::standing`] are not among them:
/// they are asked thousands of times a second, and answer at once.
pub struct Measured {
    name: &'static str,
    driver: Arc<dyn Driver>,
}

impl Measured {
    /// A driver under its name in [`NAMES`](super::NAMES).
    #[must_use]
    pub fn new(name: &'static str, driver: Arc<dyn Driver>) -> Self {
        Self { name, driver }
    }

    async fn measure<T>(&self, call: &'static str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let began = Instant::now();
        let result = work.await;
        let outcome = result.as_ref().map_or_else(outcome, |_| "ok");
        metrics::driver_called(self.name, call, outcome, began.elapsed());
        result
    }
}

const fn outcome(error: &Error) -> &'static str {
    match error {
        Error::Shut(_) => "shut",
        Error::Superseded(_) => "superseded",
        Error::FenceBusy(_) => "busy",
        Error::Refused(_) => "refused",
        Error::Ended(_) => "ended",
        Error::Failed(_) => "failed",
    }
}

#[async_trait]
impl Driver for Measured {
    fn fencing(&self) -> DriverFencing {
        self.driver.fencing()
    }

    fn state_dir(&self) -> Option<&str> {
        self.driver.state_dir()
    }

    fn site(&self) -> Option<SiteId> {
        self.driver.site()
    }

    fn kinds(&self) -> BTreeSet<KindName> {
        self.driver.kinds()
    }

    fn plugs_ports(&self) -> bool {
        self.driver.plugs_ports()
    }

    fn judges(&self) -> bool {
        self.driver.judges()
    }

    async fn judge(&self, appliance: ApplianceId, desired: &Desired) -> Result<Verdict, Error> {
        self.measure("judge", self.driver.judge(appliance, desired)).await
    }

    fn keeps_logs(&self) -> bool {
        self.driver.keeps_logs()
    }

    async fn read_log(&self, query: &LogQuery) -> Result<LogPart, Error> {
        self.measure("read_log", self.driver.read_log(query)).await
    }

    async fn claim(&self, permit: &Permit) -> Result<(), Error> {
        self.measure("claim", self.driver.claim(permit)).await
    }

    async fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error> {
        self.measure("observe", self.driver.observe(appliance)).await
    }

    async fn note_answer(&self, appliance: ApplianceId, instance: &Instance) -> Result<(), Error> {
        self.measure("note_answer", self.driver.note_answer(appliance, instance)).await
    }

    async fn note_configured(&self, appliance: ApplianceId, instance: &Instance) -> Result<(), Error> {
        self.measure("note_configured", self.driver.note_configured(appliance, instance)).await
    }

    async fn is_alive(&self, appliance: ApplianceId, instance: &Instance) -> Option<bool> {
        self.driver.is_alive(appliance, instance).await
    }

    async fn standing(&self, appliance: ApplianceId, instance: &Instance) -> Option<Standing> {
        self.driver.standing(appliance, instance).await
    }

    fn watch(&self, appliance: ApplianceId, instance: &Instance, ends: &EndSender) {
        self.driver.watch(appliance, instance, ends);
    }

    async fn ended(&self, appliance: ApplianceId, instance: &Instance) -> Option<InstanceEnd> {
        let ended = async { Ok(self.driver.ended(appliance, instance).await) };
        self.measure("ended", ended).await.ok().flatten()
    }

    async fn run_beside(
        &self,
        appliance: ApplianceId,
        instance: &Instance,
        desired: &Desired,
        command: &[String],
        limit: std::time::Duration,
    ) -> Result<(), Error> {
        self.measure("run_beside", self.driver.run_beside(appliance, instance, desired, command, limit)).await
    }

    async fn execute(
        &self,
        permit: &Permit,
        instance: &Instance,
        desired: &Desired,
        command: &[String],
        limit: std::time::Duration,
    ) -> Result<Execution, Error> {
        self.measure("execute", self.driver.execute(permit, instance, desired, command, limit)).await
    }

    async fn ensure(&self, permit: &Permit, wanted: Wanted<'_>) -> Result<Instance, Error> {
        self.measure("ensure", self.driver.ensure(permit, wanted)).await
    }

    async fn expose(&self, permit: &Permit, instance: &Instance, desired: &Desired) -> Result<(), Error> {
        self.measure("expose", self.driver.expose(permit, instance, desired)).await
    }

    async fn attach(&self, permit: &Permit, instance: &Instance, port: &NetworkPort) -> Result<Instance, Error> {
        self.measure("attach", self.driver.attach(permit, instance, port)).await
    }

    async fn detach(&self, permit: &Permit, instance: &Instance, port: &Name) -> Result<Instance, Error> {
        self.measure("detach", self.driver.detach(permit, instance, port)).await
    }

    async fn destroy(&self, permit: &Permit, instance: &Instance, stop: StopRecipe) -> Result<(), Error> {
        self.measure("destroy", self.driver.destroy(permit, instance, stop)).await
    }

    async fn destroy_first(
        &self,
        permit: &Permit,
        instance: &Instance,
        others: &[Instance],
        stop: StopRecipe,
    ) -> Result<(), Error> {
        self.measure("destroy", self.driver.destroy_first(permit, instance, others, stop)).await
    }

    async fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        self.measure("list", self.driver.list()).await
    }

    async fn forget(&self, permit: &Permit) -> Result<(), Error> {
        self.measure("forget", self.driver.forget(permit)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_has_a_name_in_metrics() {
        assert_eq!(super::super::NAMES, metrics::DRIVERS);
    }
}
