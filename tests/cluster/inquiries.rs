//! Changes that a worker is asked about before they are admitted: a stand-in worker answers, or does not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use proto::worker::v1 as worker;
use proto::worker::v1::session_client::SessionClient;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, specs};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use worker::coordinator_message::Body as Down;
use worker::judgement::Verdict;
use worker::worker_message::Body as Up;

/// Driver of the stand-in.
const DRIVER: &str = "kubernetes";

/// A worker that answers inquiries by the names of appliances, and takes nothing.
struct Judge {
    /// How often each appliance was judged.
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
    task: JoinHandle<()>,
}

impl Judge {
    /// Opens a stream and waits for the welcome. Its life lasts for a minute, which is longer than the test.
    async fn connect(cluster: &Cluster) -> Result<Self> {
        let offer = v1::DriverOffer {
            name: DRIVER.into(),
            kinds: vec!["custom".into()],
            judges: true,
            ..v1::DriverOffer::default()
        };
        let hello = worker::Hello {
            worker: "judge".into(),
            profile: Some(worker::Profile {
                weight: 1,
                host: "elsewhere".into(),
                drivers: vec![DRIVER.into()],
                offers: vec![offer],
                lease: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let first = worker::Envelope { stream: 1, ..Default::default() };
        let (out, messages) = mpsc::channel(128);
        out.send(worker::WorkerMessage { envelope: Some(first), body: Some(Up::Hello(hello)) }).await?;
        let mut session = SessionClient::new(cluster.api.channel());
        let mut inbound = session.open(ReceiverStream::new(messages)).await?.into_inner();
        let welcome = tokio::time::timeout(Duration::from_secs(20), inbound.message()).await??;
        let welcome = welcome.context("the stream goes on")?;
        ensure!(matches!(welcome.body, Some(Down::Welcome(_))), "{welcome:?}");
        let asked = Arc::<Mutex<BTreeMap<String, usize>>>::default();
        let counted = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let Some(Down::Inquiry(inquiry)) = message.body else { continue };
                let Some(worker::inquiry::Question::Judge(judge)) = inquiry.question else { continue };
                let desired = judge.desired.unwrap_or_default();
                *counted.lock().expect("no panic").entry(desired.name.clone()).or_default() += 1;
                let Some(finding) = finding(&desired) else { continue };
                let answer = worker::Answer { number: inquiry.number, finding: Some(finding) };
                // Twice: the second one is dropped.
                for _ in 0..2 {
                    let body = Some(Up::Answer(answer.clone()));
                    if out.send(worker::WorkerMessage { envelope: message.envelope.clone(), body }).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self { asked, task })
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().expect("no panic").get(name).copied().unwrap_or_default()
    }
}

/// What the stand-in says; nothing for an appliance with `silent` in its name.
fn finding(desired: &worker::Desired) -> Option<worker::answer::Finding> {
    let judgement = |verdict: Verdict, reason: &str| {
        let field = if verdict == Verdict::Refused { "spec.pod" } else { "" };
        let judgement = worker::Judgement { verdict: verdict.into(), field: field.into(), reason: reason.into() };
        Some(worker::answer::Finding::Judgement(judgement))
    };
    match desired.name.as_str() {
        name if name.contains("silent") => None,
        name if name.contains("refused") => {
            judgement(Verdict::Refused, "pods \"x\" is forbidden: violates PodSecurity")
        }
        name if name.contains("unclear") => judgement(Verdict::Unclear, "exceeded quota: q"),
        name if name.contains("unknown") => Some(worker::answer::Finding::Unanswered("connection refused".into())),
        _ => judgement(Verdict::Accepted, ""),
    }
}

fn pod(name: &str) -> v1::Appliance {
    v1::Appliance { driver: DRIVER.into(), ..specs::simulated(name) }
}

/// Another specification.
fn changed(appliance: &v1::Appliance) -> v1::Appliance {
    let mut changed = appliance.clone();
    if let Some(v1::spec::Kind::Custom(custom)) = changed.spec.as_mut().and_then(|spec| spec.kind.as_mut()) {
        custom.args.push("more".into());
    }
    changed
}

async fn validate(cluster: &Cluster, appliance: v1::Appliance) -> Result<v1::UpdateApplianceResponse, Status> {
    let request = v1::UpdateApplianceRequest {
        appliance: Some(appliance),
        allow_missing: true,
        validate_only: true,
        ..v1::UpdateApplianceRequest::default()
    };
    Ok(cluster.api.appliances().update(request).await?.into_inner())
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> Result<()> {
    let Err(status) = answer else { bail!("accepted: {answer:?}") };
    let found = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    let found: Vec<_> = found.iter().map(|v| (v.field.as_str(), v.description.as_str())).collect();
    ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    ensure!(found == [("appliance.spec.pod", "pods \"x\" is forbidden: violates PodSecurity")], "{found:?}");
    Ok(())
}

/// Removes what nobody ever owned, and checks the rest.
async fn finish(cluster: Cluster, judge: Option<Judge>) -> Result<()> {
    for appliance in cluster.api.list().await? {
        cluster.api.delete(&appliance.id).await?;
    }
    until(PATIENCE, "nothing is left", async || {
        let left = cluster.api.list().await?.len();
        ensure!(left == 0, "{left} appliances");
        Ok(())
    })
    .await?;
    judge.iter().for_each(|judge| judge.task.abort());
    cluster.finish().await
}

#[tokio::test]
async fn where_instances_would_run_is_asked_before_a_change_is_admitted() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 0, ..Options::default() }).await?;
    let judge = Judge::connect(&cluster).await?;

    refused(cluster.api.create(pod("refused")).await)?;
    refused(cluster.api.apply(pod("refused")).await)?;
    refused(validate(&cluster, pod("refused")).await)?;
    ensure!(cluster.api.list().await?.is_empty() && judge.asked("refused") == 3);

    // What was validated is not judged anew when it is applied.
    let web = pod("web");
    ensure!(validate(&cluster, web.clone()).await?.warnings.is_empty());
    ensure!(cluster.api.apply(web.clone()).await?.outcome() == v1::Outcome::Created && judge.asked("web") == 1);
    // Neither labels nor replicas are a question of where it runs, and nothing at all is none either.
    let labelled = v1::Appliance { labels: [("a".to_owned(), "b".to_owned())].into(), ..web.clone() };
    let mut scaled = labelled.clone();
    scaled.spec.get_or_insert_default().replicas = Some(3);
    for appliance in [&web, &labelled, &scaled] {
        cluster.api.apply(appliance.clone()).await?;
    }
    ensure!(judge.asked("web") == 1, "{}", judge.asked("web"));
    cluster.api.apply(changed(&scaled)).await?;
    ensure!(judge.asked("web") == 2, "{}", judge.asked("web"));
    cluster.api.delete("web").await?;

    let unclear = cluster.api.apply(pod("unclear")).await?;
    ensure!(unclear.warnings == ["no instance could be made now: exceeded quota: q"], "{:?}", unclear.warnings);
    let unknown = cluster.api.apply(pod("unknown")).await?;
    ensure!(matches!(&unknown.warnings[..], [one] if one.contains("connection refused")), "{:?}", unknown.warnings);
    ensure!(cluster.api.apply(specs::simulated("other")).await?.warnings.is_empty() && judge.asked("other") == 0);

    // One that leaves is not waited for.
    let (api, began) = (cluster.api.clone(), Instant::now());
    let held = tokio::spawn(async move { api.apply(pod("silent-last")).await });
    until(PATIENCE, "it is asked about", async || {
        ensure!(judge.asked("silent-last") > 0, "it is not");
        Ok(())
    })
    .await?;
    judge.task.abort();
    let answer = held.await??;
    ensure!(matches!(&answer.warnings[..], [one] if one.contains("no worker")), "{:?}", answer.warnings);
    ensure!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    ensure!(cluster.api.apply(pod("after")).await?.warnings.is_empty());
    finish(cluster, None).await
}

#[tokio::test]
async fn a_judge_that_says_nothing_holds_up_the_change_that_it_is_asked_about_and_no_other() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 0, ..Options::default() }).await?;
    let judge = Judge::connect(&cluster).await?;
    let began = Instant::now();
    let held: Vec<_> = (0..20)
        .map(|n| {
            let api = cluster.api.clone();
            tokio::spawn(async move { api.apply(pod(&format!("silent-{n}"))).await })
        })
        .collect();
    until(Duration::from_secs(4), "all of them are asked about", async || {
        let asked = judge.asked.lock().expect("no panic").len();
        ensure!(asked >= held.len(), "{asked} are");
        Ok(())
    })
    .await?;
    for n in 0..20 {
        cluster.api.apply(pod(&format!("web-{n}"))).await?;
        cluster.api.apply(specs::simulated(&format!("other-{n}"))).await?;
    }
    ensure!(began.elapsed() < Duration::from_secs(4), "others waited, for {:?}", began.elapsed());
    // One whose caller waits no longer is not carried out behind its back.
    let mut gone = tonic::Request::new(v1::UpdateApplianceRequest {
        appliance: Some(pod("silent-gone")),
        allow_missing: true,
        ..v1::UpdateApplianceRequest::default()
    });
    gone.set_timeout(Duration::from_millis(200));
    let late = cluster.api.appliances().update(gone).await;
    ensure!(late.is_ok() || late.is_err_and(|status| status.code() == Code::DeadlineExceeded));
    for held in held {
        let answer = held.await??;
        ensure!(answer.outcome() == v1::Outcome::Created, "{answer:?}");
        ensure!(matches!(&answer.warnings[..], [one] if one.ends_with("no answer in time")), "{:?}", answer.warnings);
    }
    let took = began.elapsed();
    ensure!((Duration::from_secs(4)..Duration::from_secs(9)).contains(&took), "{took:?}");

    // Where nothing was heard again and again, nobody is to wait for that.
    let began = Instant::now();
    let answer = cluster.api.apply(pod("again")).await?;
    ensure!(matches!(&answer.warnings[..], [one] if one.ends_with("were not answered")), "{:?}", answer.warnings);
    ensure!(began.elapsed() < Duration::from_secs(2) && judge.asked("again") == 0);
    finish(cluster, Some(judge)).await
}

/// Applies so many appliances, as many at a time as `rugctl` does; answers with how long that took.
async fn apply_all(cluster: &Cluster, prefix: &str, count: usize, driver: &str) -> Result<Duration> {
    const IN_FLIGHT: usize = 32;
    let began = Instant::now();
    let (numbers, rest) = (Arc::new(std::sync::atomic::AtomicUsize::new(0)), count);
    let clients: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let (api, numbers, prefix, driver) =
                (cluster.api.clone(), Arc::clone(&numbers), prefix.to_owned(), driver.to_owned());
            tokio::spawn(async move {
                loop {
                    let n = numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if n >= rest {
                        return Ok::<_, Status>(());
                    }
                    let appliance = specs::simulated(&format!("{prefix}-{n}"));
                    let answer = api.apply(v1::Appliance { driver: driver.clone(), ..appliance }).await?;
                    assert_eq!(answer.warnings, Vec::<String>::new());
                }
            })
        })
        .collect();
    for client in clients {
        client.await??;
    }
    Ok(began.elapsed())
}

#[tokio::test]
async fn many_changes_that_are_judged_take_hardly_longer() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 0, ..Options::default() }).await?;
    let judge = Judge::connect(&cluster).await?;
    // Of a driver that nobody asks about, then of one that is judged: each once, by a worker that answers at once.
    let plain = apply_all(&cluster, "plain", 500, "nobody").await?;
    let judged = apply_all(&cluster, "judged", 500, DRIVER).await?;
    println!("500 appliances: {plain:?} without and {judged:?} with judgements");
    ensure!((0..500).all(|n| judge.asked(&format!("judged-{n}")) == 1));
    ensure!(judged < plain * 3 + Duration::from_secs(1), "{judged:?} instead of {plain:?}");
    finish(cluster, Some(judge)).await
}
