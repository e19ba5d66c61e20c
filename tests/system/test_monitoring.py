"""The dashboard and the alerts in `deploy/` match the metrics that the server exports."""

import json
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app import BASE_DIR
from tests.support import openai_server
from tests.support.accounts import Caller
from tests.support.openai_server import Answer, OpenAIServer

RULES = BASE_DIR / "deploy" / "prometheus-rules.yml"
DASHBOARD = BASE_DIR / "deploy" / "grafana-dashboard.json"
CASES = BASE_DIR / "tests" / "data" / "prometheus-rules-test.yml"

OF_PROMETHEUS = {"up"}
ADDED_BY_PROMETHEUS = {"job", "instance"}
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
GROUPING = re.compile(r"\b(?:by|without) \(([^)]*)\)")
TIME = re.compile(r"\[[^]]*\]|\boffset \w+")
SELECTOR = re.compile(r"\b(?!(?:and|or|unless)\b)([a-z_]\w*)\b(?!\s*\()(?:\{([^}]*)\})?")


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The settings of the application under test."""
    return openai_server.settings(database_url, model)


def alerts() -> list[dict[str, Any]]:
    """The rules of all groups."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def panel_expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def expressions() -> list[str]:
    """What alerts, panels and the variables of the dashboard ask Prometheus for."""
    variables = [
        re.sub(r"label_values\((.*), (\w+)\)", r"sum by (\2) (\1)", variable["query"]["query"])
        for variable in dashboard()["templating"]["list"]
        if variable["type"] == "query"
    ]
    return [rule["expr"] for rule in alerts()] + panel_expressions() + variables


def unknown(expressions: Iterable[str], exported: dict[str, set[str]]) -> set[str]:
    """The metrics and labels of these expressions that are not exported."""
    found: set[str] = set()
    labels = set[str]().union(*exported.values()) | ADDED_BY_PROMETHEUS
    for expression in expressions:
        bare = STRING.sub("", expression)
        for names in GROUPING.findall(bare):
            found |= set(re.findall(r"\w+", names)) - labels
        for metric, matchers in SELECTOR.findall(TIME.sub("", GROUPING.sub("", bare))):
            wanted = set(re.findall(r"\w+", matchers)) - ADDED_BY_PROMETHEUS
            if metric not in exported:
                found.add(metric)
            elif wanted - exported[metric]:
                found.add(f"{metric}: {wanted - exported[metric]}")
    return found


async def exported(client: httpx.AsyncClient) -> dict[str, set[str]]:
    """Each metric with its labels; histograms by the names of their parts."""
    text = (await client.get("/metrics")).text
    found: dict[str, set[str]] = {name: set() for name in OF_PROMETHEUS}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture
async def metrics(client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer) -> dict[str, set[str]]:
    """The metrics of an application that has answered, and has asked its model twice."""
    answers = iter([Answer(status=503), Answer()])
    model.answer = lambda _: next(answers)
    question = {"message": "Hi", "stream": False}
    assert (await client.post("/chat", headers=ayu.headers, json=question)).status_code == 200
    return await exported(client)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_alerts_and_panels_use_exported_metrics(metrics: dict[str, set[str]]) -> None:
    assert unknown(expressions(), metrics) == set()
    used = {name for name in metrics if any(re.search(rf"\b{name}\b", text) for text in expressions())}
    ours = {name for name in metrics if name.startswith("foundation_") and not name.endswith(("_count", "_sum"))}
    assert used == ours | OF_PROMETHEUS, "an operator sees each metric"


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_misspelt_metrics_and_labels_are_found(metrics: dict[str, set[str]]) -> None:
    for wrong, finding in {
        "increase(foundation_retrys_total[5m]) > 0": "foundation_retrys_total",
        "up == 0 or fundation_messages_pending == 0": "fundation_messages_pending",
        'foundation_http_request_seconds{route="/chat"}': "foundation_http_request_seconds",
        'foundation_retries_total{off="model"}': "foundation_retries_total: {'off'}",
        "sum by (state) (foundation_turns_settled_total)": "state",
    }.items():
        assert unknown([wrong], metrics) == {finding}


def test_alerts_say_how_urgent_they_are_and_what_to_do() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) > 0
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]


def test_the_dashboard_leaves_the_data_source_to_grafana() -> None:
    board = dashboard()
    assert board["uid"] == "foundation-be"
    uids = re.findall(r'"uid": "(.*)"', DASHBOARD.read_text(encoding="utf-8"))
    assert set(uids) == {board["uid"], "${datasource}"}
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "instance"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all('instance=~"$instance"' in text for text in panel_expressions())


def promtool(*arguments: str | Path) -> None:
    """Runs promtool, which must be content."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_alerts() -> None:
    promtool("check", "rules", RULES)


def test_prometheus_accepts_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    queries = [text.replace("$__rate_interval", "5m").replace("$instance", ".*") for text in panel_expressions()]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(queries)]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", path)


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    cases = CASES.read_text(encoding="utf-8")
    assert {rule["alert"] for rule in alerts()} == set(re.findall(r"Foundation\w+", cases))
    promtool("test", "rules", CASES)


def test_prometheus_accepts_the_configuration_of_the_guide(tmp_path: Path) -> None:
    guide = (BASE_DIR / "docs" / "operations.md").read_text(encoding="utf-8")
    [indented] = re.findall(r"```yaml\n( *rule_files:.*?) *```", guide, re.S)
    block = textwrap.dedent(indented)
    [job] = yaml.safe_load(block)["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}} == 0' in {rule["expr"] for rule in alerts()}
    (tmp_path / "prometheus.yml").write_text(block, encoding="utf-8")
    shutil.copy(RULES, tmp_path)
    promtool("check", "config", tmp_path / "prometheus.yml")
