//! Switches and guests.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_net::frame::rest::HEADER_BYTES;
use bulkhead_net::frame::{self, Mac};
use bulkhead_net::protocol::{self, Ask, Attachment, Network, Report, Said};
use bulkhead_net::reason::Reason;
use bulkhead_net::switch::GATEWAY_MAC;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv, send,
    setsockopt, socket, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tempfile::TempDir;

/// How long anything may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);
/// The address of the gateway, in the network `n`.
pub fn gateway(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, n, 0, 1)
}

/// A switch, of the network `n`: 10.`n`.0.0/16 and fd00:`n`::/64.
pub struct Switch {
    directory: TempDir,
    n: u8,
}

impl Switch {
    pub fn start(n: u8) -> Self {
        Self::start_as(n, None)
    }

    /// Starts it as this user.
    pub fn start_as(n: u8, user: Option<u32>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        // As a supervisor gives it.
        nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&directory.path().join("sock")).unwrap()).unwrap();
        listen(&listener, Backlog::new(16).unwrap()).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-net"));
        command.args(["--listener", "10"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let from = listener.as_raw_fd();
        // SAFETY: dup2 is async-signal-safe; the number is not that of the listener, which is low.
        unsafe {
            command.pre_exec(move || {
                if libc::dup2(from, 10) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let status = command.status().unwrap();
        let switch = Self { directory, n };
        assert!(status.success(), "{status}: {}", switch.log());
        switch
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The process, which has the log open.
    pub fn process(&self) -> i32 {
        let log = self.directory.path().join("log");
        let has = |number: &i32| {
            std::fs::read_link(format!("/proc/{number}/fd/2")).is_ok_and(|path: PathBuf| path == log)
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).find(has).unwrap()
    }

    /// A connection on which the switch has said hello.
    fn connect(&self) -> OwnedFd {
        let control = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&control, sockopt::ReceiveTimeout, &TimeVal::seconds(30)).unwrap();
        connect(control.as_raw_fd(), &UnixAddr::new(&self.directory.path().join("sock")).unwrap()).unwrap();
        assert!(matches!(hear(&control), Said::Hello { .. }));
        control
    }

    /// A guest with the address 10.`n`.0.`host`.
    pub fn guest(&self, host: u8) -> Guest {
        self.guest_with(host, "", |_| {})
    }

    /// The same with rules, and changes of what the switch is told.
    pub fn guest_with(&self, host: u8, egress: &str, change: impl FnOnce(&mut Attachment)) -> Guest {
        let n = self.n;
        let range = |text: String| text.parse().unwrap();
        let six = |host: u16| Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, host);
        let (mac, ipv4, ipv6) = ([2, 0x42, 10, n, 0, host], Ipv4Addr::new(10, n, 0, host), six(host.into()));
        let mut attachment = Attachment {
            network: Network {
                name: format!("net{n}"),
                ipv4: (range(format!("10.{n}.0.0/16")), gateway(n)),
                ipv6: Some((range(format!("fd00:{n:x}::/64")), six(1))),
                internal: false,
                names: true,
                egress: String::new(),
                networks: (1..4)
                    .flat_map(|n| [range(format!("10.{n}.0.0/16")), range(format!("fd00:{n}::/64"))])
                    .collect(),
                mtu: 1500,
            },
            container: format!("guest{host}"),
            mac,
            ipv4,
            ipv6: Some(ipv6),
            names: vec![format!("guest{host}")],
            egress: egress.to_owned(),
            room: None,
            resolvers: vec!["198.51.100.2".parse().unwrap()],
            elsewhere: false,
            asks_at: Vec::new(),
        };
        change(&mut attachment);
        let control = self.connect();
        let (cable, far) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&cable, sockopt::ReceiveTimeout, &TimeVal::seconds(30)).unwrap();
        setsockopt(&cable, sockopt::SendTimeout, &TimeVal::seconds(30)).unwrap();
        protocol::send(control.as_fd(), &Ask::Attach(Box::new(attachment)), &[far.as_fd()]).unwrap();
        assert_eq!(hear(&control), Said::Done);
        Guest { control, cable, mac, ipv4, ipv6, sent: 0 }
    }
}

fn hear(control: &OwnedFd) -> Said {
    protocol::receive::<Said>(control).unwrap().expect("the switch is gone").0
}

/// A guest: whatever it sends, it sends as raw frames.
pub struct Guest {
    control: OwnedFd,
    cable: OwnedFd,
    pub mac: Mac,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    sent: u64,
}

impl Guest {
    /// Puts a frame on the cable.
    pub fn send(&mut self, frame: &[u8]) {
        self.send_unfinished(&[0; HEADER_BYTES], frame);
    }

    /// Puts a frame on the cable, with a header that says what is still to be done to it.
    pub fn send_unfinished(&mut self, header: &[u8], frame: &[u8]) {
        send(self.cable.as_raw_fd(), &[header, frame].concat(), MsgFlags::MSG_NOSIGNAL).unwrap();
        self.sent += 1;
    }

    /// Puts a packet on the cable, for the gateway.
    pub fn send_out(&mut self, packet: &[u8]) {
        self.send(&frame::ethernet(GATEWAY_MAC, self.mac, packet));
    }

    /// The next frame.
    pub fn receive(&self) -> Vec<u8> {
        self.receive_unfinished().1
    }

    /// The next frame, with the header before it.
    pub fn receive_unfinished(&self) -> ([u8; HEADER_BYTES], Vec<u8>) {
        let mut buffer = vec![0; 1 << 17];
        let length = recv(self.cable.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("no frame came");
        let (header, frame) = buffer[..length].split_first_chunk().unwrap();
        (*header, frame.to_vec())
    }

    /// What has come so far, and nothing of what is yet to come.
    pub fn received(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        while let Ok(length @ 1..) = recv(self.cable.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            frames.push(buffer[HEADER_BYTES..length].to_vec());
        }
        frames
    }

    /// What was counted, once the switch has dealt with all that was sent.
    pub fn report(&self) -> Report {
        let began = Instant::now();
        loop {
            protocol::send(self.control.as_fd(), &Ask::Report, &[]).unwrap();
            let Said::Report(report) = hear(&self.control) else { panic!("no report") };
            if report.sent >= self.sent {
                return report;
            }
            assert!(began.elapsed() < PATIENCE, "{} of {} frames were read", report.sent, self.sent);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How often something was refused for this reason.
    pub fn refused(&self, reason: Reason) -> u64 {
        self.report().refused.iter().find(|(own, _)| *own == reason).map_or(0, |(_, count)| *count)
    }

    /// A UDP packet of its own.
    pub fn udp(&self, to: &str, port: u16, data: &[u8]) -> Vec<u8> {
        let to: IpAddr = to.parse().unwrap();
        let from: IpAddr = if to.is_ipv4() { self.ipv4.into() } else { self.ipv6.into() };
        frame::udp_packet(SocketAddr::new(from, 4000), SocketAddr::new(to, port), data).unwrap()
    }

    /// The first segment of a connection of its own.
    pub fn syn(&self, to: &str, port: u16) -> Vec<u8> {
        self.segment(to, port, 0x02)
    }

    /// A segment with these flags.
    pub fn segment(&self, to: &str, port: u16, flags: u8) -> Vec<u8> {
        let to: IpAddr = to.parse().unwrap();
        let from: IpAddr = if to.is_ipv4() { self.ipv4.into() } else { self.ipv6.into() };
        let mut segment = vec![0x10, 0x00];
        segment.extend_from_slice(&port.to_be_bytes());
        segment.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame::ip_packet(from, to, frame::TCP, &segment, 16).unwrap()
    }
}
