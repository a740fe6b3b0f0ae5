//! Which files are read, what they may say, and what is written.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// Contexts in a folder of their own with this file.
fn contexts(text: &str) -> (tempfile::TempDir, Contexts) {
    let top = tempfile::tempdir().expect("a folder");
    let folder = top.path().join("rug");
    fs::create_dir(&folder).expect("a folder");
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).expect("ours");
    if !text.is_empty() {
        fs::write(folder.join(FILE), text).expect("a file");
    }
    let contexts = Contexts::at(&folder);
    (top, contexts)
}

const PROD: &str = "\
# of the operators
[prod]
server = \"https://rug-1:7470,https://rug-2:7470\"
cluster = \"6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11\"
tenant = \"demo\"
tls_ca = \"/etc/rug/ca.pem\"
tls_servers = \"rug://coordinator/*, rug-1\"
token_file = \"/run/me/token\"

['a.b']
server = \"unix:/run/rug/coordinator.sock\"
";

#[test]
fn a_context_is_read_with_everything_it_has() {
    let (_top, contexts) = contexts(PROD);
    let all = contexts.all().expect("valid");
    assert_eq!(all.keys().map(Name::as_str).collect::<Vec<_>>(), ["a.b", "prod"]);
    let prod = contexts.get(&name("prod")).expect("it is there");
    assert_eq!(prod.server, "https://rug-1:7470,https://rug-2:7470");
    assert_eq!(prod.cluster, "6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11".parse().ok());
    assert_eq!(prod.tenant, Some(name("demo")));
    assert_eq!(prod.tls.ca, Some("/etc/rug/ca.pem".into()));
    assert_eq!(prod.tls.servers, ["rug://coordinator/*", "rug-1"]);
    assert_eq!(prod.token_file, Some("/run/me/token".into()));
    let failure = contexts.get(&name("test")).expect_err("there is none");
    assert_eq!(failure.exit, Exit::NotFound);
    assert!(failure.to_string().contains("known are a.b, prod, local"), "{failure}");
}

#[test]
fn every_problem_is_told_with_its_line_and_without_its_value() {
    let text = "\
[prod]
server = \"https://h:1\"
serve = \"hush\"
cluster = \"Not A Hush\"
tls_ca = \"hush.pem\"
tenant = 7
token_file = \"\"

[test]

[local]
server = \"unix:/s\"

[\"No Name\"]
server = \"unix:/s\"
";
    let (_top, mine) = contexts(text);
    let failure = mine.all().expect_err("problems");
    assert_eq!(failure.exit, Exit::Usage);
    let told = failure.to_string();
    for part in [
        "contexts.toml:3: prod.serve: unknown setting; known are server, cluster",
        "contexts.toml:4: prod.cluster: is neither the id of a cluster",
        "contexts.toml:5: prod.tls_ca: must be an absolute path",
        "contexts.toml:6: prod.tenant: must be a text in quotes",
        "contexts.toml:7: prod.token_file: is empty",
        "contexts.toml:9: test.server: is required",
        "contexts.toml:11: local: stands for the cluster of the working directory",
        "contexts.toml:14: ",
    ] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    assert!(!told.to_lowercase().contains("hush"), "{told}");
    let told = contexts("[prod]\nserver = 'https://h:1, unix:hush'\n").1.all().expect_err("relative").to_string();
    assert!(
        told.contains("contexts.toml:2: prod.server: must have absolute paths") && !told.contains("hush"),
        "{told}"
    );
    for (text, part) in [("[prod\nx", "contexts.toml:1: is not valid TOML"), ("server = 'x'\n", "must be the section")]
    {
        let told = contexts(text).1.all().expect_err(text).to_string();
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn what_others_can_have_written_is_refused() {
    let (top, contexts) = contexts(PROD);
    let refused = |part: &str| {
        let failure = contexts.all().expect_err(part);
        assert!(failure.exit == Exit::Usage && failure.to_string().contains(part), "{failure}");
    };
    fs::set_permissions(contexts.file(), Permissions::from_mode(0o666)).expect("ours");
    refused("can be changed by other users");
    fs::set_permissions(contexts.file(), Permissions::from_mode(0o600)).expect("ours");
    let folder = top.path().join("rug");
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).expect("ours");
    refused("every user can write to");
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).expect("ours");
    assert_eq!(contexts.all().expect("ours").len(), 2);
    fs::rename(contexts.file(), top.path().join("elsewhere")).expect("moved");
    symlink(top.path().join("elsewhere"), contexts.file()).expect("a link");
    refused("symbolic link");
    fs::write(folder.join(IN_USE), "prod\n").expect("a file");
    fs::set_permissions(folder.join(IN_USE), Permissions::from_mode(0o666)).expect("ours");
    assert!(contexts.in_use().expect_err("changeable").to_string().contains("can be changed by other users"));
}

#[test]
fn a_context_is_in_use_until_another_one_is() {
    let (_top, contexts) = contexts(PROD);
    assert_eq!(contexts.in_use().expect("none"), None);
    contexts.set_in_use(&name("prod")).expect("it is there");
    assert_eq!(contexts.in_use().expect("written"), Some(name("prod")));
    assert_eq!(contexts.set_in_use(&name("test")).expect_err("none").exit, Exit::NotFound);
    assert_eq!(contexts.in_use().expect("as before"), Some(name("prod")));
    contexts.set_in_use(&name(LOCAL)).expect("always there");
    assert_eq!(contexts.in_use().expect("written"), None);
}

#[test]
fn a_context_that_is_added_is_read_again_and_leaves_the_others_alone() {
    let top = tempfile::tempdir().expect("a folder");
    // Nothing is there yet.
    let contexts = Contexts::at(&top.path().join("config/rug"));
    assert!(contexts.all().expect("none").is_empty());
    let odd = NamedContext {
        server: "https://h:1".into(),
        cluster: "prod".parse().ok(),
        tls: TlsFiles { ca: Some("/a \"b\"\\c".into()), servers: vec!["a".into(), "b".into()], ..TlsFiles::default() },
        ..NamedContext::default()
    };
    contexts.add(&name("odd"), &odd).expect("written");
    assert_eq!(contexts.get(&name("odd")).expect("it is there"), odd);
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!((mode(&contexts.file()), mode(&top.path().join("config/rug"))), (0o600, 0o700));

    fs::write(contexts.file(), PROD).expect("a file");
    let here = NamedContext { server: "unix:/s".into(), ..NamedContext::default() };
    contexts.add(&name("he.re"), &here).expect("written");
    let text = fs::read_to_string(contexts.file()).expect("a file");
    assert!(text.starts_with(PROD) && contexts.all().expect("valid").len() == 3, "{text}");
    assert_eq!(contexts.add(&name("prod"), &here).expect_err("taken").exit, Exit::Conflict);
    assert_eq!(contexts.add(&name(LOCAL), &here).expect_err("reserved").exit, Exit::Usage);
    let line_end = NamedContext { server: "unix:/a\nb".into(), ..NamedContext::default() };
    assert_eq!(contexts.add(&name("line"), &line_end).expect_err("a line end").exit, Exit::Usage);
    assert_eq!(fs::read_to_string(contexts.file()).expect("a file"), text);
}

#[test]
fn the_folder_is_that_of_the_user() {
    let of = |config: Option<&str>, home: Option<&str>| {
        Contexts::of(config.map(OsStr::new), home.map(OsStr::new)).map(|contexts| contexts.folder)
    };
    assert_eq!(of(None, Some("/home/me")), Some("/home/me/.config/rug".into()));
    assert_eq!(of(Some("/cfg"), Some("/home/me")), Some("/cfg/rug".into()));
    assert_eq!(of(Some("cfg"), Some("/home/me")), Some("/home/me/.config/rug".into()));
    assert_eq!(of(Some(""), Some("")), None);
}
