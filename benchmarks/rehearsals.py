"""How long every recipe rehearses; what the tests do, one after the other and with the time that it takes.

    python benchmarks/rehearsals.py [NAME ...]        all, or some; about a quarter of an hour on two slow cores

Exits with the number of recipes that failed. The seconds are those of a machine that may do other work; the CPU seconds are
of all threads.
"""

from __future__ import annotations

import argparse
import json
import time

from _common import RESULTS, conditions, keep

from polarspike.errors import PolarspikeError
from polarspike.experiments.recipes import RECIPES
from polarspike.experiments.rehearsal import rehearse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; all of them if not given")
    names = parser.parse_args().names or list(RECIPES)
    if unknown := [name for name in names if name not in RECIPES]:
        raise SystemExit(f"expected names of {', '.join(RECIPES)}, got {', '.join(unknown)}")
    path = RESULTS / "rehearsals.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    failed = 0
    for name in names:
        said: list[str] = []
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            rehearse(RECIPES[name], say=said.append)
        except PolarspikeError as error:
            said, failed = [f"failed: {error}"], failed + 1
        seconds, of_cpu = time.perf_counter() - wall, time.process_time() - cpu
        rows[name] = {"seconds": round(seconds, 1), "cpu_seconds": round(of_cpu, 1), "said": said[-1]}
        print(f"{name:<45} {seconds:6.1f} s {of_cpu:7.1f} s of CPU  {said[-1]}", flush=True)
        keep("rehearsals", {**conditions(0), "rows": {key: rows[key] for key in RECIPES if key in rows}})
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
