"""The README does what it says: its commands are run as they stand there, against a server started as `make run` does.

With grpcurl where it can be found, and always with `buf curl`, which makes the same calls and comes with the tools.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # no py.typed in that wheel
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # type: ignore[import-untyped] # no py.typed
    ProtoReflectionDescriptorDatabase,
)

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text("utf-8")
DOORS = sorted(path.relative_to(ROOT) for path in [ROOT / "README.md", *ROOT.glob("*/README.md")])
PLACES = {
    door: [ROOT / door.parent, *(ROOT / door.parent).glob("*"), ROOT / "server/agenthive_server"] for door in DOORS
}
"""Where a path in the text of a README may begin."""
TOOLS = ["buf", *(["grpcurl"] if shutil.which("grpcurl") else [])]
ADDRESS = "localhost:50051"
LEFT_OUT = "..."
PATIENCE = 60

CHANGING = (
    (r'"\d{4}-\d\d-\d\dT[\d:.]+Z"', '"TIME"'),
    (r'"c1\.[\w.]+"', '"CURSOR"'),
    (r'"sequence": "\d+"', '"sequence": "N"'),
)
"""What is another in every run."""


@dataclass
class Shown:
    """A command of the README, and the lines it shows as its output."""

    command: str
    lines: list[str] = field(default_factory=list)


def shown(text: str) -> list[Shown]:
    """Return the commands of the console blocks; one goes on until its quotes are closed and its last line ends."""
    found: list[Shown] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        complete = True
        for line in block.splitlines():
            if complete and not line.startswith("$ "):
                found[-1].lines.append(line)
                continue
            found += [Shown(line[2:])] if complete else []
            found[-1].command += "" if complete else "\n" + line
            complete = is_complete(found[-1].command)
    return found


def is_complete(command: str) -> bool:
    """Say whether a shell would run this, or wait for the rest of it."""
    try:
        shlex.split(command)
    except ValueError:
        return False
    return not command.endswith("\\")


def essence(lines: list[str]) -> list[str]:
    """Return lines without their indentation, commas and what is another in every run."""
    cleaned = []
    for line in lines:
        for pattern, word in CHANGING:
            line = re.sub(pattern, word, line)
        cleaned.append(line.strip().rstrip(","))
    return cleaned


def missing(expected: list[str], actual: list[str]) -> list[str]:
    """Return the first stretch of expected lines that is not found, in order; lines may be left out at `...` only."""
    stretches: list[list[str]] = [[]]
    for line in essence(expected):
        if line == LEFT_OUT:
            stretches.append([])
        else:
            stretches[-1].append(line)
    lines, at = essence(actual), 0
    for number, stretch in enumerate(stretches):
        ends = range(at, len(lines) - len(stretch) + 1) if number else [0]
        found = next((here for here in ends if lines[here : here + len(stretch)] == stretch), None)
        if found is None:
            return stretch
        at = found + len(stretch)
    return [] if at == len(lines) or not stretches[-1] else stretches[-1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server started by the recipe of `make run`, with its own port and data; stopped by Ctrl-C."""
    recipe = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "agenthived serve" in line)
    data = str(tmp_path / "data")
    words = recipe.strip().lstrip("@").replace("$(BIN)", str(BIN)).replace("$(ARGS)", "--listen 127.0.0.1:0").split()
    words = [data if word == ".agenthive" else word for word in words]
    with subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            serving = re.match(r"SERVING (\S+)", process.stdout.readline())
            assert serving
            yield serving[1]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if data in read(path)] == []


def read(path: Path) -> str:
    """Return what is in a file that may be gone by now."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


class Shell:
    """Runs the commands of the README against a server at another address."""

    def __init__(self, tool: str, address: str) -> None:
        self._tool = tool
        self._address = address
        self._background: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> list[str]:
        """Run a command and return its output, errors included."""
        words = [word for word in shlex.split(command.replace("\\\n", " ")) if word != "&"]
        if words[0] == "grpcurl":
            return self._buf(words) if self._tool == "buf" else self._output(self._here(words))
        words[0] = words[0].replace(".venv/bin", str(BIN))
        if command.endswith("&"):
            self._background.append(subprocess.Popen([*words, self._address], cwd=ROOT))
            return []
        return self._output(words, stderr=subprocess.DEVNULL)

    def _here(self, words: list[str]) -> list[str]:
        return [self._address if word == ADDRESS else word for word in words]

    def _output(self, words: list[str], stderr: int = subprocess.STDOUT) -> list[str]:
        done = subprocess.run(
            words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=stderr, check=False, timeout=PATIENCE
        )
        return done.stdout.splitlines()

    def _buf(self, words: list[str]) -> list[str]:
        """Make the call of a grpcurl command with `buf curl`, and show its answer as grpcurl does."""
        curl = [str(BIN / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect"]
        url, (verb, *rest) = f"http://{self._address}", words[words.index(ADDRESS) + 1 :]
        if verb == "list":
            return self._output([*curl, "--list-services", url])
        if verb == "describe":
            return self._described(rest[0])
        given = ["-d", words[words.index("-d") + 1]] if "-d" in words else []
        answer = documents("\n".join(self._output([*curl, *given, f"{url}/{verb}"])))
        if answer and "code" in answer[0]:
            return error_lines(answer[0])
        return [line for document in answer for line in json.dumps(document, indent=2).splitlines()]

    def _described(self, symbol: str) -> list[str]:
        service_name, _, method_name = symbol.rpartition(".")
        with grpc.insecure_channel(self._address) as channel:
            file = ProtoReflectionDescriptorDatabase(channel).FindFileContainingSymbol(symbol)
        (service,) = [each for each in file.service if f"{file.package}.{each.name}" == service_name]
        (method,) = [each for each in service.method if each.name == method_name]
        described = f"rpc {method.name} ( {method.input_type} ) returns ( {method.output_type} );"
        return [f"{symbol} is a method:", described]

    def close(self) -> None:
        """End what runs in the background, as the end of a terminal would."""
        for process in self._background:
            process.terminate()
            assert process.wait(PATIENCE) == 0


def documents(text: str) -> list[dict[str, Any]]:
    """Return the JSON documents that follow each other in a text."""
    found, decoder, at = [], json.JSONDecoder(), 0
    while (at := len(text) - len(text[at:].lstrip())) < len(text):
        document, at = decoder.raw_decode(text, at)
        found.append(document)
    return found


def error_lines(error: dict[str, Any]) -> list[str]:
    """Return an error as grpcurl shows it."""
    code = "".join(word.capitalize() for word in error["code"].split("_"))
    lines = ["ERROR:", f"  Code: {code}", f"  Message: {error['message']}", "  Details:"]
    for detail in error["details"]:
        message = getattr(error_details_pb2, detail["type"].rpartition(".")[2])()
        message.ParseFromString(unpadded(detail["value"]))
        lines += json.dumps(json_format.MessageToDict(message), indent=2).splitlines()
    return lines


def unpadded(text: str) -> bytes:
    """Return the bytes of base64 without its padding."""
    return base64.b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.timeout(3 * PATIENCE)
@pytest.mark.parametrize("tool", TOOLS)
def test_what_the_readme_shows_is_what_happens(tool: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTHIVE_SERVER", server)
    commands = shown(README)
    assert len([each for each in commands if each.command.startswith("grpcurl")]) >= 7
    shell = Shell(tool, server)
    try:
        for each in commands:
            actual = shell.run(each.command)
            assert missing(each.lines, actual) == [], "\n".join([each.command, *actual])
    finally:
        shell.close()


def test_the_worker_of_the_readme_is_the_one_of_the_examples() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert code == (ROOT / "clients/python/examples/worker.py").read_text("utf-8")
    assert len([line for line in code.splitlines() if line]) <= 20


@pytest.mark.parametrize("door", DOORS, ids=str)
def test_what_a_readme_points_to_is_there(door: Path) -> None:
    text = (ROOT / door).read_text("utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
    assert [link for link in links if not (ROOT / door.parent / link).exists()] == []
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|proto|toml|yaml|txtpb))`", text)
    assert [path for path in named if not any((place / path).exists() for place in PLACES[door])] == []


def test_lines_may_be_left_out_where_the_readme_says_so_and_nowhere_else() -> None:
    actual = ["{", '  "a": 1,', '  "time": "2026-01-01T00:00:00Z",', '  "b": 2', "}"]
    assert missing(["{", '"a": 1', "...", '"b": 2', "}"], actual) == []
    assert missing(["...", '"time": "2000-12-31T23:59:59.5Z"', "..."], actual) == []
    assert missing(["{", '"b": 2', "}"], actual) != []
    assert missing(["{", '"a": 1'], actual) != []
    assert missing(["{", "...", '"a": 2', "..."], actual) == ['"a": 2']
