"""The texts of statements: those made beforehand are those of the schema, and suffice for a server that runs tasks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from agenthive_server.kernel.records import Kind
from agenthive_server.storage import building, compiled, statements

RUN = """
import asyncio, sys
from agenthive_server.app import App
from agenthive_server.settings import load
async def main():
    flags = {"server.listen": "127.0.0.1:0", "server.runner": False, "server.data_dir": sys.argv[1]}
    app = App(load(flags=flags, environ={}))
    await app.open()
    print(sorted(name for name in sys.modules if name.split(".")[0] in ("sqlalchemy", "alembic")))
    await app.close()
asyncio.run(main())
"""


def test_the_texts_are_those_of_the_schema() -> None:
    assert building.texts() == compiled.TEXTS, "make gen"
    assert building.create_all() == compiled.TABLES, "make gen"


def test_several_rows_are_several_times_one() -> None:
    one = statements.insert_record(Kind.TASK)
    three = statements.insert_records(Kind.TASK, 3)
    assert (three.startswith(one), three.count("?")) == (True, 3 * one.count("?"))
    assert statements.insert_events(2).count("?") == 2 * statements.INSERT_EVENTS.count("?")
    assert statements.update_records(Kind.AGENT, 8).count("?") == 8 * statements.update_record(Kind.AGENT).count("?")


def test_a_page_with_conditions_is_built_when_it_is_asked_for() -> None:
    text = statements.query_records(Kind.TASK, ("role",), states=2, open_only=False, labels=1, prefix=False, after=True)
    assert text.count("?") == 1 + 1 + 2 + 2 + 2 + 1


async def test_a_server_starts_on_a_new_folder_and_an_old_one_without_sqlalchemy(tmp_path: Path) -> None:
    for _ in range(2):
        started = await asyncio.create_subprocess_exec(sys.executable, "-c", RUN, str(tmp_path), stdout=subprocess.PIPE)
        out, _ = await started.communicate()
        assert out.decode().strip() == "[]"
