#!/usr/bin/env python3
"""What the API costs: api.py BULKHEAD

1. `run` through the daemon (create, attach, wait, start, as docker does it), beside the machine's own time: from the VMM's start to its
   end, as the container's supervisor measures it. Median of RUNS (15). Goal: at most 20 ms more.
2. 1,000 GET /containers/json with 50 containers, each on a connection of its own, beside podman's service. Goal: p99 at most 10 ms.
"""

import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

CONTAINERS, REQUESTS = 50, 1000
RUNS = int(os.environ.get("RUNS", "15"))
here = pathlib.Path(__file__).resolve().parents[2]


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def call(path, method, target, body=None):
    connection = Connection(path)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, target, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status >= 400:
        raise SystemExit(f"{method} {target}: {answer.status} {content.decode()}")
    return json.loads(content) if content.strip().startswith((b"{", b"[")) else content


def listening(path, process):
    while True:
        try:
            return call(path, "GET", "/_ping")
        except OSError:
            if process.poll() is not None:
                raise SystemExit("the service ended")
            time.sleep(0.01)


def attach(path, container):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(
        f"POST /containers/{container}/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\n"
        "Host: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(4096)
    return connection


def run(path, root, image):
    """Milliseconds of a run: all of it, and the machine's own part."""
    began = time.monotonic()
    made = call(path, "POST", "/containers/create", {"Image": image, "Cmd": ["echo", "hello"]})["Id"]
    stream = attach(path, made)
    call(path, "POST", f"/containers/{made}/start")
    output = b""
    while part := stream.recv(4096):
        output += part
    code = call(path, "POST", f"/containers/{made}/wait")["StatusCode"]
    total = (time.monotonic() - began) * 1000
    assert (code, output[8:]) == (0, b"hello\n"), (code, output)
    log = (root / "containers" / made / "supervisor.log").read_text()
    marks = {name: float(at) for name, at in re.findall(r"timing (\w+) +[0-9.]+ ms +([0-9.]+) ms", log)}
    call(path, "DELETE", f"/containers/{made}")
    return total, marks["ended"] - marks["disk"]


def listing(path):
    times = []
    for _ in range(REQUESTS):
        began = time.monotonic()
        found = call(path, "GET", "/v1.40/containers/json?all=1")
        times.append((time.monotonic() - began) * 1000)
        assert len(found) == CONTAINERS, len(found)
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100]


def ours(bulkhead, work):
    root, path = work / "root", str(work / "api.sock")
    environment = {**os.environ, "BULKHEAD_ROOT": str(root), "BULKHEAD_TIMINGS": "1"}
    image = subprocess.run([here / "tests/images/busybox.sh"], check=True, capture_output=True, text=True)
    image = "oci:" + image.stdout.strip()
    subprocess.run([bulkhead, "run", "--rm", image, "true"], env=environment, check=True, capture_output=True)
    daemon = subprocess.Popen([bulkhead, "serve", "-H", "unix://" + path], env=environment, stderr=subprocess.DEVNULL)
    try:
        listening(path, daemon)
        runs = [run(path, root, image) for _ in range(RUNS)]
        for number in range(CONTAINERS):
            call(path, "POST", f"/containers/create?name=c{number}", {"Image": image, "Cmd": ["true"]})
        return runs, listing(path)
    finally:
        daemon.terminate()
        daemon.wait()


def podmans(work):
    """The same list from podman, if there is one."""
    if not shutil.which("podman"):
        return "skipped: no podman"
    path = str(work / "podman.sock")
    podman = ["podman", "--root", work / "podman", "--runroot", work / "podman-run", "--events-backend", "none"]
    image = subprocess.run([here / "tests/images/busybox.sh"], check=True, capture_output=True, text=True).stdout.strip()
    tar = work / "image.tar"
    subprocess.run(["tar", "-C", image, "-cf", tar, "."], check=True)
    loaded = subprocess.run([*podman, "load", "-q", "-i", tar], capture_output=True, text=True)
    name = re.search(r"Loaded image: (\S+)", loaded.stdout + loaded.stderr)
    if not name:
        return f"skipped: podman cannot load the image: {loaded.stderr.strip()[-120:]}"
    service = subprocess.Popen(
        [*podman, "system", "service", "--time=0", "unix://" + path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        listening(path, service)
        for number in range(CONTAINERS):
            made = subprocess.run(
                [*podman, "create", "--network", "none", "--name", f"c{number}", name[1], "true"], capture_output=True, text=True
            )
            if made.returncode:
                return f"skipped: podman cannot create containers: {made.stderr.strip()[-120:]}"
        return listing(path)
    finally:
        service.terminate()
        service.wait()
        subprocess.run(["umount", "-l", work / "podman/overlay"], stderr=subprocess.DEVNULL, check=False)


def verdict(value, goal):
    return f"{value:8.1f} ms   goal {goal} ms: {'met' if value <= goal else 'NOT met'}"


def main():
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        runs, (median, p99) = ours(pathlib.Path(sys.argv[1]).resolve(), work)
        peer = podmans(work)
    total = statistics.median(total for total, _ in runs)
    beside = statistics.median(total - machine for total, machine in runs)
    print(f"\nrun through the daemon (median of {RUNS})      {total:8.1f} ms")
    print(f"  beside the machine's own time          {verdict(beside, 20)}")
    print(f"GET /containers/json, {CONTAINERS} containers ({REQUESTS} requests)")
    print(f"  bulkhead  median {median:6.2f}   p99 {verdict(p99, 10)}")
    if isinstance(peer, str):
        print(f"  podman    {peer}")
    else:
        print(f"  podman    median {peer[0]:6.2f}   p99 {peer[1]:8.1f} ms")


main()
