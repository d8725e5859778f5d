"""How a server stops, several of them behind a proxy, and the files with which they are deployed."""

import argparse
import re
import socket
import subprocess
import sys
import urllib.request

import pytest
import yaml

from svlm_jax.cli.operation_flags import check_operation, operation_flags, start_webhooks
from svlm_jax.errors import InputError
from tests.serve.test_rest import IMAGE
from tests.support import HANG, ROOT, wait_until
from tests.support.rest_client import SESSIONS, RestClient, rest_server
from tests.support.serving import Client
from tests.support.sticky_proxy import NAMED, proxied
from tests.support.webhook_receiver import receiving

DEPLOY = ROOT / "launch" / "deploy"


def test_a_server_that_drains_finishes_what_runs_and_takes_nothing_new():
    """Else every rollout of a new version cuts off whoever is watching."""
    with rest_server() as server, server.viewer() as viewer:
        client = RestClient(server.http)
        name = client.create()
        client.chunk(name, IMAGE, 0)
        assert server.get("/health/ready")[0] == server.get("/health/live")[0] == 200
        server.server.drain()
        assert server.get("/health/ready")[0] == 503 and server.get("/health/live")[0] == 200
        assert server.metric("svlm_ready") == 0 and server.metric("svlm_up") == 1
        with client.open("POST", SESSIONS, {}) as response:
            assert response.status == 503 and response.headers["Retry-After"] and b"draining" in response.read()
        viewer.send_start("push")
        assert "about to stop" in viewer.error()
        assert [reply["number"] for chunk in (1, 2) for reply in client.chunk(name, IMAGE, chunk)] == [1, 2]
        with client.events("/v1/events") as events:
            assert client.frame(name, IMAGE, "?timestamp=1003.5&final=true")["ended"]
            assert [event["type"] for _, event in events] == ["svlm.caption", "svlm.stream.ended"]  # and the response ends
        assert viewer.close_reason()[0] == 1001  # nothing runs any more
        server.thread.join(HANG)
        assert not server.thread.is_alive()


def test_a_stream_is_found_behind_a_proxy_by_its_name():
    """Else requests of one session go to servers that do not have it."""
    with rest_server(replica="a") as first, rest_server(replica="pod-b-1") as second:
        replicas = {"a": first.address, "pod-b-1": second.address}
        with proxied(replicas) as proxy:
            client = RestClient(proxy.http)
            one = client.create()
            first.server.drain_seconds = HANG
            client.chunk(one, IMAGE, 0)
            first.server.drain()
            other = RestClient(proxy.http)
            two = other.create()  # the proxy asks who is ready
            assert re.fullmatch("a-[a-z0-9]{8}", one) and re.fullmatch("pod-b-1-[a-z0-9]{8}", two)
            for chunk in range(1, 4):
                assert [reply["number"] for reply in client.chunk(one, IMAGE, chunk)] == [chunk]
                assert [reply["number"] for reply in other.chunk(two, IMAGE, chunk - 1)] == [chunk - 1]
            with client.events(f"{SESSIONS}/{one}/events") as events:
                assert next(events)[1]["stream"] == one
            with Client(f"{proxy.http.replace('http', 'ws')}/v1/realtime?stream={one}&key={client.key}") as viewer:
                assert viewer.receive("svlm.stream.joined")["is_owner"]  # a socket too
            with urllib.request.urlopen(f"{proxy.http}/streams/{two}.vtt") as response:
                assert response.read().startswith(b"WEBVTT")
            assert proxy.served.count("a") > 5 and proxy.served.count("pod-b-1") > 5
            assert client.call("DELETE", f"{SESSIONS}/{one}")[0] == other.call("DELETE", f"{SESSIONS}/{two}")[0] == 200


def test_nginx_finds_a_stream_by_the_rules_that_are_tested_here():
    texts = [(DEPLOY / "nginx.conf").read_text(), manifest("ConfigMap")["data"]["default.conf"]]
    paths = ("/v1/streaming/sessions/svlm-0-k3j9x2ab", "/v1/streaming/sessions/a-k3j9x2ab/frame", "/streams/a-k3j9x2ab.vtt")
    for text in texts:
        in_path, in_query = (
            re.compile(rule.replace("(?<", "(?P<")) for rule in re.findall(r'^\s*"~(\^.*)" \$in_', text, re.MULTILINE)
        )
        for path in (*paths, "/v1/streaming/sessions", "/v1/streaming/sessions/k3j9x2ab", "/", "/v1/events", "/a-k3j9x2ab"):
            ours, theirs = NAMED[0].search(path), in_path.search(path)
            assert (ours and ours[1]) == (theirs and theirs["in_path"]), path
        for name in ("svlm-0-k3j9x2ab", "k3j9x2ab", "a-k3j9x2a", ""):
            ours, theirs = NAMED[1].search(f"/v1/realtime?model=x&stream={name}"), in_query.search(name)
            assert (ours and ours[1]) == (theirs and theirs["in_query"]), name


def test_every_metric_is_documented():
    """Whoever builds a dashboard on them must find them, and find them again after an update."""
    with rest_server() as server:
        lines = server.get("/metrics")[1].splitlines()
    names = [line.split()[2:4] for line in lines if line.startswith("# TYPE")]
    rows = (ROOT / "docs" / "deploy.md").read_text().splitlines()
    documented = {
        (name, row.split(" | ")[1]) for row in rows for name in re.findall(r"`(svlm_[a-z_]+)", row.partition(" | ")[0])
    }
    assert {tuple(name) for name in names} == documented


def manifest(kind: str, name: str = "") -> dict:
    found = [
        item
        for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
        if item["kind"] == kind and (not name or item["metadata"]["name"] == name)
    ]
    assert len(found) == 1
    return found[0]


def test_a_pod_has_time_to_drain_and_is_asked_what_the_server_answers():
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    probes = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/health/live", "readiness": "/health/ready", "liveness": "/health/live"}
    drain = next(int(flag.partition("=")[2]) for flag in container["args"] if flag.startswith("--drain-seconds="))
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= drain + pause + 5
    assert manifest("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain + pause
    environment = {variable["name"]: variable["valueFrom"] for variable in container["env"]}
    assert environment["SVLM_REPLICA"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert "secretKeyRef" in environment["SVLM_TOKEN"]
    pods = manifest("Service", "svlm-pods")["spec"]
    assert pods["clusterIP"] == "None" and pods["publishNotReadyAddresses"]  # streams of a pod that drains are still found
    assert manifest("Service", "svlm")["spec"]["sessionAffinity"] == "ClientIP"


def test_the_container_file_installs_what_the_server_needs():
    lines = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [source for line in lines if line.startswith("COPY ") and "--from" not in line for source in line.split()[1:-1]]
    assert {"pyproject.toml", "README.md", "LICENSE", "svlm_jax", "pallas_kernels"} == set(copied)
    assert all((ROOT / source).exists() for source in copied)
    install = next(line for line in lines if "pip install" in line)
    for device, extras in (("cpu", ".[serve]"), ("gpu", ".[serve,gpu]")):
        argument = re.search(r'install --no-cache-dir (".*")$', install)
        assert argument
        script = f"DEVICE={device}; echo {argument[1]}"
        assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == extras + "\n"
    assert lines[-1] == 'ENTRYPOINT ["svlm", "serve", "--host", "0.0.0.0", "--port", "8000"]'
    assert "USER 10001" in lines and "STOPSIGNAL SIGTERM" in lines


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--replica", "A b"], "--replica: got A b"),
        (["--replica", "a-"], "--replica: got a-"),
        (["--webhook", "ftp://host/secret"], "--webhook: got host"),
        (["--webhook-secret", "secret"], "--webhook-secret: got 6 bytes"),
        (["--webhook-events", "svlm.caption", "goals"], "--webhook-events: got goals"),
    ],
)
def test_flags_of_operation_are_checked_before_a_model_is_loaded(flags, wrong):
    parser = argparse.ArgumentParser()
    operation_flags(parser)
    with pytest.raises(InputError, match=wrong) as error:
        check_operation(parser.parse_args(flags))
    assert "/secret" not in str(error.value) and not str(error.value).startswith("--webhook-secret: got secret")
    check_operation(
        parser.parse_args(["--replica", "svlm-0", "--webhook", "https://host/path", "--webhook-events", "svlm.alert"])
    )


def test_webhooks_of_the_flags_get_what_streams_say():
    parser = argparse.ArgumentParser()
    operation_flags(parser)
    with receiving() as receiver, rest_server() as server:
        args = parser.parse_args(["--webhook", receiver.url, "--webhook-events", "svlm.caption", "svlm.stream.ended"])
        webhooks = start_webhooks(args, server.hub)
        client = RestClient(server.http)
        name = client.create()
        for chunk in range(4):
            client.chunk(name, IMAGE, chunk)
        client.call("DELETE", f"{SESSIONS}/{name}")
        receiver.wait(lambda: len(receiver.accepted) == 3)
        server.hub.log.close()
        for webhook in webhooks:
            webhook.stop()
    assert [event.get("text") for event in receiver.accepted] == ["Second 1.", "Second 3.", None]
    assert all(event["stream"] == name for event in receiver.accepted)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return bound.getsockname()[1]


@pytest.mark.slow
def test_two_commands_behind_a_proxy_and_one_of_them_is_replaced(tmp_path):
    """A session goes on in its server while that drains, and the next one starts in the other."""
    ports = {name: free_port() for name in ("a", "b")}
    flags = ["--num-streams", "1", "--drain-seconds", "120", "--size", "56x56"]
    logs = {name: (tmp_path / name).open("w") for name in ports}
    commands = {
        name: subprocess.Popen(
            [sys.executable, "-m", "launch.serve", "--port", str(port), "--replica", name, *flags],
            cwd=ROOT,
            stderr=logs[name],
        )
        for name, port in ports.items()
    }
    try:
        with proxied({name: ("127.0.0.1", port) for name, port in ports.items()}) as proxy:
            wait_until(lambda: all("cache slots" in (tmp_path / name).read_text() for name in ports))
            client = RestClient(proxy.http)
            one = client.create(source={"type": "match", "seed": 5})
            with client.events(f"{SESSIONS}/{one}/events") as events:
                commands["a"].terminate()
                wait_until(lambda: RestClient(f"http://127.0.0.1:{ports['a']}").call("GET", "/health")[1]["ready"] is False)
                other = RestClient(proxy.http)
                two = other.create(source={"type": "match", "seed": 6})
                assert one.startswith("a-") and two.startswith("b-")
                assert next(events)[1]["stream"] == one and client.call("GET", f"{SESSIONS}/{one}")[1]["status"] == "running"
                assert client.call("DELETE", f"{SESSIONS}/{one}")[0] == 200
            assert commands["a"].wait(HANG) == 0
            assert other.call("GET", f"{SESSIONS}/{two}")[1]["status"] == "running"
    finally:
        for name, process in commands.items():
            process.kill()
            process.wait()
            logs[name].close()
