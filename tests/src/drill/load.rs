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
use super::ledger::{Change, Content, Existence, Ledger, Op, Outcome, Record};
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
pub struct Book {
    /// Every appliance there ever was.
    pub ledger: Ledger,
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
enum Wanted {
    Work,
    Rest,
    Stop,
}

/// Running clients. They stop when this is dropped.
#[derive(Debug)]
pub struct Load {
    book: Arc<Mutex<Book>>,
    wanted: watch::Sender<Wanted>,
    /// Clients that are between two calls and wait.
    resting: watch::Sender<usize>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts clients that draw what they do from a seed.
    #[must_use]
    pub fn start(seed: u64, size: Size, apis: &[Api]) -> Self {
        let (wanted, _) = watch::channel(Wanted::Work);
        let (resting, _) = watch::channel(0);
        let book = Arc::new(Mutex::new(Book::default()));
        let mut clients = JoinSet::new();
        for n in 0..size.clients {
            let client = Client {
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
    pub fn book(&self) -> Book {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until no call is under way and what was to be asked again was; none is begun until [`Load::work`].
    pub async fn rest(&self) {
        self.wanted.send_replace(Wanted::Rest);
        let clients = self.clients.len();
        // Each call ends within its patience.
        let _ = self.resting.subscribe().wait_for(|resting| *resting >= clients).await;
    }

    /// Goes on.
    pub fn work(&self) {
        self.wanted.send_replace(Wanted::Work);
    }

    /// Ends the clients, each after its call, and answers with the book.
    pub async fn stop(mut self) -> Book {
        self.wanted.send_replace(Wanted::Stop);
        while self.clients.join_next().await.is_some() {}
        self.book()
    }
}

fn slots(client: usize, size: Size) -> Vec<Slot> {
    let of = |driver: &'static str, count: usize| {
        (0..count).map(move |n| Slot {
            name: format!("{driver}-{client}-{n}"),
            driver,
            lives: 0,
            id: String::new(),
            generation: 0,
            state: State::Absent,
            pending: None,
        })
    };
    of("process", size.processes).chain(of("simulated", size.simulations)).collect()
}

/// What a client believes of an appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Present,
    Deleting,
}

/// One appliance after the other, under names that begin the same.
#[derive(Clone, Debug)]
struct Slot {
    name: String,
    driver: &'static str,
    lives: u32,
    id: String,
    /// The generation it was shown with last.
    generation: u64,
    state: State,
    /// A call that is to be asked again before any other: its place in the record, and itself.
    pending: Option<(usize, Call)>,
}

/// A change with its request id.
#[derive(Clone, Debug)]
enum Call {
    Create(v1::CreateApplianceRequest),
    Update(v1::UpdateApplianceRequest),
    Rebuild(v1::RebuildApplianceRequest),
    Delete(v1::DeleteApplianceRequest),
}

impl Call {
    const fn change(&self) -> Change {
        match self {
            Self::Create(_) => Change::Create,
            Self::Update(_) => Change::Update,
            Self::Rebuild(_) => Change::Rebuild,
            Self::Delete(_) => Change::Delete,
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

struct Client {
    rng: StdRng,
    apis: Vec<Api>,
    /// The coordinator it asks, until that one does not answer.
    asks: usize,
    book: Arc<Mutex<Book>>,
    slots: Vec<Slot>,
    /// Last value given to a specification.
    value: u64,
}

impl Client {
    async fn run(mut self, mut wanted: watch::Receiver<Wanted>, resting: watch::Sender<usize>) {
        loop {
            let now = *wanted.borrow_and_update();
            match now {
                Wanted::Stop => return,
                Wanted::Rest => {
                    self.settle().await;
                    resting.send_modify(|count| *count += 1);
                    let changed = wanted.wait_for(|wanted| *wanted != Wanted::Rest).await.is_ok();
                    resting.send_modify(|count| *count -= 1);
                    if !changed {
                        return;
                    }
                }
                Wanted::Work => {
                    self.step().await;
                    let pause = self.rng.random_range(PAUSE);
                    // Whoever wants it to rest need not wait for the end of the pause.
                    let _ = tokio::time::timeout(pause, wanted.changed()).await;
                }
            }
        }
    }

    fn note(&self, write: impl FnOnce(&mut Book)) {
        write(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn contradiction(&self, slot: &Slot, text: &str) {
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
                State::Absent => self.change(&mut slot, Change::Create).await,
                State::Deleting => self.look(&mut slot).await,
                State::Present => match self.rng.random_range(0..100) {
                    0..40 => self.change(&mut slot, Change::Update).await,
                    40..55 => self.change(&mut slot, Change::Rebuild).await,
                    55..70 => self.change(&mut slot, Change::Delete).await,
                    70..78 => self.check(&slot).await,
                    _ => self.look(&mut slot).await,
                },
            }
        }
        self.slots[at] = slot;
    }

    /// Makes a change and writes down that it is about to.
    async fn change(&mut self, slot: &mut Slot, change: Change) {
        let request_id = uuid(&mut self.rng);
        let mut content = None;
        if matches!(change, Change::Create | Change::Update) {
            self.value += 1;
            content = Some(Content { value: self.value, replicas: self.rng.random_range(1..=2) });
        }
        if change == Change::Create {
            slot.lives += 1;
            slot.id = uuid(&mut self.rng);
        }
        let appliance = content.map(|content| appliance(slot, content));
        let reference = Some(reference(&slot.id));
        let expected_generation = slot.generation;
        let call = match change {
            Change::Create => Call::Create(v1::CreateApplianceRequest { appliance, request_id, ..Default::default() }),
            Change::Update => Call::Update(v1::UpdateApplianceRequest {
                appliance,
                expected_generation,
                request_id,
                ..Default::default()
            }),
            Change::Rebuild => {
                Call::Rebuild(v1::RebuildApplianceRequest { appliance: reference, request_id, ..Default::default() })
            }
            Change::Delete => Call::Delete(v1::DeleteApplianceRequest {
                appliance: reference,
                expected_generation,
                request_id,
                ..Default::default()
            }),
        };
        let mut op = 0;
        self.note(|book| {
            let record = book.ledger.entry(slot.id.clone()).or_insert_with(|| Record {
                name: format!("{}-{}", slot.name, slot.lives),
                driver: slot.driver.to_owned(),
                ..Record::default()
            });
            op = record.ops.len();
            record.ops.push(Op { change, content, outcome: Outcome::Unknown });
        });
        self.ask(slot, op, call).await;
    }

    /// Asks until there is an answer or patience is over, and draws the conclusions.
    async fn ask(&mut self, slot: &mut Slot, op: usize, call: Call) {
        let answer = self.answer(&call).await;
        let outcome = match &answer {
            Ok(generation) => Outcome::Acknowledged(*generation),
            Err(status) if is_open(status.code()) => Outcome::Unknown,
            Err(_) => Outcome::Refused,
        };
        let id = slot.id.clone();
        self.note(|book| {
            match outcome {
                Outcome::Acknowledged(_) => book.figures.acknowledged += 1,
                Outcome::Refused => book.figures.refused += 1,
                Outcome::Unknown => book.figures.unknown += 1,
            }
            if let Some(op) = book.ledger.get_mut(&id).and_then(|record| record.ops.get_mut(op)) {
                op.outcome = outcome;
            }
        });
        match (call.change(), answer) {
            (Change::Create, Ok(generation)) => (slot.state, slot.generation) = (State::Present, generation),
            (Change::Update | Change::Rebuild, Ok(generation)) => slot.generation = generation,
            (Change::Delete, Ok(_)) => slot.state = State::Deleting,
            (change, Err(status)) if is_open(status.code()) => {
                // Whether it is there has to be known before anything else is asked for.
                if matches!(change, Change::Create | Change::Delete) || self.rng.random_bool(0.5) {
                    slot.pending = Some((op, call));
                } else {
                    self.look(slot).await;
                }
            }
            // A call without an answer came into force meanwhile.
            (Change::Update | Change::Delete, Err(status)) if status.code() == Code::Aborted => self.look(slot).await,
            (change, Err(status)) => {
                self.contradiction(slot, &format!("{change:?} was refused: {:?}: {}", status.code(), status.message()));
                self.look(slot).await;
            }
        }
    }

    async fn answer(&mut self, call: &Call) -> Result<u64, Status> {
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

    async fn check(&mut self, slot: &Slot) {
        let request = v1::CheckApplianceRequest { appliance: Some(reference(&slot.id)) };
        match self.apis[self.asks].appliances().check(timed(request)).await {
            Ok(_) => self.note(|book| book.figures.checks += 1),
            Err(status) if is_open(status.code()) => self.asks = (self.asks + 1) % self.apis.len(),
            // Nobody owns it just now.
            Err(_) => {}
        }
    }

    /// Reads it, and compares with what was told before. What cannot be read now is read another time.
    async fn look(&mut self, slot: &mut Slot) {
        let request = v1::GetApplianceRequest { appliance: Some(reference(&slot.id)) };
        let answer = self.apis[self.asks].appliances().get(timed(request)).await;
        let mut known = Record::default();
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
                if slot.state == State::Deleting {
                    slot.state = State::Absent;
                }
            }
            Err(_) => self.asks = (self.asks + 1) % self.apis.len(),
        }
    }
}

fn appliance(slot: &Slot, content: Content) -> v1::Appliance {
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
