//! The daemon's sockets: who is let in, and who is not.

#![allow(missing_docs, clippy::expect_used, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use api::client::{Client, Endpoint, Target};
use api::server::{Address, ServeError, TlsFiles, Token};
use api::{Options, serve};
use bulkhead_fixtures::authority::{Authority, Identity, Purpose};
use engine::Engine;
use engine::paths::Paths;
use serde_json::Value;
use tokio::sync::oneshot;

struct Daemon {
    end: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), ServeError>>,
    port: Option<u16>,
}

async fn daemon(root: &Path, options: &Options) -> Daemon {
    let engine = Engine::open(Paths::at(root.to_owned(), root.to_owned()).unwrap()).unwrap();
    let listeners = options.bind().await.unwrap();
    let port = listeners.iter().find_map(api::server::Listener::port);
    let (end, ended) = oneshot::channel();
    let task = tokio::spawn(serve(engine, listeners, async {
        let _ = ended.await;
    }));
    Daemon { end, task, port }
}

impl Daemon {
    async fn stop(self) {
        self.end.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn options(address: &str) -> Options {
    Options { addresses: vec![address.parse().unwrap()], ..Options::default() }
}

async fn version(endpoint: Endpoint) -> Result<Value, api::client::ClientError> {
    Client::new(endpoint).get(&Target::new(["version"])).await
}

#[tokio::test]
async fn a_unix_socket_is_its_owners_and_its_groups() {
    let root = tempfile::tempdir().unwrap();
    let socket = root.path().join("run/bulkhead.sock");
    let options = options(&format!("unix://{}", socket.display()));
    let first = daemon(root.path(), &options).await;
    let metadata = fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    assert_eq!(version(Endpoint::Unix(socket.clone())).await.unwrap()["ApiVersion"], "1.50");
    // A second daemon does not take the first one's place.
    assert!(matches!(options.bind().await.unwrap_err(), ServeError::InUse(_)));
    assert!(version(Endpoint::Unix(socket.clone())).await.is_ok());
    first.stop().await;
    assert!(!socket.exists(), "the socket's file is left");
    // What a dead daemon left is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let second = daemon(root.path(), &options).await;
    assert!(version(Endpoint::Unix(socket.clone())).await.is_ok());
    second.stop().await;
    fs::write(&socket, "a file").unwrap();
    assert!(matches!(options.bind().await.unwrap_err(), ServeError::File { .. }));
}

#[tokio::test]
async fn tcp_is_open_to_nobody_without_a_guard() {
    assert!(matches!(options("tcp://127.0.0.1:0").bind().await.unwrap_err(), ServeError::Unguarded(_)));
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("token");
    fs::write(&file, "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let open = Options { token: Some(file.clone()), ..options("tcp://0.0.0.0:0") };
    assert!(matches!(open.bind().await.unwrap_err(), ServeError::ClearToken(_)));

    let daemon =
        daemon(root.path(), &Options { token: Some(file.clone()), ..options("tcp://127.0.0.1:0") }).await;
    let address = format!("127.0.0.1:{}", daemon.port.unwrap());
    let with = |token: Option<Token>| Endpoint::Tcp { address: address.clone(), tls: None, token };
    let refused = version(with(None)).await.unwrap_err();
    assert_eq!(refused.status(), Some(401));
    assert_eq!(version(with(Some(Token::read(&file).unwrap()))).await.unwrap()["Os"], "linux");
    fs::write(&file, "ffffffffffffffffffffffffffffffff").unwrap();
    let wrong = version(with(Some(Token::read(&file).unwrap()))).await.unwrap_err();
    assert_eq!(wrong.status(), Some(401));
    daemon.stop().await;
}

fn files(identity: Identity) -> TlsFiles {
    let Identity { authority, certificate, key } = identity;
    TlsFiles { authority, certificate, key }
}

#[tokio::test]
async fn tls_lets_those_in_whose_certificate_is_of_the_authority() {
    let root = tempfile::tempdir().unwrap();
    let ours = Authority::new(&root.path().join("ours"));
    let theirs = Authority::new(&root.path().join("theirs"));
    let server = files(ours.sign("server", Purpose::Server));
    let daemon = daemon(root.path(), &Options { tls: Some(server), ..options("tcp://127.0.0.1:0") }).await;
    let address = format!("127.0.0.1:{}", daemon.port.unwrap());
    let with = |tls: Option<TlsFiles>| Endpoint::Tcp { address: address.clone(), tls, token: None };

    let client = files(ours.sign("client", Purpose::Client));
    assert_eq!(version(with(Some(client.clone()))).await.unwrap()["ApiVersion"], "1.50");
    let stranger =
        TlsFiles { authority: client.authority.clone(), ..files(theirs.sign("client", Purpose::Client)) };
    assert!(version(with(Some(stranger))).await.unwrap_err().status().is_none());
    assert!(version(with(None)).await.unwrap_err().status().is_none(), "plain HTTP must not be answered");
    daemon.stop().await;
}

#[tokio::test]
async fn addresses_need_sockets_that_are_there() {
    assert!(matches!(options("fd://").bind().await.unwrap_err(), ServeError::NotActivated));
    assert!(matches!("http://x".parse::<Address>().unwrap_err(), ServeError::Address { .. }));
    let missing = Options { group: Some("no-such-group-here".into()), ..options("unix:///tmp/none.sock") };
    assert!(missing.bind().await.is_err());
}
