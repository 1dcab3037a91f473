#!/usr/bin/env python3
"""What networks and files cost: net.py BULKHEAD

iperf3 and fio in containers of Bulkhead (networks as switches and in the host's kernel), of podman (slirp4netns) and of runc with a bridge, in one
run, one after the other. All of it happens in
network namespaces of its own: a host, and a world beyond it where the servers are. SECONDS (5) for each figure. Needs root.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

SECONDS = int(os.environ.get("SECONDS_EACH", "5"))
TRIPS = 2000
HOST, WORLD, BRIDGE = "198.51.100.1", "198.51.100.2", "10.99.0.1"
IPERF, ECHO, PUBLISHED = 5201, 5300, 5202
here = pathlib.Path(__file__).resolve().parents[2]

ECHO_SERVER = f"""
import socket
server = socket.create_server(('', {ECHO}))
while True:
    client, _ = server.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := client.recv(64):
        client.sendall(data)
"""
ECHO_CLIENT = """
import socket, statistics, sys, time
client = socket.create_connection((sys.argv[1], int(sys.argv[2])))
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times = []
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    client.sendall(b'x'); client.recv(64)
    times.append(time.perf_counter() - began)
print(statistics.median(times) * 1e6)
"""
FILES = [
    ("write 1 MiB", "write", "1m", "MB/s"),
    ("read 1 MiB", "read", "1m", "MB/s"),
    ("random write 4 KiB", "randwrite", "4k", "IOPS"),
    ("random read 4 KiB", "randread", "4k", "IOPS"),
]


def sh(*words, **options):
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, **options).stdout


def in_world(*words):
    return ["ip", "netns", "exec", "world", *[str(word) for word in words]]


def ended(process, end, environment=None):
    """Ends a container whose command may still be on its way to it."""
    if process.returncode is not None:
        subprocess.run([str(word) for word in end], env=environment, capture_output=True)
        return
    for _ in range(60):
        subprocess.run([str(word) for word in end], env=environment, capture_output=True)
        try:
            process.communicate(timeout=0.5)
            return
        except subprocess.TimeoutExpired:
            pass
    process.kill()
    raise RuntimeError("a container does not end")


class Skipped(Exception):
    pass


class Bulkhead:
    """With networks whose packets a switch carries, or the host's kernel."""

    def __init__(self, program, image, work, path):
        self.program, self.image = program, "oci:" + str(image)
        self.environment = {**os.environ, "BULKHEAD_ROOT": str(work / f"bulkhead-{path}")}
        accelerator = sh(program, "accelerator", env=self.environment).strip()
        self.name = f"bulkhead ({accelerator}, {path})"
        self.count = 0
        try:
            self.call("network", "create", "-o", f"bulkhead.path={path}", "bench")
        except subprocess.CalledProcessError as error:
            raise Skipped(f"networks with bulkhead.path={path}: {error.stderr.strip()[-160:]}") from error
        self.call("run", "--rm", self.image, "true")

    def call(self, *words):
        return sh(self.program, *words, env=self.environment).strip()

    @contextlib.contextmanager
    def started(self, words, publish=None, volume=None):
        """The container, started, and what tells the address at which others of its network reach it."""
        self.count += 1
        name = f"bench{self.count}"
        options = ["--name", name, "--network", "bench"]
        options += ["-p", f"{PUBLISHED}:{publish}"] if publish else []
        options += ["-v", f"{volume}:/v"] if volume else []
        made = [self.program, "run", *options, self.image, *words]
        process = subprocess.Popen(made, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            yield process, lambda: self.call("inspect", "-f", "{{.NetworkSettings.Networks.bench.IPAddress}}", name)
        finally:
            ended(process, [self.program, "rm", "-f", name], self.environment)


class Podman:
    name = "podman (slirp4netns)"

    def __init__(self, image, work):
        if not shutil.which("podman") or not shutil.which("slirp4netns"):
            raise Skipped("podman or slirp4netns is not installed")
        self.podman = ["podman", "--root", work / "podman", "--runroot", work / "podman-run", "--events-backend", "none"]
        self.podman += ["--cgroup-manager", "cgroupfs"]
        tar = work / "image.tar"
        sh("tar", "-C", image, "-cf", tar, ".")
        loaded = subprocess.run([*self.podman, "load", "-q", "-i", tar], capture_output=True, text=True)
        words = (loaded.stdout + loaded.stderr).split()
        if loaded.returncode or not words:
            raise Skipped("podman cannot load the image: " + loaded.stderr.strip()[-120:])
        self.image, self.count = words[-1], 0

    @contextlib.contextmanager
    def started(self, words, publish=None, volume=None):
        self.count += 1
        name = f"bench{self.count}"
        options = ["--name", name, "--network", "slirp4netns", "--runtime", "runc", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        options += ["-p", f"{PUBLISHED}:{publish}"] if publish else []
        options += ["-v", f"{volume}:/v"] if volume else []
        command = [*self.podman, "run", "--rm", "--init=false", *options, self.image, *words]
        process = subprocess.Popen([str(w) for w in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            yield process, None
        finally:
            ended(process, [*self.podman, "kill", name])


class Runc:
    name = "runc (bridge)"

    def __init__(self, image, work):
        if not shutil.which("runc") or not shutil.which("umoci"):
            raise Skipped("runc or umoci is not installed")
        self.work, self.count = work, 0
        sh("umoci", "unpack", "--image", f"{image}:latest", work / "bundle")
        for command in [
            "ip link add bridge0 type bridge",
            f"ip addr add {BRIDGE}/24 dev bridge0",
            "ip link set bridge0 up",
            "sysctl -qw net.ipv4.ip_forward=1",
            "nft add table ip bench",
            "nft add chain ip bench out { type nat hook postrouting priority 100 ; }",
            "nft add rule ip bench out ip saddr 10.99.0.0/24 oifname != bridge0 masquerade",
            "nft add chain ip bench in { type nat hook prerouting priority -100 ; }",
        ]:
            sh(*command.split())

    @contextlib.contextmanager
    def started(self, words, publish=None, volume=None):
        self.count += 1
        name, address = f"runc{self.count}", f"10.99.0.{self.count + 1}"
        sh("ip", "netns", "add", name)
        sh("ip", "link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "link", "set", f"v{name}", "master", "bridge0", "up")
        for command in [f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up", f"route add default via {BRIDGE}"]:
            sh("ip", "-n", name, *command.split())
        if publish:
            rule = f"nft add rule ip bench in tcp dport {PUBLISHED} dnat to {address}:{publish}"
            sh(*rule.split())
        spec = json.loads((self.work / "bundle/config.json").read_text())
        spec["process"].update(args=[str(word) for word in words], terminal=False)
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] not in ("network", "user")]
        spec["linux"]["namespaces"].append({"type": "network", "path": f"/run/netns/{name}"})
        if volume:
            spec["mounts"].append({"destination": "/v", "source": str(volume), "type": "bind", "options": ["bind", "rw"]})
        bundle = self.work / name
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps({**spec, "root": {"path": str(self.work / "bundle/rootfs")}}))
        runc = ["runc", "--root", str(self.work / "runc")]
        process = subprocess.Popen(
            [*runc, "run", "--bundle", bundle, name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield process, lambda: address
        finally:
            ended(process, [*runc, "kill", name, "KILL"])
            subprocess.run([*runc, "delete", "-f", name], capture_output=True)
            sh("ip", "netns", "del", name)
            if publish:
                sh("nft", "flush", "chain", "ip", "bench", "in")


def output(engine, words, **options):
    with engine.started(words, **options) as (process, _):
        out, err = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(f"{engine.name}: {' '.join(words)[:80]}: {(err or out).strip()[-300:]}")
    return out


def answered(address, port, command=()):
    """Waits until a server takes connections."""
    probe = f"import socket; socket.create_connection(('{address}', {port}), 1)"
    for _ in range(300):
        if subprocess.run([*command, "python3", "-c", probe], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"nobody answers at {address}:{port}")


def gigabits(text):
    return json.loads(text)["end"]["sum_received"]["bits_per_second"] / 1e9


def client(address, port, *more):
    return ["iperf3", "--json", "-t", str(SECONDS), "-c", address, "-p", str(port), *more]


def trips(address, port):
    return ["python3", "-c", ECHO_CLIENT, address, str(port), str(TRIPS)]


def networks(engine):
    """Figures by name; a text is why there is none."""
    figures = {}

    def figure(name, measure):
        try:
            figures[name] = measure()
        except (RuntimeError, subprocess.SubprocessError, KeyError, ValueError, TypeError) as error:
            figures[name] = f"{type(error).__name__}: {str(error)[-160:]}"

    figure("to the world, Gbit/s", lambda: gigabits(output(engine, client(WORLD, IPERF))))
    figure("from the world, Gbit/s", lambda: gigabits(output(engine, client(WORLD, IPERF, "-R"))))
    figure("round trip to the world, us", lambda: float(output(engine, trips(WORLD, ECHO))))

    def published(words, port, measure):
        with engine.started(words, publish=port):
            answered(HOST, PUBLISHED, in_world())
            time.sleep(0.5)
            return measure()

    figure(
        "published port, Gbit/s",
        lambda: published(["iperf3", "-s"], IPERF, lambda: gigabits(sh(*in_world(*client(HOST, PUBLISHED))))),
    )
    figure(
        "round trip by published port, us",
        lambda: published(["python3", "-c", ECHO_SERVER], ECHO, lambda: float(sh(*in_world(*trips(HOST, PUBLISHED))))),
    )

    def neighbours(server, words):
        with engine.started(server) as (_, address):
            if address is None:
                raise RuntimeError("its containers have no network in common")
            time.sleep(3)
            return output(engine, words(address()))

    figure("container to container, Gbit/s", lambda: gigabits(neighbours(["iperf3", "-s"], lambda a: client(a, IPERF))))
    figure(
        "round trip between containers, us",
        lambda: float(neighbours(["python3", "-c", ECHO_SERVER], lambda a: trips(a, ECHO))),
    )
    return figures


def files(engine, work):
    figures = {}
    volume = work / ("volume-" + engine.name.split()[0])
    volume.mkdir()
    for place, path in [("own disk", "/bench"), ("volume", "/v")]:
        for title, kind, block, unit in FILES:
            fio = f"fio --name=x --directory={path} --filename=x --size=256m --rw={kind} --bs={block} --ioengine=psync"
            fio += f" --runtime={SECONDS} --time_based --end_fsync=1 --output-format=json"
            try:
                out = output(engine, ["sh", "-c", f"mkdir -p {path}; {fio}"], volume=volume)
                job = json.loads(out[out.index("{") :])["jobs"][0]["write" if "write" in kind else "read"]
                value = job["bw_bytes"] / 1e6 if unit == "MB/s" else job["iops"]
            except (RuntimeError, subprocess.SubprocessError, ValueError) as error:
                value = str(error)[-160:]
            figures[f"{place}, {title}, {unit}"] = value
    return figures


def table(title, columns):
    print(f"\n{title}")
    print(f"{'':42}" + "".join(f"{name:>24}" for name in columns))
    notes = []
    for row in next(iter(columns.values())):
        cells = []
        for name, figures in columns.items():
            value = figures[row]
            if isinstance(value, str):
                notes.append(f"{name}: {row}: {value}")
                value = "-"
            cells.append(f"{value:>24}" if isinstance(value, str) else f"{value:>24,.1f}")
        print(f"{row:42}" + "".join(cells))
    for note in notes:
        print(f"no figure: {note}")


def measure(program, work):
    image = pathlib.Path(sh(here / "tests/images/debian-bench.sh").strip().splitlines()[-1])
    engines, notes = [], []
    ours = [lambda path=path: Bulkhead(program, image, work, path) for path in ("switch", "kernel")]
    for make in [*ours, lambda: Podman(image, work), lambda: Runc(image, work)]:
        try:
            engines.append(make())
        except Skipped as why:
            notes.append(f"skipped: {why}")
    # Servers that all of them speak with.
    servers = [
        subprocess.Popen(in_world("iperf3", "-s"), stdout=subprocess.DEVNULL),
        subprocess.Popen(in_world("python3", "-c", ECHO_SERVER)),
    ]
    try:
        answered(WORLD, ECHO)
        found = {engine.name: networks(engine) for engine in engines}
        # Files know nothing of networks.
        kept = {engine.name: files(engine, work) for engine in engines if not engine.name.endswith("kernel)")}
    finally:
        for server in servers:
            server.kill()
    table(f"networks (iperf3, {SECONDS} s each; medians of {TRIPS} round trips of a byte)", found)
    table(f"files (fio, one thread, {SECONDS} s each, through the page cache, with a sync at the end)", kept)
    for note in notes:
        print(note)


def main():
    if os.environ.get("BENCH_APART") != "1":
        # Its packages come from where there is a network.
        sh(here / "tests/images/debian-bench.sh")
        # Neither the host's firewall nor its routes are touched.
        os.environ["BENCH_APART"] = "1"
        os.execvp("unshare", ["unshare", "--net", "--mount", "python3", __file__, *sys.argv[1:]])
    sh("mount", "-t", "tmpfs", "none", "/run/netns") if os.path.isdir("/run/netns") else None
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "netns", "add", "world")
    sh("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", "world")
    for command in [f"addr add {HOST}/24 dev up0", "link set up0 up", f"route add default via {WORLD}"]:
        sh("ip", *command.split())
    for command in [f"addr add {WORLD}/24 dev eth0", "link set eth0 up", "link set lo up"]:
        sh("ip", "-n", "world", *command.split())
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-", ignore_cleanup_errors=True) as work:
        try:
            measure(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(work))
        finally:
            subprocess.run(["umount", "-l", pathlib.Path(work) / "podman/overlay"], capture_output=True)


main()
