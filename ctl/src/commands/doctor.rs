//! `rugctl doctor`: what is wrong, why, and which command helps.
//!
//! Queries every configured coordinator, the cluster and its workers once, and evaluates the responses in [`checks`].
//! Nothing is changed. A *problem* is what an operator should act on now: appliances without an owner, a violated
//! invariant, components that do not answer; the exit code says whether there is one.

mod checks;

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use proto::admin::v1;
use serde::Serialize;

use crate::commands::CommandContext;
use crate::error::{Exit, Failure};
use crate::output::{Tone, Ui, count, width, wrap};
use crate::text::one_line;

/// Default timeout for one coordinator (`--timeout`): one that does not answer must not delay the checks of the others.
const LOOK: Duration = Duration::from_secs(5);

/// Widths of the first two columns: severity and name of the check.
const INDENT: (usize, usize) = (9, 14);

/// Narrowest text column. In narrower terminals, breaking lines does not help.
const NARROWEST: usize = 30;

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Severity {
    Ok,
    Warning,
    Problem,
}

impl Severity {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Self::Ok => Tone::Good,
            Self::Warning => Tone::Busy,
            Self::Problem => Tone::Bad,
        }
    }
}

/// Result of one check, as printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    state: Severity,
    /// One sentence.
    summary: String,
    /// Affected objects, one per line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<String>,
    /// Commands and measures that help.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    advice: Vec<String>,
}

/// One coordinator and its response.
#[derive(Debug)]
struct CoordinatorReply {
    address: String,
    /// Its role and the state of the cluster, or why it did not answer.
    answer: Result<LeadAndStatus, String>,
}

#[derive(Debug)]
struct LeadAndStatus {
    leads: bool,
    /// A standby forwards this query to the leader, so it can fail although the coordinator answers.
    status: Result<v1::ClusterStatus, String>,
}

/// All responses.
#[derive(Debug)]
struct Inspection {
    servers: Vec<CoordinatorReply>,
    workers: Result<Vec<v1::Worker>, String>,
    now: SystemTime,
}

#[derive(Debug, Serialize)]
struct DoctorReport {
    problems: usize,
    warnings: usize,
    checks: Vec<Finding>,
}

/// Runs the command.
///
/// # Errors
/// A [`Failure`] without a message when there is a problem.
pub(crate) async fn run(context: &CommandContext) -> Result<(), Failure> {
    let checks = checks::judge(&look(context).await);
    let number = |state| checks.iter().filter(|check| check.state == state).count();
    let report = DoctorReport { problems: number(Severity::Problem), warnings: number(Severity::Warning), checks };
    if context.ui.format.is_structured() {
        context.ui.print_value(&report)?;
    } else {
        context.ui.print(&render(&context.ui, &report, width()))?;
    }
    if report.problems > 0 { Err(Failure::new(Exit::Failed, "")) } else { Ok(()) }
}

async fn look(context: &CommandContext) -> Inspection {
    let client = context.client.once(context.timeout.unwrap_or(LOOK));
    let ask = async |one: crate::client::AdminClient| {
        let address = one.address().to_owned();
        let (leads, status) = tokio::join!(one.leads(), one.status());
        let told = |failure: Failure| why(&address, &failure);
        let answer = match (leads, status) {
            (Ok(leads), status) => Ok(LeadAndStatus { leads, status: status.map_err(told) }),
            // The role query failed and the status query did not: a version without the role query.
            (Err(_), Ok(status)) => Ok(LeadAndStatus { leads: false, status: Ok(status) }),
            (Err(failure), Err(_)) => Err(told(failure)),
        };
        CoordinatorReply { address, answer }
    };
    let (servers, workers) = tokio::join!(join_all(client.each().into_iter().map(ask)), client.workers());
    let workers = workers.map_err(|failure| one_line(&failure.to_string()));
    Inspection { servers, workers, now: SystemTime::now() }
}

/// Why a coordinator did not answer, without its address, which is printed beside it, and without the general advice.
fn why(address: &str, failure: &Failure) -> String {
    let text = failure.to_string();
    let first = text.lines().next().unwrap_or_default();
    one_line(first.strip_prefix(&format!("no answer from {address}: ")).unwrap_or(first))
}

fn render(ui: &Ui, report: &DoctorReport, width: Option<usize>) -> String {
    let indent = INDENT.0 + INDENT.1;
    let room = width.map_or(usize::MAX, |width| width.saturating_sub(indent).max(NARROWEST));
    let mut text = String::new();
    for check in &report.checks {
        let state = format!("{:<1$}", check.state.word(), INDENT.0);
        let head = format!("{}{:<2$}", ui.paint(check.state.tone(), &state), check.check, INDENT.1);
        for (n, line) in wrap(&one_line(&check.summary), room).into_iter().enumerate() {
            let _ = writeln!(text, "{}{line}", if n == 0 { head.clone() } else { " ".repeat(indent) });
        }
        let hanging = |text: &mut String, mark: &str, line: &str| {
            for (n, line) in wrap(&one_line(line), room.saturating_sub(mark.len())).into_iter().enumerate() {
                let mark = if n == 0 { mark.to_owned() } else { " ".repeat(mark.len()) };
                let _ = writeln!(text, "{:indent$}{mark}{line}", "");
            }
        };
        check.details.iter().for_each(|line| hanging(&mut text, "- ", line));
        check.advice.iter().for_each(|line| hanging(&mut text, "> ", line));
    }
    let (problems, warnings) = (report.problems as u64, report.warnings as u64);
    let verdict = match (problems, warnings) {
        (0, 0) => "nothing is wrong".to_owned(),
        (0, _) => count(warnings, "warning"),
        (_, 0) => count(problems, "problem"),
        _ => format!("{}, {}", count(problems, "problem"), count(warnings, "warning")),
    };
    let worst = report.checks.iter().map(|check| check.state).max().unwrap_or(Severity::Ok);
    let _ = write!(text, "\n{}", ui.paint(worst.tone(), &verdict));
    text
}

#[cfg(test)]
mod tests;
