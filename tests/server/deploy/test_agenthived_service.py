"""The systemd unit, and the settings beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from agenthive_server.__main__ import _parser
from agenthive_server.settings import load

TO_COMMIT_AND_CLOSE = 10.0
"""Seconds a server needs at most after its grace."""


def directive(deploy: Path, name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", (deploy / "agenthived.service").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


def test_it_starts_what_there_is(deploy: Path) -> None:
    program, *words = directive(deploy, "ExecStart").split()
    assert Path(program).name == "agenthived"
    options = _parser().parse_args(words)
    assert options.config == Path("/etc/agenthive/hive.toml")
    assert options.data_dir == f"/var/lib/{directive(deploy, 'StateDirectory')}"


def test_it_waits_for_longer_than_a_server_takes_to_stop(deploy: Path) -> None:
    server = load(deploy / "hive.toml", environ={}).server
    wait = float(directive(deploy, "TimeoutStopSec"))
    assert wait >= server.drain_delay_seconds + server.drain_grace_seconds + TO_COMMIT_AND_CLOSE


def test_what_is_commented_out_in_the_settings_is_right_as_well(deploy: Path, tmp_path: Path) -> None:
    text = (deploy / "hive.toml").read_text(encoding="utf-8")
    file = tmp_path / "hive.toml"
    file.write_text(re.sub(r"^# ?(\[|\w+ = )", r"\1", text, flags=re.MULTILINE))
    settings = load(file, environ={})
    assert settings.server.tls.certificate
    assert settings.plugins.by_name["security"] == {"required": True}


def test_systemd_finds_nothing_wrong(deploy: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze on this machine")
    unit = tmp_path / "agenthived.service"
    # It looks for the program, too.
    text = (deploy / "agenthived.service").read_text(encoding="utf-8")
    program = str(Path(sys.executable).parent / "agenthived")
    unit.write_text(text.replace("/opt/agenthive/bin/agenthived", program), encoding="utf-8")
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
