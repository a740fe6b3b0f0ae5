//! What the leader asks beside the protocol: answered on the stream that it came on, in time, and never in the way.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use common::execution::{ExecAnswer, ExecCommand, ExecStep};
use common::inquiry::{Answer, Finding, Inquiry, MAX_OPEN_INQUIRIES, Question, Verdict};
use common::kind::StopRecipe;
use common::{StreamNumber, TraceContext};
use proto::convert::inquiry::inquiry_to_wire;
use worker_core::instance::{Instance, Observation};

use super::*;
use crate::drivers::{Driver, DriverFencing, Error, Wanted};
use crate::gate::Permit;
use crate::kinds::Standard;
use crate::offer::Offer;

/// Judges by names, and does nothing else.
struct Judge;

#[async_trait]
impl Driver for Judge {
    fn fencing(&self) -> DriverFencing {
        DriverFencing::Token
    }

    fn kinds(&self) -> BTreeSet<common::kind::KindName> {
        BTreeSet::new()
    }

    fn judges(&self) -> bool {
        true
    }

    async fn judge(&self, _: ApplianceId, desired: &Desired) -> Result<Verdict, Error> {
        match desired.name.as_str() {
            "held" => std::future::pending().await,
            "away" => Err(Error::Failed("the API server is away".into())),
            _ => Ok(Verdict::Accepted),
        }
    }

    async fn observe(&self, _: ApplianceId) -> Result<Observation, Error> {
        unreachable!("nothing is owned")
    }

    async fn ensure(&self, _: &Permit, _: Wanted<'_>) -> Result<Instance, Error> {
        unreachable!("nothing is owned")
    }

    async fn destroy(&self, _: &Permit, _: &Instance, _: StopRecipe) -> Result<(), Error> {
        unreachable!("nothing is owned")
    }

    async fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        unreachable!("nothing is owned")
    }

    async fn forget(&self, _: &Permit) -> Result<(), Error> {
        unreachable!("nothing is owned")
    }
}

/// What the sessions of these tests are asked about.
pub(super) fn drivers() -> Drivers {
    runtime::tls::install_provider();
    let protocol = Standard::new().expect("an HTTP client can be made");
    let judge = Offer { driver: Arc::new(Judge), protocol: Arc::new(protocol) };
    BTreeMap::from([(DriverName::simulated(), judge)]).into()
}

impl Conn {
    async fn ask_as(&self, envelope: Envelope, number: u64, name: &str, driver: DriverName, within: Duration) {
        let desired = Desired { name: Name::new(name).expect("a name"), driver, ..Desired::clone(&desired()) };
        let question = Question::Judge { appliance: A, desired: Box::new(desired) };
        let inquiry = Inquiry { number, within, call: TraceContext::default(), question };
        self.out.send(Ok(inquiry_to_wire(&envelope, inquiry))).await.expect("the worker reads");
    }

    async fn ask(&self, number: u64, name: &str) {
        self.ask_as(self.envelope, number, name, DriverName::simulated(), DEADLINE).await;
    }

    /// The next answer.
    async fn answer(&mut self) -> Answer {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.inbound.message()).await.expect("in time");
            let message = message.expect("the stream stands").expect("it goes on");
            let read = up::up_from_wire(message).expect("readable");
            if let Some(answer) = read.answer {
                assert_eq!(read.envelope, self.envelope, "of the stream that it was asked on");
                return answer;
            }
        }
    }
}

const ACCEPTED: Finding = Finding::Judgement(Verdict::Accepted);

#[tokio::test]
async fn inquiries_are_answered_and_one_that_takes_long_holds_up_nothing() {
    let mut bench = SessionBench::new().await;
    let (mut conn, _) = bench.hello().await;
    conn.ask(1, "early").await;
    conn.welcome(1, &[]).await;
    bench.welcomed().await;
    conn.ask(2, "held").await;
    conn.ask(3, "web").await;
    assert_eq!(conn.answer().await, Answer { number: 3, finding: ACCEPTED }, "what came before the welcome is dropped");
    bench.grant_a(&mut conn).await;
    conn.ask(4, "away").await;
    let finding = Finding::Unanswered("the API server is away".into());
    assert_eq!(conn.answer().await, Answer { number: 4, finding });
    let other = DriverName::new("other").expect("a name");
    conn.ask_as(conn.envelope, 5, "web", other, DEADLINE).await;
    let finding = Finding::Unanswered("driver other is not asked here".into());
    assert_eq!(conn.answer().await, Answer { number: 5, finding });
    // Of another stream, and one for which there is no time.
    let stale = Envelope { stream: StreamNumber::new(77), ..conn.envelope };
    conn.ask_as(stale, 6, "web", DriverName::simulated(), DEADLINE).await;
    conn.ask_as(conn.envelope, 7, "held", DriverName::simulated(), Duration::ZERO).await;
    conn.ask(8, "web").await;
    assert_eq!(conn.answer().await.number, 8);

    // With the stream ends what was asked on it.
    drop(conn);
    let (mut conn, _) = bench.hello().await;
    conn.welcome(1, &[GrantRef::new(A, token(1, 1))]).await;
    bench.welcomed().await;
    conn.ask(1, "web").await;
    assert_eq!(conn.answer().await, Answer { number: 1, finding: ACCEPTED });
    bench.finish().await;
}

#[tokio::test]
async fn more_inquiries_than_may_be_open_are_answered_at_once() {
    let mut bench = SessionBench::new().await;
    let (mut conn, _) = bench.hello().await;
    conn.welcome(1, &[]).await;
    bench.welcomed().await;
    let most = MAX_OPEN_INQUIRIES as u64;
    for number in 1..=most + 3 {
        conn.ask(number, "held").await;
    }
    for number in most + 1..=most + 3 {
        let answer = conn.answer().await;
        assert_eq!(answer.number, number);
        assert!(matches!(answer.finding, Finding::Unanswered(why) if why.contains("64 inquiries are open")));
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_command_is_run_under_the_grant_that_is_held_and_no_other() {
    let mut bench = SessionBench::new().await;
    let (mut conn, _) = bench.hello().await;
    conn.welcome(1, &[]).await;
    bench.welcomed().await;
    for (number, token) in [(1, token(1, 1)), (2, token(1, 2))] {
        let command = ExecCommand {
            appliance: A,
            token,
            desired: Box::new(Desired { driver: DriverName::simulated(), ..Desired::clone(&desired()) }),
            ordinal: 0,
            command: vec!["id".into()],
            limit: DEADLINE,
        };
        let question = Question::Exec(Box::new(ExecStep::Begin(command)));
        let inquiry = Inquiry { number, within: DEADLINE, call: TraceContext::default(), question };
        conn.out.send(Ok(inquiry_to_wire(&conn.envelope, inquiry))).await.expect("the worker reads");
        let finding = conn.answer().await.finding;
        assert!(
            matches!(&finding, Finding::Exec(ExecAnswer::Refused(why)) if why.contains("not owned")),
            "{finding:?}"
        );
        if number == 1 {
            bench.grant_a(&mut conn).await;
        }
    }
    bench.finish().await;
}
