//! The service `Placement`: queries about the ring, pausing placement, freeing appliances from lost hosts, pinning them, and plans.

use std::collections::{HashMap, HashSet};

use common::appliance::FieldViolation;
use common::change::ApplianceTarget;
use common::ring::position;
use common::site::SITE_RULE;
use common::{RebalanceId, Site, WorkerId};
use coordinator_core::orders::{MAX_PINS, OrderOp, Pin};
use proto::admin::v1 as wire;
use tonic::{Request, Response, Status};

use super::call::{Caller, access, context, reason};
use super::wire as to_wire;
use super::{Access, plans, status};
use crate::commands::{CommandContext, CommandError, PlanAssumptions, ShownPlan};

/// Default number of members in a `Locate` response.
const DEFAULT_COUNT: usize = 3;
/// Largest number of members in a `Locate` response.
const MAX_COUNT: usize = 100;
/// Longest key of a query, in bytes.
const MAX_KEY: usize = 4096;
/// Points of the ring in one response: what fits into a message.
const MAX_POINTS: usize = 50_000;

pub(super) struct PlacementService {
    caller: Caller,
}

impl PlacementService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

#[tonic::async_trait]
impl wire::placement_server::Placement for PlacementService {
    async fn locate(&self, request: Request<wire::LocateRequest>) -> Result<Response<wire::LocateResponse>, Status> {
        use wire::locate_request::What;
        let access = access(&request)?;
        let message = request.into_inner();
        let (key, assignment) = match message.what {
            None => return Err(status::invalid(&[FieldViolation::new("what", "give an appliance or a key")])),
            Some(What::Key(key)) if key.len() > MAX_KEY => {
                let problem = format!("has {} bytes, at most {MAX_KEY} are allowed", key.len());
                return Err(status::invalid(&[FieldViolation::new("key", problem)]));
            }
            Some(What::Key(key)) => (key, None),
            Some(What::Appliance(reference)) => {
                let entry = self.caller.find(&access, Some(reference))?;
                (entry.record.placement_key.clone(), Some(to_wire::assignment(&entry.assignment)))
            }
        };
        let count = match usize::try_from(message.count) {
            Ok(0) => DEFAULT_COUNT,
            Ok(n) => n.min(MAX_COUNT),
            Err(_) => MAX_COUNT,
        };
        let view = self.caller.catalog.ring().ok_or_else(status::starting)?;
        Ok(Response::new(wire::LocateResponse {
            position: to_wire::position(position(&key)),
            preference: view.ring.preference(&key).take(count).map(ToString::to_string).collect(),
            key,
            assignment,
        }))
    }

    async fn get_ring(&self, request: Request<wire::GetRingRequest>) -> Result<Response<wire::Ring>, Status> {
        let view = self.caller.catalog.ring().ok_or_else(status::starting)?;
        let ring = &view.ring;
        let points = if request.into_inner().points { ring.points() } else { &[] };
        if points.len() > MAX_POINTS {
            let problem = format!("the ring has {} points, more than fit into an answer", points.len());
            return Err(status::invalid(&[FieldViolation::new("points", problem)]));
        }
        let members = ring.members().zip(ring.shares()).map(|((id, weight), (_, share))| wire::RingMember {
            id: id.to_string(),
            weight,
            share,
            appliances: self.caller.catalog.held_by(id).total(),
        });
        Ok(Response::new(wire::Ring {
            version: view.version,
            members: members.collect(),
            points: points
                .iter()
                .map(|p| wire::RingPoint {
                    position: to_wire::position(p.position),
                    member: ring.name(p.member).to_string(),
                })
                .collect(),
            strategy: to_wire::strategy(view.strategy).to_owned(),
            band: view.band,
            spread: view.spread.name().to_owned(),
        }))
    }

    async fn pause(
        &self,
        request: Request<wire::PausePlacementRequest>,
    ) -> Result<Response<wire::PlacementState>, Status> {
        let context = context(&request)?;
        let wire::PausePlacementRequest { reason: why, moves_only } = request.into_inner();
        let reason = reason(why)?;
        self.state_after(self.caller.commands.pause(&context, moves_only, reason).await)
    }

    async fn resume(
        &self,
        request: Request<wire::ResumePlacementRequest>,
    ) -> Result<Response<wire::PlacementState>, Status> {
        self.state_after(self.caller.commands.resume(&context(&request)?).await)
    }

    async fn unbind(&self, request: Request<wire::UnbindRequest>) -> Result<Response<wire::UnbindResponse>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let wire::UnbindRequest { appliance, host, state_dir, reason: why, site } = request.into_inner();
        let reason = reason(why)?;
        if host.is_empty() && !(state_dir.is_empty() && site.is_empty()) {
            return Err(status::invalid(&[FieldViolation::new("host", "is needed with a state directory or a site")]));
        }
        let bound = match site.as_str() {
            "" => Site::new(&host, &state_dir),
            id => match id.parse() {
                Ok(id) => Site::identified(id, &host, &state_dir),
                Err(_) => return Err(status::invalid(&[FieldViolation::new("site", SITE_RULE)])),
            },
        };
        let id = self.caller.find(&access, appliance)?.record.id;
        let bound = (!host.is_empty()).then_some(bound);
        let freed =
            self.caller.commands.unbind(&context, id, bound, reason).await.map_err(|e| status::from_command(&e))?;
        let (host, dir) = freed.as_ref().map_or(("", ""), |site| (site.host(), site.state_dir()));
        let site = to_wire::site_id(freed.as_ref());
        Ok(Response::new(wire::UnbindResponse { host: host.to_owned(), state_dir: dir.to_owned(), site }))
    }

    async fn plan(&self, request: Request<wire::PlanRequest>) -> Result<Response<wire::PlacementPlan>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let wire::PlanRequest { assumptions, page_size, page_token } = request.into_inner();
        let (assumptions, notes) = self.assumptions(&access, assumptions).await?;
        let part = plans::part(page_size, &page_token)?;
        let view = self.caller.commands.plan(&context, assumptions, part.clone()).await;
        let plan = plans::to_wire(&view.map_err(|e| status::from_command(&e))?, &part);
        Ok(Response::new(wire::PlacementPlan { notes, ..plan }))
    }

    async fn apply(
        &self,
        request: Request<wire::ApplyPlanRequest>,
    ) -> Result<Response<wire::ApplyPlanResponse>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let wire::ApplyPlanRequest { assumptions, id, version, force, reason: why } = request.into_inner();
        let (assumptions, _) = self.assumptions(&access, assumptions).await?;
        let (shown, reason) = (ShownPlan { id, version }, reason(why)?);
        let applied = self.caller.commands.apply_plan(&context, assumptions, shown, force, reason).await;
        applied.map_err(|e| status::from_command(&e))?;
        Ok(Response::new(wire::ApplyPlanResponse {}))
    }

    async fn pin(&self, request: Request<wire::PinRequest>) -> Result<Response<wire::Appliance>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let wire::PinRequest { appliance, worker, strict, reason } = request.into_inner();
        let worker =
            WorkerId::new(&worker).map_err(|e| status::invalid(&[FieldViolation::new("worker", e.to_string())]))?;
        self.set_pin((&context, &access), appliance, Some(Pin { worker, strict }), reason).await
    }

    async fn unpin(&self, request: Request<wire::UnpinRequest>) -> Result<Response<wire::Appliance>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let wire::UnpinRequest { appliance, reason } = request.into_inner();
        self.set_pin((&context, &access), appliance, None, reason).await
    }
}

impl PlacementService {
    /// What a plan assumes, and what to know about it.
    async fn assumptions(
        &self,
        access: &Access,
        assumed: Option<wire::PlanAssumptions>,
    ) -> Result<(PlanAssumptions, Vec<String>), Status> {
        let undo = assumed.as_ref().map(|assumed| assumed.undo.clone()).unwrap_or_default();
        let find = |reference| Ok(self.caller.find(access, reference)?.record.id);
        let mut assumptions = plans::assumptions(assumed, find)?;
        if undo.is_empty() {
            return Ok((assumptions, Vec::new()));
        }
        let (pins, notes) = self.undo(&undo).await?;
        assumptions.orders.extend(pins);
        Ok((assumptions, notes))
    }

    /// The pins that undo a rebalance: whatever it moved from one worker to another, and is where it came to, to its former owner.
    async fn undo(&self, id: &str) -> Result<(Vec<OrderOp>, Vec<String>), Status> {
        let id: RebalanceId = id.parse().map_err(|e: common::id::InvalidRebalanceId| {
            status::invalid(&[FieldViolation::new("assumptions.undo", e.to_string())])
        })?;
        if self.caller.catalog.rebalance(id).is_some_and(|view| view.record.ended.is_none()) {
            return Err(status::from_command(&CommandError::StillRebalancing(id)));
        }
        let stored = self.caller.history.rebalance(id).await.map_err(|e| status::from_history(&e))?;
        let (_, moves) = stored.ok_or_else(|| status::not_found("rebalance", &id.to_string()))?;
        let view = self.caller.catalog.ring().ok_or_else(status::starting)?;
        let members: HashSet<&WorkerId> = view.ring.members().map(|(id, _)| id).collect();
        let (mut first, mut last) = (HashMap::new(), HashMap::new());
        for made in moves.iter().filter(|made| made.done) {
            if let Some(from) = &made.from {
                first.entry(made.appliance).or_insert(from);
            }
            last.insert(made.appliance, &made.to);
        }
        let (mut pins, mut moved_on, mut gone) = (Vec::new(), 0, 0);
        let mut ordered: Vec<_> = first.into_iter().collect();
        ordered.sort();
        for (appliance, from) in ordered {
            let entry = self.caller.catalog.get(&ApplianceTarget::Id(appliance));
            let owner = entry.filter(|entry| !entry.record.deleting).and_then(|e| e.assignment.worker.clone());
            if owner.as_ref() != last.get(&appliance).copied() {
                moved_on += 1;
            } else if !members.contains(from) {
                gone += 1;
            } else if owner.as_ref() != Some(from) {
                pins.push(OrderOp::Pin { appliance, pin: Some(Pin { worker: from.clone(), strict: false }) });
            }
        }
        if pins.len() > MAX_PINS {
            return Err(status::from_command(&CommandError::TooManyOrders));
        }
        let mut notes = Vec::new();
        if !pins.is_empty() {
            notes.push(format!("undo of {id}: {} pinned to the workers that had them before; unpin them to let the balance decide again", pins.len()));
        }
        if moved_on > 0 {
            notes.push(format!("{moved_on} that {id} moved are gone, or elsewhere by now, and left alone"));
        }
        if gone > 0 {
            notes.push(format!(
                "{gone} that {id} moved came from workers that are not there any more, and are left alone"
            ));
        }
        Ok((pins, notes))
    }

    async fn set_pin(
        &self,
        (context, access): (&CommandContext, &Access),
        appliance: Option<wire::ApplianceRef>,
        pin: Option<Pin>,
        why: String,
    ) -> Result<Response<wire::Appliance>, Status> {
        let reason = reason(why)?;
        let id = self.caller.find(access, appliance)?.record.id;
        let order = OrderOp::Pin { appliance: id, pin };
        let ordered = self.caller.commands.order(context, vec![order], false, reason).await;
        ordered.map_err(|e| status::from_command(&e))?;
        let found = self.caller.catalog.get(&ApplianceTarget::Id(id));
        let entry = found.ok_or_else(|| status::not_found("appliance", &id.to_string()))?;
        Ok(Response::new(to_wire::appliance(&entry, access)))
    }

    /// The state of placement after a command.
    fn state_after(&self, done: Result<(), CommandError>) -> Result<Response<wire::PlacementState>, Status> {
        done.map_err(|e| status::from_command(&e))?;
        let (cluster, ..) = self.caller.catalog.cluster().ok_or_else(status::starting)?;
        Ok(Response::new(wire::PlacementState {
            frozen: cluster.placement.frozen.as_ref().map(to_wire::frozen),
            paused: cluster.placement.paused.as_ref().map(to_wire::paused),
        }))
    }
}
