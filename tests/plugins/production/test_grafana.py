"""The dashboard asks only for what a server tells: every metric and label of every expression is in a real scrape."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from agenthive import TaskContext, Worker
from agenthive.errors import NotFound
from agenthive_server.plugin.api import Call, Outcome, Plugin, PluginContext, Registration, Stage
from agenthive_server.plugin.registry import Registry
from agenthive_server.testing.harness import open_sdk_workers, open_served
from agenthive_server.testing.waiting import eventually
from prometheus_client.parser import text_string_to_metric_families

FOLDER = Path(str(files("agenthive_plugins"))) / "production" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "agenthive.json").read_text(encoding="utf-8"))

SCRAPED = frozenset({"job", "instance"})
"""Labels that Prometheus adds."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"(?<![\w:$])([a-zA-Z_:][\w:]*+)\s*+(\{[^}]*\})?(?!\()")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})
_SPAN = re.compile(r"\[[^\]]*\]")


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the metrics an expression selects, each with the labels it is selected by."""
    bare = _SPAN.sub("", _STRING.sub('""', expression))
    for name, matchers in _SELECTOR.findall(_GROUPING.sub(" ", bare)):
        if name.lower() not in _WORDS:
            yield name, set(_MATCHER.findall(matchers))


def grouping(expression: str) -> set[str]:
    """Return the labels by which an expression groups or joins."""
    lists = _GROUPING.findall(_STRING.sub('""', expression))
    return {label.strip() for labels in lists for label in labels.split(",")} - {""}


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return [*panels, *(each["expr"] for each in DASHBOARD["annotations"]["list"])]


def test_expressions_are_taken_apart() -> None:
    quantile = 'histogram_quantile(0.99, sum by (method, le) (rate(a_b{job=~"$j{x}",code!="OK"}[5m])))'
    text = f"{quantile} / max(c) or vector(0)"
    assert list(selectors(text)) == [("a_b", {"job", "code"}), ("c", set())]
    assert grouping(text) == {"method", "le"}


class Watches:
    """An interceptor that does nothing."""

    stage = Stage.OBSERVE

    def before(self, call: Call) -> None:
        """Do nothing."""

    def after(self, call: Call, outcome: Outcome) -> None:
        """Do nothing."""


@asynccontextmanager
async def open_plugin(ctx: PluginContext[Any]) -> AsyncIterator[Plugin]:
    yield Plugin(interceptors=(Watches(),))


@pytest.fixture
async def scrape(tmp_path: Path) -> dict[str, set[str]]:
    """Metric names with their labels, as a hive tells them that has done a bit of everything."""
    registry = Registry([Registration(name="watch", open=open_plugin)])
    settings = {"server__web": "127.0.0.1:0", "server__archive_dir": str(tmp_path / "archive")}
    worker_settings: dict[str, Any] = {"plugins__enabled": ["watch"], **settings}
    async with open_served(tmp_path / "data", registry=registry, **worker_settings) as (app, client):
        worker = Worker(f"127.0.0.1:{app.port}", agent_id="w", capabilities=["c"])

        @worker.task("work")
        async def work(task: TaskContext) -> dict[str, int]:
            return {"done": 1}

        async with open_sdk_workers(client, worker), client.events() as events:
            following = asyncio.ensure_future(anext(aiter(events)))
            await client.delegate("work", required_capabilities=["c"], wait=True)
            await client.delegate("work", required_capabilities=["nobody has this"])
            await following
            with suppress(NotFound):
                await client.get_task("none")
            assert app.web is not None
            assert (archive := app.archive) is not None  # noqa: RUF018 - for the type checker, too
            await eventually(lambda: archive.backups)
            url = f"http://127.0.0.1:{app.web.port}/metrics"
            text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    found: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return found


async def test_every_metric_and_label_of_the_dashboard_exists(scrape: dict[str, set[str]]) -> None:
    asked = [(expression, *each) for expression in expressions() for each in selectors(expression)]
    assert len(asked) > 50
    for expression, name, labels in asked:
        assert name in scrape, f"{name} is in no scrape: {expression}"
        missing = labels - scrape[name] - SCRAPED
        assert not missing, f"{name} has no {missing}: {expression}"
    for expression in expressions():
        told = {label for name, _ in selectors(expression) for label in scrape[name]}
        assert grouping(expression) <= told | SCRAPED, expression


def test_the_golden_signals_are_there() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert {"Traffic", "Errors", "Latency", "Saturation"} <= set(rows)
    plots = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert all(panel["title"] and panel["targets"] for panel in plots)


def test_panels_do_not_overlap_and_their_ids_differ() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24, panel["title"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_it_works_with_any_data_source_and_is_found_by_its_provisioning() -> None:
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(DASHBOARD)))
    assert used - {"__rate_interval", "__all"} <= variables
    assert '"uid": "${datasource}"' in json.dumps(DASHBOARD)
    provider = (FOLDER / "provisioning" / "dashboards" / "agenthive.yaml").read_text(encoding="utf-8")
    assert "type: file" in provider
    assert "type: prometheus" in (FOLDER / "provisioning" / "datasources" / "prometheus.yaml").read_text(
        encoding="utf-8"
    )
