//! What a worker orders of a shim, and what a shim notes in its file.

use shim::order::Order;
use shim::state::ShimState;

use super::text;
use crate::{Outcome, size};

pub(super) fn order_seeds() -> Vec<Vec<u8>> {
    let entries = |entries: &[&str]| entries.iter().flat_map(|entry| entry.bytes().chain([0])).collect();
    let least = ["instance=a-0-1", "program=/bin/sh", "end="];
    let full = [
        "instance=a-0-1",
        "program=/bin/sh",
        "arg=-c",
        "arg=exec x",
        "env=A=b=c",
        "env=B=",
        "directory=/tmp",
        "fallback=/usr/bin/x",
        "working_dir=/srv",
        "user=7 8 9 10",
        "nofile=1024 4096",
        "nproc=70",
        "core=0",
        "nice=-5",
        "no_new_privileges=1",
        "stop_signal=2",
        "stop_timeout=1500",
        "log_size=10",
        "log_kept=3",
        "log_folder=/x",
        "log_quota=100",
        "cgroup=/sys/fs/cgroup/a",
        "cgroup_memory=1048576",
        "cgroup_cpu=150",
        "end=",
    ];
    vec![entries(&least), entries(&full)]
}

/// An order that was read is written as one that is read the same.
pub(super) fn order(input: &[u8]) -> Outcome {
    match Order::decode(input) {
        Err(problem) => Outcome::refused(&problem.to_string()),
        Ok(order) => {
            assert_eq!(Order::decode(&order.encode()).as_ref(), Ok(&order));
            let command = &order.command;
            let given =
                (command.user.is_some(), command.nofile.is_some(), command.nice.is_some(), order.cgroup.is_some());
            Outcome::read(&(size(command.args.len()), size(command.env.len()), given))
        }
    }
}

pub(super) fn state_seeds() -> Vec<Vec<u8>> {
    let running = "instance=a-0-1\nboot=b-c\nshim=3:70\nmain=4:71\ncgroup=/sys/fs/cgroup/a\n";
    let ended = "dropped=5\nended=exit 3\nended_at=17\nout_of_memory=1\nlast=one\nlast=two=2\n";
    let killed = "ended=signal 9\nended_at=17\n";
    vec![running.into(), format!("{running}{ended}").into(), format!("new=1\n{running}{killed}").into()]
}

/// A state that was read is written as one that is read the same.
pub(super) fn state(input: &[u8]) -> Outcome {
    match ShimState::decode(&text(input)) {
        None => Outcome::refused("no whole state"),
        Some(state) => {
            assert_eq!(ShimState::decode(&state.encode()).as_ref(), Some(&state));
            let end =
                state.end.map(|end| (std::mem::discriminant(&end.cause), end.out_of_memory, end.last_lines.len()));
            Outcome::read(&(end, state.dropped > 0))
        }
    }
}
