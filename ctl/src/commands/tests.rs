//! Commands against a small server that keeps appliances in memory and configures them at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use proto::admin::v1::appliances_server::{Appliances, AppliancesServer};
use proto::admin::v1::{self, appliance_event::Type, appliance_ref::By};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::client::request_id;
use crate::output::OutputFormat;

#[derive(Debug, Default)]
struct FakeState {
    appliances: BTreeMap<String, v1::Appliance>,
    /// Updates received, without dry runs.
    changes: usize,
    /// Number of calls that are answered with UNAVAILABLE first.
    unavailable: usize,
    /// Phase and error that appliances get instead of being configured.
    trouble: Option<(v1::Phase, String)>,
}

#[derive(Clone, Debug)]
struct Fake {
    state: Arc<Mutex<FakeState>>,
    events: broadcast::Sender<v1::ApplianceEvent>,
}

impl Fake {
    async fn start() -> (Self, CommandContext) {
        let (fake, address) = Self::serve().await;
        let client = AdminClient::new(&address, Duration::from_secs(10)).expect("an address");
        let ui = Ui::plain(OutputFormat::Table);
        (fake, CommandContext { client, ui, timeout: Some(Duration::from_secs(10)) })
    }

    /// A server, and its address.
    async fn serve() -> (Self, String) {
        let fake = Self { state: Arc::default(), events: broadcast::Sender::new(64) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("its address"));
        let server = tonic::transport::Server::builder().add_service(AppliancesServer::new(fake.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (fake, address)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.state.lock().expect("no test panics with the lock")
    }

    fn tell(&self, kind: Type, appliance: &v1::Appliance) {
        // Fails when there is no watcher, which does not matter.
        let _ = self.events.send(v1::ApplianceEvent { r#type: kind.into(), appliance: Some(appliance.clone()) });
    }

    fn find(&self, reference: Option<v1::ApplianceRef>) -> Result<v1::Appliance, Status> {
        let by = reference.and_then(|r| r.by).ok_or_else(|| Status::invalid_argument("appliance: is required"))?;
        let found = match &by {
            By::Id(id) => self.state().appliances.get(id).cloned(),
            By::Name(n) => {
                self.state().appliances.values().find(|a| (&a.tenant, &a.name) == (&n.tenant, &n.name)).cloned()
            }
        };
        found.ok_or_else(|| Status::not_found(format!("no appliance {by:?}")))
    }
}

type WatchStream<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Appliances for Fake {
    type WatchStream = WatchStream<v1::ApplianceEvent>;
    type LogsStream = WatchStream<v1::LogChunk>;
    type ExecStream = WatchStream<v1::ExecResponse>;

    async fn logs(&self, _: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn exec(&self, _: Request<tonic::Streaming<v1::ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn create(&self, _: Request<v1::CreateApplianceRequest>) -> Result<Response<v1::Appliance>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn get(&self, request: Request<v1::GetApplianceRequest>) -> Result<Response<v1::Appliance>, Status> {
        self.find(request.into_inner().appliance).map(Response::new)
    }

    async fn list(
        &self,
        request: Request<v1::ListAppliancesRequest>,
    ) -> Result<Response<v1::ListAppliancesResponse>, Status> {
        // One appliance per page, so that paging matters.
        let token = request.into_inner().page_token;
        let state = self.state();
        let mut rest = state.appliances.values().skip_while(|a| a.id <= token);
        let appliances: Vec<_> = rest.next().cloned().into_iter().collect();
        let next_page_token = if rest.next().is_some() { appliances[0].id.clone() } else { String::new() };
        let total_size = state.appliances.len() as u64;
        Ok(Response::new(v1::ListAppliancesResponse { appliances, next_page_token, total_size }))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateApplianceRequest>,
    ) -> Result<Response<v1::UpdateApplianceResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        if state.unavailable > 0 {
            state.unavailable -= 1;
            return Err(Status::unavailable("no leader yet"));
        }
        let mut appliance = request.appliance.unwrap_or_default();
        if appliance.name == "refused" {
            let details = ErrorDetails::with_bad_request_violation("spec.custom.port", "8081 is taken by `other`");
            return Err(Status::with_error_details(Code::InvalidArgument, "bad request", details));
        }
        let known = state.appliances.values().find(|a| (&a.tenant, &a.name) == (&appliance.tenant, &appliance.name));
        if known.is_some_and(|a| !a.managed_by.is_empty()) && !request.force {
            return Err(Status::failed_precondition("is managed by `neutron`"));
        }
        let outcome = match known {
            None => v1::Outcome::Created,
            Some(known) if known.spec == appliance.spec => v1::Outcome::Unchanged,
            Some(_) => v1::Outcome::Changed,
        };
        appliance.id = known.map_or_else(request_id, |a| a.id.clone());
        let step = u64::from(outcome != v1::Outcome::Unchanged);
        appliance.generation = known.map_or(0, |a| a.generation) + step;
        let (phase, last_error) = state.trouble.clone().unwrap_or((v1::Phase::Configured, String::new()));
        appliance.status = Some(v1::Status {
            phase: phase.into(),
            observed_generation: appliance.generation,
            last_error,
            ..v1::Status::default()
        });
        if !request.validate_only {
            state.changes += 1;
            state.appliances.insert(appliance.id.clone(), appliance.clone());
            self.tell(Type::Changed, &appliance);
        }
        let outcome = outcome.into();
        let warnings = Vec::new();
        Ok(Response::new(v1::UpdateApplianceResponse { appliance: Some(appliance), outcome, warnings }))
    }

    async fn delete(&self, request: Request<v1::DeleteApplianceRequest>) -> Result<Response<v1::Appliance>, Status> {
        let request = request.into_inner();
        let appliance = self.find(request.appliance)?;
        if !appliance.managed_by.is_empty() && !request.force {
            return Err(Status::failed_precondition("is managed by `neutron`"));
        }
        self.state().appliances.remove(&appliance.id);
        self.tell(Type::Gone, &appliance);
        Ok(Response::new(appliance))
    }

    async fn rebuild(&self, _: Request<v1::RebuildApplianceRequest>) -> Result<Response<v1::Appliance>, Status> {
        Err(Status::failed_precondition("is being deleted"))
    }

    async fn check(&self, _: Request<v1::CheckApplianceRequest>) -> Result<Response<v1::Appliance>, Status> {
        Err(Status::aborted("generation 3 is not the current one, 4"))
    }

    async fn watch(&self, _: Request<v1::WatchAppliancesRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let changes = BroadcastStream::new(self.events.subscribe());
        let event = |kind: Type, appliance| Ok(v1::ApplianceEvent { r#type: kind.into(), appliance });
        let mut first: Vec<_> =
            self.state().appliances.values().map(|a| event(Type::Current, Some(a.clone()))).collect();
        first.push(event(Type::Synced, None));
        let changes = changes.map(|change| change.map_err(|_| Status::aborted("too slow")));
        Ok(Response::new(Box::pin(futures::stream::iter(first).chain(changes))))
    }

    async fn explain(
        &self,
        _: Request<v1::ExplainApplianceRequest>,
    ) -> Result<Response<v1::ExplainApplianceResponse>, Status> {
        Err(Status::internal("not today"))
    }
}

const TWO: &str = "name: a\nkind: custom\nspec: {command: x}\n---\nname: b\nkind: custom\nspec: {command: y}\n";

/// Runs a command line, without its `rugctl`, on a file with this text.
async fn rugctl(context: &CommandContext, line: &str, file: &str) -> Result<(), Failure> {
    use clap::Parser;

    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("f.yaml");
    std::fs::write(&path, file).expect("file");
    let line = format!("rugctl {}", line.replace("FILE", &path.to_string_lossy()));
    let cli = crate::Cli::try_parse_from(line.split(' ')).expect("a valid line");
    crate::dispatch(context, &cli.command).await
}

#[tokio::test]
async fn apply_creates_waits_and_is_idempotent() {
    let (fake, context) = Fake::start().await;
    for _ in 0..2 {
        rugctl(&context, "apply -f FILE", TWO).await.expect("accepted");
        let generations: Vec<_> = fake.state().appliances.values().map(|a| a.generation).collect();
        assert_eq!(generations, [1, 1]);
    }
}

#[tokio::test]
async fn nothing_is_changed_when_the_server_refuses_one_document() {
    let (fake, context) = Fake::start().await;
    let text = format!("{TWO}---\nname: refused\nkind: custom\nspec:\n  command: z\n  port: 8081\n");
    let failure = rugctl(&context, "apply -f FILE", &text).await.expect_err("refused");
    assert_eq!(failure.exit, Exit::Usage);
    let message = failure.to_string();
    assert!(message.contains("f.yaml:13: spec.port: 8081 is taken by `other`"), "{message}");
    assert!(message.ends_with("nothing was changed"), "{message}");
    assert_eq!(fake.state().changes, 0);
}

#[tokio::test]
async fn an_invalid_document_is_refused_before_anything_is_sent() {
    let (fake, context) = Fake::start().await;
    let text = format!("{TWO}---\nname: c\nkind: custom\nreplicas: -1\nspec: {{command: z}}\n");
    let failure = rugctl(&context, "apply -f FILE", &text).await.expect_err("refused");
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.to_string().contains("f.yaml:11: replicas: "), "{failure}");
    assert_eq!(fake.state().changes, 0);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let (fake, context) = Fake::start().await;
    rugctl(&context, "apply --dry-run -f FILE", TWO).await.expect("accepted");
    assert_eq!(fake.state().changes, 0);
}

#[tokio::test]
async fn an_appliance_in_error_fails_the_wait_with_its_last_error() {
    let (fake, context) = Fake::start().await;
    fake.state().trouble = Some((v1::Phase::Error, "command not found: x".into()));
    let failure = rugctl(&context, "apply -f FILE", TWO).await.expect_err("fails");
    assert_eq!(failure.exit, Exit::Failed);
    assert_eq!(failure.to_string(), "custom/a: Error: command not found: x\ncustom/b: Error: command not found: x");
    rugctl(&context, "apply --no-wait -f FILE", TWO).await.expect("does not wait");
}

#[tokio::test]
async fn a_timeout_reports_the_last_error() {
    let (fake, context) = Fake::start().await;
    fake.state().trouble = Some((v1::Phase::Booting, "port 8080 is in use".into()));
    let context = CommandContext { timeout: Some(Duration::from_millis(300)), ..context };
    let failure = rugctl(&context, "apply -f FILE", TWO).await.expect_err("never configured");
    assert_eq!(failure.exit, Exit::Failed);
    assert!(
        failure.to_string().starts_with("not done after 300ms\ncustom/a: Booting: port 8080 is in use\n"),
        "{failure}"
    );
}

#[tokio::test]
async fn calls_are_retried_while_there_is_no_leader() {
    let (fake, context) = Fake::start().await;
    fake.state().unavailable = 3;
    rugctl(&context, "apply -f FILE", TWO).await.expect("accepted in the end");
    assert_eq!(fake.state().changes, 2);
}

#[tokio::test]
async fn delete_waits_until_all_are_gone() {
    let (fake, context) = Fake::start().await;
    rugctl(&context, "apply -f FILE", TWO).await.expect("accepted");
    let failure = rugctl(&context, "delete a missing", "").await.expect_err("missing");
    assert_eq!(failure.exit, Exit::NotFound);
    assert!(failure.to_string().starts_with("missing: "), "{failure}");
    assert_eq!(fake.state().appliances.len(), 2, "a name that does not exist deletes nothing");
    rugctl(&context, "delete custom/a", "").await.expect("deleted");
    rugctl(&context, "delete --all --yes", "").await.expect("deleted");
    assert!(fake.state().appliances.is_empty());
    rugctl(&context, "delete --ignore-missing -f FILE", TWO).await.expect("nothing to do");
}

#[tokio::test]
async fn what_a_source_manages_is_changed_and_deleted_with_force() {
    let (fake, context) = Fake::start().await;
    rugctl(&context, "apply -f FILE", TWO).await.expect("accepted");
    let manage = |fake: &Fake| fake.state().appliances.values_mut().for_each(|a| a.managed_by = "neutron".into());
    manage(&fake);
    for line in ["apply -f FILE", "delete a", "delete --all --yes"] {
        let failure = rugctl(&context, line, TWO).await.expect_err(line);
        assert_eq!(failure.exit, Exit::Failed, "{line}");
        assert!(failure.to_string().contains("is managed by `neutron`"), "{failure}");
    }
    rugctl(&context, "apply --force -f FILE", TWO).await.expect("forced");
    manage(&fake);
    rugctl(&context, "delete --all --yes --force", "").await.expect("forced");
    assert!(fake.state().appliances.is_empty());
}

const LABELLED: &str = "name: a\nkind: custom\nlabels: {app: shop, tier: db}\nspec: {command: x}\n---\n\
                        name: b\nkind: custom\nlabels: {app: shop}\nspec: {command: y}\n";

#[tokio::test]
async fn what_a_selector_does_not_select_is_left_alone_whatever_the_server_knows() {
    // This server knows no labels at all, and answers with everything.
    let (fake, context) = Fake::start().await;
    rugctl(&context, "apply -f FILE", LABELLED).await.expect("accepted");
    rugctl(&context, "delete -l tier!=db,app --yes", "").await.expect("deleted");
    let left: Vec<_> = fake.state().appliances.values().map(|a| a.name.clone()).collect();
    assert_eq!(left, ["a"]);
    rugctl(&context, "rebuild -l !app --yes", "").await.expect("nothing to rebuild");
    let failure = rugctl(&context, "rebuild -l app=shop", "").await.expect_err("it asks, and there is nobody");
    assert_eq!(failure.exit, Exit::Usage);
    let failure = rugctl(&context, "rebuild -l app --yes", "").await.expect_err("refused");
    assert!(failure.to_string().contains("is being deleted"), "{failure}");
    let failure = rugctl(&context, "check -l app", "").await.expect_err("refused");
    assert_eq!(failure.exit, Exit::Conflict);
}

#[tokio::test]
async fn a_condition_is_waited_for() {
    let (fake, context) = Fake::start().await;
    rugctl(&context, "apply -f FILE", TWO).await.expect("accepted");
    rugctl(&context, "wait a b", "").await.expect("configured");
    rugctl(&context, "wait a --for=phase=Configured", "").await.expect("configured");
    let once = CommandContext { timeout: Some(Duration::ZERO), ..context.clone() };
    let failure = rugctl(&once, "wait a b --for=phase=Up", "").await.expect_err("not now");
    assert_eq!(failure.exit, Exit::Failed);
    assert!(failure.to_string().contains("custom/b: Configured"), "{failure}");
    assert_eq!(rugctl(&once, "wait x", "").await.expect_err("no such one").exit, Exit::NotFound);
    rugctl(&once, "wait x --for=deleted", "").await.expect("it is not there");
    assert_eq!(rugctl(&once, "wait -l app", "").await.expect_err("nothing matches").exit, Exit::Failed);
    let waiting = rugctl(&context, "wait a --for=deleted", "");
    let delete = async {
        while fake.events.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        rugctl(&context, "delete a --no-wait", "").await.expect("deleted");
    };
    let (waited, ()) = tokio::join!(waiting, delete);
    waited.expect("it is gone");
}

#[tokio::test]
async fn a_diff_ends_with_1_where_something_differs_and_changes_nothing() {
    let (fake, context) = Fake::start().await;
    let failure = rugctl(&context, "diff -f FILE", TWO).await.expect_err("nothing is there");
    assert_eq!((failure.exit, failure.message.as_str()), (Exit::Failed, ""));
    rugctl(&context, "apply -f FILE", TWO).await.expect("accepted");
    rugctl(&context, "diff -f FILE", TWO).await.expect("as stored");
    let other = TWO.replace("command: y", "command: z");
    assert_eq!(rugctl(&context, "diff -f FILE", &other).await.expect_err("it differs").exit, Exit::Failed);
    assert_eq!(fake.state().changes, 2);
}

#[tokio::test]
async fn a_name_that_is_mistyped_gets_a_suggestion() {
    let (_fake, context) = Fake::start().await;
    let one = "name: database\nkind: custom\nspec: {command: x}\n";
    rugctl(&context, "apply -f FILE", one).await.expect("accepted");
    let failure = rugctl(&context, "get databse", "").await.expect_err("no such one");
    assert_eq!(failure.exit, Exit::NotFound);
    assert!(failure.message.ends_with("; did you mean `database`?"), "{failure}");
    assert!(!rugctl(&context, "get cache", "").await.expect_err("no such one").message.contains("mean"));
}

#[tokio::test]
async fn lists_contain_all_pages() {
    let (_fake, context) = Fake::start().await;
    rugctl(&context, "apply -f FILE", TWO).await.expect("accepted");
    let all = context.client.list(v1::ApplianceFilter::default()).await.expect("listed");
    assert_eq!(all.len(), 2);
    for line in ["list", "list --sort phase", "get a", "get a b"] {
        for format in [OutputFormat::Table, OutputFormat::Wide, OutputFormat::Json, OutputFormat::Yaml] {
            let ui = Ui { format, ..context.ui.clone() };
            rugctl(&CommandContext { ui, ..context.clone() }, line, "").await.expect("printed");
        }
    }
}

#[tokio::test]
async fn errors_of_the_server_become_exit_codes() {
    let (_fake, context) = Fake::start().await;
    rugctl(&context, "apply -f FILE", TWO).await.expect("accepted");
    for (line, exit) in [
        ("get nobody", Exit::NotFound),
        ("get default/custom/a/b", Exit::Usage),
        ("get demo/a", Exit::NotFound),
        ("get loadbalancer/a", Exit::NotFound),
        ("check nobody", Exit::NotFound),
        ("check a", Exit::Conflict),
        ("rebuild a", Exit::Failed),
        ("explain a", Exit::Failed),
        ("delete nobody", Exit::NotFound),
        ("delete loadbalancer/a", Exit::NotFound),
        ("delete custom/a -t demo", Exit::NotFound),
        ("delete default/custom/a -t demo", Exit::Usage),
        // No such service: an older server.
        ("worker list", Exit::Failed),
    ] {
        assert_eq!(rugctl(&context, line, "").await.expect_err(line).exit, exit, "{line}");
    }
}

#[tokio::test]
async fn a_document_of_another_kind_deletes_nothing() {
    let (fake, context) = Fake::start().await;
    rugctl(&context, "apply -f FILE", TWO).await.expect("accepted");
    let other = "name: a\nkind: loadbalancer\nspec:\n  listeners:\n  - port: 80\n";
    let failure = rugctl(&context, "delete -f FILE", other).await.expect_err("another kind");
    assert_eq!(failure.exit, Exit::NotFound);
    assert!(failure.to_string().contains("that is default/custom/a"), "{failure}");
    rugctl(&context, "delete -f FILE --ignore-missing", other).await.expect("there is none of this kind");
    assert_eq!(fake.state().appliances.len(), 2);
}

#[tokio::test]
async fn what_is_meant_for_a_cluster_is_not_sent_to_a_server_that_does_not_say_which_it_is() {
    let (fake, context) = Fake::start().await;
    let text = TWO.replacen("kind: custom\n", "kind: custom\ncluster: prod\n", 1);
    let failure = rugctl(&context, "apply -f FILE", &text).await.expect_err("which cluster is it?");
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.to_string().contains("f.yaml:3: cluster: is for cluster prod"), "{failure}");
    let meant = CommandContext { client: context.client.meant_for("prod".parse().ok()), ..context };
    let failure = rugctl(&meant, "apply -f FILE", TWO).await.expect_err("which cluster is it?");
    assert!(failure.to_string().contains("prod is meant"), "{failure}");
    assert_eq!(fake.state().changes, 0);
}

/// An address without a listener.
async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}", listener.local_addr().expect("its address"))
}

#[tokio::test]
async fn calls_fail_over_when_a_coordinator_is_down_or_has_no_leader() {
    let (cut_off, first) = Fake::serve().await;
    cut_off.state().unavailable = usize::MAX;
    let (fake, context) = Fake::start().await;
    let addresses = [nobody().await, first, context.client.address().to_owned()];
    let client = AdminClient::of(&addresses, Duration::from_secs(10), None, runtime::socket::TrustedServer::OwnOrRoot)
        .expect("addresses");
    let context = CommandContext { client, ..context };
    rugctl(&context, "apply -f FILE", TWO).await.expect("the third answers");
    assert_eq!((fake.state().changes, cut_off.state().changes), (2, 0));
    assert_eq!(context.client.address(), addresses[2], "and stays the first one to be asked");
}

#[tokio::test]
async fn the_error_of_each_coordinator_is_reported_when_none_answers() {
    let (cut_off, address) = Fake::serve().await;
    cut_off.state().unavailable = usize::MAX;
    let addresses = [nobody().await, address];
    let client =
        AdminClient::of(&addresses, Duration::from_millis(500), None, runtime::socket::TrustedServer::OwnOrRoot)
            .expect("addresses");
    let failure = client.update(v1::UpdateApplianceRequest::default()).await.expect_err("nobody answers");
    assert_eq!(failure.exit, Exit::Unreachable);
    let text = failure.to_string();
    assert!(text.contains(&format!("\n  {}: ", addresses[0])) && text.contains("refused"), "{text}");
    assert!(text.contains(&format!("\n  {}: no leader yet", addresses[1])), "{text}");
}

#[tokio::test]
async fn without_retries_every_coordinator_is_asked_once() {
    let (cut_off, address) = Fake::serve().await;
    cut_off.state().unavailable = 1;
    let client = AdminClient::of(
        &[nobody().await, address],
        Duration::from_secs(10),
        None,
        runtime::socket::TrustedServer::OwnOrRoot,
    )
    .expect("addresses");
    let once = client.once(Duration::from_secs(10));
    let failure = once.update(v1::UpdateApplianceRequest::default()).await.expect_err("not asked again");
    assert_eq!(failure.exit, Exit::Unreachable);
    assert_eq!(cut_off.state().unavailable, 0);
}
