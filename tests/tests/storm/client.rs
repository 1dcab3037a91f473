//! A client that does not give up when its daemon dies: it asks again, and knows what the first try may have done already.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use api::client::{Client, ClientError, Endpoint, Method, Target};
use bulkhead_tests::daemon::Daemon;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long a daemon may be away.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Stubborn {
    client: Client,
    deaths: Rc<Cell<usize>>,
}

impl Stubborn {
    pub fn new(daemon: &Daemon) -> Self {
        let client = Client::new(Endpoint::Unix(daemon.socket().to_owned()));
        Self { client, deaths: Rc::default() }
    }

    /// Kills the daemon and starts another one.
    pub fn crash(&self, daemon: &mut Daemon) {
        self.deaths.set(self.deaths.get() + 1);
        daemon.crash();
    }

    /// How often the daemon was killed.
    pub fn deaths(&self) -> usize {
        self.deaths.get()
    }

    /// Does something until it is answered.
    async fn insist<T>(
        &self,
        mut act: impl AsyncFnMut(&Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let began = Instant::now();
        loop {
            match act(&self.client).await {
                Err(error) if error.status().is_none() && began.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                answered => return answered,
            }
        }
    }

    /// Creates a container that runs a script of the shell. Returns whether this try, not an earlier one, did it.
    pub async fn create(&self, image: &str, name: &str, script: &str) -> bool {
        let body = json!({
            "Image": image, "Cmd": ["sh", "-c", script], "HostConfig": { "Runtime": "uml" },
        });
        let target = Target::new(["containers", "create"]).with("name", name);
        let created = self.insist(async |client| client.post::<Value>(&target, &body).await).await;
        match created {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.status(), Some(409), "{name}: {error}");
                false
            }
        }
    }

    async fn act(&self, method: Method, target: Target, fine: &[u16]) {
        let done = self.insist(async |client| client.act(method.clone(), &target).await).await;
        if let Err(error) = done {
            let status = error.status().unwrap_or_else(|| panic!("{target}: {error}"));
            assert!(fine.contains(&status), "{target}: {status} {error} {:?}", error.advice());
        }
    }

    pub async fn start(&self, name: &str) {
        self.act(Method::POST, Target::new(["containers", name, "start"]), &[]).await;
    }

    /// Starts a container whose machine may be killed on the way.
    pub async fn start_or_fail(&self, name: &str) {
        self.act(Method::POST, Target::new(["containers", name, "start"]), &[400, 404, 409, 500]).await;
    }

    pub async fn stop(&self, name: &str) {
        self.act(Method::POST, Target::new(["containers", name, "stop"]), &[]).await;
    }

    /// Removes a container. A try whose answer was lost may have done it.
    pub async fn remove(&self, name: &str) {
        self.act(Method::DELETE, Target::new(["containers", name]).with("force", 1), &[404, 409]).await;
        let gone = Instant::now();
        while self.inspect(name).await.is_some() {
            assert!(gone.elapsed() < PATIENCE, "{name} does not go");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn inspect(&self, name: &str) -> Option<Value> {
        let target = Target::new(["containers", name, "json"]);
        match self.insist(async |client| client.get::<Value>(&target).await).await {
            Ok(value) => Some(value),
            Err(error) => {
                assert_eq!(error.status(), Some(404), "{name}: {error}");
                None
            }
        }
    }

    /// All containers.
    pub async fn list(&self) -> Vec<Value> {
        let target = Target::new(["containers", "json"]).with("all", 1);
        self.insist(async |client| client.get::<Vec<Value>>(&target).await).await.unwrap()
    }

    /// Output of a command in a running container, from as many tries as it takes.
    pub async fn exec(&self, name: &str, command: &[&str]) -> String {
        let create = Target::new(["containers", name, "exec"]);
        let body = json!({ "Cmd": command, "AttachStdout": true, "Tty": true });
        let ran = self.insist(async |client| {
            let deaths = self.deaths();
            let made: Value = client.post(&create, &body).await?;
            let start = Target::new(["exec", made["Id"].as_str().unwrap(), "start"]);
            let how = json!({ "Detach": false, "Tty": true });
            let mut hijacked = client.hijack(&start, Some(&how)).await?;
            let _ = hijacked.connection.shutdown().await;
            let mut output = String::new();
            let read = hijacked.connection.read_to_string(&mut output).await;
            read.map_err(|e| ClientError::Broken(e.to_string()))?;
            // Output has no mark at its end: what a daemon passes on that dies looks whole.
            if self.deaths() != deaths {
                return Err(ClientError::Broken("the daemon died amid the output".to_owned()));
            }
            let done: Value =
                client.get(&Target::new(["exec", made["Id"].as_str().unwrap(), "json"])).await?;
            if done["Running"] == true || done["ExitCode"] != 0 {
                return Err(ClientError::Broken(format!("the command is not done: {done}")));
            }
            Ok(output)
        });
        ran.await.unwrap_or_else(|e| panic!("exec in {name}: {e} {:?}", e.advice()))
    }

    /// Everything that a container wrote on its standard output.
    pub async fn log(&self, name: &str) -> String {
        let target = Target::new(["containers", name, "logs"]).with("stdout", 1);
        let read = self.insist(async |client| {
            let (_, mut content) = client.download(&target).await?;
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).await.map_err(|e| ClientError::Broken(e.to_string()))?;
            Ok(bytes)
        });
        let bytes = read.await.unwrap();
        // Docker's frames: a header of eight bytes, its last four the length.
        let (mut text, mut rest) = (Vec::new(), &bytes[..]);
        while let [_, _, _, _, a, b, c, d, more @ ..] = rest {
            let (frame, after) = more.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            text.extend_from_slice(frame);
            rest = after;
        }
        String::from_utf8(text).unwrap()
    }

    /// Waits until a container has printed a line.
    pub async fn printed(&self, name: &str, line: &str) {
        let began = Instant::now();
        while !self.log(name).await.lines().any(|printed| printed == line) {
            assert!(began.elapsed() < PATIENCE, "{name} does not print {line:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
