use super::*;
use crate::model::{HealthCheck, Limits, State, Ulimit};
use image_unpack::oci_spec::image::{ConfigBuilder, ImageConfiguration};

fn image() -> ImageConfiguration {
    let config = ConfigBuilder::default()
        .entrypoint(vec!["/entry".to_owned()])
        .cmd(vec!["one".to_owned(), "two".to_owned()])
        .env(vec!["PATH=/bin".to_owned(), "A=image".to_owned()])
        .working_dir("/work".to_owned())
        .user("web".to_owned())
        .build()
        .unwrap();
    let mut image = ImageConfiguration::default();
    image.set_config(Some(config));
    image
}

fn merged(change: impl FnOnce(&mut ContainerConfig)) -> ContainerConfig {
    let mut config = ContainerConfig::default();
    change(&mut config);
    merge(&mut config, &image(), None).unwrap();
    config
}

fn words(text: &str) -> Option<Vec<String>> {
    Some(text.split_whitespace().map(str::to_owned).collect())
}

fn container(config: ContainerConfig) -> Container {
    Container {
        id: "0123456789abcdef".repeat(4),
        name: "n".into(),
        created: 0,
        config,
        state: State::default(),
    }
}

#[test]
fn command_lines_are_made_as_docker_makes_them() {
    let line = |change: fn(&mut ContainerConfig)| command_line(&merged(change)).join(" ");
    assert_eq!(line(|_| {}), "/entry one two");
    assert_eq!(line(|c| c.cmd = words("x y")), "/entry x y");
    assert_eq!(line(|c| c.entrypoint = words("sh")), "sh");
    assert_eq!(
        line(|c| {
            c.entrypoint = words("sh");
            c.cmd = words("-c true");
        }),
        "sh -c true"
    );
    assert_eq!(
        line(|c| {
            c.entrypoint = Some(vec![String::new()]);
            c.cmd = words("x");
        }),
        "x"
    );
    let mut nothing = ContainerConfig::default();
    let error = merge(&mut nothing, &ImageConfiguration::default(), None).unwrap_err();
    assert_eq!(error.to_string(), "no command specified");
}

#[test]
fn the_caller_wins_over_the_image_and_docker_fills_the_rest() {
    let config = merged(|c| {
        c.env = vec!["A=own".into(), "B=2".into()];
        c.tty = true;
    });
    assert_eq!(config.env, ["PATH=/bin", "A=own", "B=2"]);
    assert_eq!((config.workdir.as_deref(), config.user.as_deref()), (Some("/work"), Some("web")));
    let container = container(config);
    let start = start(&container, "init".to_owned().try_into().unwrap(), None).unwrap();
    assert_eq!(start.spec.process.env, ["PATH=/bin", "HOSTNAME=0123456789ab", "TERM=xterm", "A=own", "B=2"]);
    assert_eq!((start.spec.hostname.as_deref(), start.user.as_str()), (Some("0123456789ab"), "web"));
    let json = serde_json::to_string(&start.spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), start.spec);
    let config = merged(|c| c.env = vec!["A".into()]);
    assert_eq!(config.env, ["PATH=/bin"], "a name alone takes the variable away");
}

#[test]
fn health_checks_are_merged_field_by_field() {
    let of_image =
        HealthCheck { test: words("CMD true").unwrap(), interval: 5, retries: 2, ..HealthCheck::default() };
    let mut config = ContainerConfig {
        cmd: words("x"),
        health_check: Some(HealthCheck { interval: 9, ..HealthCheck::default() }),
        ..ContainerConfig::default()
    };
    merge(&mut config, &image(), Some(of_image)).unwrap();
    let check = config.health_check.unwrap();
    assert_eq!((check.test.len(), check.interval, check.retries), (2, 9, 2));
}

#[test]
fn limits_become_resources() {
    let limits =
        Limits { memory: Some(1 << 30), nano_cpus: Some(500_000_000), pids: Some(-1), ..Limits::default() };
    let made = resources(&limits);
    assert_eq!(
        (made.memory.limit, made.cpu.quota, made.cpu.period, made.pids.limit),
        (1 << 30, 50_000, 100_000, -1)
    );
    assert_eq!(resources(&Limits::default()), agent::protocol::spec::Resources::default());
    let limit = |name: &str, soft, hard| Ulimit { name: name.into(), soft, hard };
    let made = rlimits(&[limit("nofile", 1024, -1)]).unwrap();
    assert_eq!((made[0].kind.as_str(), made[0].hard), ("RLIMIT_NOFILE", u64::MAX));
    let made = rlimits(&[limit("core", 0, 0)]).unwrap();
    assert_eq!(
        (made.len(), made[0].soft, made[0].hard),
        (2, 1024, 524_288),
        "open files have a limit of ours"
    );
    let halves = Limits { nano_cpus: Some(500_000_000), cpu_period: Some(50_000), ..Limits::default() };
    assert_eq!((resources(&halves).cpu.quota, resources(&halves).cpu.period), (25_000, 50_000));
    assert!(rlimits(&[limit("files", 1, 1)]).is_err() && rlimits(&[limit("nofile", 2, 1)]).is_err());
}

#[test]
fn parameters_of_the_network_are_dockers_unless_they_are_given() {
    let name = "net.ipv4.ip_unprivileged_port_start";
    let of = |config: &ContainerConfig| build(config, "h").unwrap().linux.sysctl[name].clone();
    let mut config = ContainerConfig::default();
    assert_eq!(of(&config), "0");
    config.sysctls.insert(name.into(), "1024".into());
    assert_eq!(of(&config), "1024");
    config.extra_hosts = vec!["six:[fd00::9]".into()];
    let files = files_of(&container(config));
    assert!(files[1].content.contains("fd00::9\tsix\n"), "{files:?}");
}
