//! The default network: out, in, names of the world, no network at all.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use bulkhead_tests::world::{FAR, FAR6, HOST, OTHER};

use crate::{Site, on_host};

/// A web server with one file.
const SERVE: &str = "mkdir /www; echo served by $(hostname) > /www/index.html; exec httpd -f -p 80 -h /www";

pub fn a_container_reaches_the_world_and_is_reached(site: Site) {
    let seen = site.world.tcp_echo(FAR, 7000);
    let asked = site.world.resolver(FAR, &[("far.example", &[FAR]), ("web.far.example", &[OTHER, FAR6])]);

    // Out: TCP, echo, names over UDP; the container's own side of it.
    let said = site.run(
        &[],
        "ip -4 addr show eth0 | grep -o 'inet [0-9./]*'; (echo hello; sleep 1) | nc 198.51.100.2 7000",
    );
    assert_eq!(said, "inet 172.17.0.2/16\nhello");
    assert!(seen.lock().unwrap()[0].starts_with(HOST), "the world sees the host: {seen:?}");
    let said = site
        .run(&[], &format!("ping -c 2 -W 5 {FAR} | grep -c ttl; ping -c 1 -W 5 172.17.0.1 | grep -c ttl"));
    assert_eq!(said, "2\n1");
    let said =
        site.run(&[], "cat /etc/resolv.conf; nslookup web.far.example; nslookup nobody.example || echo none");
    assert!(said.starts_with("search far.example\nnameserver 172.17.0.1\n"), "{said}");
    assert!(
        said.contains(&format!("Address: {OTHER}")) && said.contains(&format!("Address: {FAR6}")),
        "{said}"
    );
    assert!(said.ends_with("none"), "{said}");
    assert!(asked.lock().unwrap().contains(&"nobody.example".to_owned()), "{asked:?}");
    // Straight to a server of the world's: UDP through the gateway.
    let said = site.run(&[], &format!("nslookup far.example {FAR}"));
    assert!(said.contains(&format!("Address: {FAR}")), "{said}");
    // Nobody listens: refused at once, not after a while.
    let (began, said) =
        (std::time::Instant::now(), site.run(&[], "nc -w 60 198.51.100.2 7009 < /dev/null; echo $?"));
    assert_eq!(said, "1");
    assert!(began.elapsed() < Duration::from_secs(50));

    // In: a published port, from the world and from the host itself.
    let _ = site.daemon.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "-h",
        "web",
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1::80",
        "busybox",
        "sh",
        "-c",
        SERVE,
    ]);
    let shown = site.daemon.ok(&["port", "web"]);
    let local = shown.lines().find_map(|line| line.strip_prefix("80/tcp -> 127.0.0.1:")).unwrap().to_owned();
    assert!(shown.contains("80/tcp -> 0.0.0.0:8080") && local != "0", "{shown}");
    let listed = site.daemon.ok(&["ps", "--format", "{{.Ports}}"]);
    assert!(
        listed.contains("0.0.0.0:8080->80/tcp") && listed.contains(&format!("127.0.0.1:{local}->80/tcp")),
        "{listed}"
    );
    let get = |address: &str| fetch(address.parse().unwrap());
    assert_eq!(site.world.inside(|| get("198.51.100.1:8080")), "served by web");
    assert_eq!(get("127.0.0.1:8080"), "served by web");
    assert_eq!(get("[::1]:8080"), "served by web");
    assert_eq!(get(&format!("127.0.0.1:{local}")), "served by web");
    let address = site.daemon.ok(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"]);
    assert_eq!(address, "172.17.0.2");

    // A port that is taken, in Docker's words.
    site.daemon.fails(
        125,
        "Bind for 0.0.0.0:8080 failed: port is already allocated",
        &["run", "-d", "--name", "late", "-p", "8080:80", "busybox", "true"],
    );
    // Once it is free, it can be had.
    let _ = site.daemon.ok(&["rm", "-f", "web"]);
    let _ = site.daemon.ok(&["start", "late"]);
    assert_eq!(site.daemon.ok(&["wait", "late"]), "0");
}

pub fn much_data_passes_unharmed_both_ways(site: Site) {
    let _ = site.world.tcp_echo(FAR, 7000);
    let _ = site.daemon.ok(&[
        "run",
        "-d",
        "--name",
        "sink",
        "-p",
        "9000:9000",
        "busybox",
        "nc",
        "-ll",
        "-p",
        "9000",
        "-e",
        "cat",
    ]);
    // Its server may take a moment to listen; a connection before that is accepted, and then reset.
    let mut connection = loop {
        let mut connection = TcpStream::connect("127.0.0.1:9000").unwrap();
        connection.write_all(b"?").unwrap();
        if connection.read_exact(&mut [0]).is_ok() {
            break connection;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let data: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut writer, sent) = (connection.try_clone().unwrap(), data.clone());
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    connection.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == data, "{} of {} bytes came back, or others", back.len(), data.len());
    // The same from inside: what goes out comes back the same.
    let sums = site.run(
        &[],
        "dd if=/dev/urandom of=/data bs=64k count=64 2>/dev/null; sha256sum < /data; \
         (cat /data; sleep 3) | nc 198.51.100.2 7000 | head -c 4194304 | sha256sum",
    );
    let sums: Vec<&str> = sums.lines().collect();
    assert_eq!(sums[0], sums[1]);
}

pub fn udp_ports_are_passed_on(site: Site) {
    let Some(python) = python(&site) else { return };
    let server = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 5000))\n\
                  while True:\n    d, a = s.recvfrom(2000)\n    s.sendto(d + b' from ' + a[0].encode(), a)\n";
    let _ = site.daemon.ok(&[
        "run",
        "-d",
        "--name",
        "udp",
        "-p",
        "5000-5001:5000-5001/udp",
        &python,
        "python3",
        "-c",
        server,
    ]);
    let ask = |to: &str| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut buffer = [0; 100];
        // Python takes a moment to bind; a datagram that comes too early is lost, as on any network.
        for _ in 0..60 {
            socket.send_to(b"hello", (to, 5000)).unwrap();
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                return format!("{} by {from}", String::from_utf8_lossy(&buffer[..length]));
            }
        }
        "nothing".to_owned()
    };
    assert_eq!(site.world.inside(|| ask(HOST)), format!("hello from {FAR} by {HOST}:5000"));
    // Where the container could not answer to, is the gateway in its eyes.
    assert_eq!(ask("127.0.0.1"), "hello from 172.17.0.1 by 127.0.0.1:5000");
    let (code, said) = on_host("ss", &["-lun"]);
    assert!(code == 0 && said.contains("0.0.0.0:5001"), "{said}");
    let _ = site.daemon.ok(&["rm", "-f", "udp"]);
}

pub fn none_is_none_and_options_are_honoured(site: Site) {
    assert_eq!(site.run(&["--network", "none"], "ls /sys/class/net; ip route | wc -l"), "lo\n0");
    let said = site.run(
        &[
            "--add-host",
            "db:192.0.2.5",
            "--dns",
            OTHER,
            "--dns-search",
            "a.example",
            "--mac-address",
            "02:42:ac:11:00:99",
        ],
        "cat /etc/hosts /etc/resolv.conf; cat /sys/class/net/eth0/address",
    );
    assert!(
        said.contains("192.0.2.5\tdb") && said.contains("search a.example\nnameserver 172.17.0.1"),
        "{said}"
    );
    assert!(said.ends_with("02:42:ac:11:00:99"), "{said}");
    // The servers of --dns are the gateway's to ask.
    let asked = site.world.resolver(OTHER, &[("x.example", &[FAR])]);
    let said = site.run(&["--dns", OTHER], "nslookup x.example");
    assert!(said.contains(&format!("Address: {FAR}")) && !asked.lock().unwrap().is_empty(), "{said}");
    let _ =
        site.daemon.ok(&["network", "create", "--subnet", "10.9.0.0/24", "--gateway", "10.9.0.254", "fixed"]);
    let said = site.run(&["--network", "fixed", "--ip", "10.9.0.77"], "ip -4 addr show eth0; ip route");
    assert!(said.contains("10.9.0.77/24") && said.contains("default via 10.9.0.254"), "{said}");
    site.daemon.fails(1, "overlaps", &["network", "create", "--subnet", "10.9.0.0/16", "wide"]);
    site.daemon.fails(
        125,
        "bulkhead.egress=perhaps cannot be done",
        &["run", "--label", "bulkhead.egress=perhaps", "busybox", "true"],
    );
}

/// The answer of a web server, without its header.
pub fn fetch(address: SocketAddr) -> String {
    let mut text = String::new();
    // A server that has just been started may not listen yet; then its machine refuses.
    for _ in 0..100 {
        text.clear();
        let got = TcpStream::connect_timeout(&address, Duration::from_secs(10)).and_then(|mut connection| {
            connection.set_read_timeout(Some(Duration::from_secs(30)))?;
            connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            connection.read_to_string(&mut text)
        });
        if got.is_ok() && !text.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    text.split_once("\r\n\r\n").map_or(text.clone(), |(_, body)| body.trim_end().to_owned())
}

/// Debian with Python; `None` where it cannot be made.
pub fn python(site: &Site) -> Option<String> {
    if !std::path::Path::new("/usr/sbin/debootstrap").exists() {
        eprintln!("skipped: debootstrap is not installed");
        return None;
    }
    let layout = bulkhead_tests::script("debian-python.sh")?;
    let tar = std::process::Command::new("tar").args(["-C", &layout, "-cf", "-", "."]).output().unwrap();
    let loaded = site.daemon.fed(&["load"], &tar.stdout);
    assert_eq!(loaded.code, 0, "{loaded:?}");
    let id = loaded.stdout.trim().rsplit(' ').next().unwrap();
    let _ = site.daemon.ok(&["tag", id, "python"]);
    Some("python".to_owned())
}
