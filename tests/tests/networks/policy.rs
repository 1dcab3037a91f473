//! What may leave: the walls, the rules, networks without a way out, and what is told of it.

use bulkhead_tests::world::{FAR, HOST, OTHER, World};

use crate::{Path, Site};

/// Says whether a connection came about: `yes` if the echo came back.
fn reaches(site: &Site, options: &[&str], address: &str, port: u16) -> bool {
    let script = format!("(echo yes; sleep 1) | nc -w 5 {address} {port} 2>/dev/null; true");
    site.run(options, &script) == "yes"
}

/// A server on the host of the test itself.
fn on_host(address: &str, port: u16) {
    let listener = std::net::TcpListener::bind((address, port)).unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut client, b"yes\n");
        }
    });
}

fn servers(world: &World) {
    for address in [FAR, OTHER, "169.254.169.254", "100.100.100.200"] {
        let _ = world.tcp_echo(address, 7000);
        let _ = world.tcp_echo(address, 7001);
    }
    // The host would find a way to all of them.
    for range in ["169.254.0.0/16", "100.100.0.0/16", "203.0.113.0/24"] {
        let _ = std::process::Command::new("ip").args(["route", "add", range, "via", FAR]).status();
    }
}

pub fn walls_stand_and_rules_hold(site: Site) {
    servers(&site.world);
    let names = [
        ("good.example", &[FAR][..]),
        ("bad.example", &[OTHER][..]),
        ("evil.example", &["127.0.0.1"][..]),
        ("inner.example", &["172.17.0.1"][..]),
        ("meta.example", &["169.254.169.254"][..]),
        ("host.example", &[HOST][..]),
        ("mixed.example", &[FAR, "169.254.169.254"][..]),
    ];
    let asked = site.world.resolver(FAR, &names);
    for address in ["127.0.0.1", HOST] {
        on_host(address, 7000);
        // It is really there: the test proves nothing otherwise.
        assert!(std::net::TcpStream::connect((address, 7000)).is_ok());
    }
    for address in ["169.254.169.254", "100.100.100.200", FAR, OTHER] {
        assert!(std::net::TcpStream::connect((address, 7000)).is_ok(), "{address}");
    }
    // The default.
    assert!(reaches(&site, &[], FAR, 7000) && reaches(&site, &[], OTHER, 7000));
    for wall in ["127.0.0.1", HOST, "169.254.169.254", "100.100.100.200", "172.17.0.1", "0.0.0.0"] {
        assert!(!reaches(&site, &[], wall, 7000), "{wall}");
    }
    // A switch writes down what it refused; the kernel only counts.
    let told = site.log("bridge");
    for word in ["refused host:", "refused metadata:"] {
        assert_eq!(told.contains(word), site.path == Path::Switch, "{word}: {told}");
    }
    // Names that point behind a wall are not told.
    for name in ["evil.example", "inner.example", "meta.example", "host.example", "mixed.example"] {
        assert_eq!(
            site.run(&[], &format!("nslookup -type=a {name} >/dev/null 2>&1 || echo refused")),
            "refused",
            "{name}"
        );
    }
    assert!(site.log("bridge").contains("refused rebinding:"));

    // Rules of a container.
    let with = |rules: &str| format!("bulkhead.egress={rules}");
    let none = with("deny-all");
    assert!(!reaches(&site, &["--label", &none], FAR, 7000));
    let before = asked.lock().unwrap().len();
    assert_eq!(
        site.run(&["--label", &none], "nslookup secret.good.example >/dev/null 2>&1 || echo refused"),
        "refused"
    );
    assert_eq!(asked.lock().unwrap().len(), before, "a question left all the same");
    let range = with("allow=198.51.100.0/24:7000");
    assert!(reaches(&site, &["--label", &range], FAR, 7000));
    assert!(
        !reaches(&site, &["--label", &range], FAR, 7001)
            && !reaches(&site, &["--label", &range], OTHER, 7000)
    );
    let denied = with("deny=198.51.100.2:7001");
    assert!(
        reaches(&site, &["--label", &denied], FAR, 7000) && !reaches(&site, &["--label", &denied], FAR, 7001)
    );
    // By name: only what our resolver said, and only once it was asked.
    let named = with("allow=good.example:7000");
    assert!(reaches(&site, &["--label", &named], "good.example", 7000));
    assert!(!reaches(&site, &["--label", &named], FAR, 7000), "an address that nobody asked for");
    assert!(!reaches(&site, &["--label", &named], "good.example", 7001));
    assert!(!reaches(&site, &["--label", &named], "bad.example", 7000));
    let both = site.run(
        &["--label", &named],
        "nslookup good.example >/dev/null 2>&1; (echo yes; sleep 1) | nc -w 5 198.51.100.2 7000; true",
    );
    assert_eq!(both, "yes", "after the answer, its address is open");

    // Refusals are counted, and told.
    let _ = site.daemon.ok(&["run", "-d", "--name", "counted", "--label", &none, "busybox", "sleep", "1000"]);
    let _ = site
        .exec("counted", "nc -w 5 198.51.100.2 7000; nc -w 5 127.0.0.2 7000; nc -w 5 169.254.169.254 7000; nc -w 5 198.51.100.1 7000");
    let counts = site.counts("counted");
    assert_eq!(counts[0]["network"], "bridge", "{counts}");
    let refused = |why: &str| counts[0]["refused"][why].as_u64();
    assert_eq!(["rule", "metadata", "host"].map(refused), [Some(1); 3], "{counts}");

    // Rules of a network hold for all of its containers, beside their own; an internal one has no way out at all.
    let _ = site.daemon.ok(&["network", "create", "--label", &with("deny=203.0.113.0/24"), "ruled"]);
    assert!(
        reaches(&site, &["--network", "ruled"], FAR, 7000)
            && !reaches(&site, &["--network", "ruled"], OTHER, 7000)
    );
    assert!(!reaches(&site, &["--network", "ruled", "--label", &with("allow=203.0.113.7")], OTHER, 7000));
    let _ = site.daemon.ok(&["network", "create", "--internal", "inner"]);
    let said = site.run(&["--network", "inner"], "ip route | grep -c default; nslookup good.example >/dev/null 2>&1 || echo refused; ip route add default via $(ip route | sed 's/.*src \\(.*\\..*\\)\\..*/\\1.1/'); (echo yes; sleep 1) | nc -w 5 198.51.100.2 7000; true");
    assert!(said.starts_with("0\nrefused"), "{said}");
    assert!(!said.contains("yes"), "{said}");
    site.daemon.fails(
        1,
        "bulkhead.egress=sometimes cannot be done",
        &["network", "create", "--label", "bulkhead.egress=sometimes", "no"],
    );
}

pub fn bandwidth_is_limited(site: Site) {
    let seen = site.world.tcp_echo(FAR, 7000);
    // 384 KiB at 64 KiB/s, with a burst of 64 KiB and one frame of as much beyond it, take 4 s at least: counted by the guest's own
    // clock in whole seconds, never asserted to be faster.
    let script = "s=$(date +%s); (dd if=/dev/zero bs=64k count=6 2>/dev/null; sleep 1) | nc 198.51.100.2 7000 | head -c 393216 | wc -c; \
                  e=$(date +%s); test $((e - s)) -ge 3 && echo slow";
    assert_eq!(site.run(&["--label", "bulkhead.net.send=64k"], script), "393216\nslow");
    assert_eq!(seen.lock().unwrap().len(), 1);
}
