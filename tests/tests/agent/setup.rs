//! What a container finds at its start: names, files, mounts, kernel parameters, limits, groups, networks, filters.

use std::io::Write;

use agent::protocol::spec::{Mount, Rlimit};
use agent::protocol::{
    Answer, Bytes, Call, Device, FailureKind, HostFile, Instruction, Interface, Restored, Route, Share,
};
use bulkhead_tests::guest::{exec, prepare, start};
use engine::model::ContainerConfig;

use crate::{IDLE, harbour, spec};

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
    }
}

#[test]
fn names_files_mounts_parameters_and_limits_are_the_specifications() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.boot();
    let mut disks = prepare();
    let file = |path: &str, content: &str| HostFile { path: path.into(), content: content.into() };
    disks.files = vec![
        file("/etc/hosts", "127.0.0.1 localhost\n"),
        file("/etc/resolv.conf", "nameserver 10.0.0.1\n"),
        file("/etc/deep/er/file", "deep\n"),
    ];
    assert_eq!(guest.call(Call::Prepare(Box::new(disks))), Ok(Answer::Done));
    let mut spec = spec(&harbour, IDLE);
    spec.domainname = Some("example.org".into());
    spec.root.readonly = true;
    spec.process.oom_score_adj = Some(321);
    spec.process.no_new_privileges = true;
    spec.process.rlimits = vec![
        Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 100, hard: 200_000 },
        Rlimit { kind: "RLIMIT_CORE".into(), soft: 0, hard: 0 },
    ];
    spec.mounts.push(mount("/scratch/inner", "tmpfs", "tmpfs", &["size=1m", "mode=0700", "noexec"]));
    spec.mounts.push(mount("/scratch", "tmpfs", "tmpfs", &["size=64k"]));
    let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    spec.linux.sysctl =
        [set("net.core.somaxconn", "99"), set("kernel.shmmax", "1000000"), set("net/ipv4/ip_forward", "1")]
            .into();
    let mut request = start(spec);
    request.groups = vec!["nogroup".into(), "1234".into()];
    let init = guest.start(request);
    let seen = guest.shell(
        "cat /etc/hosts /etc/resolv.conf /etc/deep/er/file; hostname; cat /proc/sys/kernel/domainname; \
         cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_forward; \
         cat /proc/1/oom_score_adj; grep -E 'Groups|NoNewPrivs' /proc/1/status; \
         grep -E 'open files|core' /proc/1/limits | tr -s ' '; \
         touch /x 2>&1; echo more >> /etc/hosts && wc -l < /etc/hosts; \
         head -c 100000 /dev/zero 2>&1 > /scratch/full | cut -d: -f1; touch /scratch/inner/ok && stat -c %a /scratch/inner; \
         echo 1 2>/dev/null > /proc/sys/kernel/shmmax || echo read-only; ls /proc/acpi /sys/firmware 2>&1 | sort",
    );
    assert_eq!(
        seen,
        "127.0.0.1 localhost\nnameserver 10.0.0.1\ndeep\nharbour\nexample.org\n99\n1000000\n1\n321\n\
         Groups:\t0 1234 65534 \nNoNewPrivs:\t1\nMax core file size 0 0 bytes \nMax open files 100 200000 files \n\
         touch: /x: Read-only file system\n2\nhead\n700\nread-only\n/sys/firmware:\nls: /proc/acpi: No such file or directory\n"
    );
    guest.kill(init);
}

#[test]
fn what_would_reach_beyond_the_container_is_refused_by_name() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.boot();
    let mut disks = prepare();
    disks.shares = vec![Share { tag: "../x".into(), read_only: true }];
    assert!(guest.call(Call::Prepare(Box::new(disks))).unwrap_err().text.contains("tag"));
    drop(guest);

    let mut guest = harbour.prepared();
    let refused = |guest: &mut bulkhead_tests::guest::Guest, request| {
        let running = guest.begin(request);
        guest.reply(running.request).unwrap_err()
    };
    for key in ["kernel.panic", "vm.swappiness", "kernel.core_pattern", "net..x"] {
        let mut spec = spec(&harbour, "true");
        spec.linux.sysctl = [(key.to_owned(), "1".to_owned())].into();
        let failure = refused(&mut guest, start(spec));
        assert!(failure.text.contains("sysctl"), "{failure:?}");
    }
    for (kind, source, text) in [
        ("bind", "data/x", "open the volume data/x"),
        ("bind", "/etc", "does not begin with a share's tag"),
        ("bind", "../../etc", "does not begin with a share's tag"),
        ("virtiofs", "../x", "not a tag"),
        ("virtiofs", "absent", "mount virtiofs"),
        ("ext4", "/dev/vdb", "not a file system that the agent mounts"),
    ] {
        let mut spec = spec(&harbour, "true");
        spec.mounts.push(mount("/volume", kind, source, &[]));
        let failure = refused(&mut guest, start(spec));
        assert!(failure.text.contains(text), "{kind} {source}: {failure:?}");
    }
    let mut spec_cpus = spec(&harbour, "true");
    spec_cpus.linux.resources.cpu.cpus = "7".into();
    assert!(refused(&mut guest, start(spec_cpus)).text.contains("cpuset.cpus"));
    let mut group = start(spec(&harbour, "true"));
    group.groups = vec!["no-such-group".into()];
    assert!(refused(&mut guest, group).text.contains("unable to find group no-such-group"));
    // After all that, it starts.
    let running = guest.start(start(spec(&harbour, "echo fine")));
    assert_eq!(guest.finish(running).stdout, "fine\n");
}

#[test]
fn interfaces_get_addresses_and_routes() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let loopback = Interface {
        device: Device::Name("lo".into()),
        name: "lo".into(),
        addresses: vec!["10.7.0.2/24".parse().unwrap(), "fd07::2/64".parse().unwrap()],
        mtu: Some(1400),
        routes: vec![
            Route { destination: "0.0.0.0/0".parse().unwrap(), gateway: Some("10.7.0.1".parse().unwrap()) },
            Route { destination: "192.168.5.0/24".parse().unwrap(), gateway: None },
            Route { destination: "fd08::/32".parse().unwrap(), gateway: None },
        ],
    };
    let mut request = start(spec(&harbour, IDLE));
    request.network = vec![loopback.clone()];
    let init = guest.start(request);
    let addresses = guest.shell("ip addr show lo; ip route; ip -6 route");
    for expected in [
        "mtu 1400",
        "inet 10.7.0.2/24",
        "inet6 fd07::2/64",
        "default via 10.7.0.1",
        "192.168.5.0/24 dev lo",
        "fd08::/32 dev lo",
    ] {
        assert!(addresses.contains(expected), "{expected}: {addresses}");
    }
    // As a further network of the running container.
    let more = Interface {
        addresses: vec!["10.8.0.2/32".parse().unwrap()],
        mtu: None,
        routes: vec![],
        ..loopback.clone()
    };
    assert_eq!(guest.call(Call::NetworkAttach(Box::new(more.clone()))), Ok(Answer::Done));
    assert!(guest.shell("ip addr show lo").contains("10.8.0.2/32"));
    let twice = guest.call(Call::NetworkAttach(Box::new(more.clone()))).unwrap_err();
    assert!(twice.text.contains("10.8.0.2/32"), "{twice:?}");
    let absent =
        Interface { device: Device::Mac("02:00:00:00:00:09".parse().unwrap()), name: "eth0".into(), ..more };
    let failure = guest.call(Call::NetworkAttach(Box::new(absent.clone()))).unwrap_err();
    assert_eq!(
        (failure.kind, failure.text.as_str()),
        (FailureKind::Unsupported, "the machine has no network device 02:00:00:00:00:09")
    );
    let failure = guest.call(Call::NetworkDetach { name: "lo".into() }).unwrap_err();
    assert!(failure.text.contains("could be taken out"), "{failure:?}");
    guest.kill(init);
    assert_eq!(guest.call(Call::NetworkAttach(Box::new(absent))).unwrap_err().kind, FailureKind::NotRunning);
}

#[test]
fn dockers_default_profile_lets_programs_run_and_refuses_the_rest() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    for cap_add in [&[][..], &["SYS_ADMIN".to_owned()]] {
        let config = ContainerConfig {
            cmd: Some(vec!["sleep".into(), "1000".into()]),
            cap_add: cap_add.to_vec(),
            ..ContainerConfig::default()
        };
        let spec = engine::spec::build(&config, "harbour").unwrap();
        let granted = spec.process.capabilities.clone().unwrap().bounding;
        let mut request = start(spec);
        request.seccomp = config.seccomp.compile(&granted).unwrap();
        let init = guest.start(request);
        let script = "echo hi | cat | wc -c; ls / >/dev/null; (sleep 0.1 & wait); ping -c 1 -W 1 127.0.0.1 >/dev/null; \
            touch /tmp/x; chown 1:1 /tmp/x; mkdir -p /tmp/d; chroot / true; cat /proc/self/status | grep Seccomp_filters; \
            mount -t tmpfs none /tmp/d 2>&1; unshare -n true 2>&1; dmesg 2>&1 >/dev/null; date -s @5 2>&1 >/dev/null";
        let seen = guest.shell(&format!("{script}; true"));
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines[..2], ["3", "Seccomp_filters:\t1"], "{seen}");
        let refused = |what: &str| {
            lines.iter().any(|l| l.contains(what) && l.contains("not permitted") || l.contains("denied"))
        };
        assert_eq!(
            (refused("mount"), refused("unshare")),
            (cap_add.is_empty(), cap_add.is_empty()),
            "{seen}"
        );
        assert!(lines.iter().any(|l| l.contains("date: can't set date")), "{seen}");
        guest.kill(init);
    }
}

#[test]
fn seccomp_filters_hold_for_every_process_of_the_container() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    // Refuses mkdir (83) with EDOM (33), allows everything else.
    let filter = vec![
        Instruction(0x20, 0, 0, 0),
        Instruction(0x15, 0, 1, 83),
        Instruction(0x06, 0, 0, 0x0005_0000 | 33),
        Instruction(0x06, 0, 0, 0x7fff_0000),
    ];
    for (user, no_new_privileges) in [("", false), ("nobody", false), ("nobody", true)] {
        let mut request = start(spec(&harbour, IDLE));
        request.seccomp.clone_from(&filter);
        request.user = user.into();
        request.spec.process.no_new_privileges = no_new_privileges;
        let init = guest.start(request);
        let ended = guest.run(exec("mkdir", &["mkdir", "/tmp/x"]));
        assert_eq!(
            (ended.code, ended.stderr.contains("Numerical argument out of domain")),
            (1, true),
            "{ended:?}"
        );
        assert_eq!(
            guest.shell("grep -h Seccomp: /proc/1/status /proc/self/status"),
            "Seccomp:\t2\nSeccomp:\t2\n"
        );
        guest.kill(init);
    }
    let mut request = start(spec(&harbour, "true"));
    request.seccomp = vec![Instruction(0xffff, 0, 0, 0)];
    let running = guest.begin(request);
    assert!(guest.reply(running.request).unwrap_err().text.contains("install the seccomp filter"));
}

#[test]
fn the_generation_can_be_read_and_changes_with_the_hosts_word() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let mut spec = spec(&harbour, "echo begins; read line; cat /dev/bulkhead/generation; sleep 1000");
    spec.mounts.push(mount("/dev/bulkhead/generation", "generation", "", &[]));
    let mut first = start(spec);
    first.stdin = true;
    let mut init = guest.start(first);
    let read = "cat /dev/bulkhead/generation; echo x 2> /dev/null > /dev/bulkhead/generation || echo refused";
    assert_eq!(guest.shell(read), format!("{}\nrefused\n", "0".repeat(32)));
    // The host may say so at any time; it counts for every container, also for those that run.
    let wall_clock = 2_000_000_000_000_000_000;
    let news = Restored { generation: Bytes([0xab; 16]), entropy: Bytes([7; 64]), wall_clock };
    assert_eq!(guest.call(Call::Restored(Box::new(news))), Ok(Answer::Done));
    assert_eq!(guest.shell("cat /dev/bulkhead/generation"), format!("{}\n", "ab".repeat(16)));
    let clock = guest.shell("date +%s");
    assert!(clock.starts_with("20000000"), "{clock}");
    init.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    let ended = guest.kill(init);
    assert!(ended.stdout.starts_with("begins\n"), "{ended:?}");
}
