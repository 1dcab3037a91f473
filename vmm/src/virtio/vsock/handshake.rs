//! The line with which a client of the host names the guest's port.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{MsgFlags, recv};

/// Longest line that can be right: `CONNECT 4294967295\n`.
const MAX_LINE: usize = 19;

/// What a look at the client's socket came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// The line is not complete yet.
    Incomplete,
    /// The client asks for this port of the guest.
    Connect(u32),
    /// The client is gone, or speaks something else.
    Bad,
}

/// Looks for the line, and takes it, and nothing after it, out of the socket once it is complete.
pub fn read_line(socket: &impl AsFd) -> Line {
    let fd = socket.as_fd().as_raw_fd();
    let mut line = [0u8; MAX_LINE];
    let length = match recv(fd, &mut line, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(0) => return Line::Bad,
        Ok(length) => length,
        Err(error) => {
            let kind = io::Error::from(error).kind();
            let later = matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            return if later { Line::Incomplete } else { Line::Bad };
        }
    };
    let Some(end) = line[..length].iter().position(|byte| *byte == b'\n') else {
        let possible = length < MAX_LINE && b"CONNECT ".iter().zip(&line[..length]).all(|(a, b)| a == b);
        return if possible { Line::Incomplete } else { Line::Bad };
    };
    let taken = recv(fd, &mut line[..=end], MsgFlags::MSG_DONTWAIT);
    match parse(&line[..end]) {
        Some(port) if taken == Ok(end + 1) => Line::Connect(port),
        _ => Line::Bad,
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line.strip_prefix(b"CONNECT ")?).ok()?;
    // `parse` alone would take a plus sign.
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn given(bytes: &[u8]) -> (Line, UnixStream, UnixStream) {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(bytes).unwrap();
        (read_line(&server), server, client)
    }

    #[test]
    fn takes_the_line_and_leaves_what_follows() {
        let (line, mut server, client) = given(b"CONNECT 4294967295\nhello");
        assert_eq!(line, Line::Connect(u32::MAX));
        drop(client);
        let mut rest = String::new();
        server.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello");
    }

    #[test]
    fn waits_for_the_rest_of_a_line_that_may_become_right() {
        for part in ["", "C", "CONNECT", "CONNECT ", "CONNECT 12"] {
            assert_eq!(given(part.as_bytes()).0, Line::Incomplete, "{part:?}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            "connect 1\n",
            "CONNECT \n",
            "CONNECT +1\n",
            "CONNECT 1 \n",
            "CONNECT 4294967296\n",
            "CONNECT 00000000000000000001\n",
            "GET / HTTP/1.1\r\n",
            "\n",
            "X",
        ] {
            assert_eq!(given(bad.as_bytes()).0, Line::Bad, "{bad:?}");
        }
        let (client, server) = UnixStream::pair().unwrap();
        drop(client);
        assert_eq!(read_line(&server), Line::Bad);
    }
}
