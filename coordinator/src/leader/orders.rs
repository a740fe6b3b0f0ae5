//! Orders of operators about placement, as the leader takes them: checked, stored, told to the machine, shown, and answered, in
//! this order. One at a time is being stored, so that each is checked against all that are in force: of two drains at
//! once the second knows of the first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use common::appliance::{FieldViolation, Name};
use common::change::ApplianceTarget;
use common::ring::MAX_WEIGHT;
use common::{ApplianceId, WorkerId};
use coordinator_core::machine::Event;
use coordinator_core::orders::{OrderOp, Orders, Pin};
use coordinator_core::planner::{LastAble, Strategy};
use runtime::clock;

use super::Leader;
use super::commands::audit_event;
use super::writes::OrderChange;
use crate::commands::{CommandError, Operator, Reply};
use crate::record::{AuditEvent, OrderNote, OrderRecord};
use crate::views::{MAX_ORDERED, OrdersView, PinView, WorkerOrdersView};

/// Sorts of appliances that a refusal lists.
const MAX_LISTED: usize = 3;

/// The orders in force, and who gave them.
#[derive(Debug, Default)]
pub(super) struct OrderBook {
    workers: BTreeMap<WorkerId, Arc<WorkerOrdersView>>,
    pins: BTreeMap<ApplianceId, Arc<PinView>>,
    budgets: BTreeMap<Name, OrderNote>,
}

impl OrderBook {
    /// As the store has them, but for pins of appliances that it does not have any more.
    pub(super) fn restore(mut records: Vec<OrderRecord>, is_there: impl Fn(ApplianceId) -> bool) -> (Self, Orders) {
        records.retain(|record| match &record.order {
            OrderOp::Pin { appliance, .. } => is_there(*appliance),
            OrderOp::Cordon { .. } | OrderOp::Drain { .. } | OrderOp::Weight { .. } | OrderOp::Budget { .. } => true,
        });
        let orders = Orders::of(records.iter().map(|record| &record.order));
        let mut book = Self::default();
        records.into_iter().for_each(|record| book.apply(record));
        (book, orders)
    }

    pub(super) fn apply(&mut self, OrderRecord { order, note }: OrderRecord) {
        let note = order.is_set().then_some(note);
        if let OrderOp::Budget { name, .. } = order {
            match note {
                Some(note) => _ = self.budgets.insert(name, note),
                None => _ = self.budgets.remove(&name),
            }
            return;
        }
        if let OrderOp::Pin { appliance, pin } = order {
            let view = pin.zip(note).map(|(Pin { worker, strict }, note)| PinView { worker, strict, note });
            match view {
                Some(view) => _ = self.pins.insert(appliance, Arc::new(view)),
                None => _ = self.pins.remove(&appliance),
            }
            return;
        }
        let Some(worker) = order.worker().cloned() else { return };
        let mut view = self.worker(&worker).map_or_else(WorkerOrdersView::default, |view| (*view).clone());
        match order {
            OrderOp::Cordon { .. } => view.cordon = note,
            OrderOp::Drain { .. } => view.drain = note,
            OrderOp::Weight { weight, .. } => view.weight = weight.zip(note),
            OrderOp::Pin { .. } | OrderOp::Budget { .. } => {}
        }
        if view.is_empty() {
            self.workers.remove(&worker);
        } else {
            self.workers.insert(worker, Arc::new(view));
        }
    }

    /// What is ordered about a worker, if anything is.
    pub(super) fn worker(&self, worker: &WorkerId) -> Option<Arc<WorkerOrdersView>> {
        self.workers.get(worker).cloned()
    }

    /// Who set a budget.
    pub(super) fn budget(&self, name: &Name) -> Option<OrderNote> {
        self.budgets.get(name).cloned()
    }

    /// Where an appliance is to be.
    pub(super) fn pin(&self, appliance: ApplianceId) -> Option<Arc<PinView>> {
        self.pins.get(&appliance).cloned()
    }

    /// Nothing is left of an appliance, nor of its pin in the store.
    pub(super) fn removed(&mut self, appliance: ApplianceId) {
        self.pins.remove(&appliance);
    }

    pub(super) fn view(&self) -> OrdersView {
        let workers = self.workers.iter().take(MAX_ORDERED).map(|(worker, view)| (worker.clone(), Arc::clone(view)));
        OrdersView { workers: workers.collect(), worker_count: self.workers.len(), pins: self.pins.len() }
    }
}

impl Leader<'_> {
    /// Gives orders, or takes them back, all at once; in force once they are stored.
    pub(super) fn order(&mut self, ops: Vec<OrderOp>, force: bool, request: &Operator, reply: Reply<()>) {
        if reply.is_closed() {
            // The caller's deadline has passed, as for changes.
            return;
        }
        if self.waiting.is_storing_orders() {
            return drop(reply.send(Err(CommandError::Contended)));
        }
        if let Some(error) = ops.iter().find_map(|op| self.check_order(op, force).err()) {
            return drop(reply.send(Err(error)));
        }
        let ops: Vec<OrderOp> = ops.into_iter().filter(|op| self.changes_something(op)).collect();
        if ops.is_empty() {
            return drop(reply.send(Ok(())));
        }
        let note = OrderNote { reason: request.reason.clone(), by: request.actor.clone(), since: SystemTime::now() };
        let audit = ops.iter().map(|op| order_event(op, request)).collect();
        let records = ops.into_iter().map(|order| OrderRecord { order, note: note.clone() }).collect();
        self.waiting.set_storing_orders(true);
        self.writes.order(OrderChange { records, audit, reply });
    }

    /// The store has orders: they are in force.
    pub(super) fn ordered(&mut self, change: OrderChange) {
        let OrderChange { records, audit, reply } = change;
        audit.iter().for_each(AuditEvent::log);
        self.waiting.set_storing_orders(false);
        for record in &records {
            let gone = matches!(&record.order, OrderOp::Pin { appliance, .. } if self.machine.table().slot(*appliance).is_none());
            if !gone {
                self.publisher.orders.apply(record.clone());
            }
        }
        self.step(Event::Orders(records.into_iter().map(|record| record.order).collect()));
        // The caller reads the catalog next.
        self.publisher.flush();
        self.publisher.show_workers(&self.machine, clock::now());
        self.publisher.show_cluster(&self.machine, &self.notes, clock::now());
        let _ = reply.send(Ok(()));
        self.admission.settle();
    }

    /// The store does not have orders.
    pub(super) fn not_ordered(&mut self, change: OrderChange, error: &crate::store::Error) {
        self.waiting.set_storing_orders(false);
        let _ = change.reply.send(Err(CommandError::Unavailable(error.to_string())));
        self.admission.settle();
    }

    /// Whether an order is another one than is in force. One that is given again has another reason, and is written.
    fn changes_something(&self, op: &OrderOp) -> bool {
        let orders = self.machine.orders();
        op.is_set()
            || match op {
                OrderOp::Cordon { worker, .. } => orders.is_cordoned(worker),
                OrderOp::Drain { worker, .. } => orders.is_drained(worker),
                OrderOp::Weight { worker, .. } => orders.weight(worker).is_some(),
                OrderOp::Pin { appliance, .. } => orders.pin(*appliance).is_some(),
                OrderOp::Budget { name, .. } => orders.budgets().contains_key(name),
            }
    }

    pub(super) fn check_order(&self, op: &OrderOp, force: bool) -> Result<(), CommandError> {
        let is_about =
            op.worker().or(if let OrderOp::Pin { pin: Some(pin), .. } = op { Some(&pin.worker) } else { None });
        let is_known = |worker: &WorkerId| self.machine.knows(worker) || self.publisher.orders.worker(worker).is_some();
        if let Some(worker) = is_about.filter(|worker| !is_known(worker)) {
            return Err(CommandError::NoWorker(worker.clone()));
        }
        if !op.is_set() {
            return Ok(());
        }
        if self.machine.config().planner.strategy == Strategy::Ring
            && !matches!(op, OrderOp::Drain { .. } | OrderOp::Budget { .. })
        {
            let subject = is_about.map(ToString::to_string).unwrap_or_default();
            return Err(CommandError::RingDecides(subject));
        }
        if self.machine.orders().has_no_room_for(op) {
            return Err(CommandError::TooManyOrders);
        }
        match op {
            OrderOp::Cordon { .. } | OrderOp::Budget { .. } => Ok(()),
            OrderOp::Drain { worker, .. } if force || self.machine.orders().is_drained(worker) => Ok(()),
            OrderOp::Drain { worker, .. } => self.check_drain(worker),
            OrderOp::Weight { weight, .. } => {
                let in_range = weight.is_none_or(|weight| (1..=MAX_WEIGHT).contains(&weight));
                let problem = format!("must be 1 to {MAX_WEIGHT}; cordon or drain a worker that is to have nothing");
                if in_range { Ok(()) } else { Err(CommandError::Invalid(vec![FieldViolation::new("weight", problem)])) }
            }
            OrderOp::Pin { appliance, pin } => self.check_pin(*appliance, pin.as_ref()),
        }
    }

    /// Whether others can take what a worker has.
    fn check_drain(&self, worker: &WorkerId) -> Result<(), CommandError> {
        let mut what = self.machine.planner().only_for(worker);
        what.sort_by_key(|last| std::cmp::Reverse(last.appliances));
        let pinned = self.machine.orders().pins().filter(|(_, pin)| pin.strict && pin.worker == *worker).count();
        if what.is_empty() && pinned == 0 {
            return Ok(());
        }
        Err(CommandError::LastAble { worker: worker.clone(), what: describe_last(&what, pinned) })
    }

    fn check_pin(&self, appliance: ApplianceId, pin: Option<&Pin>) -> Result<(), CommandError> {
        let table = self.machine.table();
        let found = table.slot(appliance).and_then(|slot| Some((slot, table.get(slot)?)));
        let Some((slot, row)) = found else { return Err(CommandError::NotFound(ApplianceTarget::Id(appliance))) };
        if row.deleting {
            return Err(CommandError::Deleting(appliance));
        }
        let lack = pin.and_then(|pin| Some((pin, self.machine.planner().lack(slot, &pin.worker)?)));
        match lack {
            None => Ok(()),
            Some((pin, lack)) => {
                Err(CommandError::CannotTake { appliance, worker: pin.worker.clone(), why: lack.to_string() })
            }
        }
    }
}

/// What only one worker can take.
fn describe_last(what: &[LastAble], pinned: usize) -> String {
    let mut text = String::new();
    let appliances = |n: u64| if n == 1 { "1 appliance".to_owned() } else { format!("{n} appliances") };
    for LastAble { needs, appliances: n } in what.iter().take(MAX_LISTED) {
        let site = needs.site.as_ref().map(|site| format!(", kept on {site}")).unwrap_or_default();
        let _ = write!(text, "{} of driver `{}` and kind `{}`{site}; ", appliances(*n), needs.driver, needs.kind);
    }
    if what.len() > MAX_LISTED {
        let rest = what.iter().skip(MAX_LISTED).map(|last| last.appliances).sum();
        let _ = write!(text, "{} of {} other sorts; ", appliances(rest), what.len() - MAX_LISTED);
    }
    if pinned > 0 {
        let _ = write!(text, "{} pinned to it alone; ", appliances(pinned as u64));
    }
    text.truncate(text.trim_end_matches("; ").len());
    text
}

/// The line of the audit trail about an order.
fn order_event(op: &OrderOp, request: &Operator) -> AuditEvent {
    let (action, what) = match op {
        OrderOp::Cordon { set: true, .. } => ("cordon", String::new()),
        OrderOp::Cordon { set: false, .. } => ("uncordon", String::new()),
        OrderOp::Drain { set: true, .. } => ("drain", String::new()),
        OrderOp::Drain { set: false, .. } => ("undrain", String::new()),
        OrderOp::Weight { weight: Some(weight), .. } => ("weight", weight.to_string()),
        OrderOp::Weight { weight: None, .. } => ("weight", "as published".to_owned()),
        OrderOp::Pin { pin: Some(Pin { worker, strict }), .. } => {
            ("pin", if *strict { format!("to {worker} alone") } else { format!("to {worker}") })
        }
        OrderOp::Pin { pin: None, .. } => ("unpin", String::new()),
        OrderOp::Budget { budget: Some(budget), .. } => {
            ("budget-set", format!("{} unavailable per {}", budget.max_unavailable, budget.per.name()))
        }
        OrderOp::Budget { budget: None, .. } => ("budget-clear", String::new()),
    };
    let subject = match op {
        OrderOp::Pin { appliance, .. } => appliance.to_string(),
        OrderOp::Budget { name, .. } => name.to_string(),
        OrderOp::Cordon { worker, .. } | OrderOp::Drain { worker, .. } | OrderOp::Weight { worker, .. } => {
            worker.to_string()
        }
    };
    let reason = match (what.is_empty(), request.reason.is_empty()) {
        (true, _) => request.reason.clone(),
        (false, true) => what,
        (false, false) => format!("{what}: {}", request.reason),
    };
    audit_event(action, &subject, &Operator { reason, actor: request.actor.clone() })
}

#[cfg(test)]
mod tests {
    use common::driver::DriverName;
    use common::kind::KindName;
    use coordinator_core::planner::Needs;

    use super::*;

    fn worker() -> WorkerId {
        WorkerId::new("w1").expect("a valid name")
    }

    fn record(order: OrderOp) -> OrderRecord {
        let note = OrderNote { reason: "disks".into(), by: "me".into(), since: SystemTime::UNIX_EPOCH };
        OrderRecord { order, note }
    }

    #[test]
    fn orders_are_shown_until_all_of_them_are_taken_back() {
        let id = ApplianceId::from_u128(1);
        let pin = |strict| OrderOp::Pin { appliance: id, pin: Some(Pin { worker: worker(), strict }) };
        let (mut book, orders) = OrderBook::restore(
            vec![
                record(OrderOp::Drain { worker: worker(), set: true }),
                record(OrderOp::Weight { worker: worker(), weight: Some(3) }),
                record(pin(true)),
                record(OrderOp::Pin {
                    appliance: ApplianceId::from_u128(2),
                    pin: Some(Pin { worker: worker(), strict: true }),
                }),
            ],
            |appliance| appliance == id,
        );
        assert!(orders.is_drained(&worker()) && orders.pin(id).is_some_and(|pin| pin.strict));
        assert_eq!((book.view().worker_count, book.view().pins), (1, 1));
        let shown = book.worker(&worker()).expect("something is ordered");
        assert_eq!((shown.cordon.clone(), shown.weight.as_ref().map(|w| w.0)), (None, Some(3)));
        assert_eq!(shown.drain.as_ref().map(|note| note.reason.as_str()), Some("disks"));
        book.apply(record(pin(false)));
        assert!(book.pin(id).is_some_and(|pin| !pin.strict));
        book.apply(record(OrderOp::Drain { worker: worker(), set: false }));
        book.apply(record(OrderOp::Weight { worker: worker(), weight: None }));
        book.removed(id);
        assert_eq!(book.view(), OrdersView::default());
    }

    #[test]
    fn what_only_one_worker_can_take_is_listed_in_short() {
        let needs = |site: Option<&str>| Needs {
            driver: DriverName::process(),
            kind: KindName::Custom,
            site: site.map(Into::into),
        };
        let last = |site, appliances| LastAble { needs: needs(site), appliances };
        assert_eq!(
            describe_last(&[last(Some("h1"), 3), last(None, 1)], 2),
            "3 appliances of driver `process` and kind `custom`, kept on h1; 1 appliance of driver `process` and kind `custom`; \
             2 appliances pinned to it alone"
        );
        let many: Vec<_> = (0..5).map(|_| last(None, 2)).collect();
        assert!(describe_last(&many, 0).ends_with("; 4 appliances of 2 other sorts"));
    }

    #[test]
    fn the_audit_trail_says_what_was_ordered() {
        let request = Operator { reason: "disks".into(), actor: "me".into() };
        let event = order_event(&OrderOp::Weight { worker: worker(), weight: Some(2) }, &request);
        assert_eq!(
            (event.action.as_str(), event.subject.as_str(), event.detail.as_str()),
            ("weight", "w1", "2: disks")
        );
        let unreasoned = Operator { reason: String::new(), ..request };
        let event = order_event(&OrderOp::Cordon { worker: worker(), set: false }, &unreasoned);
        assert_eq!((event.action.as_str(), event.detail.as_str()), ("uncordon", ""));
    }
}
