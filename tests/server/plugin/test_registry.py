"""The order of plugins, and what keeps one out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from agenthive_server.kernel.errors import Refused
from agenthive_server.plugin.api import Audience, Plugin, Policy, Registration
from agenthive_server.plugin.registry import Registry, discover

Make = Callable[..., Registration[Any]]


def order(registry: Registry) -> list[str]:
    return [each.name for each in registry]


def test_plugins_follow_what_they_require_and_come_after_and_else_their_names(make: Make) -> None:
    registry = Registry([make("d"), make("a", after=("c",)), make("c", requires=("d",)), make("b", after=("absent",))])
    assert order(registry) == ["b", "d", "c", "a"]
    assert registry.broken == {}


def test_a_circle_is_named_and_keeps_only_those_out_that_are_in_it(make: Make) -> None:
    registry = Registry([make("a", after=("b",)), make("b", requires=("a",)), make("c")])
    assert order(registry) == ["c"]
    assert set(registry.broken) == {"a", "b"}
    assert "a → b → a" in registry.broken["a"] or "b → a → b" in registry.broken["a"]


def test_two_of_a_name_are_neither_of_them_used(make: Make) -> None:
    registry = Registry([make("a"), make("a"), make("a"), make("b")])
    assert order(registry) == ["b"]
    assert "two plugins" in registry.broken["a"]


def test_one_that_requires_what_is_not_there_is_kept_out_with_all_that_require_it(make: Make) -> None:
    registry = Registry([make("a", requires=("b",)), make("b", requires=("gone",)), make("c")])
    assert order(registry) == ["c"]
    assert registry.broken == {
        "b": "it requires gone, which is not installed",
        "a": "it requires b, which cannot be used",
    }


def test_two_that_bring_the_same_service_are_kept_out(make: Make) -> None:
    registry = Registry([make("a", services=("x.S",)), make("b", services=("x.S", "x.T"))])
    assert order(registry) == []
    assert registry.broken["a"] == "a and b both bring the service x.S"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"hooks_amend": {"before_noon": frozenset({"priority"})}}, "before_noon, which is no hook that amends"),
        ({"hooks_amend": {"before_delegate": frozenset({"state"})}}, "amends state in before_delegate"),
        ({"policies": {"/x.S/M": Policy(audience=Audience.VIEWER)}}, "policy for /x.S/M"),
    ],
)
def test_a_record_that_makes_no_sense_is_kept_out(make: Make, record: dict[str, Any], why: str) -> None:
    assert why in Registry([make("a", **record)]).broken["a"]


@pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a" * 64])
def test_a_name_is_lower_case_letters_digits_and_dashes(make: Make, name: str) -> None:
    assert "its name" in Registry([make(name)]).broken[name]


AMENDS = {"before_delegate": frozenset({"priority", "labels"})}


def test_two_that_amend_the_same_need_an_order_between_them(make: Make) -> None:
    other = {"before_delegate": frozenset({"labels"})}
    registry = Registry([make("a", hooks_amend=AMENDS), make("b", hooks_amend=other)])
    registry.check_on("a", {"c"})
    with pytest.raises(Refused, match="both amend labels in before_delegate") as refused:
        registry.check_on("a", {"b"})
    assert refused.value.reason == "PLUGIN_CONFLICT"
    ordered = Registry(
        [make("a", hooks_amend=AMENDS), make("m", after=("a",)), make("b", after=("m",), hooks_amend=other)]
    )
    ordered.check_on("a", {"b"})
    ordered.check_on("b", {"a"})


def test_one_cannot_be_on_without_those_it_requires_nor_they_off_while_it_is_on(make: Make) -> None:
    registry = Registry([make("a"), make("b", requires=("a",)), make("c", requires=("b",))])
    with pytest.raises(Refused, match="b requires a; enable a first"):
        registry.check_on("b", set())
    with pytest.raises(Refused, match="b requires a; disable b first"):
        registry.check_off("a", {"a", "b"})
    registry.check_off("a", {"a"})
    assert registry.dependents("a") == ["c", "b"]


REGISTRATION: Registration[Any] = Registration("here", open=lambda ctx: nullcontext(Plugin()))
OTHER = "no registration"


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="agenthive.plugins")


class Found:
    """An entry point whose target is here."""

    def __init__(self, name: str, target: object) -> None:
        self.name = name
        self.value = f"somewhere:{name}"
        self._target = target

    def load(self) -> object:
        return self._target


def test_what_is_installed_is_found_and_a_broken_one_harms_nobody() -> None:
    found: list[Any] = [
        Found("here", REGISTRATION),
        Found("here", REGISTRATION),
        Found("other", OTHER),
        Found("alias", REGISTRATION),
        entry("gone", "agenthive_no_such_module:registration"),
    ]
    registry = discover(found)
    assert order(registry) == ["here"]
    assert set(registry.broken) == {"other", "alias", "gone"}
    assert "ModuleNotFoundError" in registry.broken["gone"]
    assert "calls itself here" in registry.broken["alias"]


def test_without_entry_points_of_its_own_it_looks_for_what_is_installed() -> None:
    assert all(isinstance(each, Registration) for each in discover())
