//! What a specification says of the process of an instance: its user, variables out of files, limits, how it is stopped, and a probe
//! that is a command.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use common::execution::ExecEnd;
use common::kind::{Probe, ProcessLimits, ProcessOptions};

use common::status::EndCause;
use worker::drivers::execution::ExecOutput;

use super::*;

/// A shell script with something more.
fn script(script: &str, change: impl FnOnce(&mut ProcessOptions)) -> Desired {
    let mut desired = shell(script);
    let KindSpec::Custom(custom) = &mut desired.spec.kind else { unreachable!("made as that") };
    let mut options = ProcessOptions::NONE;
    change(&mut options);
    custom.process = options.boxed();
    desired
}

/// What an instance has written by the line `end`.
async fn output(world: &DriverWorld) -> String {
    let log = world.instance_folder().join("log");
    until("it has told", || fs::read_to_string(&log).is_ok_and(|text| text.ends_with("end\n"))).await;
    fs::read_to_string(&log).expect("readable")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can start a process as another user");
    }
    root
}

#[tokio::test]
async fn a_command_runs_as_root_only_where_that_is_allowed() {
    if !is_root() {
        return;
    }
    let world = DriverWorld::new();
    let driver = open("w1", Config { allow_root: false, ..world.config() });
    let mut asked = script("exec sleep 1000", |_| {});
    assert!(refusal(driver.ensure(&permit(1), first(&asked)).await).contains("process.allow_root"));
    asked = script("exec sleep 1000", |custom| custom.user = Some("0".into()));
    assert!(refusal(driver.ensure(&permit(1), first(&asked)).await).contains("process.allow_root"));
    let as_other = script("exec sleep 1000", |custom| custom.user = Some("nobody".into()));
    let made = driver.ensure(&permit(1), first(&as_other)).await.expect("starts");
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
    // The reference appliance runs nothing that anybody names.
    let made =
        driver.ensure(&permit(1), Wanted { attempt: 2, ..first(&balanced(free_port(), &[])) }).await.expect("starts");
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}

#[tokio::test]
async fn what_runs_as_root_already_is_adopted_where_that_is_not_allowed_any_more() {
    if !is_root() {
        return;
    }
    let world = DriverWorld::new();
    let spec = script("exec sleep 1000", |_| {});
    let made = world.driver("w1").ensure(&permit(1), first(&spec)).await.expect("starts");
    let strict = open("w2", Config { allow_root: false, ..world.config() });
    assert_eq!(strict.observe(A).await.expect("readable").running, std::slice::from_ref(&made));
    assert_eq!(strict.ensure(&permit(2), first(&spec)).await.expect("finds it"), made);
    strict.destroy(&permit(2), &made, StopRecipe::default()).await.expect("ends");
    assert!(refusal(strict.ensure(&permit(2), Wanted { attempt: 2, ..first(&spec) }).await).contains("allow_root"));
    // With a user for what names none it starts without the rights of root.
    let kind = Config { allow_root: false, default_user: Some("nobody".into()), ..world.config() };
    let lenient = open("w3", kind);
    let spec = script("id -un; id -u; echo end; exec sleep 1000", |_| {});
    let made = lenient.ensure(&permit(3), Wanted { attempt: 3, ..first(&spec) }).await.expect("starts");
    let text = output(&world).await;
    assert!(text.starts_with("nobody\n"), "{text}");
    lenient.destroy(&permit(3), &made, StopRecipe::default()).await.expect("ends");
}

#[tokio::test]
async fn a_working_directory_has_to_be_open_to_the_user_of_the_instance() {
    if !is_root() {
        return;
    }
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let closed = tempfile::tempdir().expect("a folder");
    let (inner, open) = (closed.path().join("inner"), tempfile::tempdir().expect("a folder"));
    fs::create_dir(&inner).expect("writable");
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).expect("ours");
    for folder in [inner.as_path(), open.path()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("ours");
    }
    let spec = |folder: &Path| {
        script("pwd; echo end; exec sleep 1000", |options| {
            options.user = Some("nobody".into());
            options.working_dir = Some(folder.to_string_lossy().into_owned());
        })
    };
    let refused = driver.ensure(&permit(1), first(&spec(&inner))).await.expect_err("it may not pass the folder above");
    let text = refused.to_string();
    assert!(text.contains("enter ") && text.contains("Permission denied"), "{text}");
    assert!(world.processes().is_empty());
    let made = driver.ensure(&permit(1), Wanted { attempt: 2, ..first(&spec(open.path())) }).await.expect("starts");
    assert!(output(&world).await.starts_with(&open.path().to_string_lossy().into_owned()));
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}

#[tokio::test]
async fn of_programs_of_one_name_the_first_is_run_that_the_user_may_run() {
    if !is_root() {
        return;
    }
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    // Found by the worker, and closed to the other user.
    let closed = tempfile::tempdir().expect("a folder");
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).expect("ours");
    let only = closed.path().join("only");
    fs::write(&only, "#!/bin/sh\nexec sleep 1000\n").expect("writable");
    fs::set_permissions(&only, fs::Permissions::from_mode(0o755)).expect("ours");
    let mut spec = custom(&only.to_string_lossy(), &[], None);
    let KindSpec::Custom(kind) = &mut spec.spec.kind else { unreachable!("made as that") };
    kind.process = ProcessOptions { user: Some("nobody".into()), ..ProcessOptions::NONE }.boxed();
    let text = driver.ensure(&permit(1), first(&spec)).await.expect_err("its folder is closed").to_string();
    assert!(text.contains(&format!("run {} as user ", only.display())) && text.contains("Permission denied"), "{text}");
    let words = [only.to_string_lossy().into_owned()];
    let sleeps = script("exec sleep 1000", |options| options.user = Some("nobody".into()));
    let made = driver.ensure(&permit(1), Wanted { attempt: 2, ..first(&sleeps) }).await.expect("starts");
    let text = driver.run_beside(A, &made, &spec, &words, DEADLINE).await.expect_err("neither is it").to_string();
    assert!(text.contains("cannot be run: run ") && text.contains("Permission denied"), "{text}");
    let command = shim::order::Command {
        program: only,
        directory: "/".into(),
        user: Some(shim::order::User { uid: 65534, gid: 65534, groups: vec![65534] }),
        ..shim::order::Command::default()
    };
    let run = |fallbacks: &[&str]| {
        let fallbacks = fallbacks.iter().map(Into::into).collect();
        let order = shim::order::Order {
            instance: "a-0-1".into(),
            command: shim::order::Command { fallbacks, ..command.clone() },
            stop: shim::order::Stop { signal: rustix::process::Signal::TERM, timeout: DEADLINE },
            log: shim::order::LogBounds { size: 1, kept: 0, folder: "/".into(), quota: 1 },
            cgroup: None,
        };
        let input = closed.path().join("order");
        fs::write(&input, order.encode()).expect("writable");
        let shim = std::process::Command::new(world.config().shim_binary)
            .arg("launch")
            .stdin(fs::File::open(&input).expect("readable"))
            .output()
            .expect("it runs");
        String::from_utf8(shim.stdout).expect("text")
    };
    assert_eq!(run(&["/bin/true"]), "", "another one of that name is run");
    assert!(run(&[]).starts_with("run /"), "there is no other");
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}

#[tokio::test]
async fn a_limit_that_cannot_be_kept_and_a_file_that_is_none_are_refused() {
    let world = DriverWorld::new();
    let cgroup = CgroupSetting::try_from("off".to_owned()).expect("a setting");
    let driver = open("w1", Config { cgroup, ..world.config() });
    for (limits, name) in [
        (ProcessLimits { memory: Some(1 << 26), ..ProcessLimits::NONE }, "limits.memory: needs a control group"),
        (ProcessLimits { cpu_percent: Some(50), ..ProcessLimits::NONE }, "limits.cpu: needs a control group"),
    ] {
        let spec = script("exec sleep 1000", |options| options.limits = limits);
        let text = refusal(driver.ensure(&permit(1), first(&spec)).await);
        assert!(text.starts_with(name), "{text}");
    }
    let pipe = world.folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("ours");
    let spec = script("exec sleep 1000", |options| options.env_from = vec![pipe.to_string_lossy().into_owned()]);
    let text = refusal(timeout(DEADLINE, driver.ensure(&permit(1), first(&spec))).await.expect("it is not waited for"));
    assert!(text.ends_with("is no file of at most 64 KiB"), "{text}");
    assert!(world.processes().is_empty());
}

/// A folder stands in for a delegated group: the kernel would fill and read the same files.
#[tokio::test]
async fn limits_of_a_control_group_are_set_and_an_end_for_lack_of_memory_is_told() {
    let world = DriverWorld::new();
    let delegated = tempfile::tempdir().expect("a folder");
    let instances = delegated.path().join("rug-instances");
    fs::create_dir(&instances).expect("writable");
    for group in [delegated.path(), &instances] {
        fs::write(group.join("cgroup.subtree_control"), "memory cpu\n").expect("writable");
    }
    let cgroup = CgroupSetting::try_from(delegated.path().to_string_lossy().into_owned()).expect("a path");
    let driver = open("w1", Config { cgroup, ..world.config() });
    let spec = script("echo end; exec sleep 1000", |options| {
        options.limits = ProcessLimits { memory: Some(1 << 26), cpu_percent: Some(50), ..ProcessLimits::NONE };
    });
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    output(&world).await;
    let own = instances.join(Instance::name(A, 0, 1));
    let content = |name: &str| fs::read_to_string(own.join(name)).expect("written");
    assert_eq!((content("memory.max").as_str(), content("cpu.max").as_str()), ("67108864", "50000 100000"));
    let pid = made.details.pid().expect("a process");
    assert_eq!(content("cgroup.procs"), pid.to_string());
    fs::write(own.join("memory.events"), "oom 1\noom_kill 1\n").expect("writable");
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill is part of Debian");
    until("it has ended", || !runs(pid)).await;
    let noted = async {
        loop {
            if let Some(end) = driver.ended(A, &made).await {
                return end;
            }
            // What the shim writes is not announced: it is looked at again, under the deadline below.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let end = tokio::time::timeout(Duration::from_secs(30), noted).await.expect("noted in time");
    assert!(end.out_of_memory && end.to_string().contains("out of memory"), "{end}");
}

#[tokio::test]
async fn a_command_beside_an_instance_of_another_user_runs_as_that_user() {
    if !is_root() {
        return;
    }
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let mark = format!("{}.78", 100_000 + std::process::id());
    let spec = script("exec sleep 1000", |options| {
        options.user = Some("nobody".into());
        options.limits.nofile = Some(77);
    });
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let left_behind = format!("setsid sleep {mark} & test $(id -un) = nobody && test $(ulimit -n) = 77 && touch mine");
    let words = ["sh", "-c", &left_behind].map(str::to_owned);
    driver.run_beside(A, &made, &spec, &words, DEADLINE).await.expect("succeeds");
    assert!(trees::with_argument(&mark).is_empty(), "what it left behind is killed before it is answered");
    assert!(world.instance_folder().join("work/mine").exists());
    assert!(driver.is_alive(A, &made).await == Some(true));
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}

#[tokio::test]
async fn an_instance_of_another_user_has_that_users_rights_and_no_others() {
    if !is_root() {
        return;
    }
    let world = DriverWorld::new();
    let driver = open("w1", Config { allow_root: false, ..world.config() });
    let spec = script(
        "id -u; id -g; id -G; echo $HOME $USER; touch own && echo made; cat /etc/shadow; echo end > /dev/stdout; exec sleep 1000",
        |c| {
            c.user = Some("nobody".into());
            c.group = Some("7".into());
            c.no_new_privileges = true;
        },
    );
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let text = output(&world).await;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[1], lines[4], lines.len()), ("7", "made", 7), "{text}");
    assert!(!lines[3].starts_with("/root"), "{text}");
    assert!(lines[0] != "0" && lines[2].starts_with('7') && lines[3].ends_with(" nobody"), "{text}");
    assert!(lines[5].contains("denied"), "{text}");
    let status =
        fs::read_to_string(format!("/proc/{}/status", made.details.pid().expect("a process"))).expect("it runs");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    // Another worker adopts and ends it.
    let other = world.driver("w2");
    assert_eq!(other.observe(A).await.expect("readable").running, std::slice::from_ref(&made));
    other.destroy(&permit(2), &made, StopRecipe::default()).await.expect("ends");
    // The next attempt is another user again, who can use the same folder.
    let next = script("touch own2 && echo made; echo end; exec sleep 1000", |c| {
        c.user = Some("4000000".into());
        c.group = Some("4000000".into());
    });
    let made = driver.ensure(&permit(3), Wanted { attempt: 2, ..first(&next) }).await.expect("starts");
    until("it has made its file", || world.instance_folder().join("work/own2").exists()).await;
    let meta = fs::metadata(world.instance_folder().join("work/own2")).expect("made");
    assert_eq!((meta.uid(), meta.gid()), (4_000_000, 4_000_000));
    driver.destroy(&permit(3), &made, StopRecipe::default()).await.expect("ends");
    driver.forget(&permit(3)).await.expect("nothing is in the way");
}

#[tokio::test]
async fn limits_directory_nice_value_and_files_of_variables_are_as_asked() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let beside = tempfile::tempdir().expect("a folder");
    let file = beside.path().join("env");
    fs::write(&file, "SECRET=hush\nGREETING=lost\n").expect("writable");
    let spec = script(
        "pwd; ulimit -n; ulimit -u; ulimit -c; nice; echo $SECRET; echo $GREETING; echo end; exec sleep 1000",
        |c| {
            c.working_dir = Some("/usr".into());
            c.limits = ProcessLimits { nofile: Some(99), nproc: Some(5000), core: Some(0), ..ProcessLimits::default() };
            c.nice = Some(7);
            c.env_from = vec![file.to_string_lossy().into_owned()];
        },
    );
    let spec_with_sh = spec.clone();
    let made = driver.ensure(&permit(1), first(&spec_with_sh)).await.expect("starts");
    let text = output(&world).await;
    let greeting = format!("web 0 {A}");
    // `env` wins over files. dash has no `ulimit -u`.
    let lines: Vec<_> = text.lines().filter(|line| !line.contains("ulimit")).collect();
    assert_eq!([lines[0], lines[1]], ["/usr", "99"], "{text}");
    assert_eq!(lines[lines.len() - 5..], ["0", "7", "hush", greeting.as_str(), "end"], "{text}");
    let limits =
        fs::read_to_string(format!("/proc/{}/limits", made.details.pid().expect("a process"))).expect("it runs");
    assert!(limits.lines().any(|l| l.starts_with("Max processes") && l.contains("5000")), "{limits}");
    // Nothing of the file is kept.
    let folder = world.instance_folder();
    for name in ["instance.json", "shim"] {
        assert!(!fs::read_to_string(folder.join(name)).expect("readable").contains("hush"), "{name}");
    }
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
    fs::remove_file(&file).expect("ours");
    let text = refusal(driver.ensure(&permit(1), Wanted { attempt: 2, ..first(&spec) }).await);
    assert!(text.starts_with("env_from ") && text.contains("No such file"), "{text}");
}

#[tokio::test]
async fn an_instance_is_stopped_with_its_own_signal_and_within_its_own_time() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let spec = shell("trap 'echo asked; exit 0' USR1; trap '' TERM; echo end; while :; do sleep 0.1; done");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    output(&world).await;
    let stop = StopRecipe { signal: Some(10), timeout: None };
    driver.destroy(&permit(1), &made, stop).await.expect("ends");
    let end = driver.ended(A, &made).await.expect("noted").to_string();
    // The shell may say of its `sleep` that it was sent the signal, too.
    assert!(end.starts_with("exit status 0; last output: end | ") && end.ends_with("asked"), "{end}");
    // One that does not heed it is killed once its time is over.
    let made = driver.ensure(&permit(1), Wanted { attempt: 2, ..first(&spec) }).await.expect("starts");
    let begun = Instant::now();
    let stop = StopRecipe { signal: None, timeout: Some(Duration::from_millis(200)) };
    driver.destroy(&permit(1), &made, stop).await.expect("ends");
    assert!(begun.elapsed() < Duration::from_secs(4), "the driver's own time is 5 s");
    assert!(world.processes().is_empty());
}

#[tokio::test]
async fn a_command_beside_an_instance_succeeds_fails_or_is_ended() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let mark = format!("{}.77", 100_000 + std::process::id());
    let mut spec = shell("exec sleep 1000");
    let KindSpec::Custom(custom) = &mut spec.spec.kind else { unreachable!("made as that") };
    custom.probe = Probe::Exec { command: vec!["true".into()] };
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let run = async |words: &[&str], limit: u64| {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let ran = driver.run_beside(A, &made, &spec, &words, Duration::from_millis(limit)).await;
        ran.map_err(|error| error.to_string())
    };
    assert_eq!(
        run(&["sh", "-c", "test \"$GREETING\" = \"web 0 $RUG_APPLIANCE\" && test {ordinal} = 0"], 9_000).await,
        Ok(())
    );
    let told = run(&["sh", "-c", "echo one; echo no table >&2; exit 3"], 9_000).await.expect_err("it fails");
    assert!(told.ends_with("/sh ended with exit status 3; last output: one | no table"), "{told}");
    let told = run(&["sh", "-c", "kill -9 $$"], 9_000).await.expect_err("it dies");
    assert!(told.ends_with("/sh ended with signal 9 (SIGKILL); no output"), "{told}");
    assert_eq!(run(&["no-such-thing"], 9_000).await, Err("command `no-such-thing` not found".into()));
    let begun = Instant::now();
    let hanging = format!("setsid sleep {mark} & echo waiting; sleep {mark}");
    let told = run(&["sh", "-c", &hanging], 300).await.expect_err("it hangs");
    assert!(told.ends_with("/sh did not end within 300ms; last output: waiting"), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    until("what it started is gone", || trees::with_argument(&mark).is_empty()).await;
    // Nothing of it goes on when nothing waits for it any more.
    let hanging = format!("setsid sleep {mark} & sleep {mark}");
    let words = ["sh", "-c", &hanging].map(str::to_owned);
    {
        let asking = driver.run_beside(A, &made, &spec, &words, Duration::from_secs(1000));
        let begun = timeout(DEADLINE, until("it hangs", || trees::with_argument(&mark).len() >= 2));
        tokio::select! {
            ran = asking => panic!("it ended: {ran:?}"),
            begun = begun => begun.expect("it begins"),
        }
    }
    until("it was ended", || trees::with_argument(&mark).is_empty()).await;
    // It was none of the instance.
    assert_eq!(driver.observe(A).await.expect("readable").running, std::slice::from_ref(&made));
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}

#[tokio::test]
async fn a_command_of_an_operator_runs_within_what_its_instance_may() {
    if !is_root() {
        return;
    }
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let spec = script("exec sleep 1000", |options| {
        options.user = Some("nobody".into());
        options.limits.nofile = Some(77);
    });
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let command =
        ["sh", "-c", "id -un; ulimit -n; echo >/dev/stderr; ! touch /etc/of-nobody 2>/dev/null"].map(str::to_owned);
    let limit = Duration::from_secs(20);
    let mut running = driver.execute(&permit(1), &made, &spec, &command, limit).await.expect("starts");
    let (mut printed, mut end) = (Vec::new(), None);
    while let Some(said) = running.output.recv().await {
        match said {
            ExecOutput::Stdout(data) => printed.extend(data),
            ExecOutput::Stderr(data) => assert_eq!(data, b"\n"),
            ExecOutput::Ended(how) => end = Some(how),
        }
    }
    assert_eq!(end, Some(ExecEnd::Command(EndCause::Exit(0))));
    assert_eq!(String::from_utf8_lossy(&printed), "nobody\n77\n");
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}
