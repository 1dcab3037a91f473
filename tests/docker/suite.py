"""docker-py, the Python SDK, against `bulkhead serve`: its main calls, compared with what Docker answers.

suite.py ARCHIVE, with DOCKER_HOST in the environment. Prints one line for each thing that it tried; the last one is "all done".
"""

import io
import sys
import tarfile
import threading
import time

import docker
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound


def check(what, have, want):
    if have != want:
        sys.exit(f"{what}: {have!r} is not {want!r}")
    print(what)


def refused(what, kind, status, words, call):
    try:
        call()
    except kind as error:
        if status is not None and error.response.status_code != status:
            sys.exit(f"{what}: status {error.response.status_code} is not {status}")
        if words not in str(error):
            sys.exit(f"{what}: {words!r} is not in {error}")
        print(what)
        return
    sys.exit(f"{what}: was not refused")


client = docker.from_env(version="auto", timeout=120)
check("ping", client.ping(), True)
check("version", client.version()["ApiVersion"], "1.50")
check("info", client.info()["OSType"], "linux")

with open(sys.argv[1], "rb") as archive:
    [image] = client.images.load(archive)
check("load", image.tags, ["busybox:latest"])
check("images", [i.id for i in client.images.list(name="busybox")], [image.id])
check("history", image.history()[0]["Id"], image.id)
check("tag", image.tag("other", "v1"), True)
check("get", client.images.get("other:v1").id, image.id)
client.images.remove("other:v1")
refused("no such image", ImageNotFound, 404, "No such image", lambda: client.images.get("other:v1"))

check("run", client.containers.run("busybox", ["echo", "hi"], remove=True), b"hi\n")
check("run with errors", client.containers.run("busybox", ["sh", "-c", "echo e >&2"], remove=True, stdout=False, stderr=True), b"e\n")
try:
    client.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    sys.exit("an exit code of 3 is an error")
except ContainerError as error:
    check("exit code", (error.exit_status, error.stderr), (3, b"bad\n"))
refused("privileged", APIError, 400, "--privileged cannot be done", lambda: client.containers.create("busybox", privileged=True))
refused("not found", APIError, 400, "executable file not found", lambda: client.containers.run("busybox", ["nope"]))
for left in client.containers.list(all=True):
    left.remove()

box = client.containers.run(
    "busybox", ["sh", "-c", "echo one; echo two; sleep 1000"], detach=True, name="box", labels={"tier": "front"},
    environment={"A": "1"}, mem_limit="64m", tmpfs={"/run": "size=1m"}, read_only=True, init=True,
)
check("status", client.containers.get("box").status, "running")
check("list", [c.name for c in client.containers.list(filters={"label": "tier=front"})], ["box"])
for line in box.logs(stream=True, follow=True):
    if line == b"two\n":
        break
check("logs", box.logs(), b"one\ntwo\n")
check("logs with times", len(box.logs(timestamps=True, tail=1).split(b" ")[0]), 30)
check("exec", tuple(box.exec_run(["sh", "-c", "echo $A; echo err >&2; exit 4"], demux=True)), (4, (b"1\n", b"err\n")))
check("exec stream", b"".join(box.exec_run(["echo", "s"], stream=True).output), b"s\n")
code, text = box.exec_run(["nope"])
check("exec of nothing", (code, b"not found" in text), (127, True))
socket = client.api.exec_start(client.api.exec_create(box.id, ["cat"], stdin=True)["Id"], socket=True)
socket._sock.sendall(b"through\n")
socket._sock.shutdown(1)
frames = b""
while chunk := socket._sock.recv(65536):
    frames += chunk
check("exec socket", frames, b"\x01\0\0\0\0\0\0\x08through\n")
check("top", "sleep 1000" in str(box.top()["Processes"]), True)
check("stats", box.stats(stream=False)["memory_stats"]["limit"], 64 << 20)
check("stats stream", next(box.stats(decode=True))["id"], box.id)
box.pause()
box.reload()
check("pause", box.status, "paused")
box.unpause()
box.rename("case")
box.update(mem_limit="48m", memswap_limit="48m")
box.reload()
check("rename and update", (box.name, box.attrs["HostConfig"]["Memory"]), ("case", 48 << 20))

tar = io.BytesIO()
with tarfile.open(fileobj=tar, mode="w") as writer:
    entry = tarfile.TarInfo("file")
    entry.size = 7
    writer.addfile(entry, io.BytesIO(b"content"))
check("put archive", box.put_archive("/run", tar.getvalue()), True)
stream, stat = box.get_archive("/run/file")
with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as reader:
    check("get archive", (stat["name"], stat["size"], reader.extractfile("file").read()), ("file", 7, b"content"))
refused("no such path", NotFound, 404, "Could not find the file", lambda: box.get_archive("/nope"))
check("diff", isinstance(box.diff() or [], list), True)
refused("rm of one that runs", APIError, 409, "container is running", lambda: box.remove())
refused("name taken", APIError, 409, "is already in use by container", lambda: client.containers.create("busybox", name="case"))
refused("no such container", NotFound, 404, "No such container: nope", lambda: client.containers.get("nope"))

ended = []
waiter = threading.Thread(target=lambda: ended.append(box.wait()["StatusCode"]))
waiter.start()
box.kill()
waiter.join()
check("wait", ended, [137])
made = box.commit("made", "1", message="said")
check("commit", made.tags, ["made:1"])
box.remove()

volume = client.volumes.create("data", labels={"a": "b"})
check("volume", [v.name for v in client.volumes.list(filters={"label": "a=b"})], ["data"])
volume.remove()
network = client.networks.create("front")
check("network", [n.id for n in client.networks.list(names=["front"])], [network.id])
network.remove()
now = int(time.time()) + 1
actions = [e["Action"] for e in client.events(since=1, until=now, decode=True, filters={"event": ["create", "destroy"], "volume": "data"})]
check("events", actions, ["create", "destroy"])
check("df", sorted(client.df()), ["BuildCache", "Containers", "Images", "LayersSize", "Volumes"])
check("prune", client.containers.prune()["SpaceReclaimed"] >= 0, True)
check("nothing is left", client.containers.list(all=True), [])
print("all done")
