"""What people do with Testcontainers, against a daemon that is told of by DOCKER_HOST and has the image busybox."""

import os
import time
import urllib.error
import urllib.request

# Its reaper is an image of its own, which would have to be pulled from the internet.
os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.waiting_utils import wait_for_logs

busybox = DockerContainer("busybox").with_env("A", "b").with_command("sh -c 'echo ready; sleep 1000'")
with busybox as container:
    wait_for_logs(container, "ready", timeout=60)
    code, output = container.exec(["sh", "-c", "echo $A; exit 3"])
    assert (code, output) == (3, b"b\n"), (code, output)
    assert container.get_logs() == (b"ready\n", b""), container.get_logs()
    assert container.get_wrapped_container().attrs["State"]["Status"] in ("created", "running")

server = DockerContainer("busybox").with_command("sh -c 'echo a page > /tmp/index.html; httpd -f -vv -h /tmp'")
with server.with_exposed_ports(80) as container:
    address = f"http://127.0.0.1:{container.get_exposed_port(80)}/"
    for attempt in range(100):
        try:
            assert urllib.request.urlopen(address, timeout=20).read() == b"a page\n"
            break
        except (urllib.error.URLError, ConnectionError):
            # The container runs before its server listens.
            time.sleep(0.1)
    else:
        raise AssertionError(f"nobody answers at {address}")

with Network() as network:
    with DockerContainer("busybox").with_command("sleep 1000").with_network(network) as container:
        code, output = container.exec("hostname")
        assert code == 0 and len(output.strip()) == 12, output
    assert network.id

print("all done")
