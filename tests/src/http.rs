//! A small HTTP server on loopback, for tests that need one to misbehave: it answers by itself, or stands in front of
//! another server, counts, refuses, and cuts connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// What a client sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `PUT`, ...
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body of a form; other bodies are not read yet.
    pub form: Vec<u8>,
}

impl Request {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A value of the query, with `%` escapes undone.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        find_pair(self.target.split_once('?')?.1, name)
    }

    /// A value of the form.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<String> {
        find_pair(std::str::from_utf8(&self.form).ok()?, name)
    }

    fn length(&self) -> u64 {
        self.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn read(input: &mut impl BufRead) -> Option<Self> {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|&n| n > 0)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            input.read_line(&mut line).ok().filter(|&n| n > 0)?;
            let line = line.trim_end();
            if line.is_empty() {
                let mut request = Self { method, target, headers, form: Vec::new() };
                if request.header("content-type").is_some_and(|kind| kind.contains("x-www-form-urlencoded")) {
                    input.take(request.length()).read_to_end(&mut request.form).ok()?;
                }
                return Some(request);
            }
            let (name, value) = line.split_once(':')?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}

fn find_pair(pairs: &str, name: &str) -> Option<String> {
    let value = pairs.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(unescape(value))
}

/// Undoes `%XX` and `+`.
#[must_use]
pub fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                out.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What a client gets.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Status, more headers (`Name: value`) and body.
    Say(u16, Vec<String>, Vec<u8>),
    /// What the server behind says.
    Forward,
    /// The beginning of what the server behind says: the connection breaks after so many bytes.
    Cut(u64),
    /// The server behind gets so many bytes of the body, the client no answer: the connection breaks.
    CutUpload(u64),
}

/// The server; ends when dropped.
pub struct Server {
    /// Host and port.
    pub address: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves with `answer`; `behind` is whom [`Answer::Forward`] means. Every connection carries one request.
    #[must_use]
    pub fn start(behind: Option<&str>, answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, behind, answer) = (Arc::clone(&stop), behind.map(str::to_owned), Arc::new(answer));
        let thread = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (behind, answer) = (behind.clone(), Arc::clone(&answer));
                thread::spawn(move || {
                    // A client that goes away is its own business.
                    let _ = serve(client, behind.as_deref(), &*answer);
                });
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut client: TcpStream,
    behind: Option<&str>,
    answer: &(dyn Fn(&Request) -> Answer + Send + Sync),
) -> std::io::Result<()> {
    let mut input = BufReader::new(client.try_clone()?);
    let Some(request) = Request::read(&mut input) else { return Ok(()) };
    let (limit, upload) = match answer(&request) {
        Answer::Say(status, headers, body) => {
            // What was sent is read, so that the answer is not lost with the connection.
            std::io::copy(
                &mut input.take(request.length() - request.form.len() as u64),
                &mut std::io::sink(),
            )?;
            let mut head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n", body.len());
            for header in headers.iter().map(String::as_str).chain(["Connection: close", ""]) {
                head.push_str(header);
                head.push_str("\r\n");
            }
            client.write_all(head.as_bytes())?;
            if request.method != "HEAD" {
                client.write_all(&body)?;
            }
            return client.shutdown(Shutdown::Both);
        }
        Answer::Forward => (u64::MAX, u64::MAX),
        Answer::Cut(limit) => (limit, u64::MAX),
        Answer::CutUpload(upload) => (0, upload),
    };
    let mut server = TcpStream::connect(behind.unwrap())?;
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
    for (name, value) in request.headers.iter().filter(|(name, _)| name != "connection") {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("connection: close\r\n\r\n");
    server.write_all(head.as_bytes())?;
    server.write_all(&request.form)?;
    std::io::copy(&mut input.take((request.length() - request.form.len() as u64).min(upload)), &mut server)?;
    if upload == u64::MAX {
        std::io::copy(&mut (&server).take(limit), &mut client)?;
    }
    let _ = server.shutdown(Shutdown::Both);
    client.shutdown(Shutdown::Both)
}
