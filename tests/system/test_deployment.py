"""What operators deploy with, and the list of dependencies, keep up with the product."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from app import BASE_DIR, metrics
from app.settings import Settings
from services.usage import pricing
from tests.support import programs
from tests.support.accounts import SECRET_KEY

DEPLOY = BASE_DIR / "deploy"
NOT_OURS = {"PATH", "PYTHONUNBUFFERED"}
NEEDED = {*programs.SOURCES, "requirements.txt", "pyproject.toml"} - {".env.example"}  # with Alembic's configuration


CHANGED = {
    "DATABASE_URL": "sqlite:///other.db",
    "SECRET_KEY": SECRET_KEY,
    "HOST": "192.0.2.1",
    "PORT": "8001",
    "WORKERS": "3",
    "PRICES_FILE": "/etc/foundation-be/prices.toml",
    "FORWARDED_ALLOW_IPS": "172.16.0.0/12",
    "LLM_BASE_URL": "https://api.example.com/v1",
}


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: each one's name and arguments."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line)]


def own_names() -> set[str]:
    return {name.upper() for name in Settings.model_fields}


def test_the_image_holds_what_the_product_needs_and_nothing_else() -> None:
    copied: set[str] = set()
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            *sources, target = shlex.split(rest)
            copied |= set(sources)
            assert target in (".", "./", sources[0])
    assert copied == NEEDED
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == NEEDED


def test_the_image_runs_the_server_as_nobody_in_particular() -> None:
    last = dict(instructions())
    assert int(last["USER"]) > 0
    assert json.loads(last["CMD"]) == ["python", "main.py"]
    program = json.loads(last["HEALTHCHECK"].partition(" CMD ")[2])[-1]
    compile(program, "HEALTHCHECK", "exec")
    assert "/health" in program
    assert all(":" in rest.split()[0] for name, rest in instructions() if name == "FROM"), "no image without a version"


def test_the_settings_of_image_composition_and_unit_are_the_products() -> None:
    composed: Any = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    in_image = re.findall(r"([A-Z_]+)=", " ".join(rest for name, rest in instructions() if name == "ENV"))
    in_unit = re.findall(
        r"^Environment=([A-Z_]+)=", (DEPLOY / "foundation-be.service").read_text(encoding="utf-8"), re.M
    )
    for names in (composed["services"]["server"]["environment"], in_image, in_unit):
        assert names
        assert set(names) - NOT_OURS <= own_names()


def composed() -> Any:
    """What compose.yaml says of the server."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["server"]


def interpolated(value: str, names: dict[str, str]) -> str:
    """A value of compose.yaml as Compose reads it, which refuses `:?` without a value."""

    def replace(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        assert kind == ":-" or names.get(name), f"{name} {rest}"
        return names.get(name) or rest

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", replace, value)


def test_every_setting_gets_into_the_composed_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = composed()
    assert server["env_file"] == [{"path": ".env", "required": False}]
    fixed = {"DATABASE_URL", "HOST", "PORT", "PRICES_FILE"}
    assert server["environment"].keys() == fixed | {"SECRET_KEY", "WORKERS", "LOG_FORMAT"}
    wanted = {name: str(value) for name, value in dotenv_values(BASE_DIR / ".env.example").items()}
    wanted |= CHANGED | {"POSTGRES_PASSWORD": "sesame"}
    passed = wanted | {name: interpolated(value, wanted) for name, value in server["environment"].items()}
    for name in own_names():
        monkeypatch.setenv(name, passed[name])
        assert (passed[name] == wanted[name]) == (name not in fixed), f"{name} is passed on as it is in .env"
    settings = Settings.load()
    assert settings.database_url == "postgresql://foundation:sesame@database:5432/foundation"
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    [mount] = server["volumes"]
    assert mount["target"] == f"/srv/{settings.prices_file.name}"
    assert interpolated(mount["source"], wanted) == CHANGED["PRICES_FILE"]
    default = DEPLOY / interpolated(mount["source"], {})
    assert list(pricing.load(default).own) == [], "it holds comments alone"


def test_whoever_stops_the_server_waits_until_answers_are_settled() -> None:
    enough = Settings().shutdown_seconds + 30
    composed: Any = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert int(composed["services"]["server"]["stop_grace_period"].removesuffix("s")) >= enough
    unit = (DEPLOY / "foundation-be.service").read_text(encoding="utf-8")
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)[0]) >= enough


@pytest.mark.parametrize("requirements", ["requirements.txt", "requirements-dev.txt"])
def test_every_dependency_is_pinned_and_has_its_reason(requirements: str) -> None:
    lines = (BASE_DIR / requirements).read_text(encoding="utf-8").splitlines()
    pinned = {line for line in lines if line and not line.startswith(("#", "-r"))}
    assert all(re.fullmatch(r"[A-Za-z0-9-]+(\[\w+\])?==[\w.]+(; .*)?", line) for line in pinned)
    section = Path(BASE_DIR / "docs" / "dependencies.md").read_text(encoding="utf-8").split(f"(`{requirements}`)")[1]
    reasons = dict(re.findall(r"^\| ([a-z][a-z0-9-]+) \| (.+) \|$", section.split("\n## ")[0], re.M))
    reasons.pop("package")
    assert {re.split(r"[\[=]", line)[0].lower() for line in pinned} == reasons.keys()


def test_every_metric_is_told_of_to_operators() -> None:
    text = (BASE_DIR / "docs" / "operations.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^# HELP (foundation_\w+) ", metrics.exposition(0).decode(), re.M))
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `foundation_"))
    assert set(re.findall(r"`(foundation_\w+)`", table)) == shown != set()
