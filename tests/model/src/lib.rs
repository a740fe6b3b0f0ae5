//! An exhaustive model of the hand-off: every order in which a few coordinators, workers and appliances can go on, and
//! every way in which a few faults can strike in between, checked to the end of the state space.
//!
//! The code that decides is the code that ships: `coordinator_core::machine::Machine` with lives taken from a coordination
//! service, `worker_core::session::Conversation` and `worker_core::gate::Gate`. What surrounds them is written again in its
//! simplest sound form: streams that keep their order, a store with its term and its chain of batches, a service that is
//! nodes and one ordered feed for each leader, and workers whose calls take effect when they like.
//!
//! `cargo test --profile sim -p model` checks what fits into a few minutes, `make model` all setups. A promise that falls is
//! printed with the shortest way there, or nearly the shortest.
//!
//! Simplifications, each of which leaves the behaviours that matter in place:
//! - Time goes on in steps as long as the wait for a lease (or a half of it), and whenever the checker likes. Heartbeats
//!   are committed at each step unless the worker is cut off, and count from their commit, the latest moment there is. By a
//!   leader's clock a lease lasts as long as it can: the worker's clock is slow, the leader's fast, by 5 % each.
//! - A leader plans after each thing it hears.
//! - A worker answers each delta at once, and what it is asked back it gives up at once unless a call runs.
//!
//! | file       | what it models                                               |
//! |------------|--------------------------------------------------------------|
//! | `setup`    | how many of what, which faults, how many of them              |
//! | `checker`  | the actions of every state, for `stateright`                  |
//! | `state`    | the whole, and its canonical form                             |
//! | `leader`   | coordinator processes around `Machine`, as `coordinator::leader` |
//! | `worker`   | worker processes around `Conversation` and `Gate`, as `worker::session` |
//! | `service`  | nodes, feeds, time                                            |
//! | `store`    | what is durable, and what became of a commit                  |
//! | `stranger` | what somebody without its secret says in the name of a life    |
//! | `stream`   | messages, in order within a stream                            |
//! | `shared`   | what states have in common, to save memory and time             |
//! | `promises` | what must hold                                                |

mod checker;
mod leader;
mod promises;
mod report;
mod service;
mod setup;
mod shared;
mod state;
mod store;
mod stranger;
mod stream;
mod worker;

pub use checker::{Hypothesis, ModelAction};
pub use promises::Promise;
pub use report::{BrokenPromise, Summary, alike, exhaust, find};
pub use setup::{Fault, FencingMode, Setup};
pub use state::ModelState;
