//! `rugctl ssh`: the `ssh` of this machine, at the management address of an instance.
//!
//! Host keys are known by the name of the instance, in a file of Rug's own: addresses are used again by other instances, whose keys are others.

use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use common::status::MANAGEMENT_DETAIL;
use proto::admin::v1;

use crate::commands::CommandContext;
use crate::commands::appliance::One;
use crate::contexts::Contexts;
use crate::error::Failure;
use crate::global::no_folder;
use crate::text::one_line;

/// Drivers whose instances have no address of their own that something could be reached at.
const WITHOUT_ADDRESS: [&str; 2] = ["process", "simulated"];

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct SshArgs {
    #[command(flatten)]
    one: One,
    /// Which instance, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    instance: u32,
    /// User to log in as [default: that of ssh]
    #[arg(long, env = "RUG_SSH_USER", hide_env_values = true)]
    user: Option<String>,
    /// File of the private key [default: those of ssh]
    #[arg(long, env = "RUG_SSH_KEY", hide_env_values = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    key: Option<PathBuf>,
    /// Run this instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Where to log in.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    address: IpAddr,
    /// Name of the instance.
    name: String,
}

impl Target {
    fn of(appliance: &v1::Appliance, ordinal: u32) -> Result<Self, Failure> {
        let name = one_line(&appliance.name);
        let driver = appliance.driver.as_str();
        if WITHOUT_ADDRESS.contains(&driver) {
            return Err(Failure::failed(format!(
                "instances of driver `{driver}` have no address of their own to log in at; `rugctl exec {name} -- COMMAND` runs a command in one of \
                 driver `process`"
            )));
        }
        let mut instances = appliance.status.iter().flat_map(|status| &status.instances);
        let instance = instances.find(|instance| instance.ordinal == ordinal);
        let instance = instance.ok_or_else(|| Failure::failed(format!("{name} has no instance {ordinal} now")))?;
        let address = instance.details.get(MANAGEMENT_DETAIL).and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| {
            Failure::failed(format!(
                "instance {ordinal} of {name} has no management address, or none that its worker knows yet"
            ))
        })?;
        Ok(Self { address, name: instance.name.clone() })
    }

    /// The call of `ssh`.
    fn ssh(&self, args: &SshArgs, known_hosts: &Path) -> Result<Command, Failure> {
        let path = known_hosts.to_str().filter(|path| !path.contains(['"', '\n']));
        let path = path.ok_or_else(|| Failure::failed(format!("{known_hosts:?} cannot be named in options of ssh")))?;
        let options = [
            // `%` begins what ssh fills in.
            format!("UserKnownHostsFile=\"{}\"", path.replace('%', "%%")),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            format!("HostKeyAlias={}", self.name),
            "CheckHostIP=no".to_owned(),
            // The first key of an instance is taken, as nothing else is known of it; a changed one is refused.
            "StrictHostKeyChecking=accept-new".to_owned(),
        ];
        let mut ssh = Command::new("ssh");
        for option in &options {
            ssh.args(["-o", option]);
        }
        if let Some(user) = &args.user {
            ssh.args(["-l", user]);
        }
        if let Some(key) = &args.key {
            ssh.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(key);
        }
        ssh.arg(self.address.to_string()).args(&args.command);
        Ok(ssh)
    }
}

/// Becomes `ssh`.
pub(crate) async fn run(context: &CommandContext, args: &SshArgs) -> Result<(), Failure> {
    let appliance = args.one.find(context).await?;
    let target = Target::of(&appliance, args.instance)?;
    let known_hosts = Contexts::of_user().ok_or_else(no_folder)?.known_hosts();
    if let Some(folder) = known_hosts.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| Failure::failed(format!("{}: {error}", folder.display())))?;
    }
    // Returns only when it failed.
    let error = target.ssh(args, &known_hosts)?.exec();
    Err(Failure::failed(format!("cannot run ssh: {error}")))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SshArgs,
    }

    fn appliance(driver: &str, details: &[(&str, &str)]) -> v1::Appliance {
        let details = details.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let instance = v1::Instance { ordinal: 1, name: "a-1-7".into(), details, ..v1::Instance::default() };
        let status = Some(v1::Status { instances: vec![instance], ..v1::Status::default() });
        v1::Appliance { name: "edge".into(), driver: driver.into(), status, ..v1::Appliance::default() }
    }

    #[test]
    fn an_instance_is_reached_at_the_management_address_that_its_worker_knows() {
        let known = appliance("openstack", &[(MANAGEMENT_DETAIL, "fd00::7")]);
        let target = Target::of(&known, 1).expect("an address");
        assert_eq!(target, Target { address: "fd00::7".parse().expect("an address"), name: "a-1-7".into() });
        let refused = |appliance, ordinal| Target::of(&appliance, ordinal).expect_err("no address").message;
        assert!(refused(known, 0).contains("has no instance 0"));
        assert!(refused(appliance("openstack", &[]), 1).contains("no management address"));
        assert!(refused(appliance("openstack", &[(MANAGEMENT_DETAIL, "-oProxyCommand=x")]), 1).contains("address"));
        assert!(refused(appliance("process", &[(MANAGEMENT_DETAIL, "10.0.0.1")]), 1).contains("rugctl exec edge"));
    }

    #[test]
    fn ssh_is_told_the_instance_the_user_the_key_and_the_file_of_host_keys() {
        let target = Target { address: "10.0.0.7".parse().expect("an address"), name: "a-1-7".into() };
        let line = ["", "edge", "--user", "ops", "--key", "/k", "--", "uptime", "-p"];
        let args = Line::try_parse_from(line).expect("a line").args;
        // One that says what it is called with.
        let folder = tempfile::tempdir().expect("a folder");
        let stand_in = folder.path().join("ssh");
        std::fs::write(&stand_in, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").expect("writable");
        std::fs::set_permissions(&stand_in, Permissions::from_mode(0o755)).expect("ours");
        let mut ssh = target.ssh(&args, Path::new("/home/o ps/100%/known_hosts")).expect("a path");
        let told = ssh.env("PATH", folder.path()).output().expect("it runs").stdout;
        let told: Vec<_> = std::str::from_utf8(&told).expect("UTF-8").lines().collect();
        let files = "UserKnownHostsFile=\"/home/o ps/100%%/known_hosts\"";
        assert_eq!(told[..6], ["-o", files, "-o", "GlobalKnownHostsFile=/dev/null", "-o", "HostKeyAlias=a-1-7"]);
        assert_eq!(told[10..], ["-l", "ops", "-o", "IdentitiesOnly=yes", "-i", "/k", "10.0.0.7", "uptime", "-p"]);
        assert!(target.ssh(&args, Path::new("/a\"b")).is_err());
    }
}
