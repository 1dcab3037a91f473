//! Networks that people make: names between containers, aliases, several networks at once, and coming and going while running.

use bulkhead_tests::world::FAR;

use crate::Site;
use crate::basics::fetch;

/// A web server that says who it is.
const SERVE: &str = "mkdir /www; echo this is $(hostname) > /www/index.html; exec httpd -f -p 80 -h /www";
/// Asks a name for its page; a server may take a moment to listen.
pub const GET: &str =
    "for n in 1 2 3 4 5 6 7 8 9; do timeout 10 wget -qO- http://$NAME/ 2>/dev/null && break; sleep 0.3; done";

pub fn serve(site: &Site, name: &str, options: &[&str]) {
    let fixed = ["run", "-d", "--name", name, "-h", name];
    let _ = site.daemon.ok(&[&fixed[..], options, &["busybox", "sh", "-c", SERVE]].concat());
}

pub fn containers_of_one_network_find_each_other_by_name(site: Site) {
    let _ = site.world.resolver(FAR, &[]);
    let _ = site.daemon.ok(&["network", "create", "front"]);
    let _ = site.daemon.ok(&["network", "create", "back"]);
    serve(&site, "web", &["--network", "front", "--network-alias", "www"]);
    serve(&site, "db", &["--network", "back"]);
    serve(&site, "plain", &[]);
    for name in ["web", "www", "WEB"] {
        let said = site.run(&["--network", "front", "-e", &format!("NAME={name}")], GET);
        assert_eq!(said, "this is web", "{name}");
    }
    let address = |name: &str, network: &str| {
        let format = format!("{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}");
        site.daemon.ok(&["inspect", "-f", &format, name])
    };
    let (web, db) = (address("web", "front"), address("db", "back"));
    let back = site.run(&["--network", "front"], &format!("nslookup {web} | grep -o 'name = .*'"));
    assert_eq!(back, "name = web");
    // Nobody outside knows them, neither by name nor by address.
    let said = site.run(&[], &format!("nslookup web. >/dev/null 2>&1 || echo no name; timeout 10 wget -qO- http://{web}/ 2>&1 || echo no way"));
    assert!(said.starts_with("no name\n") && said.ends_with("no way"), "{said}");
    let said = site.run(&["--network", "front"], &format!("timeout 10 wget -qO- http://{db}/ 2>&1 || echo no way; nslookup db. >/dev/null 2>&1 || echo no name"));
    assert!(said.ends_with("no way\nno name"), "{said}");
    // As with Docker, the default network has no names.
    let said = site.run(&[], "nslookup plain. >/dev/null 2>&1 || echo no name");
    assert_eq!(said, "no name");

    // One container in both knows the names of both.
    let _ = site.daemon.ok(&["create", "--name", "both", "--network", "front", "busybox", "sleep", "1000"]);
    let _ = site.daemon.ok(&["network", "connect", "--alias", "middle", "back", "both"]);
    let _ = site.daemon.ok(&["start", "both"]);
    for (name, page) in [("web", "this is web"), ("db", "this is db")] {
        assert_eq!(site.exec("both", &format!("NAME={name}; {GET}")), (0, page.to_owned()));
    }
    assert_eq!(site.run(&["--network", "back"], "nslookup middle. | grep -c Address"), "2");
}

pub fn a_running_container_comes_and_goes(site: Site) {
    let _ = site.world.resolver(FAR, &[("far.example", &[FAR])]);
    let _ = site.world.tcp_echo(FAR, 7000);
    for name in ["front", "back", "third", "fourth"] {
        let _ = site.daemon.ok(&["network", "create", name]);
    }
    serve(&site, "web", &["--network", "front", "-p", "8080:80"]);
    serve(&site, "db", &["--network", "back"]);
    let get = || fetch("127.0.0.1:8080".parse().unwrap());
    assert_eq!(get(), "this is web");
    assert_eq!(site.exec("web", "nslookup db. >/dev/null 2>&1 || echo no name").1, "no name");

    let _ = site.daemon.ok(&["network", "connect", "--alias", "later", "back", "web"]);
    assert_eq!(
        site.exec("web", "ls /sys/class/net | tr '\\n' ' '; ip -4 addr show eth1 | grep -c inet").1,
        "eth0 eth1 lo 1"
    );
    assert_eq!(site.exec("web", &format!("NAME=db; {GET}")).1, "this is db");
    assert_eq!(site.exec("db", &format!("NAME=later; {GET}")).1, "this is web");
    let members =
        site.daemon.ok(&["network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", "back"]);
    assert!(members.contains("web") && members.contains("db"), "{members}");
    assert_eq!(get(), "this is web");

    // The network that its way out and its port are in is taken away: both move to the other.
    let _ = site.daemon.ok(&["network", "disconnect", "front", "web"]);
    assert_eq!(site.exec("web", "ls /sys/class/net | tr '\\n' ' '").1, "eth1 lo");
    assert_eq!(get(), "this is web");
    assert_eq!(site.exec("web", "(echo out; sleep 1) | nc 198.51.100.2 7000").1, "out");
    assert_eq!(site.exec("web", "nslookup far.example | grep -c 198.51.100.2").1, "1");
    assert_eq!(site.exec("web", &format!("NAME=db; {GET}")).1, "this is db");
    let _ = site.daemon.ok(&["network", "rm", "front"]);

    // Cards are few, and it is said so.
    let _ = site.daemon.ok(&["network", "connect", "third", "web"]);
    let _ = site.daemon.ok(&["network", "connect", "fourth", "web"]);
    let _ = site.daemon.ok(&["network", "create", "fifth"]);
    site.daemon.fails(1, "no network card left", &["network", "connect", "fifth", "web"]);
    let networks = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
    assert_eq!(site.daemon.ok(&["inspect", "-f", networks, "web"]), "back fourth third");
    let _ = site.daemon.ok(&["network", "disconnect", "third", "web"]);
    let _ = site.daemon.ok(&["network", "connect", "fifth", "web"]);
    assert_eq!(site.exec("web", &format!("NAME=db; {GET}")).1, "this is db");
    let _ = site.daemon.ok(&["rm", "-f", "web", "db"]);
}

pub fn a_switch_that_is_killed_comes_back_with_its_ports(site: Site) {
    let _ = site.world.resolver(FAR, &[]);
    let _ = site.daemon.ok(&["network", "create", "front"]);
    serve(&site, "web", &["--network", "front", "-p", "8080:80"]);
    serve(&site, "other", &["--network", "front", "-p", "8081:80"]);
    let get = |port: u16| fetch(([127, 0, 0, 1], port).into());
    assert_eq!((get(8080), get(8081)), ("this is web".to_owned(), "this is other".to_owned()));
    for _ in 0..3 {
        let switch = site.switch("front");
        // SAFETY: kill takes two numbers; the process is the switch of this test's own network.
        assert_eq!(unsafe { libc::kill(switch, libc::SIGKILL) }, 0);
        // The ports are the supervisors': nobody is refused, whoever comes meanwhile waits.
        assert_eq!((get(8080), get(8081)), ("this is web".to_owned(), "this is other".to_owned()));
        assert_eq!(site.exec("web", &format!("NAME=other; {GET}")).1, "this is other");
        assert_ne!(site.switch("front"), switch);
    }
    // The daemon has no part in it.
    let mut site = site;
    site.daemon.crash();
    assert_eq!(get(8080), "this is web");
    let _ = site.daemon.ok(&["rm", "-f", "web", "other"]);
    // Nobody needs the switch any more: it goes by itself.
    let root = site.daemon.bulkhead.root.path().to_string_lossy().into_owned();
    let gone = (0..600).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        !bulkhead_tests::processes_with(&root).iter().any(|process| process.contains("bulkhead-net"))
    });
    assert!(gone, "the switch stays");
}

pub fn networks_with_ipv6_have_it_everywhere(site: Site) {
    let _ = site.world.resolver(FAR, &[]);
    let _ = site.world.tcp_echo(bulkhead_tests::world::FAR6, 7000);
    let _ = site.daemon.ok(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "10.8.0.0/24",
        "--subnet",
        "fd00:8::/64",
        "six",
    ]);
    serve(&site, "web", &["--network", "six", "-p", "8080:80"]);
    let address =
        site.daemon.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}", "web"]);
    assert_eq!(address, "fd00:8::2");
    let said = site.run(&["--network", "six"], "timeout 10 wget -qO- http://[fd00:8::2]/; ping -6 -c 1 -W 5 fd00:8::1 | grep -c ttl; ip -6 route | grep -c default");
    assert_eq!(said, "this is web\n1\n1");
    let said = site.run(
        &["--network", "six"],
        "(echo six; sleep 1) | nc 2001:db8:1::2 7000; ping -6 -c 1 -W 5 2001:db8:1::2 | grep -c ttl",
    );
    assert_eq!(said, "six\n1");
    assert!(site.run(&["--network", "six"], "nslookup web.").contains("fd00:8::2"));
    assert_eq!(site.world.inside(|| fetch("[2001:db8:1::1]:8080".parse().unwrap())), "this is web");
    // One that is found for it.
    let _ = site.daemon.ok(&["network", "create", "--ipv6", "found"]);
    let range = site.daemon.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 1).Subnet}}", "found"]);
    assert!(range.starts_with("fd") && range.ends_with("::/64"), "{range}");
}
