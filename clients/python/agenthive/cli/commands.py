"""The commands of `hive`, put together."""

from __future__ import annotations

import typer

from agenthive.cli import (
    agents,
    alerts,
    audit,
    backups,
    blobs,
    completion,
    events,
    health,
    messages,
    plugins,
    pools,
    production,
    roles,
    routing,
    run,
    tasks,
    threats,
    tokens,
    top,
    version,
)
from agenthive.cli.options import HiveCommand, HiveGroup


def build_app() -> typer.Typer:
    """Return the whole command line."""
    app = typer.Typer(
        cls=HiveGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
        rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )  # fmt: skip
    app.callback()(_describe)
    app.command("run", cls=HiveCommand)(run.run_task)
    app.add_typer(tasks.group, name="tasks")
    app.add_typer(agents.group, name="agents")
    app.command("events", cls=HiveCommand)(events.events)
    app.command("top", cls=HiveCommand)(top.top)
    app.command("explain", cls=HiveCommand)(routing.explain)
    app.add_typer(messages.group, name="messages")
    app.add_typer(blobs.group, name="blobs")
    app.command("health", cls=HiveCommand)(health.health)
    app.command("metrics", cls=HiveCommand)(health.metrics)
    app.add_typer(plugins.group, name="plugins")
    app.command("production", cls=HiveCommand)(production.production)
    app.add_typer(alerts.group, name="alerts")
    app.command("sla", cls=HiveCommand)(production.sla)
    app.add_typer(pools.group, name="pools")
    app.add_typer(backups.group, name="backups")
    app.add_typer(tokens.group, name="tokens")
    app.add_typer(roles.group, name="roles")
    app.add_typer(audit.group, name="audit")
    app.add_typer(threats.group, name="threats")
    app.command("compliance", cls=HiveCommand)(threats.compliance)
    app.command("completion", cls=HiveCommand)(completion.completion)
    app.command("version", cls=HiveCommand)(version.show_version)
    return app


def _describe() -> None:
    """Ask the control plane of a hive of agents: give it work, watch it, steer it.

    \b
    Start here:
      hive health                          is the server there?
      hive run review @notes.md            give work away, watch it, get the result
      hive top                             replicas, agents, queue and throughput, live
      hive events --follow                 everything that happens
      hive tasks list --output json | jq   the same for scripts

    \b
    Exit codes: 0 done, 1 the outcome is a failure (a task failed), 2 the command line or request makes no
    sense, 3 the server cannot be reached, 4 not found, 5 refused (state, conflict, id in use), 6 deadline,
    7 anything else, 8 you may not, 130 Ctrl-C. `hive health` has its own.
    """
