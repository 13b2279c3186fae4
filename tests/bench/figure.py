"""A number of the benches, with the bound it has to keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A number, its bound and its aim; `at_least` says which side is good."""

    name: str
    value: float
    must: float
    aim: float
    at_least: bool
    detail: str

    @property
    def holds(self) -> bool:
        """Whether the bound holds."""
        return self.value >= self.must if self.at_least else self.value <= self.must
