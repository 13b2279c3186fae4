"""The shipped service config covers the unary calls and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

from agenthive.service_config import CHANNEL_OPTIONS, SERVICE_CONFIG, call_metadata


def test_unary_calls_wait_for_ready_and_are_repeated() -> None:
    (config,) = json.loads(SERVICE_CONFIG)["methodConfig"]
    assert config["waitForReady"] is True
    assert config["retryPolicy"]["maxAttempts"] == 5
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]
    names = {(each["service"].removeprefix("agenthive.v1."), each["method"]) for each in config["name"]}
    assert ("OrchestratorService", "DelegateTask") in names
    assert ("PluginService", "EnablePlugin") in names
    for stream in (("OrchestratorService", "StreamEvents"), ("MessagingService", "StreamMessages")):
        assert stream not in names
    assert dict(CHANNEL_OPTIONS)["grpc.max_receive_message_length"] == 64 * 1024 * 1024


def test_metadata_names_namespace_and_token() -> None:
    assert call_metadata("n", None) == (("agenthive-namespace", "n"),)
    assert call_metadata("n", "t")[1] == ("authorization", "Bearer t")


def test_importing_the_stubs_brings_neither_the_client_nor_the_status_protos() -> None:
    program = (
        "import sys, agenthive.v1.task_pb2\n"
        "print([name for name in sys.modules if name.startswith(('grpc', 'google.rpc', 'agenthive.client'))])\n"
        "import agenthive\n"
        "print(agenthive.Client.__name__, agenthive.Worker.__name__, agenthive.errors.NotFound.__name__)\n"
        "print(agenthive.payload.payload('x').data)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "Client Worker NotFound", "b'x'"]
