//! Attacks from a real container, which is root in its machine and has a raw socket on its network card. What a switch makes of
//! single frames is proven in `net/tests/switch`; here, that nothing lies between that changes it.

use std::net::UdpSocket;

use bulkhead_tests::world::{FAR, HOST};

use crate::Site;
use crate::basics::python;

/// Sends everything that it can think of, then one honest datagram.
const EVIL: &str = r#"
import socket, struct, sys
victim_mac, victim_ip, other_ip, host = bytes.fromhex(sys.argv[1].replace(':', '')), *sys.argv[2:5]
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(('eth0', 0))
me = open('/sys/class/net/eth0/address').read().strip().replace(':', '')
me, gate = bytes.fromhex(me), bytes.fromhex('024200000001')
own = [l.split() for l in open('/proc/net/fib_trie')]
own = socket.gethostbyname(socket.gethostname())
def total(data):
    data += b'\0' * (len(data) % 2)
    n = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while n >> 16: n = (n & 65535) + (n >> 16)
    return ~n & 65535
def ip(source, to, payload, protocol=17, options=b'', fragment=0):
    header = struct.pack('!BBHHHBBH4s4s', 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), 7, fragment, 64, protocol, 0,
                         socket.inet_aton(source), socket.inet_aton(to)) + options
    return header[:10] + struct.pack('!H', total(header)) + header[12:] + payload
def udp(data): return struct.pack('!HHHH', 4000, 9, 8 + len(data), 0) + data
def arp(op, sender_mac, sender, target):
    return struct.pack('!HHBBH6s4s6s4s', 1, 0x800, 6, 4, op, sender_mac, socket.inet_aton(sender), victim_mac, socket.inet_aton(target))
def frame(to, source, kind, payload): raw.send(to + source + struct.pack('!H', kind) + payload)
bad, everyone = udp(b'attack'), b'\xff' * 6
for mac in (gate, victim_mac, everyone):
    for source in (me, victim_mac, gate, b'\x02\x09\x09\x09\x09\x09'):
        for address in (own, victim_ip, '127.0.0.1', host, '198.51.100.2', '8.8.8.8'):
            if (mac, source, address) == (victim_mac, me, own): continue
            for to in (host, '127.0.0.1', '169.254.169.254', other_ip, '255.255.255.255', '224.0.0.1', victim_ip):
                frame(mac, source, 0x800, ip(address, to, bad))
    for to in (host, '127.0.0.1', other_ip):
        for options in (bytes([131, 7, 4]) + socket.inet_aton(to) + b'\0', bytes([137, 7, 4]) + socket.inet_aton(to) + b'\0', b'\x94\x04\0\0'):
            frame(mac, me, 0x800, ip(own, to, bad, options=options))
        for fragment in (0x2000, 1, 0x2001): frame(mac, me, 0x800, ip(own, to, bad, fragment=fragment))
        for protocol in (4, 41, 47): frame(mac, me, 0x800, ip(own, '198.51.100.2', ip(own, to, bad), protocol=protocol))
    for op in (1, 2):
        for sender in (victim_ip, own.rsplit('.', 1)[0] + '.1', other_ip):
            frame(mac, me, 0x806, arp(op, me, sender, victim_ip))
    for kind in (0x8100, 0x88a8, 0x888e, 0x8863, 0x88cc, 5): frame(mac, me, kind, ip(own, host, bad))
try:
    lsrr = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    lsrr.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([131, 7, 4]) + socket.inet_aton(host) + b'\0')
    lsrr.sendto(b'attack', ('198.51.100.2', 9))
except OSError: pass
last = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
last.settimeout(30)
for to in ('198.51.100.2', victim_ip):
    last.sendto(b'honest', (to, 9))
    assert last.recvfrom(100)[0] == b'honest', to
"#;

/// Sends back what it hears, and writes it down.
const VICTIM: &str = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 9))\nprint('ready', flush=True)\n\
                      while True:\n    d, a = s.recvfrom(2000)\n    print(a[0], d.decode('latin1'), flush=True)\n    s.sendto(d, a)\n";

pub fn a_container_with_a_raw_socket_gets_nowhere(site: Site) {
    let Some(python) = python(&site) else { return };
    let world = site.world.udp_echo(FAR, 9);
    let own = ["127.0.0.1", HOST].map(|address| UdpSocket::bind((address, 9)).unwrap());
    for network in ["tenant", "other"] {
        let _ = site.daemon.ok(&["network", "create", network]);
    }
    for (name, network) in [("victim", "tenant"), ("stranger", "other")] {
        let _ = site.daemon.ok(&[
            "run",
            "-d",
            "--name",
            name,
            "--network",
            network,
            &python,
            "python3",
            "-c",
            VICTIM,
        ]);
        while !site.daemon.ok(&["logs", name]).contains("ready") {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
    let of = |what: &str, name: &str, network: &str| {
        site.daemon.ok(&[
            "inspect",
            "-f",
            &format!("{{{{.NetworkSettings.Networks.{network}.{what}}}}}"),
            name,
        ])
    };
    let (mac, address) = (of("MacAddress", "victim", "tenant"), of("IPAddress", "victim", "tenant"));
    let stranger = of("IPAddress", "stranger", "other");
    let ran = site.daemon.docker(&[
        "run",
        "--rm",
        "--name",
        "evil",
        "--network",
        "tenant",
        &python,
        "python3",
        "-c",
        EVIL,
        &mac,
        &address,
        &stranger,
        HOST,
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // What it sent as itself, to who would hear it, came through; nothing else did.
    let heard = site.daemon.ok(&["logs", "victim"]);
    let lines: Vec<&str> = heard.lines().skip(1).collect();
    assert!(lines.len() == 1 && lines[0].ends_with(" honest"), "{heard}");
    assert_eq!(site.daemon.ok(&["logs", "stranger"]), "ready");
    assert_eq!(world.lock().unwrap().len(), 1, "{world:?}");
    for socket in &own {
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 100]).is_err(), "the host heard something");
    }
    // And the victim's neighbors are who they were.
    let (_, neighbors) = site.exec("victim", "cat /proc/net/arp");
    assert!(!neighbors.contains(&of("MacAddress", "stranger", "other")), "{neighbors}");
    let gateway = neighbors.lines().find(|line| line.starts_with(&of("Gateway", "victim", "tenant")));
    assert!(gateway.is_none_or(|line| line.contains("02:42:00:00:00:01")), "{neighbors}");
    let _ = site.daemon.ok(&["rm", "-f", "victim", "stranger"]);
}
