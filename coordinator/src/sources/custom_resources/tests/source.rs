//! The whole source: an API server in memory, a leader that stores at once, a worker that does what it is told.

use std::time::Duration;

use common::change::ApplianceTarget;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::fake::FakeApi;
use super::*;
use crate::access::Scope;
use crate::admission::{Admission, Admitted};
use crate::catalog::{Catalog, Config as CatalogConfig, Fact};
use crate::commands::{self, Change, ChangeOrigin, Command, CommandContext, CommandQueue, Commands};
use crate::sources::custom_resources::controller::Controller;
use crate::sources::custom_resources::{Config, CustomResources};
use crate::views::ClusterView;

/// What one term runs.
struct Term {
    source: JoinHandle<()>,
    leader: JoinHandle<Vec<String>>,
    over: CancellationToken,
    commands: Commands,
}

/// A cluster, term after term.
struct World {
    api: FakeApi,
    catalog: Arc<Catalog>,
    term: Option<Term>,
    terms: u64,
    config: Config,
}

/// What a worker that does as it is told says about an appliance next.
fn worked(entry: &CatalogEntry) -> Vec<Fact> {
    let record = &entry.record;
    if record.deleting {
        return vec![Fact::Removed(record.id)];
    }
    let seen = entry.status.as_ref().map(|(status, _)| status.observed_generation);
    if seen == Some(record.generation) {
        return vec![];
    }
    let assignment = AssignmentView { worker: "w1".parse().ok(), state: "owned", ..AssignmentView::default() };
    let status = Arc::new(running(record.generation, Phase::Configured));
    vec![Fact::Assignment(record.id, assignment), Fact::Status(record.id, status, SystemTime::UNIX_EPOCH)]
}

/// Leads until `over`; answers every change as `create kubernetes/shop/web`.
async fn lead(catalog: Arc<Catalog>, mut queue: CommandQueue, term: u64, over: CancellationToken) -> Vec<String> {
    let mut admission = Admission::new(Arc::clone(&catalog), common::Term::new(term), &[], queue.settled());
    let mut done = Vec::new();
    let mut work = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            () = over.cancelled() => return done,
            _ = work.tick() => {
                let mut facts = Vec::new();
                catalog.for_each(|entry| facts.extend(worked(entry)));
                for fact in facts {
                    if let Fact::Removed(id) = fact {
                        admission.removed(id);
                    }
                    catalog.apply([fact]);
                }
            }
            Some(command) = queue.recv() => {
                let Command::Change { mutation, reply, .. } = command else { panic!("only changes are asked for") };
                // A store takes its time.
                tokio::time::sleep(Duration::from_millis(3)).await;
                let answer = admission.admit(&mutation, SystemTime::now()).map(|admitted| match admitted {
                    Admitted::Done(changed) => changed,
                    Admitted::Write(change) => {
                        done.extend(change.audit().map(|audit| format!("{} {}", audit.action, mutation.actor)));
                        admission.commit(change)
                    }
                });
                let _ = reply.send(answer);
            }
        }
    }
}

impl World {
    fn begin() -> Self {
        let catalog = Arc::new(Catalog::new(CatalogConfig::default()));
        let config = Config { appliances: true, ..Config::default() };
        let mut world = Self { api: FakeApi::new(), catalog, term: None, terms: 0, config };
        world.lead();
        world
    }

    /// Begins a term with what is in the catalog.
    fn lead(&mut self) {
        self.terms += 1;
        let (commands, queue) = commands::channel();
        let over = CancellationToken::new();
        self.catalog.set_cluster(ClusterView { identity: cluster(), ..ClusterView::of_term(self.terms) });
        let leader = tokio::spawn(lead(Arc::clone(&self.catalog), queue, self.terms, over.clone()));
        let source = CustomResources {
            config: self.config.clone(),
            commands: commands.clone(),
            catalog: Arc::clone(&self.catalog),
            coordinator: "c1".parse().expect("a name"),
        };
        let (client, ends) = (self.api.client(), over.clone());
        let source = tokio::spawn(async move {
            ends.run_until_cancelled(Controller::new(source, client).run()).await;
        });
        self.term = Some(Term { source, leader, over, commands });
    }

    /// Ends the term where it stands, as the death of a leader does; answers what was changed in it.
    async fn end(&mut self) -> Vec<String> {
        let term = self.term.take().expect("it leads");
        term.over.cancel();
        term.source.await.expect("no panic");
        let mut done = term.leader.await.expect("no panic");
        done.sort();
        done
    }

    fn entry(&self, target: &str) -> Option<Arc<CatalogEntry>> {
        let (tenant, name) = target.split_once('/').expect("tenant and name");
        self.catalog.get(&ApplianceTarget::Name(tenant.parse().expect("a name"), name.parse().expect("a name")))
    }

    fn managed_by(&self, target: &str) -> Option<String> {
        self.entry(target)?.record.managed_by.as_ref().map(ToString::to_string)
    }

    /// A change by a client.
    async fn client(&self, change: Change, force: bool) {
        let context =
            CommandContext { actor: "client".into(), deadline: tokio::time::Instant::now() + Duration::from_secs(10) };
        let origin = ChangeOrigin::Client { force, scope: Scope::All };
        let commands = &self.term.as_ref().expect("it leads").commands;
        commands.change(&context, origin, change, false, None).await.expect("carried out");
    }

    async fn until_condition(&self, name: &str, kind: &str, status: &str, reason: &str) {
        let wanted = Some((status.to_owned(), reason.to_owned()));
        self.api.until(&format!("{kind} {reason}"), |api| api.condition("shop", name, kind) == wanted).await;
    }

    async fn until_ready(&self, name: &str) {
        self.until_condition(name, "Ready", "True", "Configured").await;
    }

    fn notes(&self) -> Vec<String> {
        self.catalog.cluster().map(|(cluster, ..)| cluster.notes.clone()).unwrap_or_default()
    }
}

fn draft(command: &str) -> Change {
    let record = record(1, command, None);
    Change::create(common::change::ApplianceDraft {
        id: None,
        name: record.name,
        tenant: record.tenant,
        driver: record.driver,
        placement_key: None,
        labels: record.labels,
        spec: record.spec,
    })
}

#[tokio::test(start_paused = true)]
async fn an_object_becomes_an_appliance_follows_edits_and_goes_with_it() {
    let mut world = World::begin();
    world.api.apply("shop", "web", custom("sleep"));
    world.until_ready("web").await;
    assert_eq!(world.managed_by("shop/web").as_deref(), Some("kubernetes/shop/web"));
    let shown = world.api.object("shop", "web").expect("there");
    assert_eq!(shown["metadata"]["finalizers"], json!(["rug.dev/appliance"]));
    let id = world.entry("shop/web").expect("there").record.id.to_string();
    assert_eq!(
        (&shown["status"]["id"], &shown["status"]["phase"], &shown["status"]["worker"], &shown["status"]["replicas"]),
        (&json!(id), &json!("Configured"), &json!("w1"), &json!(1))
    );
    let writes = world.api.writes("status");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(world.api.writes("status"), writes, "nothing changed, nothing is written");

    world.api.apply("shop", "web", custom("true"));
    world
        .api
        .until("edited", |api| {
            let object = api.object("shop", "web").expect("there");
            object["status"]["observedGeneration"] == 2 && object["status"]["generation"] == 2
        })
        .await;
    world.until_ready("web").await;

    world.api.delete("shop", "web");
    world.api.until("gone", |api| api.object("shop", "web").is_none()).await;
    assert!(world.entry("shop/web").is_none(), "it goes first");
    let by = "kubernetes/shop/web";
    assert_eq!(world.end().await, [format!("create {by}"), format!("delete {by}"), format!("update {by}")]);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_shown_and_told_once_and_taken_once_it_is_mended() {
    let mut world = World::begin();
    let mut wrong = custom("sleep");
    wrong["probe_interval"] = json!("1ms");
    world.api.apply("shop", "web", wrong);
    world.until_condition("web", "Accepted", "False", "Invalid").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let events = world.api.events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((&events[0]["type"], &events[0]["reason"]), (&json!("Warning"), &json!("Invalid")));
    assert!(
        events[0]["message"].as_str().is_some_and(|m| m.starts_with("spec.probe_interval: must be 100ms")),
        "{events:?}"
    );
    let object = world.api.object("shop", "web").expect("there");
    assert!(object["metadata"]["finalizers"].is_null(), "there is no appliance to wait for: {object}");
    world.api.apply("shop", "web", custom("sleep"));
    world.until_ready("web").await;
    assert_eq!(world.end().await, ["create kubernetes/shop/web"]);
}

#[tokio::test(start_paused = true)]
async fn an_appliance_of_somebody_else_is_taken_over_only_when_the_object_says_so() {
    let mut world = World::begin();
    world.client(draft("sleep"), false).await;
    let id = world.entry("shop/web").expect("there").record.id;
    world.api.apply("shop", "web", custom("true"));
    world.until_condition("web", "Accepted", "False", "NotAdopted").await;
    // Also where it would be as asked for.
    world.api.apply("shop", "web", custom("sleep"));
    world
        .api
        .until("looked at", |api| api.object("shop", "web").expect("there")["status"]["observedGeneration"] == 2)
        .await;
    world.until_condition("web", "Accepted", "False", "NotAdopted").await;
    assert_eq!(world.managed_by("shop/web"), None);
    world.api.apply_with("shop", "web", custom("true"), json!({"rug.dev/adopt": "true"}));
    world.until_ready("web").await;
    assert_eq!(world.managed_by("shop/web").as_deref(), Some("kubernetes/shop/web"));
    assert_eq!(world.entry("shop/web").expect("there").record.id, id, "the same one");

    // Another object that wants the same name does not get it, whatever it says.
    let mut other = custom("sleep");
    other["name"] = json!("web");
    world.api.apply_with("shop", "web-2", other, json!({"rug.dev/adopt": "true"}));
    world.until_condition("web-2", "Accepted", "False", "Conflict").await;
    world.api.delete("shop", "web-2");
    world.api.until("gone", |api| api.object("shop", "web-2").is_none()).await;
    assert!(world.entry("shop/web").is_some(), "it was not its own");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_appliance_lives_on_where_the_object_says_so() {
    let mut world = World::begin();
    world.api.apply_with("shop", "web", custom("sleep"), json!({"rug.dev/deletion-policy": "retain"}));
    world.until_ready("web").await;
    world.api.delete("shop", "web");
    world.api.until("gone", |api| api.object("shop", "web").is_none()).await;
    let entry = world.entry("shop/web").expect("it lives on");
    assert_eq!((entry.record.managed_by.clone(), entry.record.deleting), (None, false), "and is the clients'");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_appliance_whose_object_vanished_goes_on_and_is_told_of() {
    let mut world = World::begin();
    world.api.apply("shop", "web", custom("sleep"));
    world.until_ready("web").await;
    let id = world.entry("shop/web").expect("there").record.id;
    world.end().await;
    // While nobody leads.
    world.api.strip("shop", "web");
    world.api.delete("shop", "web");
    world.lead();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.entry("shop/web").expect("it goes on").record.id, id);
    let notes = world.notes();
    assert!(notes.len() == 1 && notes[0].contains("shop/web"), "{notes:?}");
    // Another object of that name goes on with it.
    world.api.apply("shop", "web", custom("sleep"));
    world.until_ready("web").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.entry("shop/web").expect("there").record.id, id);
    assert_eq!(world.notes(), Vec::<String>::new());
    assert_eq!(world.end().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_others_do_to_an_appliance_is_undone() {
    let mut world = World::begin();
    world.api.apply("shop", "web", custom("sleep"));
    world.until_ready("web").await;
    let target = || ApplianceTarget::Id(world.entry("shop/web").expect("there").record.id);
    let first = target();
    let delete = Change::Delete { target: target(), expected: None, allow_missing: false, at_once: false };
    world.client(delete, true).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.until_ready("web").await;
    assert_ne!(target(), first, "a new one");
    let delete = Change::Delete { target: target(), expected: None, allow_missing: false, at_once: false };
    world.client(delete, true).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.until_ready("web").await;
    let by = "kubernetes/shop/web";
    let create = format!("create {by}");
    assert_eq!(
        world.end().await,
        [create.clone(), create.clone(), create, "delete client".into(), "delete client".into()]
    );
}

#[tokio::test(start_paused = true)]
async fn answers_that_fail_and_watches_that_break_lose_and_double_nothing() {
    let mut world = World::begin();
    let names: Vec<_> = (0..40).map(|n| format!("web-{n}")).collect();
    world.api.fail_writes([409, 500, 429, 503, 409, 409, 500, 429, 500, 500]);
    for (n, name) in names.iter().enumerate() {
        world.api.apply("shop", name, custom("sleep"));
        match n {
            10 => world.api.forget(false),
            20 => world.api.forget(true),
            30 => world.api.set_missing(true),
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let notes = world.notes();
    assert!(notes.iter().any(|note| note.contains("custom resource definition")), "{notes:?}");
    world.api.set_missing(false);
    for name in &names {
        world.until_ready(name).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.notes(), Vec::<String>::new());
    // What happens while the watch does not know is seen by the list that follows.
    world.api.forget(true);
    world.api.delete("shop", "web-0");
    world.api.apply("shop", "web-1", custom("true"));
    world.api.until("gone", |api| api.object("shop", "web-0").is_none()).await;
    world.api.until("edited", |api| api.object("shop", "web-1").expect("there")["status"]["generation"] == 2).await;
    let mut expected: Vec<_> = names.iter().map(|name| format!("create kubernetes/shop/{name}")).collect();
    expected.extend(["delete kubernetes/shop/web-0".to_owned(), "update kubernetes/shop/web-1".to_owned()]);
    expected.sort();
    assert_eq!(world.end().await, expected);
}

#[tokio::test(start_paused = true)]
async fn leaders_that_follow_each_other_make_everything_once() {
    let mut world = World::begin();
    let names: Vec<_> = (0..60).map(|n| format!("web-{n}")).collect();
    let mut done = Vec::new();
    for (n, name) in names.iter().enumerate() {
        world.api.apply("shop", name, custom("sleep"));
        if n % 7 == 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            done.extend(world.end().await);
            world.lead();
        }
    }
    for name in &names {
        world.until_ready(name).await;
    }
    for (n, name) in names.iter().enumerate() {
        match n % 3 {
            0 => world.api.delete("shop", name),
            1 => world.api.apply("shop", name, custom("true")),
            _ => {}
        }
        if n % 11 == 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            done.extend(world.end().await);
            world.lead();
        }
    }
    world
        .api
        .until("as declared", |api| {
            api.objects().len() == 40
                && api.objects().iter().all(|o| o["status"]["observedGeneration"] == o["metadata"]["generation"])
        })
        .await;
    for (n, name) in names.iter().enumerate().filter(|(n, _)| n % 3 != 0) {
        world.until_ready(name).await;
        let KindSpec::Custom(custom) = &world.entry(&format!("shop/{name}")).expect("there").record.spec.kind else {
            panic!("not custom")
        };
        assert_eq!(custom.command, if n % 3 == 1 { "true" } else { "sleep" });
    }
    assert_eq!(world.catalog.len(), 40, "none is left over");
    done.extend(world.end().await);
    done.sort();
    let of = |action: &str, n: usize| {
        names.iter().skip(n).step_by(3).map(|name| format!("{action} kubernetes/shop/{name}")).collect::<Vec<_>>()
    };
    let mut expected: Vec<_> = names.iter().map(|name| format!("create kubernetes/shop/{name}")).collect();
    expected.extend(of("delete", 0));
    expected.extend(of("update", 1));
    expected.sort();
    assert_eq!(done, expected, "each once");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_stopped_does_not_overwrite_what_its_successor_shows() {
    let world = World::begin();
    world.api.apply("shop", "web", custom("sleep"));
    world.until_ready("web").await;
    let api = super::super::api::Resources::new(world.api.client(), "c0".parse().expect("a name"));
    let value = world.api.object("shop", "web").expect("there");
    let old = Resource::read(serde_json::from_value(value).expect("an object")).expect("whole");
    // Its successor shows something else meanwhile.
    world.api.apply("shop", "web", custom("true"));
    world.api.until("edited", |api| api.object("shop", "web").expect("there")["status"]["generation"] == 2).await;
    let refused = api.show(&old, &old.status).await.expect_err("the object is another one");
    assert!(matches!(&refused, kubernetes::kube::Error::Api(status) if status.code == 409), "{refused}");
    assert_eq!(world.api.object("shop", "web").expect("there")["status"]["generation"], 2);
}
