//! HTTP to one registry: authentication (RFC 7235, and the distribution project's token specification), retries, and
//! errors that say what the registry said.

use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::{Agent, Body, SendBody};

use super::Registries;
use super::credentials::Credentials;
use crate::error::{Error, Result};
use crate::progress::{Event, Progress};

/// Attempts at one request.
pub(super) const ATTEMPTS: u32 = 4;
/// Bytes of an error document, token or tag list.
const SMALL: u64 = 1 << 20;

/// One registry, one repository.
pub(super) struct Client {
    agent: Agent,
    /// `https://host:port`
    base: String,
    /// Host and port, for errors.
    pub registry: String,
    pub repository: String,
    credentials: Option<Credentials>,
    /// The `Authorization` header that last worked.
    authorization: Mutex<Option<String>>,
    actions: &'static str,
}

/// What is sent; made anew for every attempt.
pub(super) enum Send<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// A stream of a known length.
    Stream(&'a dyn Fn() -> Result<Box<dyn Read + 'a>>, u64),
}

/// A request; `url` is a path below the registry's base, or absolute.
pub(super) struct Ask<'a, 'b> {
    pub method: Method,
    pub url: &'a str,
    pub headers: &'a [(&'a str, String)],
    pub body: Send<'b>,
}

impl Client {
    /// A client for `repository` at `host`, to pull or to pull and push.
    pub(super) fn new(
        registries: &Registries,
        registry: &str,
        host: &str,
        plain: bool,
        repository: &str,
        actions: &'static str,
    ) -> Result<Self> {
        let credentials = registries.credentials_for(registry)?;
        let given = credentials.as_ref().and_then(Credentials::bearer);
        Ok(Self {
            agent: registries.agent(host, plain)?,
            base: format!("{}://{host}", if plain { "http" } else { "https" }),
            registry: host.to_owned(),
            repository: repository.to_owned(),
            credentials,
            authorization: Mutex::new(given),
            actions,
        })
    }

    fn unreachable(&self, reason: impl std::fmt::Display) -> Error {
        Error::Unreachable { registry: self.registry.clone(), reason: reason.to_string() }
    }

    /// The absolute form of a path or `Location`.
    pub(super) fn absolute(&self, url: &str) -> String {
        if url.starts_with("http://") || url.starts_with("https://") {
            url.to_owned()
        } else {
            format!("{}{url}", self.base)
        }
    }

    fn send_once(&self, ask: &Ask<'_, '_>, authorization: Option<&str>) -> Result<Response<Body>> {
        let url = self.absolute(ask.url);
        let mut request = Request::builder().method(ask.method.clone()).uri(&url);
        for (name, value) in ask.headers {
            request = request.header(*name, value);
        }
        // Credentials are for the registry, not for where it sends us.
        if let Some(authorization) = authorization
            && url.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'))
        {
            request = request.header("Authorization", authorization);
        }
        let built = |e: ureq::http::Error| self.unreachable(e);
        let response = match &ask.body {
            Send::Nothing if matches!(ask.method, Method::POST | Method::PUT | Method::PATCH) => {
                self.agent.run(request.header("Content-Length", "0").body(&[][..]).map_err(built)?)
            }
            Send::Nothing => self.agent.run(request.body(()).map_err(built)?),
            Send::Bytes(bytes) => self.agent.run(request.body(*bytes).map_err(built)?),
            Send::Stream(open, length) => {
                let mut reader = open()?;
                let request = request.header("Content-Length", length.to_string());
                self.agent.run(request.body(SendBody::from_reader(&mut reader)).map_err(built)?)
            }
        };
        response.map_err(|e| self.unreachable(e))
    }

    /// Sends a request until it is answered, authenticating as asked. Statuses other than 401, 429 and 5xx are the
    /// caller's to judge.
    pub(super) fn ask(&self, ask: &Ask<'_, '_>, progress: &dyn Progress) -> Result<Response<Body>> {
        let is_stream = matches!(ask.body, Send::Stream(..));
        let mut authenticated = false;
        let mut attempt = 0;
        loop {
            let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let wait = match self.send_once(ask, authorization.as_deref()) {
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED => {
                    if authenticated {
                        return Err(self.denied(response));
                    }
                    // A token may have expired, so one is fetched even if there was one.
                    authenticated = true;
                    let header = self.authenticate(response)?;
                    *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
                    continue;
                }
                Ok(response) if response.status() == StatusCode::FORBIDDEN => {
                    return Err(self.denied(response));
                }
                Ok(response)
                    if response.status() == StatusCode::TOO_MANY_REQUESTS
                        || response.status().is_server_error() =>
                {
                    let wait = header(&response, "retry-after").and_then(|text| text.parse().ok());
                    // A stream that broke must be taken up elsewhere than at its beginning: the sender knows.
                    if attempt + 1 >= ATTEMPTS || (is_stream && response.status().is_server_error()) {
                        return Err(self.refused(&ask.method, ask.url, response));
                    }
                    wait.map_or_else(|| backoff(attempt), |s: u64| Duration::from_secs(s.min(20)))
                }
                Ok(response) => return Ok(response),
                // A name that does not resolve or a port that refuses will not change in a second, and the local
                // disk is not the registry's fault.
                Err(error @ Error::Unreachable { .. })
                    if attempt + 1 < ATTEMPTS && !is_stream && transient(&error) =>
                {
                    progress.event(Event::Retry { reason: error.to_string(), attempt: attempt + 1 });
                    backoff(attempt)
                }
                Err(error) => return Err(error),
            };
            attempt += 1;
            sleep(wait);
        }
    }

    /// As [`Client::ask`], for a GET.
    pub(super) fn get(
        &self,
        url: &str,
        headers: &[(&str, String)],
        progress: &dyn Progress,
    ) -> Result<Response<Body>> {
        self.ask(&Ask { method: Method::GET, url, headers, body: Send::Nothing }, progress)
    }

    /// Answers a challenge with an `Authorization` header.
    fn authenticate(&self, response: Response<Body>) -> Result<String> {
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .collect();
        if let Some(challenge) = challenges.iter().find(|c| c.scheme == "bearer") {
            return self.token(challenge);
        }
        if challenges.iter().any(|c| c.scheme == "basic")
            && let Some(basic) = self.credentials.as_ref().and_then(Credentials::basic)
        {
            return Ok(basic);
        }
        Err(self.denied(response))
    }

    /// Fetches a bearer token (distribution, "Token Authentication Specification" and "OAuth2").
    fn token(&self, challenge: &Challenge) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let denied = |reason: &str| Error::AuthNeeded {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            reason: reason.to_owned(),
        };
        let realm = challenge.get("realm").ok_or_else(|| denied("its challenge names no token server"))?;
        // A registry on TLS must not make us send secrets in the clear.
        if self.base.starts_with("https://") && !realm.starts_with("https://") {
            return Err(denied("its token server is not on TLS"));
        }
        let scope = match challenge.get("scope") {
            Some(scope) => scope.to_owned(),
            // To log in is to ask for nothing but a token.
            None if self.repository.is_empty() => String::new(),
            None => format!("repository:{}:{}", self.repository, self.actions),
        };
        let service = challenge.get("service").unwrap_or_default();
        let response = if let Some(Credentials::IdentityToken(token)) = &self.credentials {
            let form = [
                ("grant_type", "refresh_token"),
                ("service", service),
                ("client_id", "bulkhead"),
                ("scope", scope.as_str()),
                ("refresh_token", token.as_str()),
            ];
            self.agent.post(realm).send_form(form)
        } else {
            let mut request = self.agent.get(realm).query("service", service);
            for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
                request = request.query("scope", scope);
            }
            if let Some(basic) = self.credentials.as_ref().and_then(Credentials::basic) {
                request = request.header("Authorization", basic);
            }
            request.call()
        };
        let response = response.map_err(|e| self.unreachable(e))?;
        if !response.status().is_success() {
            return Err(self.denied(response));
        }
        let bytes = small(response).map_err(|e| self.unreachable(e))?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| denied("its token is malformed"))?;
        let token = token.token.or(token.access_token).filter(|t| !t.is_empty());
        let token = token.ok_or_else(|| denied("its token server gave no token"))?;
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(denied("its token is malformed"));
        }
        Ok(format!("Bearer {token}"))
    }

    fn denied(&self, response: Response<Body>) -> Error {
        let status = response.status();
        Error::AuthNeeded {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            reason: said(response).unwrap_or_else(|| status.to_string()),
        }
    }

    /// The error for an answer that was not hoped for.
    pub(super) fn refused(&self, method: &Method, url: &str, response: Response<Body>) -> Error {
        let status = response.status();
        Error::Registry {
            registry: self.registry.clone(),
            status: status.as_u16(),
            request: format!("{method} {url}"),
            reason: said(response).unwrap_or_else(|| status.to_string()),
        }
    }
}

pub(super) fn transient(error: &Error) -> bool {
    !matches!(error, Error::Unreachable { reason, .. }
        if reason.contains("refused") || reason.contains("not found") || reason.contains("certificate")
            || reason.contains("unsupported") || reason.contains("tls"))
}

pub(super) fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(200 << attempt.min(5))
}

pub(super) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// A small body as a whole.
pub(super) fn small(response: Response<Body>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    response.into_body().into_reader().take(SMALL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What the registry said is wrong (OCI distribution spec, "Error Codes"), in one short line.
fn said(response: Response<Body>) -> Option<String> {
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<One>,
        #[serde(default)]
        details: String,
    }
    let errors: Errors = serde_json::from_slice(&small(response).ok()?).ok()?;
    let text = match errors.errors.first() {
        Some(one) if one.message.is_empty() => one.code.clone(),
        Some(one) => format!("{} ({})", one.message, one.code),
        None => errors.details,
    };
    let clean: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    (!clean.is_empty()).then_some(clean)
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        while let Some((name, after)) = rest.split_once('=') {
            let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
            let value;
            if let Some(quoted) = after.strip_prefix('"') {
                let mut out = String::new();
                let mut escaped = false;
                let mut end = None;
                for (i, c) in quoted.char_indices() {
                    match c {
                        _ if escaped => {
                            out.push(c);
                            escaped = false;
                        }
                        '\\' => escaped = true,
                        '"' => {
                            end = Some(i);
                            break;
                        }
                        _ => out.push(c),
                    }
                }
                rest = &quoted[end? + 1..];
                value = out;
            } else {
                let end = after.find(',').unwrap_or(after.len());
                value = after[..end].trim().to_owned();
                rest = &after[end..];
            }
            if parameters.len() >= 16 {
                return None;
            }
            parameters.push((name, value));
        }
        Some(Self { scheme: scheme.to_ascii_lowercase(), parameters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_challenges() {
        let c = Challenge::parse(
            r#"Bearer realm="https://auth.io/token",service="reg\"x", scope="repository:a/b:pull,push",error=e"#,
        )
        .unwrap();
        assert_eq!(c.scheme, "bearer");
        assert_eq!(c.get("realm"), Some("https://auth.io/token"));
        assert_eq!(c.get("service"), Some("reg\"x"));
        assert_eq!(c.get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(c.get("error"), Some("e"));
        assert_eq!(Challenge::parse("Basic").unwrap().scheme, "basic");
        assert_eq!(Challenge::parse("Bearer realm=\"unterminated"), None);
    }
}
