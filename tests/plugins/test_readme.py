"""The plugin of the README is whole: it is taken from there, installed, switched on and used."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from agenthive_server.kernel.errors import Refused
from agenthive_server.kernel.tasks import TaskSpec
from agenthive_server.plugin.api import Delegating, Registration
from agenthive_server.plugin.registry import Registry
from agenthive_server.testing.harness import open_served
from agenthive_server.testing.plugin_suite import PluginCase, PluginSuite

README = Path(__file__).parents[2] / "plugins" / "README.md"
HOUR = 3_600.0


@pytest.fixture
def curfew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registration[Any]:
    """The registration in the README."""
    (code,) = re.findall(r"```python\n# (hive_curfew)\.py\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    name, text = code
    path = tmp_path / "site" / f"{name}.py"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(path.parent))
    module = ModuleType(name)
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(text, str(path), "exec"), module.__dict__)
    registration: Registration[Any] = module.registration
    return registration


class TestCurfew(PluginSuite):
    @pytest.fixture
    def case(self, curfew: Registration[Any]) -> PluginCase:
        return PluginCase(registration=curfew, settings={"begins": 23}, others={"ends": 5})


async def test_nights_are_quiet(curfew: Registration[Any], tmp_path: Path) -> None:
    registry = Registry([curfew])
    settings: dict[str, Any] = {"server__data_dir": str(tmp_path), "plugins__enabled": ["curfew"]}
    async with open_served(registry=registry, **settings) as (app, _):
        (hook,) = app.kernel.hooks.current.before_delegate

        def at(hour: int, noise: str) -> Delegating:
            spec = TaskSpec(type="work", labels={"noise": noise})
            task = Delegating(namespace="default", now=hour * HOUR, task_id="t", spec=spec)
            hook(task)
            return task

        assert at(12, "loud").spec.priority == 3
        assert at(23, "quiet").spec.priority == 5
        with pytest.raises(Refused, match="nights are quiet"):
            at(2, "loud")
