"""`make bench`: every figure as a ratio to the echo of the same run. `ARGS="throughput events"` picks some."""

from __future__ import annotations

import argparse
import sys

from tests.bench.figures import FIGURES


def main() -> int:
    """Print the table; returns 1 when a bound does not hold."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("figures", nargs="*", help=f"which: {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--details", action="store_true", help="print the absolute numbers of each round, too")
    options = parser.parse_args()
    unknown = set(options.figures) - set(FIGURES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    failed = False
    sys.stdout.write(f"{'figure':<62}{'measured':>10}{'must':>10}{'aim':>8}\n")
    for name in options.figures or FIGURES:
        for figure in FIGURES[name]():
            failed |= not figure.holds
            sign = ">=" if figure.at_least else "<="
            mark = "" if figure.holds else "  NOT HELD"
            line = (
                f"{figure.name:<62}{figure.value:>10.3g}{sign + format(figure.must, 'g'):>10}{figure.aim:>8g}{mark}\n"
            )
            sys.stdout.write(line)
            if options.details and figure.detail:
                sys.stdout.write(f"    {figure.detail}\n")
            sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
