//! The router as clients see it: raw HTTP in, raw HTTP out, on an empty state directory.

use engine::Engine;
use engine::paths::Paths;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use crate::client::{Client, ClientError, Target};
use crate::server::serve_connection;

struct Server {
    router: axum::Router,
    client: Client,
    _root: TempDir,
}

fn server() -> Server {
    let root = tempfile::tempdir().unwrap();
    let engine = Engine::open(Paths::at(root.path().to_owned(), root.path().to_owned()).unwrap()).unwrap();
    let router = crate::router(engine);
    Server { client: Client::in_process(router.clone()), router, _root: root }
}

impl Server {
    /// Sends bytes, closes that half, and reads everything that comes back.
    async fn raw(&self, request: &str) -> String {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let (_ending, ended) = watch::channel(false);
        let serving = tokio::spawn(serve_connection(far, self.router.clone(), ended));
        near.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        serving.await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn get(&self, path: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    /// The status and the message of a refusal.
    async fn refused(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let body = body.to_string();
        let answer = self
            .raw(&format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        (status, body["message"].as_str().unwrap_or_default().to_owned())
    }
}

#[tokio::test]
async fn every_answer_says_what_it_is_from() {
    let server = server();
    for path in [
        "/_ping",
        "/v1.24/_ping",
        "/version",
        "/info",
        "/containers/none/json",
        "/nothing",
        "/v1.99/info",
        "/metrics",
    ] {
        let answer = server.get(path).await.to_ascii_lowercase();
        for header in [
            "api-version: 1.50",
            "ostype: linux",
            "server: bulkhead/",
            "docker-experimental: false",
            "x-request-id: ",
        ] {
            assert!(answer.contains(header), "{path}: {header} is not in\n{answer}");
        }
    }
    let head = server
        .raw("HEAD /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: mine-1\r\n\r\n")
        .await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains("x-request-id: mine-1"), "{head}");
    let get = server.get("/_ping").await;
    assert!(
        get.ends_with("\r\n\r\nOK") && get.contains("builder-version: 1") && get.contains("swarm: inactive"),
        "{get}"
    );
}

#[tokio::test]
async fn versions_are_negotiated() {
    let server = server();
    for path in ["/v1.24/version", "/v1.50/version", "/version"] {
        let answer = server.get(path).await;
        assert!(
            answer.contains(r#""ApiVersion":"1.50""#) && answer.contains(r#""MinAPIVersion":"1.24""#),
            "{answer}"
        );
    }
    let (status, message) = server.refused("GET", "/v1.51/version", &Value::Null).await;
    assert_eq!(
        (status, message.as_str()),
        (400, "client version 1.51 is too new. Maximum supported API version is 1.50")
    );
    let (status, message) = server.refused("GET", "/v1.12/version", &Value::Null).await;
    assert!(status == 400 && message.starts_with("client version 1.12 is too old."), "{message}");
}

#[tokio::test]
async fn what_is_not_there_is_said_in_dockers_words() {
    let server = server();
    let none = Value::Null;
    for (method, path, status, message) in [
        ("GET", "/nothing", 404, "page not found"),
        ("POST", "/version", 404, "page not found"),
        ("GET", "/containers/nope/json", 404, "No such container: nope"),
        ("POST", "/containers/nope/start", 404, "No such container: nope"),
        ("POST", "/containers/nope/kill", 404, "No such container: nope"),
        ("DELETE", "/containers/nope", 404, "No such container: nope"),
        ("GET", "/containers/nope/logs?stdout=1", 404, "No such container: nope"),
        ("POST", "/containers/nope/attach?stream=1", 404, "No such container: nope"),
        ("POST", "/containers/nope/wait", 404, "No such container: nope"),
        ("GET", "/exec/nope/json", 404, "No such exec instance: nope"),
        ("GET", "/images/nope/json", 404, "No such image: nope:latest"),
        ("GET", "/images/localhost:5000/a/b:1/history", 404, "No such image: localhost:5000/a/b:1"),
        ("DELETE", "/images/nope", 404, "No such image: nope:latest"),
        ("GET", "/volumes/nope", 404, "get nope: no such volume"),
        ("GET", "/networks/nope", 404, "network nope not found"),
        (
            "GET",
            "/services",
            503,
            "This node is not a swarm manager. Bulkhead has no swarm mode: containers are of this host.",
        ),
    ] {
        assert_eq!(
            server.refused(method, path, &none).await,
            (status, message.to_owned()),
            "{method} {path}"
        );
    }
    for (method, path) in [
        ("GET", "/images/search?term=x"),
        ("POST", "/build"),
        ("POST", "/session"),
        ("POST", "/plugins/pull"),
    ] {
        let (status, message) = server.refused(method, path, &none).await;
        assert!(status == 501 && message.contains("not supported"), "{method} {path}: {status} {message}");
    }
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let server = server();
    for (method, path, body, word) in [
        ("GET", "/containers/json?filters=%7B", json!(null), "invalid filter"),
        (
            "GET",
            "/containers/json?filters=%7B%22gizmo%22:%5B%221%22%5D%7D",
            json!(null),
            "invalid filter 'gizmo'",
        ),
        (
            "GET",
            "/containers/json?filters=%7B%22status%22:%5B%22up%22%5D%7D",
            json!(null),
            "invalid filter 'status=up'",
        ),
        ("GET", "/events?since=yesterday", json!(null), "since"),
        ("GET", "/events?since=2&until=1", json!(null), "before"),
        ("POST", "/containers/create", json!({}), "config cannot be empty"),
        ("POST", "/containers/create", json!({"Image": 3}), "Image"),
        ("POST", "/containers/create", json!({"Image": ""}), "no image specified"),
        ("POST", "/containers/create?name=a%20b", json!({"Image": "x"}), "Invalid container name"),
        ("POST", "/containers/create", json!({"Image": "x", "HostConfig": []}), "HostConfig"),
        ("POST", "/containers/x/kill?signal=SIGNOT", json!(null), "invalid signal: SIGNOT"),
        ("POST", "/containers/x/resize?h=x&w=1", json!(null), "h:"),
        ("POST", "/containers/x/attach?stream=1&detachKeys=ctrl-1", json!(null), "Invalid detach keys"),
        ("POST", "/containers/x/attach", json!(null), "Either the stream or logs parameter must be true"),
        ("POST", "/containers/x/wait?condition=never", json!(null), "invalid condition"),
        ("POST", "/images/create", json!(null), "neither fromImage nor fromSrc"),
        ("POST", "/images/create?fromImage=UPPER", json!(null), "invalid reference format"),
        ("POST", "/images/create?fromSrc=http://x", json!(null), "import from http://x cannot be done"),
        ("GET", "/system/df?type=gizmo", json!(null), "unknown object type"),
    ] {
        let (status, message) = server.refused(method, path, &body).await;
        assert!(status == 400 && message.contains(word), "{method} {path}: {status} {message}");
    }
    let plain = server
        .raw("POST /containers/create HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}")
        .await;
    assert!(plain.starts_with("HTTP/1.1 400") && plain.contains("must be 'application/json'"), "{plain}");
}

/// A body with one field of `HostConfig`.
fn with_host(name: &str, value: Value) -> Value {
    let mut host = serde_json::Map::new();
    host.insert(name.to_owned(), value);
    json!({"Image": "none/such", "HostConfig": host})
}

#[tokio::test]
async fn options_that_a_machine_does_not_have_are_refused_by_name() {
    let server = server();
    for (field, value, name) in [
        ("Privileged", json!(true), "--privileged"),
        ("Devices", json!([{"PathOnHost": "/dev/fuse"}]), "--device"),
        ("DeviceRequests", json!([{"Count": -1}]), "--gpus"),
        ("DeviceCgroupRules", json!(["c 1:3 r"]), "--device-cgroup-rule"),
        ("PidMode", json!("host"), "--pid host"),
        ("IpcMode", json!("host"), "--ipc host"),
        ("UTSMode", json!("host"), "--uts host"),
        ("UsernsMode", json!("host"), "--userns host"),
        ("CgroupnsMode", json!("host"), "--cgroupns host"),
        ("CgroupParent", json!("/x"), "--cgroup-parent /x"),
        ("NetworkMode", json!("host"), "--network host"),
        ("NetworkMode", json!("container:x"), "--network container:x"),
        ("Links", json!(["a:b"]), "--link"),
        ("VolumeDriver", json!("nfs"), "--volume-driver nfs"),
        ("MemorySwappiness", json!(60), "--memory-swappiness 60"),
        ("MemorySwap", json!(1 << 31), "You should always set the Memory limit"),
        ("OomKillDisable", json!(true), "--oom-kill-disable"),
        ("BlkioWeight", json!(500), "--blkio-weight 500"),
        ("CpuRealtimeRuntime", json!(1000), "--cpu-rt-runtime 1000"),
        ("Runtime", json!("kata"), "--runtime kata"),
        ("Isolation", json!("hyperv"), "--isolation hyperv"),
        ("LogConfig", json!({"Type": "syslog"}), "--log-driver syslog"),
        ("LogConfig", json!({"Type": "json-file", "Config": {"tag": "x"}}), "--log-opt tag=x"),
        ("SecurityOpt", json!(["apparmor=docker-default"]), "--security-opt apparmor=docker-default"),
        ("Binds", json!(["/:/x:rshared"]), "bind propagation rshared"),
        ("Mounts", json!([{"Type": "npipe", "Target": "/x"}]), "--mount type=npipe"),
        ("StorageOpt", json!({"dm.basesize": "1g"}), "--storage-opt dm.basesize"),
        ("Gizmo", json!({"On": true}), "HostConfig.Gizmo"),
        // Wrong rather than unsupported, and refused before anything is looked for, too.
        ("CapAdd", json!(["NET_MAGIC"]), "unknown capability: \"NET_MAGIC\""),
        ("RestartPolicy", json!({"Name": "sometimes"}), "unknown policy 'sometimes'"),
        ("Memory", json!(4096), "Minimum memory limit allowed is 6MB"),
        ("Dns", json!(["x"]), "IP address is not correctly formatted"),
        ("PortBindings", json!({"80/sctp": []}), "port 80/sctp"),
        ("Ulimits", json!([{"Name": "x", "Soft": 1, "Hard": 1}]), "invalid ulimit type"),
        (
            "Ulimits",
            json!([{"Name": "stack", "Soft": 2, "Hard": 1}]),
            "less than or equal to hard limit: 2 > 1",
        ),
    ] {
        let (status, message) = server.refused("POST", "/containers/create", &with_host(field, value)).await;
        assert!(status == 400 && message.contains(name), "{field}: {status} {message}");
    }
    let containers: Vec<Value> =
        server.client.get(&Target::new(["containers", "json"]).with("all", 1)).await.unwrap();
    assert!(containers.is_empty());
}

/// What docker 28 sends for `docker run none/such`, with a few fields that other clients add.
const CLIENTS: &str = r#"{
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": true, "AttachStderr": true,
        "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null, "Cmd": null, "Image": "none/such",
        "Volumes": {}, "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": {}, "ArgsEscaped": false,
        "HostConfig": {
            "Binds": null, "ContainerIDFile": "/tmp/x", "LogConfig": {"Type": "", "Config": {}}, "NetworkMode": "default",
            "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": true,
            "VolumeDriver": "", "VolumesFrom": null, "ConsoleSize": [24, 80], "CapAdd": null, "CapDrop": null,
            "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": null, "GroupAdd": null,
            "IpcMode": "", "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "", "Privileged": false,
            "PublishAllPorts": false, "ReadonlyRootfs": false, "SecurityOpt": null, "UTSMode": "", "UsernsMode": "",
            "ShmSize": 0, "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "",
            "BlkioWeight": 0, "BlkioWeightDevice": [], "BlkioDeviceReadBps": [], "BlkioDeviceWriteBps": [],
            "BlkioDeviceReadIOps": [], "BlkioDeviceWriteIOps": [], "CpuPeriod": 0, "CpuQuota": 0,
            "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0, "CpusetCpus": "", "CpusetMems": "", "Devices": [],
            "DeviceCgroupRules": null, "DeviceRequests": null, "MemoryReservation": 0, "MemorySwap": 0,
            "MemorySwappiness": -1, "OomKillDisable": false, "PidsLimit": 0, "Ulimits": [], "CpuCount": 0,
            "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0, "MaskedPaths": null, "ReadonlyPaths": null,
            "Runtime": "runc", "KernelMemory": 0
        },
        "NetworkingConfig": {"EndpointsConfig": {"default": {
            "IPAMConfig": null, "Links": null, "Aliases": null, "MacAddress": "", "DriverOpts": null, "GwPriority": 0,
            "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "",
            "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "DNSNames": null
        }}}
    }"#;

#[tokio::test]
async fn what_clients_send_unasked_is_no_option() {
    let server = server();
    let body: Value = serde_json::from_str(CLIENTS).unwrap();
    let (status, message) = server.refused("POST", "/v1.50/containers/create", &body).await;
    assert_eq!((status, message.as_str()), (404, "No such image: none/such:latest"));
    // Without a HostConfig, as some clients do.
    let (status, _) = server.refused("POST", "/containers/create", &json!({"Image": "none/such"})).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn objects_are_made_listed_and_removed() {
    let server = server();
    let volumes = Target::new(["volumes", "create"]);
    let made: Value =
        server.client.post(&volumes, &json!({"Name": "data", "Labels": {"tier": "x"}})).await.unwrap();
    assert_eq!(
        (&made["Name"], &made["Driver"], &made["Scope"]),
        (&json!("data"), &json!("local"), &json!("local"))
    );
    let list = Target::new(["volumes"]).with_filters([("label", "tier=x")]);
    let listed: Value = server.client.get(&list).await.unwrap();
    assert_eq!(listed["Volumes"].as_array().unwrap().len(), 1);
    let other = Target::new(["volumes"]).with_filters([("name", "other")]);
    let listed: Value = server.client.get(&other).await.unwrap();
    assert!(listed["Volumes"].as_array().unwrap().is_empty());
    assert!(server.client.act(hyper::Method::DELETE, &Target::new(["volumes", "data"])).await.unwrap());
    let gone = server.client.get::<Value>(&Target::new(["volumes", "data"])).await.unwrap_err();
    assert_eq!(gone.status(), Some(404));

    let body =
        json!({"Name": "front", "IPAM": {"Config": [{"Subnet": "172.30.0.0/16", "Gateway": "172.30.0.1"}]}});
    let made: Value = server.client.post(&Target::new(["networks", "create"]), &body).await.unwrap();
    let id = made["Id"].as_str().unwrap().to_owned();
    let shown: Value = server.client.get(&Target::new(["networks", &id[..12]])).await.unwrap();
    assert_eq!(
        (&shown["Name"], &shown["IPAM"]["Config"][0]["Subnet"]),
        (&json!("front"), &json!("172.30.0.0/16"))
    );
    let list: Vec<Value> =
        server.client.get(&Target::new(["networks"]).with_filters([("type", "custom")])).await.unwrap();
    assert_eq!(list.len(), 1);
    let pruned: Value =
        server.client.ask(hyper::Method::POST, &Target::new(["networks", "prune"])).await.unwrap();
    assert_eq!(pruned["NetworksDeleted"], json!(["front"]));
    let kept =
        server.client.act(hyper::Method::DELETE, &Target::new(["networks", "bridge"])).await.unwrap_err();
    assert_eq!(kept.status(), Some(403));
}

#[tokio::test]
async fn events_of_the_past_are_told_and_filtered() {
    let server = server();
    for name in ["one", "two"] {
        let _: Value =
            server.client.post(&Target::new(["volumes", "create"]), &json!({"Name": name})).await.unwrap();
    }
    let target = Target::new(["events"])
        .with("since", 1)
        .with("until", 9_999_999_999i64)
        .with_filters([("volume", "two")]);
    let mut lines = server.client.lines::<Value>(hyper::Method::GET, &target).await.unwrap();
    let event = lines.next().await.unwrap().unwrap();
    assert_eq!(
        (&event["Type"], &event["Action"], &event["Actor"]["ID"]),
        (&json!("volume"), &json!("create"), &json!("two"))
    );
    let past = Target::new(["events"]).with("since", 1).with("until", 2);
    let mut lines = server.client.lines::<Value>(hyper::Method::GET, &past).await.unwrap();
    assert!(lines.next().await.unwrap().is_none());
}

#[tokio::test]
async fn lists_of_nothing_are_lists() {
    let server = server();
    for path in ["/containers/json?all=1", "/images/json", "/plugins", "/bulkhead/v1/machines"] {
        let answer = server.get(path).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.trim_end().ends_with("[]"), "{path}: {answer}");
    }
    let df: Value = server.client.get(&Target::new(["system", "df"])).await.unwrap();
    assert_eq!(
        (&df["Images"], &df["Containers"], &df["Volumes"], &df["BuildCache"]),
        (&json!([]), &json!([]), &json!([]), &json!([]))
    );
    let pruned: Value =
        server.client.ask(hyper::Method::POST, &Target::new(["containers", "prune"])).await.unwrap();
    assert_eq!((&pruned["ContainersDeleted"], &pruned["SpaceReclaimed"]), (&json!([]), &json!(0)));
}

#[tokio::test]
async fn the_own_api_is_described_as_it_is() {
    let server = server();
    let api: Value = server.client.get(&Target::new(["bulkhead", "v1", "openapi.json"])).await.unwrap();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"), "{}", api["openapi"]);
    for (path, methods) in api["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let (status, message) =
                server.refused(&method.to_uppercase(), &path.replace("{id}", "nope"), &Value::Null).await;
            assert!(
                status == 200 || message == "No such container: nope",
                "{method} {path}: {status} {message}"
            );
        }
    }
    // Every reference leads somewhere.
    let text = api.to_string();
    for reference in text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(api["components"]["schemas"].get(reference).is_some(), "{reference}");
    }
    let page = server.get("/bulkhead/v1/docs").await;
    assert!(
        page.contains("text/html")
            && page.contains("content-security-policy")
            && page.contains("openapi.json")
    );
    let host: Value = server.client.get(&Target::new(["bulkhead", "v1", "host"])).await.unwrap();
    assert!(host["cpus"].as_u64().unwrap() >= 1 && !host["accelerator"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn requests_are_counted_by_route() {
    let server = server();
    for _ in 0..3 {
        let _: ClientError =
            server.client.get::<Value>(&Target::new(["containers", "nope", "json"])).await.unwrap_err();
    }
    let text = server.get("/metrics").await;
    let line = r#"bulkhead_http_request_duration_seconds_count{method="GET",route="/containers/{id}/json",status="404"} 3"#;
    assert!(text.contains(line), "{text}");
    assert!(text.contains(r#"bulkhead_containers{state="running"} 0"#), "{text}");
}

#[tokio::test]
async fn hostile_bytes_end_the_connection_and_nothing_else() {
    let server = server();
    for bytes in [
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        &format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(200_000)),
    ] {
        let answer = server.raw(bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let headers: String = (0..500).map(|n| format!("X-{n}: y\r\n")).collect();
    let answer = server.raw(&format!("GET /_ping HTTP/1.1\r\n{headers}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert!(server.get("/_ping").await.ends_with("OK"));
}
