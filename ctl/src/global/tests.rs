//! Which server a command goes to.

use std::os::unix::fs::PermissionsExt as _;

use clap::{Command, FromArgMatches as _};

use super::*;
use crate::error::Exit;

/// Contexts `prod` and `test`, a folder with a cluster, and one without.
struct Place {
    top: tempfile::TempDir,
    contexts: Contexts,
}

impl Place {
    fn new() -> Self {
        let top = tempfile::tempdir().expect("a folder");
        let close = |folder: &Path| {
            std::fs::create_dir_all(folder).expect("a folder");
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).expect("ours");
        };
        close(&top.path().join("rug"));
        close(&top.path().join("with/.rug"));
        close(&top.path().join("without"));
        let (id, other) = ("6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11", "0b0e1a52-0f5e-4f0a-9a3e-0d2b6a1c7e11");
        std::fs::write(top.path().join("with/.rug/endpoint"), format!("unix:/x/s\ncluster {other}\n")).expect("a file");
        close(&top.path().join("same/.rug"));
        std::fs::write(top.path().join("same/.rug/endpoint"), format!("unix:/x/s\ncluster {id}\n")).expect("a file");
        let text = format!(
            "[prod]\nserver = \"http://p:1\"\ncluster = \"{id}\"\ntenant = \"demo\"\n[test]\nserver = \"http://t:1,,\"\n\
             [secure]\nserver = \"https://s:1\"\ntls_ca = \"/nowhere/ca.pem\"\n"
        );
        std::fs::write(top.path().join("rug/contexts.toml"), text).expect("a file");
        let contexts = Contexts::at(&top.path().join("rug"));
        Self { top, contexts }
    }

    fn connection(&self, global: &Global, folder: &str) -> Result<Connection, Failure> {
        global.connection(&self.top.path().join(folder), Some(&self.contexts))
    }
}

/// The flags of a command line.
fn typed(line: &str) -> Global {
    let command = Global::augment_args(Command::new("rugctl").no_binary_name(true));
    let matches = command.try_get_matches_from(line.split_whitespace()).expect(line);
    let mut global = Global::from_arg_matches(&matches).expect(line);
    global.note_typed(&matches);
    global
}

/// The same, from the environment.
fn set(global: Global) -> Global {
    Global { typed: Typed::default(), ..global }
}

#[tokio::test]
async fn a_context_says_server_cluster_and_tenant() {
    let place = Place::new();
    let found = place.connection(&typed("--context prod"), "with").expect("a context");
    assert_eq!(found.client.address(), "http://p:1");
    assert_eq!(found.client.meant().map(ToString::to_string).as_deref(), Some("6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11"));
    assert_eq!(found.reached.tenant.as_ref().map(Name::as_str), Some("demo"));
    let local = place.connection(&typed("--context local"), "with").expect("a cluster");
    assert_eq!((local.client.address(), local.reached.tenant), ("unix:/x/s", None));
    for (line, part) in [
        ("--context none", "there is no context `none`"),
        ("--context test", "contexts.toml: test: server: address 2 of 3 is empty"),
        ("--context secure", "secure: tls_"),
        ("--context prod --tls-ca ca.pem", "--tls-ca is given"),
        ("--context prod --tls-key ca.pem", "--tls-key is given"),
        ("--context prod --token-file t", "--token-file is given"),
    ] {
        let failure = place.connection(&typed(line), "without").expect_err(line);
        assert!(failure.to_string().contains(part), "{line}: {failure}");
    }
}

#[tokio::test]
async fn what_is_typed_counts_before_what_is_set_and_two_of_a_rank_are_refused() {
    let place = Place::new();
    let both = || typed("--server h:1 --context prod");
    let address = |global: &Global| place.connection(global, "with").map(|found| found.client.address().to_owned());
    let server = Global { typed: Typed { context: false, ..both().typed }, ..both() };
    assert_eq!(address(&server).expect("typed"), "http://h:1");
    let context = Global { typed: Typed { server: false, ..both().typed }, ..both() };
    assert_eq!(address(&context).expect("typed"), "http://p:1");
    for global in [both(), set(both())] {
        let failure = address(&global).expect_err("which one?");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.to_string().contains("both"), "{failure}");
    }
}

#[tokio::test]
async fn the_context_in_use_and_a_cluster_in_the_folder_are_not_guessed_between() {
    let place = Place::new();
    let address = |line: &str, folder: &str| {
        place.connection(&typed(line), folder).map(|found| found.client.address().to_owned())
    };
    assert_eq!(address("", "with").expect("the one of the folder"), "unix:/x/s");
    assert_eq!(address("", "without").expect_err("none").exit, Exit::Usage);
    place.contexts.set_in_use(&Name::new("prod").expect("a name")).expect("it is there");
    assert_eq!(address("", "without").expect("in use"), "http://p:1");
    let failure = address("", "with").expect_err("which one?");
    assert!(
        failure.exit == Exit::Usage && failure.to_string().contains("--context prod or --context local"),
        "{failure}"
    );
    assert_eq!(address("", "same").expect("one cluster, found twice"), "http://p:1");
    assert_eq!(address("--context local", "with").expect("said"), "unix:/x/s");
    assert_eq!(address("--server h:1", "with").expect("said"), "http://h:1");
    place.contexts.set_in_use(&Name::new("local").expect("a name")).expect("always there");
    assert_eq!(address("", "with").expect("the one of the folder"), "unix:/x/s");
}
