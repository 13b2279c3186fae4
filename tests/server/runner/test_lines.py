"""The line protocol: what is a line of it, what is output, and that neither takes more memory than promised."""

from __future__ import annotations

import itertools

import pytest
from agenthive.v1 import task_pb2
from agenthive_server.runner.lines import LINE_BYTES, LineReader, Said, error_of, parse_line
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"progress": 0.5}', Said("progress", 0.5)),
        (b'{"progress": 1, "text": "done"}', Said("progress", 1, "done")),
        (b'{"output": "a"}\r\n', Said("output", "a")),
        (b'  {"checkpoint": ""}  \n', Said("checkpoint", "")),
        (b'{"usage": {}}', Said("usage", {})),
        (b'{"result": null}', Said("result", None)),
        (b'{"result": "a", "content_type": "text/plain"}', Said("result", "a", "text/plain")),
        (b'{"error": {}}', Said("error", {})),
        (b'{"ready": true}', Said("ready", True)),
        (b'{"result": 1, "task_id": "t", "lease_epoch": 3}', Said("result", 1, None, "t", 3)),
    ],
)
def test_lines_of_the_protocol(line: bytes, said: Said) -> None:
    assert parse_line(line) == said


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"text",
        b"[1]",
        b'{"progress": 1.5}',
        b'{"progress": true}',
        b'{"progress": NaN}',
        b'{"progress": "0.5"}',
        b'{"progress": 0.5, "text": 1}',
        b'{"progress": 0.5, "output": "two keys"}',
        b'{"level": "info", "error": {"message": "a JSON log"}}',
        b'{"error": "only text"}',
        b'{"error": {"code": 1}}',
        b'{"error": {"next_retry_delay": -1}}',
        b'{"error": {"next_retry_delay": Infinity}}',
        b'{"ready": false}',
        b'{"usage": {"input_tokens": -1}}',
        b'{"usage": {"input_tokens": 1.5}}',
        b'{"usage": {"input_tokens": 99999999999999999999}}',
        b'{"usage": {"words": 1}}',
        b'{"context_usage": 2}',
        b'{"checkpoint": "' + b"x" * 65537 + b'"}',
        b'{"result": 1, "task_id": 7}',
        b'{"result": 1, "lease_epoch": "x"}',
        b'{"result": ' + b"9" * 5000 + b"}",
        b'{"result": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"result": "\xff"}',
        b'{"result": "' + b"x" * LINE_BYTES + b'"}',
    ],
)
def test_everything_else_is_output(line: bytes) -> None:
    assert parse_line(line) is None


def test_output_between_lines_is_joined_and_order_is_kept() -> None:
    reader = LineReader()
    items = (
        list(reader.feed(b'a\nb\n{"ready": true}\nc\n{"output"'))
        + list(reader.feed(b': "d"}\n'))
        + list(reader.close())
    )
    assert items == [b"a\nb\n", Said("ready", True), b"c\n", Said("output", "d")]


def test_what_cannot_become_a_line_is_not_held_back() -> None:
    assert list(LineReader().feed(b"thinking...")) == [b"thinking..."]


def test_no_more_than_a_line_is_held() -> None:
    reader = LineReader()
    held = 0
    for _ in range(40):
        held += 100_000
        held -= sum(len(item) for item in reader.feed(b"{" * 100_000) if isinstance(item, bytes))
        assert held <= LINE_BYTES + 100_000
    assert list(reader.feed(b'\n{"ready": true}\n'))[1:] == [Said("ready", True)]


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"\n", b'{"ready": true}\n', b'{"output": "x"}', b"\r\n"])))
def test_no_byte_of_output_is_lost_or_moved(blocks: list[bytes]) -> None:
    whole, pieces = LineReader(), LineReader()
    joined = b"".join(blocks)
    at_once = [*whole.feed(joined), *whole.close()]
    in_pieces = [*itertools.chain.from_iterable(pieces.feed(block) for block in blocks), *pieces.close()]
    assert _flat(at_once) == _flat(in_pieces)
    outputs = b"".join(item for item in at_once if isinstance(item, bytes))
    said = [line for line in joined.splitlines(keepends=True) if parse_line(line)]
    assert len(outputs) <= len(joined)
    if not said:
        assert outputs == joined


def _flat(items: list[Said | bytes]) -> list[Said | bytes]:
    flat: list[Said | bytes] = []
    for item in items:
        if isinstance(item, bytes) and flat and isinstance(flat[-1], bytes):
            flat[-1] += item
        else:
            flat.append(item)
    return flat


def test_an_error_that_makes_no_sense_is_an_error_all_the_same() -> None:
    value = {"class": "NO_SUCH", "reason": "not a word", "message": "m", "next_retry_delay": 1e9}
    assert error_of(value) == (task_pb2.TASK_ERROR_CLASS_TOOL, "AGENT_ERROR", "m", 30 * 24 * 3600.0)
    assert error_of({"class": "INVALID", "reason": "BAD_INPUT"})[:2] == (task_pb2.TASK_ERROR_CLASS_INVALID, "BAD_INPUT")
