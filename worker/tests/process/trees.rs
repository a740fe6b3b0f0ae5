//! An instance is a whole tree of processes: nothing of it outlives its end, and how it ended is known.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use worker::drivers::measured::Measured;

use super::*;

/// Processes whose command line has this word.
pub(super) fn with_argument(word: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("readable").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
        })
        .collect()
}

/// A number of seconds that no other test sleeps for.
fn unique(n: u32) -> String {
    format!("{}.{n}", 100_000 + std::process::id())
}

/// The shim of the instance with this process.
fn shim_of(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let parent =
        stat.rsplit_once(") ").expect("a name").1.split(' ').nth(1).expect("a parent").parse().expect("a number");
    let line = fs::read(format!("/proc/{parent}/cmdline")).expect("it runs");
    assert!(String::from_utf8_lossy(&line).contains("rug-shim"), "the parent is no shim");
    parent
}

#[tokio::test]
async fn what_an_instance_leaves_behind_ends_with_it() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let (one, two) = (unique(1), unique(2));
    // In a session of its own, and there without the environment and as a grandchild of nobody.
    let spec = shell(&format!("setsid sleep {one} & env -i setsid sh -c 'sleep {two} & exit 0'; exit 0"));
    let error = driver.ensure(&permit(1), first(&spec)).await.expect_err("it ends").to_string();
    assert_eq!(error, "ended at once: exit status 0; no output");
    until("what it started is gone", || with_argument(&one).is_empty() && with_argument(&two).is_empty()).await;
    driver.forget(&permit(1)).await.expect("nothing is left");
}

#[tokio::test]
async fn what_ignores_its_end_is_gone_before_the_appliance_is() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let mark = unique(3);
    let spec = shell(&format!("setsid sh -c 'trap \"\" TERM; exec sleep {mark}' & sleep 0.3; exit 0"));
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    until("its main process has ended", || !runs(made.details.pid().expect("a process"))).await;
    assert_eq!(with_argument(&mark).len(), 1, "it still has time to end");
    driver.forget(&permit(1)).await.expect("ends it");
    assert!(with_argument(&mark).is_empty());
}

/// The kernel shows a process as a zombie when its first thread has ended, whether or not others go on.
#[tokio::test]
async fn a_process_whose_first_thread_has_ended_runs_until_its_others_have() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let exit = if cfg!(target_arch = "x86_64") { 60 } else { 93 };
    let spec = shell(&format!(
        "exec python3 -c 'import ctypes, threading, time; threading.Thread(target=time.sleep, args=(1000,)).start(); ctypes.CDLL(None).syscall({exit}, 0)'"
    ));
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let pid = made.details.pid().expect("a process");
    let shown = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default().contains(") Z ");
    until("it is shown as a zombie", shown).await;
    assert_eq!(driver.is_alive(A, &made).await, Some(true));
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends it");
    assert!(!fs::exists(format!("/proc/{pid}")).expect("readable"), "something of it is left");
}

#[tokio::test]
async fn orphans_are_adopted_reaped_and_ended_with_their_instance() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let mark = unique(4);
    let spec = shell(&format!(
        "for i in 1 2 3 4 5; do env -i setsid sh -c 'true & exit 0'; done; env -i setsid sh -c 'sleep {mark} & exit 0'; exec sleep 1000"
    ));
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let shim = shim_of(made.details.pid().expect("a process"));
    let children = || -> Vec<char> {
        let list = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap_or_default();
        let state =
            |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.rsplit_once(") ")?.1.chars().next();
        list.split_ascii_whitespace().filter_map(state).collect()
    };
    until("the main process and one orphan are left", || children().len() == 2 && !children().contains(&'Z')).await;
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
    assert!(with_argument(&mark).is_empty() && !runs(shim));
}

#[tokio::test]
async fn how_an_instance_ended_is_known_to_whoever_owns_it_next() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let spec = shell("echo before; sleep 0.4; echo first; echo \"no such table\" >&2; exit 3");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    until("it has ended", || !runs(made.details.pid().expect("a process"))).await;
    let end = "exit status 3; last output: before | first | no such table";
    for driver in [&driver, &world.driver("w2")] {
        let told = driver.ended(A, &made).await.expect("its shim has noted it");
        assert_eq!((told.to_string(), told.instance), (end.to_owned(), Instance::name(A, 0, 1)));
        assert!(told.at_unix_ms >= made.started_at_unix_ms);
    }
    // The next attempt says nothing of this one.
    let next = Wanted { attempt: 2, ..first(&spec) };
    let error = driver.ensure(&permit(1), Wanted { desired: &shell("exit 4"), ..next }).await.expect_err("it ends");
    assert_eq!(error.to_string(), "ended at once: exit status 4; no output");
    assert_eq!(driver.ended(A, &made).await, None);
}

/// Reports of ends, for a test.
async fn next_end(ends: &mut tokio::sync::mpsc::Receiver<EndedInstance>) -> EndedInstance {
    let end = tokio::time::timeout(Duration::from_secs(5), ends.recv()).await;
    end.expect("reported").expect("the sender is here")
}

#[tokio::test]
async fn an_end_is_reported_at_once_to_every_worker_that_watches() {
    let world = DriverWorld::new();
    let (one, two) = (world.driver("w1"), world.driver("w2"));
    let made = one.ensure(&permit(1), first(&shell("exec sleep 1000"))).await.expect("starts");
    let (sender, mut ends) = tokio::sync::mpsc::channel(16);
    // Once for each, however often it is asked.
    for driver in [&one, &one, &two] {
        driver.watch(A, &made, &sender);
    }
    tokio::task::yield_now().await;
    assert!(ends.try_recv().is_err(), "it runs");
    // Neither a shim nor a parent has to be there for it.
    let pid = made.details.pid().expect("a process");
    kill(shim_of(pid));
    kill(pid);
    let ended = EndedInstance { appliance: A, ordinal: 0, attempt: 1 };
    assert_eq!((next_end(&mut ends).await, next_end(&mut ends).await), (ended, ended));
    // What is gone already is reported, too.
    two.watch(A, &made, &sender);
    assert_eq!(next_end(&mut ends).await, ended);
    assert!(ends.try_recv().is_err());
}

#[tokio::test]
async fn an_instance_inherits_nothing_that_its_worker_happened_to_have() {
    let world = DriverWorld::new();
    // As if the worker had been started so.
    let beside = tempfile::tempdir().expect("a temporary folder");
    let wrapper = beside.path().join("wrapper");
    let script = format!(
        "#!/bin/sh\nexec 9>/dev/null 8</dev/null\ntrap '' HUP USR1 CHLD\numask 0\necho 500 >/proc/self/oom_score_adj\nexec nice -n 5 {} \"$@\"\n",
        shim_binary().display()
    );
    fs::write(&wrapper, script).expect("writable");
    fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o700)).expect("ours");
    let driver = open("w1", Config { shim_binary: wrapper, ..world.config() });
    // Not through a pipe, of which the shell itself may still have an end.
    let spec = shell(
        "ls /proc/$$/fd; grep -E 'SigIgn|SigBlk' /proc/self/status; umask; cat /proc/self/oom_score_adj; ulimit -n; nice; echo end; exec sleep 1000",
    );
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let log = world.instance_folder().join("log");
    until("it has told", || fs::read_to_string(&log).is_ok_and(|text| text.ends_with("end\n"))).await;
    let text = fs::read_to_string(&log).expect("readable");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["0", "1", "2"], "{text}");
    assert_eq!(lines[5..7], ["0022", "0"], "{text}");
    for line in &lines[3..5] {
        let mask = u64::from_str_radix(line.rsplit_once('\t').expect("a mask").1, 16).expect("a number");
        // The C library keeps signals 32 and 33 for itself and lets nobody change them.
        assert_eq!(mask & !(0b11 << 31), 0, "{text}");
    }
    // Only root may lower it again.
    if rustix::process::geteuid().is_root() {
        assert_eq!(lines[8], "0", "{text}");
    }
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}

#[tokio::test]
async fn an_instance_whose_shim_was_killed_is_adopted_and_ended() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let spec = shell("sleep 1000 & setsid sleep 1000 & exec sleep 1000");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    until("all processes run", || world.processes().len() == 3).await;
    let shim = shim_of(made.details.pid().expect("a process"));
    kill(shim);
    until("the shim is gone", || !runs(shim)).await;
    let other = world.driver("w2");
    assert_eq!(other.observe(A).await.expect("readable").running, std::slice::from_ref(&made));
    assert_eq!(other.ensure(&permit(2), first(&spec)).await.expect("finds it"), made);
    other.destroy(&permit(2), &made, StopRecipe::default()).await.expect("ends");
    assert_eq!(world.processes(), [] as [u32; 0]);
    assert_eq!(other.ended(A, &made).await, None, "nobody saw it end");
}

#[tokio::test]
async fn a_shim_that_is_stopped_keeps_nothing_alive() {
    let world = DriverWorld::new();
    let config =
        Config { stop_grace: Duration::from_millis(100), kill_wait: Duration::from_millis(500), ..world.config() };
    let driver = open("w1", config);
    let made = driver.ensure(&permit(1), first(&shell("exec sleep 1000"))).await.expect("starts");
    let shim = shim_of(made.details.pid().expect("a process"));
    std::process::Command::new("kill").args(["-STOP", &shim.to_string()]).status().expect("kill is part of Debian");
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
    assert!(world.processes().is_empty() && !runs(shim));
}

#[tokio::test]
async fn an_instance_that_became_another_user_runs_until_it_was_ended() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can start a process as another user");
        return;
    }
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let mark = unique(5);
    let spec = custom("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups", "sleep", &mark], None);
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    until("it is another user", || {
        fs::metadata(format!("/proc/{}", made.details.pid().expect("a process")))
            .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 65534)
    })
    .await;
    let other = world.driver("w2");
    assert_eq!(other.observe(A).await.expect("readable").running, std::slice::from_ref(&made));
    assert!(matches!(other.forget(&permit(2)).await, Err(Error::Failed(_))), "it still runs");
    other.destroy(&permit(2), &made, StopRecipe::default()).await.expect("ends");
    assert!(with_argument(&mark).is_empty());
}

/// A group of version 2 for a test, where this user may make one.
struct TestGroup(std::path::PathBuf);

impl TestGroup {
    fn make(name: &str) -> Option<Self> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let root = mounts.iter().find(|mount| Path::new(mount).join("cgroup.procs").exists())?;
        let path = Path::new(root).join(format!("rug-{name}-{}", std::process::id()));
        fs::create_dir(&path).ok().map(|()| Self(path))
    }
}

impl Drop for TestGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.0.join("rug-instances"));
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn what_is_in_the_control_group_of_an_instance_ends_with_it_whoever_kills_its_shim() {
    let Some(group) = TestGroup::make("trees") else {
        eprintln!("skipped: no control group of version 2 can be made here");
        return;
    };
    let world = DriverWorld::new();
    let cgroup = CgroupSetting::try_from(group.0.to_string_lossy().into_owned()).expect("a path");
    let driver = open("w1", Config { cgroup, ..world.config() });
    let mark = unique(6);
    // In a session of its own and without the environment: found by nothing but the group once the shim is gone.
    let spec = shell(&format!("env -i setsid sleep {mark} & exec sleep 1000"));
    let instances = group.0.join("rug-instances");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let own = instances.join(Instance::name(A, 0, 1));
    until("both processes are in it", || {
        fs::read_to_string(own.join("cgroup.procs")).is_ok_and(|pids| pids.lines().count() == 2)
    })
    .await;
    let shim = shim_of(made.details.pid().expect("a process"));
    kill(shim);
    until("the shim is gone", || !runs(shim)).await;
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
    assert!(with_argument(&mark).is_empty() && !own.exists());
    // With its shim as well, which removes the group itself.
    let made = driver.ensure(&permit(1), Wanted { attempt: 2, ..first(&spec) }).await.expect("starts");
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
    assert!(with_argument(&mark).is_empty() && !instances.join(Instance::name(A, 0, 2)).exists());
    driver.forget(&permit(1)).await.expect("nothing is left");
}

#[tokio::test]
async fn instances_of_one_appliance_are_ended_at_the_same_time() {
    const INSTANCES: u16 = 4;
    let world = DriverWorld::new();
    let driver = Arc::new(world.driver("w1"));
    // As a worker has it.
    let measured = Measured::new("process", Arc::<ProcessDriver>::clone(&driver));
    // Deaf to the signal, so that each takes its whole time.
    let spec = shell("trap '' TERM; while :; do sleep 0.05; done");
    let mut made = Vec::new();
    for ordinal in 0..INSTANCES {
        let wanted = Wanted { ordinal, ..first(&spec) };
        made.push(driver.ensure(&permit(1), wanted).await.expect("starts"));
    }
    let stop = StopRecipe { timeout: Some(Duration::from_secs(2)), ..StopRecipe::default() };
    let began = std::time::Instant::now();
    for (n, instance) in made.iter().enumerate() {
        measured.destroy_first(&permit(1), instance, &made[n + 1..], stop).await.expect("ends");
    }
    let took = began.elapsed();
    // One after another they would take eight seconds.
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&took), "{took:?}");
    assert!(driver.observe(A).await.expect("readable").running.is_empty());
    let asked = journal(&driver).iter().filter(|e| e.action == "terminate" && e.outcome == "begun").count();
    assert_eq!(asked, usize::from(INSTANCES), "each was asked once");
    driver.forget(&permit(1)).await.expect("nothing is left");
}

#[tokio::test]
async fn a_state_directory_that_is_gone_is_no_proof_that_nothing_runs() {
    let world = DriverWorld::new();
    let top = world.folder.path().join("state");
    let driver = open("w1", Config { state_dir: top.clone(), ..world.config() });
    let spec = shell(&format!("exec sleep {}", unique(9)));
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    for make_anew in [false, true] {
        let aside = world.folder.path().join("aside");
        fs::rename(&top, &aside).expect("moved");
        if make_anew {
            fs::create_dir_all(top.join("instances")).expect("made anew");
        }
        let error = driver.observe(A).await.expect_err("it cannot know").to_string();
        assert!(error.contains("was deleted, moved or replaced under the worker"), "{error}");
        let wanted = Wanted { attempt: 2, ..first(&spec) };
        driver.ensure(&permit(1), wanted).await.expect_err("there may be one already");
        if make_anew {
            fs::remove_dir_all(&top).expect("ours");
        }
        fs::rename(&aside, &top).expect("moved back");
        assert_eq!(driver.observe(A).await.expect("back").running.len(), 1);
    }
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}
