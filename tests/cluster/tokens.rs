//! Bearer tokens, from the file of the user to the appliance that may not be changed.

use anyhow::{Context, Result, ensure};
use runtime::tls;
use tests::cluster::certificates::Certificates;
use tests::cluster::daemon::Daemon;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, Sandbox, binaries, ports, rugctl};

/// Keys and tokens of an issuer, see the folder.
const KEYS: &str = include_str!("../data/tokens/jwks.json");
const TOKENS: &str = include_str!("../data/tokens/tokens.txt");

#[tokio::test]
async fn a_token_lets_its_holder_do_what_its_roles_say_and_no_other_token_counts() -> Result<()> {
    tls::install_provider();
    let sandbox = Sandbox::new()?;
    let certificates = Certificates::make(sandbox.path("pki"), &["coordinator:c1"]).await?;
    std::fs::write(sandbox.path("jwks.json"), KEYS)?;
    let listen = format!("127.0.0.1:{}", ports::free());
    let mut args: Vec<_> = ["run", "--name", "c1", "--listen", &listen, "--state-dir"].map(Into::into).to_vec();
    args.push(sandbox.path("c1").into_os_string());
    let mut coordinator = Daemon::new("c1", binaries::path("rug-coordinator")?, args, &sandbox);
    for (name, value) in certificates.variables("RUG_COORDINATOR", "c1") {
        coordinator.environment(&[(name.as_str(), value)]);
    }
    coordinator.environment(&[
        ("RUG_COORDINATOR_AUTHORIZATION__TOKENS__JWKS", sandbox.path("jwks.json").display().to_string()),
        ("RUG_COORDINATOR_AUTHORIZATION__TOKENS__ISSUER", "https://issuer.example.org".to_owned()),
        ("RUG_COORDINATOR_AUTHORIZATION__TOKENS__AUDIENCE", "rug".to_owned()),
    ]);
    coordinator.start()?;

    let (server, ca) = (format!("https://{listen}"), certificates.shown("c1", "ca.pem"));
    let run = async |token: Option<&str>, words: &[&str], input: &str| {
        let mut args = [words, &["--server", &server, "--tls-ca", &ca]].concat();
        let file = sandbox.path("token").display().to_string();
        if let Some(token) = token {
            std::fs::write(&file, token)?;
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            args.extend(["--token-file", &file]);
        }
        rugctl::run(sandbox.root(), &args, input).await
    };
    let tokens: Vec<_> = TOKENS.lines().collect();
    let (good, others) = tokens.split_first().context("there are some")?;
    until(PATIENCE, "the coordinator answers", async || {
        coordinator.check()?;
        run(Some(good), &["list", "--timeout", "2s"], "").await?.success().map(drop)
    })
    .await?;
    let document = |tenant: &str| format!("name: a\ntenant: {tenant}\nkind: custom\nspec: {{command: sleep}}\n");
    let made = run(Some(good), &["apply", "--no-wait", "-f", "-"], &document("web")).await?.success()?;
    ensure!(made.stdout.contains("custom/a created"), "{}", made.stdout);
    let refused = run(Some(good), &["apply", "--no-wait", "-f", "-"], &document("other")).await?;
    ensure!(refused.code != 0 && refused.stderr.contains("jane (token)"), "{refused:?}");
    let listed = run(Some(good), &["list"], "").await?.success()?;
    ensure!(listed.stdout.contains("web") && !listed.stdout.contains("other"), "{}", listed.stdout);

    for (n, token) in others.iter().enumerate() {
        let refused = run(Some(token), &["list", "--timeout", "5s"], "").await?;
        ensure!(refused.code != 0 && refused.stderr.contains("token"), "token {n}: {refused:?}");
        ensure!(!refused.stderr.contains(token), "token {n} is shown: {}", refused.stderr);
    }
    let refused = run(None, &["list", "--timeout", "5s"], "").await?;
    ensure!(refused.code == 2 && refused.stderr.contains("--tls-cert"), "{refused:?}");
    let log = coordinator.log_text();
    ensure!(log.contains("refused") && !tokens.iter().any(|token| log.contains(token)), "{log}");
    coordinator.stop(PATIENCE).await?;
    sandbox.finish(&[])
}
