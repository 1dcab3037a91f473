//! The engine as a library: containers whose supervisors are processes of their own.

use std::time::Duration;

use agent::protocol::ArchivePut;
use bulkhead_tests::Bulkhead;
use engine::model::{ContainerConfig, ExecConfig, Limits, RestartPolicy, Status};
use engine::paths::Paths;
use engine::{Engine, EngineError, LogOptions, Streams, Until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An engine with busybox in its store, and a configuration that runs a shell command in it.
struct Setup {
    engine: Engine,
    image: String,
    bulkhead: Bulkhead,
}

impl Setup {
    fn new() -> Option<Self> {
        let bulkhead = Bulkhead::new()?;
        let image = bulkhead_tests::busybox();
        let paths = Paths::at(bulkhead.root.path().to_owned(), bulkhead.program.parent().unwrap().to_owned())
            .unwrap();
        engine::image::ensure(&paths.images(), &image, &image_unpack::Quiet).unwrap();
        Some(Self { engine: Engine::open(paths).unwrap(), image, bulkhead })
    }

    fn shell(&self, script: &str) -> ContainerConfig {
        ContainerConfig {
            image: self.image.clone(),
            cmd: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
            accelerator: engine::options::AcceleratorChoice::Named(vmm::config::Accelerator::Uml),
            ..ContainerConfig::default()
        }
    }

    async fn create(&self, config: ContainerConfig) -> String {
        self.engine.create(None, config).await.unwrap().container.id
    }

    async fn log(&self, id: &str, options: LogOptions) -> String {
        let mut log = self.engine.logs(id, options).await.unwrap();
        let mut text = Vec::new();
        while let Some(line) = log.next().await {
            text.extend(line.unwrap().text);
        }
        String::from_utf8(text).unwrap()
    }
}

const BOTH: LogOptions =
    LogOptions { stdout: true, stderr: true, follow: false, since: 0, until: 0, tail: None };
const OUTPUT: Streams = Streams { stdin: false, stdout: true, stderr: true };

/// The text of Docker's frames: output and errors.
fn unframe(mut bytes: &[u8]) -> (String, String) {
    let mut texts = (String::new(), String::new());
    while let [kind, _, _, _, a, b, c, d, rest @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let text = std::str::from_utf8(&rest[..length]).unwrap();
        if *kind == 1 {
            texts.0.push_str(text)
        } else {
            texts.1.push_str(text)
        }
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
    texts
}

#[tokio::test]
async fn a_container_lives_as_docker_would_have_it() {
    let Some(setup) = Setup::new() else { return };
    let engine = &setup.engine;
    let id = setup.create(setup.shell("echo out; echo err >&2; cat; exit 3")).await;
    assert_eq!(engine.container(&id[..12]).unwrap().state.status, Status::Created);

    // As docker run does: attach, wait, start.
    let mut attached = engine.attach(&id, OUTPUT).await.unwrap();
    let waiting = engine.wait(&id, Until::NextExit).await.unwrap();
    assert!(engine.start(&id).await.unwrap());
    let mut bytes = Vec::new();
    attached.connection.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(unframe(&bytes), ("out\n".to_owned(), "err\n".to_owned()));
    let outcome = waiting.finish().await.unwrap();
    assert_eq!((outcome.code, outcome.error.as_str()), (3, ""));
    let container = engine.container(&id).unwrap();
    assert_eq!((container.state.status, container.state.outcome.unwrap().code), (Status::Exited, 3));
    assert_eq!(setup.log(&id, BOTH).await, "out\nerr\n");

    // Again, on the same disk, with the log going on.
    assert!(engine.start(&id).await.unwrap());
    let outcome = engine.wait(&id, Until::NotRunning).await.unwrap().finish().await.unwrap();
    assert_eq!(outcome.code, 3);
    assert_eq!(setup.log(&id, BOTH).await, "out\nerr\nout\nerr\n");
    assert_eq!(setup.log(&id, LogOptions { tail: Some(1), ..BOTH }).await, "err\n");
    engine.remove(&id, false, false).await.unwrap();
    assert!(matches!(engine.container(&id), Err(EngineError::NoContainer(_))));
    setup.bulkhead.assert_nothing_left();
}

#[tokio::test]
async fn input_exec_signals_and_pause() {
    let Some(setup) = Setup::new() else { return };
    let engine = &setup.engine;
    let config = ContainerConfig { open_stdin: true, stdin_once: true, ..setup.shell("cat; echo end") };
    let id = setup.create(config).await;
    let streams = Streams { stdin: true, ..OUTPUT };
    let mut attached = engine.attach(&id, streams).await.unwrap();
    // What is typed before the start is not lost.
    attached.connection.write_all(b"early ").await.unwrap();
    engine.start(&id).await.unwrap();
    assert!(!engine.start(&id).await.unwrap(), "it runs already");

    let exec = ExecConfig {
        cmd: ["sh", "-c", "cat; echo $V; exit 9"].map(str::to_owned).to_vec(),
        env: vec!["V=variable".into()],
        stdin: true,
        stdout: true,
        stderr: true,
        ..ExecConfig::default()
    };
    let exec = engine.exec_create(&id, exec).await.unwrap();
    let mut streams = engine.exec_start(&exec, None).await.unwrap();
    streams.connection.write_all(b"typed\n").await.unwrap();
    streams.connection.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    streams.connection.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(unframe(&bytes).0, "typed\nvariable\n");
    assert_eq!(engine.exec(&exec).unwrap().exit_code, Some(9));
    let missing = ExecConfig { cmd: vec!["/none".into()], ..ExecConfig::default() };
    let missing = engine.exec_create(&id, missing).await.unwrap();
    assert_eq!(engine.exec_start(&missing, None).await.unwrap_err().exit_code(), 127);

    engine.pause(&id).await.unwrap();
    assert_eq!(engine.container(&id).unwrap().state.status, Status::Paused);
    assert!(matches!(engine.exec_create(&id, ExecConfig::default()).await, Err(EngineError::Paused(_))));
    engine.unpause(&id).await.unwrap();
    let list = engine.processes(&id).await.unwrap();
    assert!(list.processes.iter().any(|p| p.command.contains("cat")), "{list:?}");
    assert!(engine.stats(&id).await.unwrap().memory.current > 0);
    engine.update(&id, Limits { pids: Some(20), ..Limits::default() }, None).await.unwrap();
    assert_eq!(engine.stats(&id).await.unwrap().pids.limit, Some(20));

    attached.connection.write_all(b"late\n").await.unwrap();
    attached.connection.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    attached.connection.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(unframe(&bytes).0, "early late\nend\n");

    // One that does not listen to its stop signal is ended.
    let id = setup.create(setup.shell("trap '' TERM; while :; do sleep 0.1; done")).await;
    engine.start(&id).await.unwrap();
    assert!(engine.stop(&id, None, Some(1)).await.unwrap());
    let state = engine.container(&id).unwrap().state;
    assert_eq!((state.status, state.outcome.unwrap().code), (Status::Exited, 137));
    assert!(matches!(engine.kill(&id, 9).await, Err(EngineError::NotRunning(_))));
    engine.start(&id).await.unwrap();
    assert!(matches!(engine.remove(&id, false, false).await, Err(EngineError::Running(_))));
    engine.remove(&id, true, false).await.unwrap();
    assert!(matches!(engine.container(&id), Err(EngineError::NoContainer(_))));
}

#[tokio::test]
async fn archives_of_containers_that_run_and_that_do_not() {
    let Some(setup) = Setup::new() else { return };
    let engine = &setup.engine;
    let id = setup.create(setup.shell("sleep 100")).await;
    let put = || ArchivePut { path: "/tmp".into(), no_overwrite_dir_non_dir: false, owner: None };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o640);
    tar.append_data(&mut header, "hello", &b"hello"[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    engine.archive_put(&id, put(), &tar[..]).await.unwrap();
    assert_eq!(engine.path_stat(&id, "/tmp/hello").await.unwrap().size, 5);
    engine.start(&id).await.unwrap();
    let (stat, mut transfer) = engine.archive_get(&id, "/tmp/hello").await.unwrap();
    assert_eq!((stat.name.as_str(), stat.mode & 0o777), ("hello", 0o640));
    let mut bytes = Vec::new();
    transfer.read_to_end(&mut bytes).await.unwrap();
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut entries = archive.entries().unwrap();
    assert_eq!(entries.next().unwrap().unwrap().path().unwrap().to_str(), Some("hello"));
    let changes = engine.changes(&id).await.unwrap();
    assert!(changes.iter().any(|change| change.path == "/tmp/hello"), "{changes:?}");
    let (_, none) = (engine.path_stat(&id, "/none").await.unwrap_err(), ());
    let () = none;
    let mut whole = Vec::new();
    engine.export(&id).await.unwrap().read_to_end(&mut whole).await.unwrap();
    assert!(whole.len() > bytes.len() * 10);
    engine.remove(&id, true, false).await.unwrap();
    setup.bulkhead.assert_nothing_left();
}

#[tokio::test]
async fn restart_policies_and_temporary_containers() {
    let Some(setup) = Setup::new() else { return };
    let engine = &setup.engine;
    let restart = RestartPolicy::OnFailure { maximum: 2 };
    let id = setup.create(ContainerConfig { restart, ..setup.shell("echo run; exit 5") }).await;
    engine.start(&id).await.unwrap();
    let outcome = engine.wait(&id, Until::NotRunning).await.unwrap().finish().await.unwrap();
    assert_eq!(outcome.code, 5);
    assert_eq!(setup.log(&id, BOTH).await, "run\nrun\nrun\n");
    assert_eq!(engine.container(&id).unwrap().state.restarts, 2);
    engine.remove(&id, false, false).await.unwrap();

    let id = setup.create(ContainerConfig { auto_remove: true, ..setup.shell("exit 4") }).await;
    let waiting = engine.wait(&id, Until::Removed).await.unwrap();
    engine.start(&id).await.unwrap();
    assert_eq!(waiting.finish().await.unwrap().code, 4);
    assert!(matches!(engine.container(&id), Err(EngineError::NoContainer(_))));

    // One that cannot be started wakes those who wait, too.
    let cmd = Some(vec!["/none".to_owned()]);
    let id = setup.create(ContainerConfig { auto_remove: true, cmd, ..setup.shell("") }).await;
    let waiting = engine.wait(&id, Until::Removed).await.unwrap();
    assert_eq!(engine.start(&id).await.unwrap_err().exit_code(), 127);
    assert_eq!(waiting.finish().await.unwrap().code, 127);
    setup.bulkhead.assert_nothing_left();
}

#[tokio::test]
async fn a_supervisor_that_is_killed_is_told_as_it_is() {
    let Some(setup) = Setup::new() else { return };
    let engine = &setup.engine;
    let id = setup.create(setup.shell("echo up; sleep 100")).await;
    let mut events = engine.events(None).unwrap();
    engine.start(&id).await.unwrap();
    let mut log = engine.logs(&id, LogOptions { follow: true, ..BOTH }).await.unwrap();
    assert_eq!(log.next().await.unwrap().unwrap().text, b"up\n");
    let machine = engine.container(&id).unwrap().state.machine.unwrap();
    let waiting = engine.wait(&id, Until::NextExit).await.unwrap();
    let killed = std::process::Command::new("kill").args(["-9", &machine.supervisor.to_string()]).status();
    assert!(killed.unwrap().success());
    assert!(matches!(waiting.finish().await, Err(EngineError::SupervisorGone(_))));
    assert!(log.next().await.is_none());
    let state = engine.container(&id).unwrap().state;
    assert_eq!((state.status, state.outcome.unwrap().code), (Status::Exited, 137));
    let mut actions = Vec::new();
    while let Ok(Ok(event)) = tokio::time::timeout(Duration::from_millis(200), events.next()).await {
        actions.push(event.action);
    }
    assert_eq!(actions, ["start", "die"]);
    // Its disk is as good as after a power cut.
    engine.start(&id).await.unwrap();
    engine.remove(&id, true, false).await.unwrap();
    setup.bulkhead.assert_nothing_left();
}

#[tokio::test]
async fn a_daemon_starts_again_what_is_meant_to_run() {
    let Some(setup) = Setup::new() else { return };
    let engine = &setup.engine;
    let script = "sleep 100";
    let always = ContainerConfig { restart: RestartPolicy::Always, ..setup.shell(script) };
    let unless = ContainerConfig { restart: RestartPolicy::UnlessStopped, ..setup.shell(script) };
    let (always, unless, no) =
        (setup.create(always).await, setup.create(unless).await, setup.create(setup.shell(script)).await);
    for id in [&always, &unless, &no] {
        engine.start(id).await.unwrap();
        let machine = engine.container(id).unwrap().state.machine.unwrap();
        let kill = |pid: u32| std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
        kill(machine.supervisor).unwrap();
    }
    let running = |id: &String| engine.container(id).unwrap().state.status == Status::Running;
    // The kernel takes a moment to bury them and let go of their locks.
    for _ in 0..500 {
        assert!(engine.look_after().await.unwrap().is_empty());
        if running(&always) && running(&unless) && !running(&no) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(running(&always) && running(&unless) && !running(&no));
    for id in [&always, &unless] {
        engine.stop(id, Some(9), None).await.unwrap();
    }
    assert!(engine.look_after().await.unwrap().is_empty() && !running(&always) && !running(&unless));
    assert!(engine.recover().await.unwrap().is_empty());
    assert!(running(&always) && !running(&unless), "a person's stop counts for unless-stopped only");
    for id in [&always, &unless, &no] {
        engine.remove(id, true, false).await.unwrap();
    }
    setup.bulkhead.assert_nothing_left();
}

#[tokio::test]
async fn a_requests_id_reaches_the_supervisor_and_the_vmm() {
    let Some(setup) = Setup::new() else { return };
    let engine = &setup.engine;
    let id = setup.create(setup.shell("sleep 100")).await;
    engine::trace::of_request("order-4711".to_owned(), engine.start(&id)).await.unwrap();
    let machine = engine.container(&id).unwrap().state.machine.unwrap();
    let command = std::fs::read(format!("/proc/{}/cmdline", machine.vmm)).unwrap();
    assert!(String::from_utf8(command).unwrap().contains("--request-id\0order-4711\0"));
    // Another question, for nobody in particular.
    engine.pause(&id).await.unwrap();
    let log = setup.bulkhead.root.path().join("containers").join(&id).join("supervisor.log");
    let lines: Vec<serde_json::Value> = std::fs::read_to_string(log)
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &serde_json::Value| line["message"] == "done")
        .collect();
    let asked = |line: &serde_json::Value| {
        (line["spans"][0]["what"].as_str().unwrap().to_owned(), line["spans"][0]["request"].clone())
    };
    let asked: Vec<_> = lines.iter().map(asked).collect();
    assert_eq!(
        asked,
        [("start".to_owned(), "order-4711".into()), ("pause".to_owned(), "".into())],
        "{lines:?}"
    );
    engine.remove(&id, true, false).await.unwrap();
    setup.bulkhead.assert_nothing_left();
}
