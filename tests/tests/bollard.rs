//! bollard, the Rust client of Docker's API, against `bulkhead serve`.

use std::collections::HashMap;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::StartExecResults;
use bollard::models::{
    ContainerCreateBody, ExecConfig, HostConfig, NetworkCreateRequest, VolumeCreateOptions,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder,
    EventsOptionsBuilder, ImportImageOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    ListImagesOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    StatsOptionsBuilder, UploadToContainerOptionsBuilder, WaitContainerOptions,
};
use bulkhead_tests::daemon::{Daemon, archive};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::io::AsyncWriteExt as _;

fn status(error: &Error) -> u16 {
    match error {
        Error::DockerResponseServerError { status_code, .. } => *status_code,
        other => panic!("{other:?} is no answer"),
    }
}

fn words(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|word| (*word).to_owned()).collect())
}

async fn text(output: impl futures_util::Stream<Item = Result<LogOutput, Error>>) -> String {
    let parts: Vec<LogOutput> = output.try_collect().await.unwrap();
    parts.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bollards_main_calls_work() {
    let Some(daemon) = Daemon::start() else { return };
    let docker =
        Docker::connect_with_unix(daemon.socket().to_str().unwrap(), 120, bollard::API_DEFAULT_VERSION)
            .unwrap()
            .negotiate_version()
            .await
            .unwrap();
    assert_eq!(docker.ping().await.unwrap(), "OK");
    assert_eq!(docker.version().await.unwrap().api_version.as_deref(), Some("1.50"));
    assert_eq!(docker.info().await.unwrap().os_type.as_deref(), Some("linux"));

    let content = std::fs::read(archive()).unwrap();
    let load = docker.import_image(
        ImportImageOptionsBuilder::new().build(),
        bollard::body_full(content.into()),
        None,
    );
    load.try_collect::<Vec<_>>().await.unwrap();
    let images = docker.list_images(None::<ListImagesOptions>).await.unwrap();
    assert_eq!(images[0].repo_tags, ["busybox:latest"]);
    assert_eq!(docker.inspect_image("busybox").await.unwrap().id.as_deref(), Some(images[0].id.as_str()));
    assert_eq!(status(&docker.inspect_image("nope").await.unwrap_err()), 404);

    let body = ContainerCreateBody {
        image: Some("busybox".into()),
        cmd: words(&["sh", "-c", "while read line; do echo got $line; done; echo end >&2; exit 6"]),
        open_stdin: Some(true),
        stdin_once: Some(true),
        labels: Some(HashMap::from([("tier".into(), "front".into())])),
        host_config: Some(HostConfig { memory: Some(64 << 20), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let named = CreateContainerOptionsBuilder::new().name("box").build();
    let id = docker.create_container(Some(named.clone()), body.clone()).await.unwrap().id;
    assert_eq!(status(&docker.create_container(Some(named), body).await.unwrap_err()), 409);
    let attach =
        AttachContainerOptionsBuilder::new().stdin(true).stdout(true).stderr(true).stream(true).build();
    let attached = docker.attach_container("box", Some(attach)).await.unwrap();
    docker.start_container("box", None::<StartContainerOptions>).await.unwrap();
    let (mut input, output) = (attached.input, attached.output);
    let list =
        ListContainersOptionsBuilder::new().filters(&HashMap::from([("label", vec!["tier=front"])])).build();
    assert_eq!(docker.list_containers(Some(list)).await.unwrap()[0].id.as_deref(), Some(id.as_str()));

    let exec = ExecConfig {
        cmd: words(&["sh", "-c", "echo in exec; exit 3"]),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ExecConfig::default()
    };
    let exec = docker.create_exec("box", exec).await.unwrap().id;
    let StartExecResults::Attached { output: said, .. } = docker.start_exec(&exec, None).await.unwrap()
    else {
        panic!("detached")
    };
    assert_eq!(text(said).await, "in exec\n");
    assert_eq!(docker.inspect_exec(&exec).await.unwrap().exit_code, Some(3));

    let mut tar = tar::Builder::new(Vec::new());
    bulkhead_tests::image::add_file(&mut tar, "file", b"content", 0o644);
    let put = UploadToContainerOptionsBuilder::new().path("/tmp").build();
    let content = bollard::body_full(tar.into_inner().unwrap().into());
    docker.upload_to_container("box", Some(put), content).await.unwrap();
    let get = DownloadFromContainerOptionsBuilder::new().path("/tmp/file").build();
    let parts: Vec<_> = docker.download_from_container("box", Some(get)).try_collect().await.unwrap();
    let bytes = parts.concat();
    let mut tar = tar::Archive::new(&bytes[..]);
    let entry = tar.entries().unwrap().next().unwrap().unwrap();
    assert_eq!((entry.path().unwrap().to_str(), entry.size()), (Some("file"), 7));
    let once = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
    let stats = docker.stats("box", Some(once)).next().await.unwrap().unwrap();
    assert_eq!(stats.memory_stats.unwrap().limit, Some(64 << 20));
    assert!(
        !docker
            .top_processes("box", None::<bollard::query_parameters::TopOptions>)
            .await
            .unwrap()
            .processes
            .unwrap()
            .is_empty()
    );

    // The end of its input ends it: attach, wait and logs tell the same.
    let waiting = docker.wait_container("box", None::<WaitContainerOptions>);
    input.write_all(b"hello\n").await.unwrap();
    input.shutdown().await.unwrap();
    assert_eq!(text(output).await, "got hello\nend\n");
    let ended: Vec<_> = waiting.collect().await;
    assert!(matches!(&ended[..], [Err(Error::DockerContainerWaitError { code: 6, .. })]), "{ended:?}");
    let logs = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
    assert_eq!(text(docker.logs("box", Some(logs))).await, "got hello\nend\n");
    let shown = docker.inspect_container("box", None::<InspectContainerOptions>).await.unwrap();
    assert_eq!(shown.state.unwrap().exit_code, Some(6));
    let events = EventsOptionsBuilder::new().since("1").until("2").build();
    assert!(docker.events(Some(events)).collect::<Vec<_>>().await.is_empty());
    docker
        .remove_container("box", Some(RemoveContainerOptionsBuilder::new().force(true).build()))
        .await
        .unwrap();
    assert_eq!(
        status(&docker.inspect_container("box", None::<InspectContainerOptions>).await.unwrap_err()),
        404
    );

    let volume = VolumeCreateOptions { name: Some("data".into()), ..VolumeCreateOptions::default() };
    assert_eq!(docker.create_volume(volume).await.unwrap().name, "data");
    docker.remove_volume("data", None::<bollard::query_parameters::RemoveVolumeOptions>).await.unwrap();
    let network = NetworkCreateRequest { name: "front".into(), ..NetworkCreateRequest::default() };
    let network = docker.create_network(network).await.unwrap().id;
    docker.remove_network(&network).await.unwrap();
    assert_eq!(status(&docker.remove_network(&network).await.unwrap_err()), 404);
}
