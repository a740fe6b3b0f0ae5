//! Clients that create, update, rebuild, check, read and delete appliances all the time, and write down what they asked
//! for and what they were told.
//!
//! Each has its own appliances, so that what an answer means does not depend on the others. A call that is not answered,
//! or answered with "try again", is repeated under the same request id; after [`PATIENCE`] it counts as unknown, and half
//! of those are asked again later. Calls are written down before they are made.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::admin::v1;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use uuid::Uuid;

use super::evidence::{self, VALUE};
use super::ledger::{ApplianceHistory, CallKind, CallLedger, CallOutcome, Content, Existence, RecordedCall};
use crate::cluster::api::{Api, reference};
use crate::cluster::specs;

/// How long one try may take.
const TRY: Duration = Duration::from_secs(5);
/// How long a call is repeated.
const PATIENCE: Duration = Duration::from_secs(12);
/// Between two calls of one client.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(50)..Duration::from_millis(500);
/// Contradictions kept; one is enough to fail.
const CONTRADICTIONS: usize = 50;

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Clients.
    pub clients: usize,
    /// Appliances of driver `process` for each of them.
    pub processes: usize,
    /// Appliances of driver `simulated` for each of them.
    pub simulations: usize,
}

/// What was asked for and told so far.
#[derive(Clone, Debug, Default)]
pub struct LoadRecord {
    /// Every appliance there ever was.
    pub ledger: CallLedger,
    /// Answers that contradict earlier ones.
    pub contradictions: Vec<String>,
    /// Calls by what became of them.
    pub figures: Figures,
}

/// Counts of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Changes that were acknowledged.
    pub acknowledged: u64,
    /// Changes that were refused.
    pub refused: u64,
    /// Changes whose outcome nobody said in time.
    pub unknown: u64,
    /// Tries that had to be repeated.
    pub repeated: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Checks that were answered.
    pub checks: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoadMode {
    Work,
    Rest,
    Stop,
}

/// Running clients. They stop when this is dropped.
#[derive(Debug)]
pub struct Load {
    book: Arc<Mutex<LoadRecord>>,
    wanted: watch::Sender<LoadMode>,
    /// Clients that are between two calls and wait.
    resting: watch::Sender<usize>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts clients that draw what they do from a seed.
    #[must_use]
    pub fn start(seed: u64, size: Size, apis: &[Api]) -> Self {
        let (wanted, _) = watch::channel(LoadMode::Work);
        let (resting, _) = watch::channel(0);
        let book = Arc::new(Mutex::new(LoadRecord::default()));
        let mut clients = JoinSet::new();
        for n in 0..size.clients {
            let client = LoadClient {
                rng: StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n as u64)),
                apis: apis.to_vec(),
                asks: n % apis.len().max(1),
                book: Arc::clone(&book),
                slots: slots(n, size),
                value: 0,
            };
            clients.spawn(client.run(wanted.subscribe(), resting.clone()));
        }
        Self { book, wanted, resting, clients }
    }

    /// What was asked for and told so far.
    #[must_use]
    pub fn book(&self) -> LoadRecord {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until no call is under way and what was to be asked again was; none is begun until [`Load::work`].
    pub async fn rest(&self) {
        self.wanted.send_replace(LoadMode::Rest);
        let clients = self.clients.len();
        // Each call ends within its patience.
        let _ = self.resting.subscribe().wait_for(|resting| *resting >= clients).await;
    }

    /// Goes on.
    pub fn work(&self) {
        self.wanted.send_replace(LoadMode::Work);
    }

    /// Ends the clients, each after its call, and answers with the book.
    pub async fn stop(mut self) -> LoadRecord {
        self.wanted.send_replace(LoadMode::Stop);
        while self.clients.join_next().await.is_some() {}
        self.book()
    }
}

fn slots(client: usize, size: Size) -> Vec<LoadSlot> {
    let of = |driver: &'static str, count: usize| {
        (0..count).map(move |n| LoadSlot {
            name: format!("{driver}-{client}-{n}"),
            driver,
            lives: 0,
            id: String::new(),
            generation: 0,
            state: ExpectedState::Absent,
            pending: None,
        })
    };
    of("process", size.processes).chain(of("simulated", size.simulations)).collect()
}

/// What a client believes of an appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpectedState {
    Absent,
    Present,
    Deleting,
}

/// One appliance after the other, under names that begin the same.
#[derive(Clone, Debug)]
struct LoadSlot {
    name: String,
    driver: &'static str,
    lives: u32,
    id: String,
    /// The generation it was shown with last.
    generation: u64,
    state: ExpectedState,
    /// A call that is to be asked again before any other: its place in the record, and itself.
    pending: Option<(usize, LoadCall)>,
}

/// A change with its request id.
#[derive(Clone, Debug)]
enum LoadCall {
    Create(v1::CreateApplianceRequest),
    Update(v1::UpdateApplianceRequest),
    Rebuild(v1::RebuildApplianceRequest),
    Delete(v1::DeleteApplianceRequest),
}

impl LoadCall {
    const fn change(&self) -> CallKind {
        match self {
            Self::Create(_) => CallKind::Create,
            Self::Update(_) => CallKind::Update,
            Self::Rebuild(_) => CallKind::Rebuild,
            Self::Delete(_) => CallKind::Delete,
        }
    }

    /// One try. Answers with the generation that is in force then.
    async fn send(&self, api: &Api) -> Result<u64, Status> {
        let mut appliances = api.appliances();
        let appliance = match self.clone() {
            Self::Create(request) => appliances.create(timed(request)).await?.into_inner(),
            Self::Update(request) => {
                appliances.update(timed(request)).await?.into_inner().appliance.unwrap_or_default()
            }
            Self::Rebuild(request) => appliances.rebuild(timed(request)).await?.into_inner(),
            Self::Delete(request) => appliances.delete(timed(request)).await?.into_inner(),
        };
        Ok(appliance.generation)
    }
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(TRY);
    request
}

/// Whether an answer leaves open what became of the call.
const fn is_open(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal)
}

struct LoadClient {
    rng: StdRng,
    apis: Vec<Api>,
    /// The coordinator it asks, until that one does not answer.
    asks: usize,
    book: Arc<Mutex<LoadRecord>>,
    slots: Vec<LoadSlot>,
    /// Last value given to a specification.
    value: u64,
}

impl LoadClient {
    async fn run(mut self, mut wanted: watch::Receiver<LoadMode>, resting: watch::Sender<usize>) {
        loop {
            let now = *wanted.borrow_and_update();
            match now {
                LoadMode::Stop => return,
                LoadMode::Rest => {
                    self.settle().await;
                    resting.send_modify(|count| *count += 1);
                    let changed = wanted.wait_for(|wanted| *wanted != LoadMode::Rest).await.is_ok();
                    resting.send_modify(|count| *count -= 1);
                    if !changed {
                        return;
                    }
                }
                LoadMode::Work => {
                    self.step().await;
                    let pause = self.rng.random_range(PAUSE);
                    // Whoever wants it to rest need not wait for the end of the pause.
                    let _ = tokio::time::timeout(pause, wanted.changed()).await;
                }
            }
        }
    }

    fn note(&self, write: impl FnOnce(&mut LoadRecord)) {
        write(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn contradiction(&self, slot: &LoadSlot, text: &str) {
        let text = format!("{} {}: {text}", slot.name, slot.id);
        self.note(|book| {
            if book.contradictions.len() < CONTRADICTIONS {
                book.contradictions.push(text);
            }
        });
    }

    /// Asks once more what was to be asked again.
    async fn settle(&mut self) {
        for at in 0..self.slots.len() {
            let mut slot = self.slots[at].clone();
            if let Some((op, call)) = slot.pending.take() {
                self.ask(&mut slot, op, call).await;
                self.slots[at] = slot;
            }
        }
    }

    /// One call about one appliance.
    async fn step(&mut self) {
        if self.slots.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.slots.len());
        let mut slot = self.slots[at].clone();
        if let Some((op, call)) = slot.pending.take() {
            self.ask(&mut slot, op, call).await;
        } else {
            match slot.state {
                ExpectedState::Absent => self.change(&mut slot, CallKind::Create).await,
                ExpectedState::Deleting => self.look(&mut slot).await,
                ExpectedState::Present => match self.rng.random_range(0..100) {
                    0..40 => self.change(&mut slot, CallKind::Update).await,
                    40..55 => self.change(&mut slot, CallKind::Rebuild).await,
                    55..70 => self.change(&mut slot, CallKind::Delete).await,
                    70..78 => self.check(&slot).await,
                    _ => self.look(&mut slot).await,
                },
            }
        }
        self.slots[at] = slot;
    }

    /// Makes a change and writes down that it is about to.
    async fn change(&mut self, slot: &mut LoadSlot, change: CallKind) {
        let request_id = uuid(&mut self.rng);
        let mut content = None;
        if matches!(change, CallKind::Create | CallKind::Update) {
            self.value += 1;
            content = Some(Content { value: self.value, replicas: self.rng.random_range(1..=2) });
        }
        if change == CallKind::Create {
            slot.lives += 1;
            slot.id = uuid(&mut self.rng);
        }
        let appliance = content.map(|content| appliance(slot, content));
        let reference = Some(reference(&slot.id));
        let expected_generation = slot.generation;
        let call = match change {
            CallKind::Create => {
                LoadCall::Create(v1::CreateApplianceRequest { appliance, request_id, ..Default::default() })
            }
            CallKind::Update => LoadCall::Update(v1::UpdateApplianceRequest {
                appliance,
                expected_generation,
                request_id,
                ..Default::default()
            }),
            CallKind::Rebuild => LoadCall::Rebuild(v1::RebuildApplianceRequest {
                appliance: reference,
                request_id,
                ..Default::default()
            }),
            CallKind::Delete => LoadCall::Delete(v1::DeleteApplianceRequest {
                appliance: reference,
                expected_generation,
                request_id,
                ..Default::default()
            }),
        };
        let mut op = 0;
        self.note(|book| {
            let record = book.ledger.entry(slot.id.clone()).or_insert_with(|| ApplianceHistory {
                name: format!("{}-{}", slot.name, slot.lives),
                driver: slot.driver.to_owned(),
                ..ApplianceHistory::default()
            });
            op = record.ops.len();
            record.ops.push(RecordedCall { change, content, outcome: CallOutcome::Unknown });
        });
        self.ask(slot, op, call).await;
    }

    /// Asks until there is an answer or patience is over, and draws the conclusions.
    async fn ask(&mut self, slot: &mut LoadSlot, op: usize, call: LoadCall) {
        let answer = self.answer(&call).await;
        let outcome = match &answer {
            Ok(generation) => CallOutcome::Acknowledged(*generation),
            Err(status) if is_open(status.code()) => CallOutcome::Unknown,
            Err(_) => CallOutcome::Refused,
        };
        let id = slot.id.clone();
        self.note(|book| {
            match outcome {
                CallOutcome::Acknowledged(_) => book.figures.acknowledged += 1,
                CallOutcome::Refused => book.figures.refused += 1,
                CallOutcome::Unknown => book.figures.unknown += 1,
            }
            if let Some(op) = book.ledger.get_mut(&id).and_then(|record| record.ops.get_mut(op)) {
                op.outcome = outcome;
            }
        });
        match (call.change(), answer) {
            (CallKind::Create, Ok(generation)) => (slot.state, slot.generation) = (ExpectedState::Present, generation),
            (CallKind::Update | CallKind::Rebuild, Ok(generation)) => slot.generation = generation,
            (CallKind::Delete, Ok(_)) => slot.state = ExpectedState::Deleting,
            (change, Err(status)) if is_open(status.code()) => {
                // Whether it is there has to be known before anything else is asked for.
                if matches!(change, CallKind::Create | CallKind::Delete) || self.rng.random_bool(0.5) {
                    slot.pending = Some((op, call));
                } else {
                    self.look(slot).await;
                }
            }
            // A call without an answer came into force meanwhile.
            (CallKind::Update | CallKind::Delete, Err(status)) if status.code() == Code::Aborted => {
                self.look(slot).await
            }
            (change, Err(status)) => {
                self.contradiction(slot, &format!("{change:?} was refused: {:?}: {}", status.code(), status.message()));
                self.look(slot).await;
            }
        }
    }

    async fn answer(&mut self, call: &LoadCall) -> Result<u64, Status> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let answer = call.send(&self.apis[self.asks]).await;
            let open = matches!(&answer, Err(status) if is_open(status.code()));
            if !open || begun.elapsed() >= PATIENCE {
                return answer;
            }
            self.note(|book| book.figures.repeated += 1);
            self.asks = (self.asks + 1) % self.apis.len();
            tokio::time::sleep(pause.mul_f64(self.rng.random_range(0.5..1.0))).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn check(&mut self, slot: &LoadSlot) {
        let request = v1::CheckApplianceRequest { appliance: Some(reference(&slot.id)) };
        match self.apis[self.asks].appliances().check(timed(request)).await {
            Ok(_) => self.note(|book| book.figures.checks += 1),
            Err(status) if is_open(status.code()) => self.asks = (self.asks + 1) % self.apis.len(),
            // Nobody owns it just now.
            Err(_) => {}
        }
    }

    /// Reads it, and compares with what was told before. What cannot be read now is read another time.
    async fn look(&mut self, slot: &mut LoadSlot) {
        let request = v1::GetApplianceRequest { appliance: Some(reference(&slot.id)) };
        let answer = self.apis[self.asks].appliances().get(timed(request)).await;
        let mut known = ApplianceHistory::default();
        self.note(|book| known = book.ledger.get(&slot.id).cloned().unwrap_or_default());
        match answer {
            Ok(appliance) => {
                let shown = evidence::show(&appliance.into_inner());
                let texts = known.contradictions(Some(&shown));
                texts.iter().for_each(|text| self.contradiction(slot, &format!("read: {text}")));
                slot.generation = shown.generation;
                self.note(|book| {
                    book.figures.reads += 1;
                    if let Some(record) = book.ledger.get_mut(&slot.id) {
                        record.seen = record.seen.max(shown.generation);
                    }
                });
            }
            Err(status) if status.code() == Code::NotFound => {
                if known.existence() == Existence::Must {
                    self.contradiction(slot, "read: its creation was acknowledged, and it is not found");
                }
                self.note(|book| book.figures.reads += 1);
                if slot.state == ExpectedState::Deleting {
                    slot.state = ExpectedState::Absent;
                }
            }
            Err(_) => self.asks = (self.asks + 1) % self.apis.len(),
        }
    }
}

fn appliance(slot: &LoadSlot, content: Content) -> v1::Appliance {
    let name = format!("{}-{}", slot.name, slot.lives);
    let mut appliance = if slot.driver == "process" { specs::web(&name) } else { specs::simulated(&name) };
    appliance.id.clone_from(&slot.id);
    specs::custom(&mut appliance).env.insert(VALUE.to_owned(), content.value.to_string());
    specs::spec(&mut appliance).replicas = i32::try_from(content.replicas).ok();
    appliance
}

fn uuid(rng: &mut StdRng) -> String {
    Uuid::from_u128(rng.random()).to_string()
}
