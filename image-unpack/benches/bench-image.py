#!/usr/bin/env python3
"""Times making an image ready, ours beside podman, containerd, umoci and `gzip -dc`, medians of 5 with peak memory.

usage: bench-image.py [DIR:TAG]     an OCI layout; without one, a Debian with Python is made once with debootstrap

Run by `make bench-image`, as root. Rows whose program is missing say so. Fails if our rows miss their budget.
"""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
CACHE = os.environ.get("BULKHEAD_BENCH_CACHE", os.path.join(TOP, "target", "bench-image"))
RUNS = int(os.environ.get("BULKHEAD_BENCH_RUNS", "5"))


def sh(*command, **options):
    """Runs a command; what it said is shown if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-3000:])
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")


def mirror():
    """The Debian mirror that this machine uses."""
    listed = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True).stdout
    found = [line for line in sorted(set(listed.split())) if line.rstrip("/").endswith("/debian")]
    return found[0] if found else "http://deb.debian.org/debian/"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def make_image():
    """Four layers: debootstrap minbase, some packages, Python, and changes with whiteouts."""
    layout = os.path.join(CACHE, "oci")
    if os.path.exists(os.path.join(CACHE, "made")):
        return layout + ":t"
    for program in ("debootstrap", "umoci"):
        if not shutil.which(program):
            sys.exit(f"skipped: {program} is needed to make the image")
    shutil.rmtree(CACHE, ignore_errors=True)
    os.makedirs(CACHE)
    bundle, image = os.path.join(CACHE, "bundle"), layout + ":t"
    root = os.path.join(bundle, "rootfs")
    print("making the image (once)", file=sys.stderr)

    def layer(change):
        shutil.rmtree(bundle, ignore_errors=True)
        sh("umoci", "unpack", "--image", image, bundle)
        change()
        sh("umoci", "repack", "--image", image, bundle)

    def install(*packages):
        def change():
            shutil.copy("/etc/resolv.conf", root + "/etc/resolv.conf")
            for name in os.listdir("/etc/apt/apt.conf.d"):
                target = os.path.join(root, "etc/apt/apt.conf.d", name)
                if not os.path.exists(target):
                    shutil.copy(os.path.join("/etc/apt/apt.conf.d", name), target)
            environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
            sh("chroot", root, "apt-get", "install", "-y", "--no-install-recommends", *packages, env=environment)
            sh("chroot", root, "apt-get", "clean")

        return change

    def base():
        sh("debootstrap", "--variant=minbase", "bookworm", os.path.join(CACHE, "base"), mirror())
        sh("cp", "-a", os.path.join(CACHE, "base") + "/.", root)
        sh("chroot", root, "apt-get", "clean")
        shutil.rmtree(os.path.join(CACHE, "base"))

    def last():
        shutil.rmtree(root + "/usr/share/doc")
        os.makedirs(root + "/app")
        with open(root + "/app/app.py", "w") as f:
            f.write("print('hello')\n")

    sh("umoci", "init", "--layout", layout)
    sh("umoci", "new", "--image", image)
    layer(base)
    layer(install("ca-certificates", "netbase", "libcap2-bin"))
    layer(install("python3", "python3-pip", "python3-venv", "git"))
    layer(last)
    sh("umoci", "gc", "--layout", layout)
    shutil.rmtree(bundle)
    open(os.path.join(CACHE, "made"), "w").close()
    return image


def measure(command, prepare=None, **options):
    """Median of the seconds, and peak KiB of the process and its children. Ours tell their own peak; of others the system
    tells no less than this script's own, for a process begins as a copy of its parent."""
    times, peak = [], 0
    for _ in range(RUNS):
        if prepare:
            prepare()
        os.sync()
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        words = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        times.append(time.monotonic() - start)
        if status:
            raise RuntimeError(words.decode(errors="replace")[-300:])
        told = re.search(rb"peak (\d+) kB", words)
        peak = max(peak, int(told[1]) if told else usage.ru_maxrss)
    return statistics.median(times), peak


def main():
    image = sys.argv[1] if len(sys.argv) > 1 else make_image()
    layout, tag = image.split(":")
    blobs = os.path.join(layout, "blobs", "sha256")

    def blob(digest):
        return os.path.join(blobs, digest.split(":")[1])

    def read(digest):
        with open(blob(digest)) as f:
            return json.load(f)

    with open(os.path.join(layout, "index.json")) as f:
        index = json.load(f)
    named = [m for m in index["manifests"] if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag]
    layers = [blob(layer["digest"]) for layer in read(named[0]["digest"])["layers"]]
    compressed = sum(os.path.getsize(layer) for layer in layers)
    size = sum(
        int(subprocess.run(f"gzip -dc {layer} | wc -c", shell=True, capture_output=True, check=True).stdout)
        for layer in layers
    )
    work = tempfile.mkdtemp(prefix="bench-image-")
    rows, children = [], []
    print(f"{len(layers)} layers, {compressed / 1e6:.0f} MB gzip, {size / 1e6:.0f} MB of tar, {os.cpu_count()} CPUs")

    def row(name, program, command, prepare=None, note="", **options):
        if program and not shutil.which(program):
            print(f"skipped: {program} is not installed")
            return None
        try:
            seconds, peak = measure(command, prepare, **options)
        except RuntimeError as error:
            print(f"skipped: {name}: {error}")
            return None
        rows.append((name, seconds, peak, note))
        return seconds

    def serve(command, ready):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        children.append(child)
        for _ in range(200):
            if ready():
                return child
            time.sleep(0.05)
        raise RuntimeError(f"{command[0]} does not start")

    try:
        sh("cargo", "build", "--release", "-p", "image-unpack", "--example", "ensure", cwd=TOP)
        target = os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target"))
        ensure = os.path.join(target, "release", "examples", "ensure")
        store = os.path.join(work, "store")

        def clean():
            shutil.rmtree(store, ignore_errors=True)

        ours = row("bulkhead, unpack", None, [ensure, store, f"oci:{image}"], clean, "verified, fsynced")
        cached = row("bulkhead, cached", None, [ensure, store, f"oci:{image}"], None, "whole process")
        pulled = None
        if shutil.which("docker-registry") and shutil.which("skopeo"):
            port = free_port()
            config = os.path.join(work, "registry.yml")
            with open(config, "w") as f:
                f.write(
                    "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
                    f"storage: {{filesystem: {{rootdirectory: {work}/registry}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
                )
            up = lambda: subprocess.run(["curl", "-sf", f"http://127.0.0.1:{port}/v2/"], capture_output=True).returncode == 0
            serve(["docker-registry", "serve", config], up)
            remote = f"127.0.0.1:{port}/bench/image:t"
            sh("skopeo", "copy", "--dest-tls-verify=false", f"oci:{image}", f"docker://{remote}")
            pulled = row("bulkhead, pull", None, [ensure, store, remote], clean, "verified, fsynced")
            urls = " ".join(f"http://127.0.0.1:{port}/v2/bench/image/blobs/sha256:{os.path.basename(l)}" for l in layers)
            fetch = f"for u in {urls}; do curl -s $u | sha256sum & done; wait"
            row("curl | sha256sum", "curl", ["bash", "-c", fetch], None, "download and hash alone")
        else:
            print("skipped: docker-registry or skopeo is not installed")

        podman = ["podman", "--root", f"{work}/podman", "--runroot", f"{work}/podman-run", "--storage-driver", "overlay"]
        theirs = row(
            "podman pull oci:", "podman", podman + ["pull", f"oci:{image}"],
            lambda: subprocess.run(podman + ["rmi", "-af"], capture_output=True),
        )
        archive = os.path.join(work, "image.tar")
        sh("tar", "-C", layout, "-cf", archive, ".")
        if shutil.which("containerd"):
            socket = f"{work}/containerd.sock"
            with open(f"{work}/containerd.toml", "w") as f:
                f.write(
                    f'version = 2\nroot = "{work}/containerd"\nstate = "{work}/containerd-run"\n'
                    f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
                )
            serve(["containerd", "-c", f"{work}/containerd.toml"], lambda: os.path.exists(socket))
            ctr = ["ctr", "-a", socket]

            def forget():
                names = subprocess.run(ctr + ["images", "ls", "-q"], capture_output=True, text=True).stdout.split()
                for name in names:
                    subprocess.run(ctr + ["images", "rm", "--sync", name], capture_output=True)

            row("containerd, ctr import", "ctr", ctr + ["images", "import", "--base-name", "b", archive], forget, "client's memory")
        else:
            print("skipped: containerd is not installed")
        bundle = os.path.join(work, "bundle")
        row("umoci unpack", "umoci", ["umoci", "unpack", "--image", image, bundle], lambda: shutil.rmtree(bundle, ignore_errors=True))
        row("gzip -dc", None, ["bash", "-c", f"gzip -dc {' '.join(layers)} >/dev/null"], None, "inflate alone")
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.wait()
        subprocess.run(["umount", f"{work}/podman/overlay"], capture_output=True)
        shutil.rmtree(work, ignore_errors=True)

    print(f"\n| {'what':<24} | {'s':>6} | {'MB/s':>6} | {'peak MiB':>8} | note |")
    print("| --- | ---: | ---: | ---: | --- |")
    for name, seconds, peak, note in rows:
        rate = size / 1e6 / seconds
        print(f"| {name:<24} | {seconds:6.3f} | {rate:6.0f} | {peak / 1024:8.1f} | {note} |")
    peaks = [peak for name, _, peak, _ in rows if name.startswith("bulkhead")]
    # The budgets are for 319 MB of tar.
    scale = size / 319e6
    checks = [
        ("unpack <= 0.8 s per 319 MB", ours <= 0.8 * scale),
        ("unpack <= 0.25 of podman's", theirs is None or ours <= 0.25 * theirs),
        ("pull <= 1.0 s per 319 MB", pulled is None or pulled <= 1.0 * scale),
        ("cached <= 10 ms, process and all", cached <= 0.010),
        ("peak <= 64 MiB", max(peaks) <= 64 * 1024),
    ]
    for what, met in checks:
        print(f"{'met   ' if met else 'MISSED'} {what}")
    return 0 if all(met for _, met in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
