//! A command as it is stored: one flat object, in which what is not asked for is left out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Custom, Probe, ProcessLimits, ProcessOptions, StopSignal};

/// All fields of a [`Custom`] side by side.
#[derive(Serialize, Deserialize)]
#[serde(rename = "Custom", deny_unknown_fields)]
pub(super) struct StoredCustom {
    command: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    probe: Probe,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    env_from: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "ProcessLimits::is_default")]
    limits: ProcessLimits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nice: Option<i8>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    no_new_privileges: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop_signal: Option<StopSignal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop_timeout: Option<Duration>,
}

impl From<StoredCustom> for Custom {
    fn from(stored: StoredCustom) -> Self {
        let StoredCustom { command, args, env, port, probe, env_from, user, group, working_dir, .. } = stored;
        let StoredCustom { limits, nice, no_new_privileges, stop_signal, stop_timeout, .. } = stored;
        let process = ProcessOptions {
            env_from,
            user,
            group,
            working_dir,
            limits,
            nice,
            no_new_privileges,
            stop_signal,
            stop_timeout,
        };
        Self { command, args, env, port, probe, process: process.boxed() }
    }
}

impl From<Custom> for StoredCustom {
    fn from(custom: Custom) -> Self {
        let Custom { command, args, env, port, probe, process } = custom;
        let ProcessOptions {
            env_from,
            user,
            group,
            working_dir,
            limits,
            nice,
            no_new_privileges,
            stop_signal,
            stop_timeout,
        } = process.map(|options| *options).unwrap_or_default();
        Self {
            command,
            args,
            env,
            port,
            probe,
            env_from,
            user,
            group,
            working_dir,
            limits,
            nice,
            no_new_privileges,
            stop_signal,
            stop_timeout,
        }
    }
}
