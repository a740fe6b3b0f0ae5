//! Runs that workers tell of. They are for people: what cannot be read of one leaves that one out, and ends no stream.

use std::time::Duration;

use common::appliance::Name;
use common::run::{
    MAX_RUN_ERROR, MAX_RUN_PARTS, MAX_RUN_WORD, MAX_RUNS, PhaseChange, Run, RunBatch, RunOutcome, RunStep,
};
use common::text::escaped;
use common::{ApplianceId, Generation};

use super::admin::{phase_from_wire, phase_to_wire};
use super::scalar::{clip, duration_from_wire, duration_to_wire};
use super::worker::id_to_wire;
use crate::worker::v1 as wire;

/// Longest time that a run is believed to have taken, or to have ended ago.
const MAX_TIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Adds a batch of runs to a message of a worker, which is a report.
pub fn add_runs(message: &mut wire::WorkerMessage, batch: RunBatch) {
    let Some(wire::worker_message::Body::Report(report)) = &mut message.body else { return };
    report.run_batch = batch.number;
    report.runs = batch.runs.into_iter().map(run_to_wire).collect();
}

fn run_to_wire(run: Run) -> wire::Run {
    let step = |step: RunStep| {
        let RunStep { step, outcome, took } = step;
        wire::RunStep { step: clip(&step, MAX_RUN_WORD), outcome, took: Some(duration_to_wire(took)) }
    };
    let change = |change: PhaseChange| wire::PhaseChange {
        from: phase_to_wire(change.from).into(),
        to: phase_to_wire(change.to).into(),
        cause: change.cause,
        after: Some(duration_to_wire(change.after)),
    };
    wire::Run {
        id: run.id.to_be_bytes().to_vec(),
        appliance: id_to_wire(run.appliance),
        tenant: run.tenant.to_string(),
        name: run.name.to_string(),
        generation: run.generation.get(),
        cause: run.cause,
        outcome: run.outcome.name().to_owned(),
        error: clip(&run.error, MAX_RUN_ERROR),
        ago: Some(duration_to_wire(run.ago)),
        took: Some(duration_to_wire(run.took)),
        steps: run.steps.into_iter().map(step).collect(),
        changes: run.changes.into_iter().map(change).collect(),
    }
}

/// Reads the runs of a report; `None` when it has none.
pub(super) fn runs_from_wire(number: u64, runs: Vec<wire::Run>) -> Option<RunBatch> {
    (number > 0).then(|| RunBatch { number, runs: runs.into_iter().take(MAX_RUNS).filter_map(run_from_wire).collect() })
}

fn run_from_wire(run: wire::Run) -> Option<Run> {
    let step = |step: wire::RunStep| RunStep {
        step: word(&step.step),
        outcome: word(&step.outcome),
        took: time(step.took.as_ref()),
    };
    let change = |change: wire::PhaseChange| {
        Some(PhaseChange {
            from: phase_from_wire(change.from)?,
            to: phase_from_wire(change.to)?,
            cause: word(&change.cause),
            after: time(change.after.as_ref()),
        })
    };
    Some(Run {
        id: u128::from_be_bytes(<[u8; 16]>::try_from(&run.id[..]).ok()?),
        appliance: ApplianceId::from_bytes(<[u8; 16]>::try_from(&run.appliance[..]).ok()?),
        tenant: Name::new(&run.tenant).ok()?,
        name: Name::new(&run.name).ok()?,
        generation: Generation::new(run.generation),
        cause: word(&run.cause),
        outcome: RunOutcome::of_name(&run.outcome)?,
        error: clip(&escaped(&run.error), MAX_RUN_ERROR),
        ago: time(run.ago.as_ref()),
        took: time(run.took.as_ref()),
        steps: run.steps.into_iter().take(MAX_RUN_PARTS).map(step).collect(),
        changes: run.changes.into_iter().take(MAX_RUN_PARTS).filter_map(change).collect(),
    })
}

fn word(text: &str) -> String {
    clip(&escaped(text), MAX_RUN_WORD)
}

/// What cannot be read, or believed, of a time is none.
fn time(wire: Option<&prost_types::Duration>) -> Duration {
    wire.and_then(|wire| duration_from_wire(wire).ok()).unwrap_or_default().min(MAX_TIME)
}

#[cfg(test)]
mod tests {
    use common::StreamNumber;
    use common::Term;
    use common::session::{Envelope, Report, ToCoordinator};
    use common::status::Phase;

    use super::super::up::{up_from_wire, up_to_wire};
    use super::*;

    fn run(n: u128) -> Run {
        Run {
            id: n,
            appliance: ApplianceId::from_u128(7),
            tenant: Name::new("demo").expect("a name"),
            name: Name::new("web").expect("a name"),
            generation: Generation::new(3),
            cause: "rebuild".into(),
            outcome: RunOutcome::Failed,
            error: "no image".into(),
            ago: Duration::from_secs(2),
            took: Duration::from_secs(9),
            steps: vec![RunStep { step: "boot 0".into(), outcome: "failed".into(), took: Duration::from_secs(4) }],
            changes: vec![PhaseChange {
                from: Phase::Down,
                to: Phase::Booting,
                cause: "rebuild".into(),
                after: Duration::ZERO,
            }],
        }
    }

    #[test]
    fn runs_go_with_a_report_and_one_that_cannot_be_read_is_left_out() {
        let envelope = Envelope { term: Term::new(1), incarnation: None, stream: StreamNumber::new(1) };
        let mut message = up_to_wire(&envelope, ToCoordinator::Report(Report::default()));
        let batch = RunBatch { number: 5, runs: vec![run(1), run(2), run(3)] };
        add_runs(&mut message, batch.clone());
        assert_eq!(up_from_wire(message.clone()).expect("readable").runs, Some(batch));
        let Some(wire::worker_message::Body::Report(report)) = &mut message.body else { panic!("a report") };
        report.runs[1].outcome = "brilliant".into();
        report.runs[2].steps[0].step = "x".repeat(1_000);
        let read = up_from_wire(message).expect("readable").runs.expect("there are some");
        assert_eq!(read.runs.iter().map(|run| run.id).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(read.runs[1].steps[0].step.len(), MAX_RUN_WORD);
    }
}
