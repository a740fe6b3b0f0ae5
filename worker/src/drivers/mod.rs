//! Drivers: where instances run. Each creates, finds, plugs and removes them; none decides anything about an appliance.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use common::appliance::Name;
use common::inquiry::{LogPart, LogQuery, Verdict};
use common::kind::{KindName, StopRecipe};
use common::network_port::NetworkPort;
use common::status::InstanceEnd;
use common::{ApplianceId, SiteId};
use tokio::sync::mpsc;
use worker_core::desired::Desired;
use worker_core::instance::{Addresses, Instance, Observation};

pub use crate::error::Error;
use crate::gate::Permit;
use execution::Execution;

pub mod execution;
pub mod kubernetes;
pub mod measured;
pub mod openstack;
pub mod process;
pub mod simulated;

/// The drivers that this program has.
pub const NAMES: [&str; 4] = [process::NAME, simulated::NAME, kubernetes::NAME, openstack::NAME];

/// How a call is kept from taking effect once its caller is no longer the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverFencing {
    /// The far side refuses an older token.
    Token,
    /// Nobody there checks tokens: each call asks [`Permit::check_unfenced`] last, and a new owner waits this long (longest
    /// request plus the backend's own completion bound) after the lease of the former one, and after its own call that
    /// timed out or failed.
    Delay(Duration),
}

/// One instance to be started.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Position among the replicas.
    pub ordinal: u16,
    /// Attempt to make; names the instance.
    pub attempt: u32,
    /// What the appliance shall be, with the network ports that the instance gets.
    pub desired: &'a Desired,
    /// Digest to start it with; [`Driver::observe`] and [`Driver::list`] answer it unchanged.
    pub boot_digest: &'a str,
    /// Attempt that runs at the same ordinal and goes on: the new one takes its service over. Only one that was answered with
    /// [`Instance::hands_over`].
    pub beside: Option<u32>,
}

/// An instance that does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedInstance {
    /// Its appliance.
    pub appliance: ApplianceId,
    /// Position among the replicas.
    pub ordinal: u16,
    /// Attempt that started it.
    pub attempt: u32,
}

/// What a driver knows of an instance now that may have changed since it was started or found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Where it can be reached.
    pub addresses: Addresses,
    /// Why it cannot be reached, or is not well, in the words of where it runs.
    pub problem: Option<String>,
    /// Why what the driver knows of it is out of date. Says nothing about the instance: no reason to replace it.
    pub doubt: Option<String>,
}

/// Where drivers report instances that have ended. Bounded by its receiver.
pub type EndSender = mpsc::Sender<EndedInstance>;

/// Where instances run.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// How its calls are fenced.
    fn fencing(&self) -> DriverFencing;

    /// Where it keeps its instances on this host, as an absolute path, when only workers that use it can tell what runs
    /// there. Such a driver is host-bound, and its appliances stay with workers of that directory.
    fn state_dir(&self) -> Option<&str> {
        None
    }

    /// Id of that directory, which is kept in it: what appliances are bound to. Without one, host and path stand for it.
    fn site(&self) -> Option<SiteId> {
        None
    }

    /// Kinds of appliances it can run: those whose launch recipe it can carry out.
    fn kinds(&self) -> BTreeSet<KindName> {
        KindName::ALL.iter().copied().collect()
    }

    /// Whether it can plug network ports into instances that run. Where it cannot, a change of ports replaces instances.
    fn plugs_ports(&self) -> bool {
        false
    }

    /// Whether it can say what is against instances of a specification before there is one.
    fn judges(&self) -> bool {
        false
    }

    /// What is against instances of this, of an appliance that may not exist and that another worker may own. Needs no permit: it changes
    /// nothing. An error says that it could not be found out.
    async fn judge(&self, _appliance: ApplianceId, _desired: &Desired) -> Result<Verdict, Error> {
        Err(Error::Failed("this driver judges no specifications".into()))
    }

    /// Whether it keeps what instances print.
    fn keeps_logs(&self) -> bool {
        false
    }

    /// Part of what an instance has printed, of at most [`MAX_LOG_PART`](common::inquiry::MAX_LOG_PART) bytes. Needs no permit: it changes
    /// nothing. Of an instance that has printed nothing, or that there never was, the part is empty.
    async fn read_log(&self, _query: &LogQuery) -> Result<LogPart, Error> {
        Err(Error::Refused("this driver keeps no output of instances".into()))
    }

    /// Raises the token at the far side, so that nothing its former owner still has under way can take effect. Meant to
    /// be called once per grant, before anything else; every call that changes the world does it as well.
    async fn claim(&self, permit: &Permit) -> Result<(), Error> {
        Ok(permit.check()?)
    }

    /// Instances of one appliance that are running now, by ordinal and attempt, and the newest attempts of which there is a
    /// trace. Changes nothing.
    async fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error>;

    /// Notes beside an instance that it answered a probe, so that its next owner knows that its boot is over. Called for what is
    /// [`BootState::UnderWay`](worker_core::instance::BootState::UnderWay) after its first answer. Needs no permit: it says what was
    /// seen, which stays true whoever owns the appliance, and changes nothing of the instance.
    async fn note_answer(&self, _appliance: ApplianceId, _instance: &Instance) -> Result<(), Error> {
        Ok(())
    }

    /// Notes that an instance has accepted a configuration, where something beside it has to know of that before it sends it work. Called
    /// after each configuration that was put in place; repeating it changes nothing. Needs no permit, as [`Driver::note_answer`].
    async fn note_configured(&self, _appliance: ApplianceId, _instance: &Instance) -> Result<(), Error> {
        Ok(())
    }

    /// Whether exactly this instance runs, where the driver can tell without effort: it is asked before every probe, up
    /// to 10,000 times a second. `None` when it cannot tell; the probe and [`Driver::observe`] decide then. Changes nothing.
    async fn is_alive(&self, _appliance: ApplianceId, _instance: &Instance) -> Option<bool> {
        None
    }

    /// What is known of an instance now, where that may be another thing than was known when it was started: its addresses, and what
    /// keeps it from being well. Asked before every probe, as [`Driver::is_alive`] is. `None` where nothing of that changes.
    async fn standing(&self, _appliance: ApplianceId, _instance: &Instance) -> Option<Standing> {
        None
    }

    /// Reports to `ends`, once, as soon as exactly this instance does not run any more, and at once if it does not run now. Returns
    /// immediately; repeating it changes nothing. A report may be lost: the next probe finds what has ended.
    fn watch(&self, _appliance: ApplianceId, _instance: &Instance, _ends: &EndSender) {}

    /// How an instance that does not run any more ended, where the driver knows. Changes nothing.
    async fn ended(&self, _appliance: ApplianceId, _instance: &Instance) -> Option<InstanceEnd> {
        None
    }

    /// Whether another appliance has taken an instance that was a spare; `None` when that cannot be said now. Changes nothing.
    async fn is_taken(&self, _appliance: ApplianceId, _instance: &Instance) -> Option<bool> {
        Some(false)
    }

    /// Runs a command beside an instance, as the same user and with the same variables, and waits for it for `limit` at most. Succeeds
    /// when it ends with exit status 0; [`Error::Failed`] says what it had to say otherwise. Nothing it has started goes on.
    async fn run_beside(
        &self,
        _appliance: ApplianceId,
        _instance: &Instance,
        _desired: &Desired,
        _command: &[String],
        _limit: Duration,
    ) -> Result<(), Error> {
        Err(Error::Refused("this driver cannot run a command beside an instance".into()))
    }

    /// Runs a command of an operator in an instance: as the same user, with the same variables, within what the instance may. Changes what
    /// that command changes. Ended with the right of the permit, which is asked again and again, and with the instance.
    async fn execute(
        &self,
        _permit: &Permit,
        _instance: &Instance,
        _desired: &Desired,
        _command: &[String],
        _limit: Duration,
    ) -> Result<Execution, Error> {
        Err(Error::Refused("this driver cannot run commands in instances".into()))
    }

    /// Starts an instance with its network ports, or finds the one of the same name running. Does not wait for it to answer
    /// probes. Another attempt that still runs at the ordinal, and is not [`Wanted::beside`], is [`Error::Failed`]: ending it is the caller's decision. So is
    /// plugging what an instance that was found lacks.
    async fn ensure(&self, permit: &Permit, wanted: Wanted<'_>) -> Result<Instance, Error>;

    /// Makes the service of an instance reachable as its configuration will have it, where something beside the instance has to know of
    /// that. Called before each configuration is put in place. Repeating it changes nothing.
    async fn expose(&self, permit: &Permit, _: &Instance, _: &Desired) -> Result<(), Error> {
        Ok(permit.check()?)
    }

    /// Plugs a network port into an instance that runs, and answers the instance as it is then. One that is plugged already is
    /// found and not plugged twice, also when an earlier call was not answered. Another port of the same name was detached
    /// before.
    ///
    /// [`Error::Failed`] several times in a row makes the caller replace the instance, [`Error::Refused`] never does: it says
    /// that a new instance could not have the port either. Of a driver fenced by tokens, calls of one token take effect in
    /// their order; of others the caller waits for the fence delay after a call without an answer.
    async fn attach(&self, _: &Permit, _: &Instance, _: &NetworkPort) -> Result<Instance, Error> {
        Err(Error::Refused("this driver cannot plug ports into a running instance".into()))
    }

    /// Removes a network port from an instance that runs, and answers the instance as it is then. Removing one that is not
    /// plugged succeeds.
    async fn detach(&self, _: &Permit, _: &Instance, _: &Name) -> Result<Instance, Error> {
        Err(Error::Refused("this driver cannot plug ports into a running instance".into()))
    }

    /// Ends one instance, in the way that `stop` says where it runs a process, and removes what it left. Ending one that is not there succeeds.
    async fn destroy(&self, permit: &Permit, instance: &Instance, stop: StopRecipe) -> Result<(), Error>;

    /// The same, where `others` of the appliance are to be ended as well, each by a call of its own that follows. A driver that may
    /// have to wait long for each ends them with this one, at the same time; only what becomes of `instance` is told. Dropped
    /// and called again, with another `stop`, it ends them by that.
    async fn destroy_first(
        &self,
        permit: &Permit,
        instance: &Instance,
        others: &[Instance],
        stop: StopRecipe,
    ) -> Result<(), Error> {
        let _ = others;
        self.destroy(permit, instance, stop).await
    }

    /// Every instance this driver can see on its host, for adoption and orphan search. Changes nothing.
    async fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error>;

    /// Removes what is left of an appliance after its last instance was destroyed.
    async fn forget(&self, permit: &Permit) -> Result<(), Error>;
}
