"""ops/ against the tools that read it: systemd and Compose."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]

from tests.harness import DEADLINE, ROOT

OPS: Final = ROOT / "ops"
UNITS: Final = sorted(path for path in OPS.iterdir() if path.suffix in {".service", ".timer"})
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((OPS / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE: Final = (OPS / "Dockerfile").read_text(encoding="utf-8")
KNOWN: Final = {  # of a service (compose-spec.io); Compose refuses others
    "build", "cap_drop", "depends_on", "environment", "healthcheck", "image", "ports", "read_only", "restart",
    "security_opt", "shm_size", "stop_grace_period", "stop_signal", "tmpfs", "ulimits", "volumes",
}  # fmt: skip


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_verifies_a_unit(unit: Path, tmp_path: Path) -> None:
    """systemd has nothing to say against it; of a template, against an instance."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (apt install systemd)")
    for each in UNITS:
        text = each.read_text(encoding="utf-8").replace("/opt/bistro92/.venv/bin/python", sys.executable)
        (tmp_path / each.name.replace("@.", "@8001.")).write_text(text)
    instance = tmp_path / unit.name.replace("@.", "@8001.")
    command = ["systemd-analyze", "verify", "--man=no", str(instance)]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    complaints = [line for line in verified.stderr.splitlines() if "bistro92" in line]
    assert (verified.returncode, complaints) == (0, [])


def test_units_are_equally_hardened() -> None:
    """The template is as closed as the single service."""
    single, template = [
        (OPS / name).read_text(encoding="utf-8").partition("# It listens")[2].partition("\n")[2]
        for name in ("bistro92.service", "bistro92@.service")
    ]
    assert "ProtectSystem=strict" in single
    assert single == template


def test_compose_says_what_compose_knows() -> None:
    """Its members are Compose's, and whatever one names is there: services, volumes, files, conditions."""
    assert {name for name in COMPOSE if not name.startswith("x-")} == {"name", "services", "volumes"}
    services = COMPOSE["services"]
    assert set(services) == {"postgres", "app1", "app2", "nginx"}
    for service in services.values():
        assert set(service) <= KNOWN
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or source == "./tls" or (OPS / source).is_file()
    assert (OPS / services["app1"]["build"]["context"] / services["app1"]["build"]["dockerfile"]).is_file()
    upstream = (OPS / "compose-upstream.conf").read_text(encoding="utf-8")
    assert re.findall(r"server (\w+):8000", upstream) == [name for name in services if name.startswith("app")]


def test_images_are_pinned() -> None:
    """Each to one version: what was tried is what is run."""
    images = [service["image"] for service in COMPOSE["services"].values()]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert [image for image in images if not re.fullmatch(r"[a-z0-9]+:\d+\.\d+(\.\d+)?(-[a-z]+)*", image)] == []


def test_the_image_has_what_the_program_needs() -> None:
    """Every path that is copied is in the project, and the whole program is among them."""
    copied = [path for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for path in line.split()]
    assert {"app.py", "requirements-postgres.txt", "scaleout/", "screens/"} <= set(copied)
    assert [path for path in copied if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("sound", [True, False])
def test_docker_compose_reads_it(tmp_path: Path, sound: bool) -> None:
    """Compose itself says that the file is sound, and finds what isn't; it needs no engine for that."""
    text = (OPS / "compose.yaml").read_text(encoding="utf-8")
    if not sound:
        text = text.replace("restart:", "restrt:")
    if has_plugin():
        compose = ["docker", "compose"]
    elif shutil.which("docker-compose"):  # Debian's, 1.29: it names projects by an option only
        compose, text = ["docker-compose"], re.sub(r"(?m)^name: .*$", "", text)
    else:
        pytest.skip("apt install docker-compose (or Docker's plugin): it reads ops/compose.yaml")
    (tmp_path / "compose.yaml").write_text(text, encoding="utf-8")
    command = [*compose, "--project-directory", str(OPS), "--file", str(tmp_path / "compose.yaml"), "config", "--quiet"]
    settings = {**os.environ, "POSTGRES_PASSWORD": "secret"}
    read = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (read.returncode == 0) == sound, read.stderr
    assert sound or "restrt" in read.stderr


def has_plugin() -> bool:
    """Whether Docker has its Compose plugin."""
    asked = [shutil.which("docker") or "false", "compose", "version"]
    return subprocess.run(asked, capture_output=True, timeout=DEADLINE, check=False).returncode == 0
