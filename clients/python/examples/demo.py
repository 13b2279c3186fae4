"""The main job in one command: a hive of real agents does real work on the files of this repository.

Starts a server with its fleet and a worker, in a temporary data directory and on a free port; delegates tasks with
priorities and dependencies; kills an agent in the middle of a task and cancels another task; shows all of it live;
checks what it claims; stops everything and looks that nothing is left. Exits with 1 and a sentence if a claim does
not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from agenthive import Client, HiveError
from showcase.claims import broken_claims, folder_table, results_of, sentences
from showcase.hive import Hive, HiveFailed
from showcase.picture import Picture
from showcase.plan import Plan, make_plan
from showcase.screen import Screen
from showcase.story import Story, TookTooLong

MINIMUM, MINIMUM_QUICK = 30, 15


class ClaimsBroken(Exception):
    """Something is not as the demo claims: sentences."""


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="Agents at work on this repository, live; see `make demo`.")
    parser.add_argument("--quick", action="store_true", help="only as many tasks as the claims need")
    parser.add_argument("--plain", action="store_true", help="one line for each event, also in a terminal")
    options = parser.parse_args()
    minimum = MINIMUM_QUICK if options.quick else MINIMUM
    try:
        asyncio.run(run(make_plan(options.quick), plain=options.plain, minimum=minimum))
    except (ClaimsBroken, HiveFailed, TookTooLong, HiveError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("demo: stopped, and everything it had started", file=sys.stderr)
        return 130
    return 0


async def run(plan: Plan, *, plain: bool, minimum: int) -> None:
    """Run a plan from an empty folder to nothing left. Raises one of the errors `main` tells."""
    obey_signals()
    clock = asyncio.get_running_loop().time
    began = clock()
    hive, picture = Hive(), Picture(plan.tasks)
    screen = Screen(picture, plain=plain)
    async with hive:
        screen.say(f"a server on {hive.address}, started in {clock() - began:.1f} s; its data in {hive.folder}")
        async with Client(hive.address) as client:
            story = Story(client, plan, picture, screen)
            with screen:
                await story.run()
            tasks = {task_id: await client.get_task(task_id) for task_id in plan.tasks}
        results = results_of(tasks)
        screen.console.print(folder_table(plan, results))
        broken = broken_claims(story, tasks, results, minimum)
        for sentence in sentences(story, tasks, results):
            screen.console.print(sentence, markup=False, soft_wrap=True)
        await hive.stop()
        broken += [f"still running: {process}" for process in hive.remaining()]
    if broken:
        raise ClaimsBroken("; ".join(broken))
    screen.say(f"all as it should be after {clock() - began:.1f} s; nothing is left running", "bold green")


def obey_signals() -> None:
    """Let Ctrl-C, SIGTERM and the end of the terminal stop everything; a second one does not interrupt that."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)


if __name__ == "__main__":
    sys.exit(main())
