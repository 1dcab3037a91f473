//! Who may pull and push: passwords, a token server, credential helpers, TLS, all against Debian's `docker-registry`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bulkhead_fixtures::http::{Answer, Request, Server};
use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::registry::Registry;
use bulkhead_fixtures::tarfile::{Pack, Tar, noise};
use bulkhead_fixtures::tools::{have, run};
use image_unpack::{
    Credentials, Digest, DockerConfig, Error, Event, Image, Limits, Platform, Quiet, Reference, Registries,
    Source, Store,
};
use serde_json::json;

fn store(dir: &Path, registries: Registries) -> Store {
    Store::open_with(dir, Limits::default(), registries).unwrap()
}

/// Nothing but what the test's directory holds.
fn registries(dir: &Path) -> Registries {
    Registries { certificates: vec![dir.join("certs.d")], ..Registries::default() }
        .with_docker_config(&dir.join("config.json"))
}

/// A store with an image of two layers.
fn stored(dir: &Path, registries: Registries) -> (Store, Image) {
    let layout = Layout::new(&dir.join("oci"));
    let base = Tar::default().dir("etc").file("etc/x", b"x").file("noise", &noise(1, 300_000)).end();
    layout.image(&[base, Tar::default().file("etc/y", b"y").end()], Pack::Gzip);
    let store = store(&dir.join("first"), registries);
    let image = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    (store, image)
}

fn pull(store: &Store, name: &str) -> Result<Image, Error> {
    store.ensure(&name.parse::<Source>().unwrap(), &Platform::host(), &Quiet)
}

fn push(store: &Store, image: &Image, name: &str) -> Result<Digest, Error> {
    store.push(image.id, &name.parse().unwrap(), &Quiet)
}

fn password(user: &str, password: &str) -> Credentials {
    Credentials::Password { user: user.into(), password: password.into() }
}

fn denied<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::AuthNeeded { .. }), "{error:?}");
    assert!(error.hint().contains("login"), "{}", error.hint());
}

/// A certificate for this machine's loopback and its key, as files.
fn certificate(dir: &Path, key_type: &[&str]) -> (String, String) {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (at("key.pem"), at("cert.pem"));
    let mut arguments = vec!["req", "-x509", "-newkey"];
    arguments.extend(key_type);
    arguments.extend(["-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    arguments.extend(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    arguments.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
    arguments.extend(["-keyout", &key, "-out", &certificate]);
    run("openssl", &arguments);
    (key, certificate)
}

/// Lines of `docker-registry`'s configuration that ask for a password.
fn htpasswd(dir: &Path) -> String {
    let passwords = dir.join("htpasswd");
    fs::write(&passwords, run("htpasswd", &["-Bbn", "ann", "secret"])).unwrap();
    format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", passwords.display())
}

#[test]
fn passwords_over_tls() {
    let work = tempfile::tempdir().unwrap();
    if !have("openssl") || !have("htpasswd") {
        return;
    }
    let (key, certificate) = certificate(work.path(), &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    let http = format!("  tls: {{certificate: {certificate}, key: {key}}}\n");
    let Some(registry) = Registry::start(work.path(), &http, &htpasswd(work.path())) else { return };
    let mut ours = registries(work.path());
    ours.tls.insert(registry.address.clone());
    let (first, image) = stored(work.path(), ours.clone());
    let name = format!("{}/private/image:v1", registry.address);
    let unknown = push(&first, &image, &name);
    assert!(
        matches!(unknown, Err(Error::Unreachable { .. })),
        "an unknown authority is not trusted: {unknown:?}"
    );
    let trusted = work.path().join("certs.d").join(&registry.address);
    fs::create_dir_all(&trusted).unwrap();
    fs::copy(&certificate, trusted.join("ca.crt")).unwrap();

    denied(push(&first, &image, &name));
    // `login` asks before anything is kept.
    denied(ours.login(&registry.address, &password("ann", "wrong")));
    ours.login(&registry.address, &password("ann", "secret")).unwrap();
    ours.login(&format!("https://{}/v2/", registry.address), &password("ann", "secret")).unwrap();
    let config = DockerConfig::at(&work.path().join("config.json"));
    config.set(&registry.address, &password("ann", "wrong")).unwrap();
    denied(push(&first, &image, &name));
    config.set(&registry.address, &password("ann", "secret")).unwrap();
    assert_eq!(push(&first, &image, &name).unwrap(), image.manifest);
    let second = store(&work.path().join("second"), ours.clone());
    let back = pull(&second, &name).unwrap();
    assert_eq!((back.id, back.manifest), (image.id, image.manifest));
    assert_eq!(
        second.inspect(back.id).unwrap().repo_digests,
        [format!("{}/private/image@{}", registry.address, image.manifest)]
    );

    assert!(config.remove(&registry.address).unwrap());
    denied(pull(&store(&work.path().join("third"), ours.clone()), &name));
    // One request's own credentials, as an API's caller sends them.
    let given = ours.with_credentials(&registry.address, password("ann", "secret"));
    pull(&store(&work.path().join("third"), given), &name).unwrap();
}

#[test]
fn a_credential_helper() {
    let work = tempfile::tempdir().unwrap();
    if !have("htpasswd") {
        return;
    }
    let Some(registry) = Registry::start(work.path(), "", &htpasswd(work.path())) else { return };
    // The protocol: `get`, `store`, `erase` on standard input and output. This one keeps one secret in a file.
    let bin = work.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-bhtest");
    let script = format!(
        "#!/bin/sh\ncd {} && case $1 in\n\
         get) server=$(cat); grep -q \"\\\"$server\\\"\" kept 2> /dev/null && cat kept && exit 0\n\
         echo credentials not found in native keychain; exit 1;;\n\
         store) cat > kept;;\nerase) rm kept;;\nesac\n",
        work.path().display()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = work.path().join("config.json");
    fs::write(&path, json!({"credHelpers": {&registry.address: "bhtest"}}).to_string()).unwrap();
    // The helper is looked up in PATH, which a test may not change for its neighbours: the rest runs in a child.
    let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["helper_child", "--exact", "--nocapture"])
        .env("PATH", search)
        .env("BULKHEAD_TEST_HELPER", format!("{}|{}", work.path().display(), registry.address))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("the helper was asked"), "{said}");
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("secret") && !text.contains(&STANDARD.encode("ann:secret")), "{text}");
}

/// The part of [`a_credential_helper`] that has the helper in its PATH.
#[test]
fn helper_child() {
    let Ok(job) = std::env::var("BULKHEAD_TEST_HELPER") else { return };
    let (dir, address) = job.split_once('|').unwrap();
    let dir = Path::new(dir);
    let (first, image) = stored(dir, registries(dir));
    let name = format!("{address}/helped/image:v1");
    denied(push(&first, &image, &name));
    let config = DockerConfig::at(&dir.join("config.json"));
    config.set(address, &password("ann", "secret")).unwrap();
    assert_eq!(config.get(address).unwrap(), Some(password("ann", "secret")));
    push(&first, &image, &name).unwrap();
    pull(&store(&dir.join("second"), registries(dir)), &name).unwrap();
    assert!(config.remove(address).unwrap());
    assert!(!dir.join("kept").exists());
    denied(pull(&store(&dir.join("third"), registries(dir)), &name));
    eprintln!("the helper was asked");
}

/// A token server (distribution, "Token Authentication Specification" and "OAuth2"): everybody may pull `public/`; ann,
/// by password or refresh token, may do everything but what lies below `forbidden/`.
struct Tokens {
    server: Server,
    /// Scopes that were asked for.
    asked: Arc<Mutex<BTreeSet<String>>>,
}

const REFRESH: &str = "a-refresh-token";

fn issue(dir: &Path, request: &Request) -> Answer {
    let ann = format!("Basic {}", STANDARD.encode("ann:secret"));
    let known = match request.method.as_str() {
        "POST" => request.field("refresh_token").as_deref() == Some(REFRESH),
        _ => request.header("authorization") == Some(&ann),
    };
    if !known && (request.method == "POST" || request.header("authorization").is_some()) {
        let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]});
        return Answer::Say(401, Vec::new(), body.to_string().into_bytes());
    }
    let scopes = scopes(request);
    let access: Vec<_> = scopes
        .iter()
        .filter_map(|scope| {
            let [kind, name, actions] = scope.split(':').collect::<Vec<_>>().try_into().ok()?;
            let may = |action: &&str| {
                !name.starts_with("forbidden/")
                    && (known || (*action == "pull" && name.starts_with("public/")))
            };
            let actions: Vec<&str> = actions.split(',').filter(may).collect();
            Some(json!({"type": kind, "name": name, "actions": actions}))
        })
        .collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let pem = fs::read_to_string(dir.join("cert.pem")).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
    let claims = json!({"iss": "bulkhead-test", "sub": if known { "ann" } else { "" }, "aud": "registry.test",
        "exp": now + 300, "nbf": now - 10, "iat": now, "jti": "1", "access": access});
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let to_sign = tempfile::NamedTempFile::new_in(dir).unwrap();
    fs::write(to_sign.path(), &signed).unwrap();
    let sign = ["dgst", "-sha256", "-sign"];
    let output =
        Command::new("openssl").args(sign).arg(dir.join("key.pem")).arg(to_sign.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(output.stdout));
    // Each specification has its own name for it.
    let body =
        if request.method == "POST" { json!({"access_token": token}) } else { json!({"token": token}) };
    Answer::Say(200, vec!["Content-Type: application/json".into()], body.to_string().into_bytes())
}

fn scopes(request: &Request) -> Vec<String> {
    let text = match request.method.as_str() {
        "POST" => request.field("scope").unwrap_or_default(),
        _ => {
            let query = request.target.split_once('?').map_or("", |(_, query)| query);
            let values = query.split('&').filter_map(|pair| pair.strip_prefix("scope="));
            values.map(bulkhead_fixtures::http::unescape).collect::<Vec<_>>().join(" ")
        }
    };
    text.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
}

impl Tokens {
    fn start(dir: &Path) -> Self {
        certificate(dir, &["rsa:2048"]);
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let (heard, dir) = (Arc::clone(&asked), dir.to_path_buf());
        let server = Server::start(None, move |request| {
            assert!(request.target.starts_with("/token"));
            let service = request.query("service").or_else(|| request.field("service"));
            assert_eq!(service.as_deref(), Some("registry.test"));
            heard.lock().unwrap().extend(scopes(request));
            issue(&dir, request)
        });
        Self { server, asked }
    }

    fn configuration(&self, dir: &Path) -> String {
        format!(
            "auth: {{token: {{realm: 'http://{}/token', service: registry.test, issuer: bulkhead-test, rootcertbundle: {}}}}}\n",
            self.server.address,
            dir.join("cert.pem").display()
        )
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap()).into_iter().collect()
    }
}

#[test]
fn a_token_server() {
    let work = tempfile::tempdir().unwrap();
    if !have("openssl") {
        return;
    }
    let tokens = Tokens::start(work.path());
    let Some(registry) = Registry::start(work.path(), "", &tokens.configuration(work.path())) else { return };
    let name = |repository: &str| format!("{}/{repository}:v1", registry.address);
    let anonymous = registries(work.path());
    let ann = anonymous.clone().with_credentials(&registry.address, password("ann", "secret"));
    let (first, image) = stored(work.path(), ann.clone());
    denied(push(&store(&work.path().join("first"), anonymous.clone()), &image, &name("public/a")));
    tokens.take();
    push(&first, &image, &name("public/a")).unwrap();
    let asked = tokens.take();
    assert!(asked.iter().all(|scope| scope.starts_with("repository:public/a:")), "{asked:?}");

    // Nobody in particular may pull what is public, and asks for no more than that.
    let back = pull(&store(&work.path().join("anonymous"), anonymous.clone()), &name("public/a")).unwrap();
    assert_eq!((back.id, back.manifest), (image.id, image.manifest));
    assert_eq!(tokens.take(), ["repository:public/a:pull"]);
    push(&first, &image, &name("private/a")).unwrap();
    denied(pull(&store(&work.path().join("second"), anonymous.clone()), &name("private/a")));
    let wrong = anonymous.clone().with_credentials(&registry.address, password("ann", "wrong"));
    denied(pull(&store(&work.path().join("second"), wrong), &name("private/a")));
    pull(&store(&work.path().join("second"), ann.clone()), &name("private/a")).unwrap();

    // An OAuth2 refresh token, as `docker login` keeps it; and a bearer token that the caller has already.
    let token = |text: &str| {
        anonymous.clone().with_credentials(&registry.address, Credentials::IdentityToken(text.into()))
    };
    pull(&store(&work.path().join("third"), token(REFRESH)), &name("private/a")).unwrap();
    denied(pull(&store(&work.path().join("fourth"), token("another")), &name("private/a")));

    // `login` asks for a token that is good for nothing.
    tokens.take();
    ann.login(&registry.address, &password("ann", "secret")).unwrap();
    denied(ann.login(&registry.address, &password("ann", "wrong")));
    assert_eq!(tokens.take(), [""; 0]);

    // Layers are mounted from a repository that may be read, and sent where it may not.
    let heard = Mutex::new(Vec::new());
    let listen = |event: Event| heard.lock().unwrap().push(event);
    let count =
        |wanted: fn(&Event) -> bool| heard.lock().unwrap().iter().filter(|event| wanted(event)).count();
    let reference = |repository: &str| name(repository).parse::<Reference>().unwrap();
    first.tag(image.id, &reference("public/a")).unwrap();
    first.push(image.id, &reference("private/b"), &listen).unwrap();
    assert_eq!(count(|event| matches!(event, Event::PushMounted { from, .. } if from == "public/a")), 2);
    first.remove(image.id, true).unwrap();
    let (again, image) = stored(work.path(), ann);
    again.tag(image.id, &reference("forbidden/a")).unwrap();
    heard.lock().unwrap().clear();
    again.push(image.id, &reference("private/c"), &listen).unwrap();
    assert_eq!(count(|event| matches!(event, Event::PushDone { .. })), 2);
    denied(again.push(image.id, &reference("forbidden/a"), &Quiet));
}
