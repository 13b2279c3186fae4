"""An agent that finds the functions with the most branches: cyclomatic complexity of Python code, by its syntax tree.

Input: `{"folder": "server", "rest": 0.05}`; `rest` (optional) is a pause in seconds after each file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol import Task, serve
from sources import folder_of, source_files

WORST = 10
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.comprehension)


def complexity(function: ast.AST) -> int:
    """Return the number of independent ways through a function, those inside it included."""
    nodes = list(ast.walk(function))
    branches = sum(isinstance(node, BRANCHES) for node in nodes)
    return 1 + branches + sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))


def functions(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the functions of a file."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield {"function": node.name, "place": f"{path}:{node.lineno}", "complexity": complexity(node)}


def analyze(task: Task) -> dict[str, Any]:
    """Look at every function below the folder of the task."""
    folder, rest = folder_of(task.input), float(task.input.get("rest", 0.0))
    files = source_files(folder, ".py")
    found: list[dict[str, Any]] = []
    for number, path in enumerate(files, 1):
        found += functions(path)
        task.progress(number / len(files), str(path), rest)
    found.sort(key=lambda each: -each["complexity"])
    return {"folder": str(folder), "functions": len(found), "worst": found[:WORST]}


if __name__ == "__main__":
    serve(analyze)
