//! What placement goes by, in a file: workers, appliances and their owners, the policy, and what past rebalances moved.
//!
//! Made of what any client can read, so that a plan can be tried and history be run again without a server, and by whoever is given
//! the file. It holds names and ids, and no specification.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use common::appliance::Name;
use common::driver::{DriverCapabilities, DriverName, DriverOffers};
use common::kind::KindName;
use common::{ApplianceId, Site, Term, WorkerId};
use coordinator_core::orders::Pin;
use coordinator_core::planner::{Config, Needs, Planner, PlannerMember, Spread, Strategy};
use coordinator_core::slot::Slot;
use proto::admin::v1;
use serde::{Deserialize, Serialize};

use crate::client::AdminClient;
use crate::document::view;
use crate::error::Failure;

/// The form of these files.
const VERSION: u32 = 1;
/// Largest file that is read.
const MAX_FILE: u64 = 1 << 30;
/// Rebalances that a server keeps, at most.
const ALL_REBALANCES: usize = 100_000;

/// What placement goes by.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dump {
    version: u32,
    /// When it was made.
    pub(crate) taken: String,
    /// `bounded` or `ring`.
    pub(crate) strategy: String,
    /// Width of the band.
    pub(crate) band: f64,
    /// What is spread over zones; nothing when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    spread: String,
    pub(crate) workers: Vec<DumpedWorker>,
    pub(crate) appliances: Vec<DumpedAppliance>,
    /// Oldest first.
    pub(crate) rebalances: Vec<DumpedRebalance>,
}

/// A worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DumpedWorker {
    pub(crate) id: WorkerId,
    weight: u32,
    published_weight: u32,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    host: String,
    drivers: Vec<DumpedDriver>,
    connected: bool,
    #[serde(default)]
    draining: bool,
    #[serde(default)]
    drained: bool,
    #[serde(default)]
    cordoned: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DumpedDriver {
    name: DriverName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state_dir: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    site: String,
    kinds: Vec<String>,
}

/// An appliance.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DumpedAppliance {
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) name: String,
    key: String,
    driver: DriverName,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    site: Option<DumpedSite>,
    /// Empty when it has none.
    pub(crate) owner: String,
    #[serde(default)]
    deleting: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<DumpedPin>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DumpedSite {
    host: String,
    state_dir: String,
    #[serde(default)]
    id: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DumpedPin {
    worker: WorkerId,
    strict: bool,
}

/// What a rebalance moved.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DumpedRebalance {
    pub(crate) id: String,
    pub(crate) cause: String,
    /// Milliseconds since 1970.
    pub(crate) start_ms: u64,
    pub(crate) end_ms: u64,
    pub(crate) outcome: String,
    /// Who was there when it began; empty where that is not known.
    pub(crate) members: Vec<DumpedMember>,
    /// In the order in which they ended.
    pub(crate) moves: Vec<DumpedMove>,
}

/// A member when a rebalance began.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DumpedMember {
    pub(crate) id: WorkerId,
    pub(crate) weight: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) zone: String,
    pub(crate) takes: bool,
    #[serde(default)]
    pub(crate) gives_up: bool,
}

/// A move that was made.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DumpedMove {
    pub(crate) appliance: String,
    /// Empty when it had no owner.
    pub(crate) from: String,
    pub(crate) to: WorkerId,
    /// It had no owner before: that one was gone.
    pub(crate) orphan: bool,
    /// For how long nobody had it, in milliseconds.
    pub(crate) unowned_ms: u64,
}

fn millis(time: Option<&prost_types::Timestamp>) -> Option<u64> {
    let time = SystemTime::try_from(*time?).ok()?;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// Appliances of a dump, and where they are in a planner made of it.
pub(crate) type Places<'a> = BTreeMap<ApplianceId, (Slot, &'a DumpedAppliance)>;

impl Dump {
    /// As a server has it now, with what happened since a moment.
    pub(crate) async fn take(client: &AdminClient, since: Option<SystemTime>) -> Result<Self, Failure> {
        let ring = client.ring(false).await?;
        let workers = client.workers().await?;
        let appliances = client.list(v1::ApplianceFilter::default()).await?;
        let mut rebalances = Vec::new();
        for listed in client.rebalances(ALL_REBALANCES).await? {
            let ended = listed.end_time.and_then(|end| SystemTime::try_from(end).ok());
            // One that runs has not happened yet.
            let Some(ended) = ended else { continue };
            if since.is_some_and(|since| ended < since) {
                break;
            }
            rebalances.push(DumpedRebalance::of(&client.whole_rebalance(&listed.id).await?)?);
        }
        rebalances.reverse();
        Ok(Self {
            version: VERSION,
            taken: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            strategy: ring.strategy,
            band: ring.band,
            spread: if ring.spread == Spread::None.name() { String::new() } else { ring.spread },
            workers: workers.iter().filter(|worker| worker.member).map(DumpedWorker::of).collect::<Result<_, _>>()?,
            appliances: appliances.iter().map(DumpedAppliance::of).collect::<Result<_, _>>()?,
            rebalances,
        })
    }

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |problem: String| Failure::failed(format!("{}: {problem}", path.display()));
        let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
        if size > MAX_FILE {
            return Err(failed(format!("it has {size} bytes, at most {MAX_FILE} are read")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let dump: Self = serde_json::from_str(&text)
            .map_err(|e| failed(format!("is not what `rugctl cluster dump` writes: {e}")))?;
        if dump.version != VERSION {
            return Err(failed(format!("is of version {}, and this rugctl reads {VERSION}", dump.version)));
        }
        Ok(dump)
    }

    /// The policy that was in force, or another one.
    pub(crate) fn policy(
        &self,
        strategy: Option<&str>,
        band: Option<f64>,
        spread: Option<&str>,
    ) -> Result<Config, Failure> {
        let strategy = match strategy.unwrap_or(&self.strategy) {
            "bounded" => Strategy::Bounded,
            "ring" => Strategy::Ring,
            other => return Err(Failure::usage(format!("`{other}` is no strategy"))),
        };
        let band = band.unwrap_or(self.band);
        if !(1.0..=1_000.0).contains(&band) {
            return Err(Failure::usage("the band must be 1 to 1000"));
        }
        let spread = match spread.unwrap_or(&self.spread) {
            "" => Spread::None,
            name => Spread::find(name).ok_or_else(|| Failure::usage(format!("nothing is spread by `{name}`")))?,
        };
        Ok(Config { strategy, band, spread })
    }

    /// A planner with these appliances, and their places in it. What has an owner has the one that `owner` names.
    pub(crate) fn planner<'a>(
        &'a self,
        config: Config,
        owner: impl Fn(&'a DumpedAppliance) -> Option<WorkerId>,
    ) -> Result<(Planner, Places<'a>), Failure> {
        let mut planner = Planner::new(config, Term::new(1));
        let mut places = BTreeMap::new();
        for (at, appliance) in self.appliances.iter().enumerate() {
            let wrong = |what: &str| Failure::failed(format!("appliance {}: {what}", appliance.id));
            let id: ApplianceId = appliance.id.parse().map_err(|_| wrong("its id is none"))?;
            let kind = KindName::find(&appliance.kind).ok_or_else(|| wrong("its kind is not known"))?;
            let slot = Slot(u32::try_from(at).map_err(|_| wrong("there are too many"))?);
            let site = appliance.site.as_ref().map(DumpedSite::site).transpose().map_err(wrong)?;
            let needs = Needs { driver: appliance.driver.clone(), kind, site };
            if places.insert(id, (slot, appliance)).is_some() {
                return Err(wrong("it is there twice"));
            }
            planner.insert(slot, id, &appliance.key, needs, owner(appliance).as_ref(), None);
            let tenant = Name::new(&appliance.tenant).map_err(|_| wrong("its tenant is no name"))?;
            planner.set_tenant(slot, Some(&tenant));
            if appliance.deleting {
                planner.set_deleting(slot);
            }
            planner.set_pin(slot, appliance.pin.as_ref().map(|p| Pin { worker: p.worker.clone(), strict: p.strict }));
        }
        Ok((planner, places))
    }

    /// The workers as a planner takes them.
    pub(crate) fn members(&self) -> Result<Vec<PlannerMember>, Failure> {
        self.workers.iter().map(DumpedWorker::member).collect()
    }
}

impl DumpedAppliance {
    fn of(appliance: &v1::Appliance) -> Result<Self, Failure> {
        let assignment = appliance.assignment.clone().unwrap_or_default();
        let driver =
            appliance.driver.parse().map_err(|e| Failure::failed(format!("driver of {}: {e}", appliance.id)))?;
        let (host, state_dir, id) = (assignment.host, assignment.state_dir, assignment.site);
        let pin = assignment.pin.map(|pin| WorkerId::new(&pin.worker).map(|worker| (worker, pin.strict)));
        let pin = pin.transpose().map_err(|e| Failure::failed(format!("pin of {}: {e}", appliance.id)))?;
        let key = if appliance.placement_key.is_empty() { &appliance.id } else { &appliance.placement_key };
        Ok(Self {
            id: appliance.id.clone(),
            tenant: appliance.tenant.clone(),
            name: appliance.name.clone(),
            key: key.clone(),
            driver,
            kind: view::kind(appliance).to_owned(),
            site: (!host.is_empty()).then_some(DumpedSite { host, state_dir, id }),
            owner: assignment.worker,
            deleting: appliance.deleting,
            pin: pin.map(|(worker, strict)| DumpedPin { worker, strict }),
        })
    }

    /// Who had it when the file was made.
    pub(crate) fn owner(&self) -> Option<WorkerId> {
        WorkerId::new(&self.owner).ok()
    }
}

impl DumpedSite {
    fn site(&self) -> Result<Site, &'static str> {
        match self.id.as_str() {
            "" => Ok(Site::new(&self.host, &self.state_dir)),
            id => {
                Ok(Site::identified(id.parse().map_err(|_| "the id of its site is none")?, &self.host, &self.state_dir))
            }
        }
    }
}

impl DumpedWorker {
    fn of(worker: &v1::Worker) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::failed(format!("worker {}: {what}", worker.id));
        let driver = |offer: &v1::DriverOffer| {
            let name = offer.name.parse().map_err(|e| wrong(format!("driver: {e}")))?;
            Ok(DumpedDriver {
                name,
                state_dir: offer.state_dir.clone(),
                site: offer.site.clone(),
                kinds: offer.kinds.clone(),
            })
        };
        let left = matches!(worker.health(), v1::Health::Dead | v1::Health::Left);
        Ok(Self {
            id: WorkerId::new(&worker.id).map_err(|e| wrong(e.to_string()))?,
            weight: worker.weight,
            published_weight: worker.published_weight,
            zone: worker.zone.clone(),
            host: worker.host.clone(),
            drivers: worker.offers.iter().map(driver).collect::<Result<_, Failure>>()?,
            connected: !left,
            draining: worker.draining && !worker.drained,
            drained: worker.drained,
            cordoned: worker.cordoned,
        })
    }

    pub(crate) fn member(&self) -> Result<PlannerMember, Failure> {
        let mut drivers = Vec::new();
        for driver in &self.drivers {
            let site = match driver.site.as_str() {
                "" => None,
                id => {
                    let wrong = |_| Failure::failed(format!("worker {}: `{id}` is no id of a site", self.id));
                    Some(id.parse().map_err(wrong)?)
                }
            };
            let capabilities = DriverCapabilities {
                state_dir: driver.state_dir.clone(),
                site,
                kinds: driver.kinds.iter().filter_map(|kind| KindName::find(kind)).collect(),
                ..DriverCapabilities::default()
            };
            drivers.push((driver.name.clone(), capabilities));
        }
        Ok(PlannerMember {
            id: self.id.clone(),
            weight: self.weight,
            published_weight: self.published_weight,
            zone: self.zone.clone(),
            host: self.host.clone(),
            drivers: drivers.into_iter().collect::<DriverOffers>(),
            connected: self.connected,
            draining: self.draining,
            drained: self.drained,
            cordoned: self.cordoned,
        })
    }
}

impl DumpedRebalance {
    fn of(rebalance: &v1::Rebalance) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::failed(format!("rebalance {}: {what}", rebalance.id));
        let start_ms = millis(rebalance.start_time.as_ref()).ok_or_else(|| wrong("it has no begin".to_owned()))?;
        let end_ms = millis(rebalance.end_time.as_ref()).unwrap_or(start_ms);
        let member = |then: &v1::MemberThen| {
            let id = WorkerId::new(&then.id).map_err(|e| wrong(e.to_string()))?;
            let v1::MemberThen { weight, zone, takes, gives_up, .. } = then.clone();
            Ok(DumpedMember { id, weight, zone, takes, gives_up })
        };
        let mut moves = Vec::new();
        for made in rebalance.r#move.iter().filter(|made| made.state == "done") {
            let stages = made.stages.unwrap_or_default();
            let orphan = stages.released.is_none();
            let end = millis(made.time.as_ref()).unwrap_or(end_ms);
            // Of what had no owner it is known since when that was noticed.
            let from = if orphan { start_ms } else { millis(stages.released.as_ref()).unwrap_or(end) };
            moves.push(DumpedMove {
                appliance: made.appliance.clone(),
                from: made.from.clone(),
                to: WorkerId::new(&made.to).map_err(|e| wrong(e.to_string()))?,
                orphan,
                unowned_ms: end.saturating_sub(from),
            });
        }
        Ok(Self {
            id: rebalance.id.clone(),
            cause: rebalance.cause.clone(),
            start_ms,
            end_ms,
            outcome: rebalance.outcome.clone(),
            members: rebalance.members.iter().map(member).collect::<Result<_, Failure>>()?,
            moves,
        })
    }
}
