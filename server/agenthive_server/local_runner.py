"""The local runner of a server: what it is told, so that it finds this server and is let in."""

from __future__ import annotations

from agenthive_server.rpc.exposure import local_address
from agenthive_server.rpc.tls import ServerTls
from agenthive_server.runner.local import JoinToken, LocalRunner
from agenthive_server.settings import Settings, data_dir, runner_environment


def build_runner(settings: Settings, port: int, tls: ServerTls | None, join_token: JoinToken) -> LocalRunner:
    """Return the runner of a server that listens on `port`, not started yet."""
    runner, folder = settings.runner, data_dir(settings)
    host, _, _ = settings.server.listen.rpartition(":")
    arguments = ["--server", f"{local_address(host)}:{port}", "--data-dir", str(folder)]
    arguments += ["--orphan-timeout", str(runner.orphan_timeout_seconds)]
    arguments += ["--maximum-agents", str(runner.maximum_agents), "--log-level", settings.server.log_level]
    for key, value in runner.labels.items():
        arguments += ["--label", f"{key}={value}"]
    if tls is not None:
        # It trusts exactly what is served: whose the certificate is and for which name is the operator's business.
        trusted = folder / "runner" / "server.pem"
        tls.publish(trusted)
        arguments += ["--ca", str(trusted), "--server-name", tls.name_for_local_clients()]
    if runner.certificate:
        arguments += ["--cert", runner.certificate, "--key", runner.key]
    if settings.server.insecure:
        arguments.append("--insecure")
    return LocalRunner(
        arguments,
        folder,
        keep=settings.server.keep_runner,
        environment=runner_environment(),
        join_token=join_token,
    )
