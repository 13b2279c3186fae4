"""How the series get into the plugin's state and back: chunks of all series over a span, compressed, in parts.

    minutes/<number>/<part>   ten minutes of the minutes; written with every turn while it is the newest
    hours/<number>/<part>     a day of the hours; written when an hour is over, and again when something of it came late

Minutes older than a day and hours older than 40 days are removed, so that there are at most 146 + 42 chunks: with
thirty series some 5 KB each and 1 MB in all; with `MAX_SERIES` full ones at most 900 KB and 2 MB each. A part has at
most 60 KiB. A crash loses at most what came since the last turn. The hours of the last day are made anew from the
minutes when they are read back.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from .buckets import Bucket, joined, pack_histogram, unpack_histogram
from .series import HOURS, MINUTES, TOUCHED, Series, SeriesSet, Span

MINUTES_PREFIX: Final = "minutes/"
HOURS_PREFIX: Final = "hours/"
_CHUNKS: Final[Mapping[str, tuple[int, Span, int]]] = {
    MINUTES_PREFIX: (1, MINUTES, 600),
    HOURS_PREFIX: (2, HOURS, 86_400),
}
"""By prefix: the place of the level in a series, its span, and how many seconds a chunk holds."""

PART_BYTES: Final = 60 * 1024
"""What a value of a plugin's state may have, with some room."""

_VERSION: Final = 1
_HEAD: Final = struct.Struct("<BH")
_NAME: Final = struct.Struct("<HI")
_BUCKET: Final = struct.Struct("<qddddH")


class Damaged(Exception):
    """A chunk cannot be read: it was not written by this version, or not whole."""


def chunk_of(prefix: str, time: float) -> str:
    """Return the name of the chunk that holds a time."""
    return f"{prefix}{int(time // _CHUNKS[prefix][2]):012d}"


def chunks_of(prefix: str, touched: Iterable[int], now: float) -> set[str]:
    """Return the names of the chunks that hold these spans (`SeriesSet.take_touched`) and whose time is not over."""
    _, span, _ = _CHUNKS[prefix]
    oldest = (now - span.kept) // TOUCHED
    return {chunk_of(prefix, number * TOUCHED) for number in touched if number >= oldest}


def pack(series: SeriesSet, chunk: str) -> dict[str, bytes]:
    """Return one chunk of all series: its parts by key, each of at most `PART_BYTES`."""
    level, first, end = _extent(chunk)
    blocks: list[bytes] = []
    for name in series.names:
        found = series.find(name)
        rows = [] if found is None else [_row(n, bucket) for n, bucket in found.levels[level].between(first, end)]
        if rows:
            raw = name.encode()
            blocks.append(b"".join((_NAME.pack(len(raw), len(rows)), raw, *rows)))
    parts = _parts(blocks)
    return {f"{chunk}/{number}": part for number, part in enumerate(parts)}


def _parts(blocks: list[bytes]) -> list[bytes]:
    """Return the blocks, compressed, in as few parts as halving gives."""
    part = zlib.compress(_HEAD.pack(_VERSION, len(blocks)) + b"".join(blocks), 1)
    if len(part) <= PART_BYTES or len(blocks) < 2:
        return [part]
    half = len(blocks) // 2
    return _parts(blocks[:half]) + _parts(blocks[half:])


def _row(number: int, bucket: Bucket) -> bytes:
    histogram = pack_histogram(bucket.histogram)
    head = _BUCKET.pack(number, bucket.count, bucket.total, bucket.least, bucket.most, len(histogram))
    return head + _little(histogram)


def _little(histogram: bytes) -> bytes:
    """Return the pairs of a histogram in the order of bytes that chunks have, whatever this machine's is."""
    flat = array("I", histogram)
    return struct.pack(f"<{len(flat)}I", *flat)


def _extent(key: str) -> tuple[int, int, int]:
    prefix, number = key.split("/")[:2]
    level, span, seconds = _CHUNKS[f"{prefix}/"]
    per = seconds // span.width
    return level, int(number) * per, (int(number) + 1) * per


def unpack(series: SeriesSet, key: str, raw: bytes) -> None:
    """Put what a part of a chunk holds into the series, in the place of what they hold of that time. Raises
    `Damaged`."""
    level, first, end = _extent(key)
    try:
        rows = list(_rows(zlib.decompress(raw)))
    except (zlib.error, struct.error, ValueError, UnicodeDecodeError, IndexError) as error:
        raise Damaged(f"{key}: {error}") from None
    for name, number, bucket in rows:
        found = series.open(name)
        if found is not None and first <= number < end:
            found.levels[level].replace(number, bucket)


def _rows(raw: bytes) -> Iterator[tuple[str, int, Bucket]]:
    version, count = _HEAD.unpack_from(raw, 0)
    if version != _VERSION:
        raise ValueError(f"version {version}")
    at = _HEAD.size
    for _ in range(count):
        length, rows = _NAME.unpack_from(raw, at)
        at += _NAME.size
        name = raw[at : at + length].decode()
        at += length
        for _ in range(rows):
            number, times, total, least, most, size = _BUCKET.unpack_from(raw, at)
            at += _BUCKET.size
            flat = struct.unpack_from(f"<{size // 4}I", raw, at)
            at += size
            yield name, number, Bucket(times, total, least, most, unpack_histogram(array("I", flat).tobytes()))


def expired(keys: Iterable[str], now: float) -> list[str]:
    """Return the keys of those parts of chunks whose time is over."""
    gone = []
    for key in keys:
        prefix, number = key.split("/")[:2]
        _, span, seconds = _CHUNKS[f"{prefix}/"]
        if (int(number) + 1) * seconds < now - span.kept:
            gone.append(key)
    return gone


def rebuild_hours(series: SeriesSet, now: float) -> None:
    """Make the hours of the last day from its minutes, which are written more often."""
    first = int((now - MINUTES.kept) // HOURS.width) + 1
    for name in series.names:
        found = series.find(name)
        if found is not None:
            for hour in range(first, int(now // HOURS.width) + 1):
                _rebuild(found, hour)


def _rebuild(series: Series, hour: int) -> None:
    _, minutes, hours = series.levels
    per = HOURS.width // MINUTES.width
    whole = joined(bucket for _, bucket in minutes.between(hour * per, (hour + 1) * per))
    if whole.count:
        hours.replace(hour, whole)
