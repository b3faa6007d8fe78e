"""Faults at random against a stack of its own, and whether every promise was kept.

    python -m benchmarks.chaos [--minutes 10] [--seed 1] [--database URL] [--data-root DIR]

Starts ``trainer up`` with one more worker beside it, in a temporary folder, trains each kind of
run undisturbed, and then starts such runs again and again while it kills, pauses and cuts off
whatever it started. When the time is over it leaves all alone, waits until every run has ended,
and checks them: docs/reliability.md has the list. Prints how it goes, one JSON line a figure, then
a table. The exit code is 1 when a promise was broken.

``--seed`` fixes the runs, the faults and their order; what they hit depends on the machine too.
``--database`` names an empty PostgreSQL database in place of a SQLite file.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from benchmarks.chaos_arena import Arena
from benchmarks.chaos_faults import FAULTS, resume_all
from benchmarks.chaos_news import News
from benchmarks.chaos_promises import (
    Violation,
    attempts_fenced,
    check_all,
    check_leftovers,
)
from benchmarks.chaos_users import Users, prepare

FAULT_SECONDS: Final = 5.0  # from one to the next, on average
SETTLE_SECONDS: Final = 420.0  # for all runs to end: the longest back-off after a crash is 120 s
QUIET_SECONDS: Final = 10.0  # after the last fault: what slept has woken, what was sent has come
SAY_SECONDS: Final = 5.0


class Args(argparse.Namespace):
    """The command line."""

    minutes: float
    seed: int
    database: str | None
    data_root: Path | None


def disturb(arena: Arena, users: Users, rng: random.Random, seconds: float) -> Counter[str]:
    """Fault after fault for so long; how often each was done."""
    done: Counter[str] = Counter()
    names = list(FAULTS)
    weights = [FAULTS[name].weight for name in names]
    until = time.monotonic() + seconds
    next_fault = time.monotonic() + FAULT_SECONDS
    say_at = 0.0
    while (now := time.monotonic()) < until:
        arena.tend()
        if now >= next_fault:
            (name,) = rng.choices(names, weights)
            if FAULTS[name].do(arena, rng):
                done[name] += 1
            next_fault = time.monotonic() + rng.expovariate(1 / FAULT_SECONDS)
        if now >= say_at:
            say_at = now + SAY_SECONDS
            say(f"{until - now:5.0f} s left, {done.total()} faults, {users.told()}")
        time.sleep(0.1)
    return done


def settle(arena: Arena, users: Users) -> float:
    """Leave all alone until every run has ended; the seconds that it took, at most the limit."""
    began = time.monotonic()
    resume_all(arena)
    arena.stand_up()
    users.rest()
    say_at = 0.0
    while (waited := time.monotonic() - began) < SETTLE_SECONDS and users.unfinished():
        arena.tend()
        if waited >= say_at:
            say_at = waited + SAY_SECONDS
            say(f"quiet for {waited:.0f} s, {users.told()}")
        time.sleep(0.5)
    return time.monotonic() - began


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", help="URL of an empty database; default: SQLite")
    parser.add_argument("--data-root", type=Path, help="is kept; default: a temporary folder")
    args = parser.parse_args(namespace=Args())
    root = args.data_root or Path(tempfile.mkdtemp(prefix="chaos-"))
    rng = random.Random(args.seed)
    with Arena(root, database_url=args.database) as arena:
        began = time.monotonic()
        news = News(arena)
        news.start()
        recipes = prepare(arena)
        say(f"{len(recipes)} undisturbed runs took {time.monotonic() - began:.0f} s")
        users = Users(arena, recipes, random.Random(args.seed + 1))
        users.start()
        done = disturb(arena, users, rng, 60 * args.minutes)
        quiet_since = time.time() + QUIET_SECONDS
        settled = settle(arena, users)
        users.stop()
        news.stop()
        violations = check_all(arena, recipes, users, news, quiet_since=quiet_since)
    violations += check_leftovers(arena)
    figures = figures_of(args, done, users, settled)
    figures |= {
        "events": len(news),
        "attempts_fenced": attempts_fenced(arena),
        "violations": len(violations),
    }
    report(figures, done, violations)
    if not violations and args.data_root is None:
        shutil.rmtree(root)
    elif violations:
        say(f"what is left lies in {root}")
    return 1 if violations else 0


def figures_of(args: Args, done: Counter[str], users: Users, settled: float) -> dict[str, object]:
    """What was done, and what became of it."""
    kinds: Counter[str] = Counter()
    for name, times in done.items():
        kinds[FAULTS[name].kind] += times
    return {
        "minutes": args.minutes,
        "seed": args.seed,
        "database": "postgresql" if args.database else "sqlite",
        "runs": len(users.accepted),
        **{f"runs_{status}": count for status, count in sorted(users.ends().items())},
        "attempts": users.attempts(),
        **{f"users_{move}": times for move, times in sorted(users.moves.items())},
        "faults": done.total(),
        **{kind: kinds[kind] for kind in sorted({fault.kind for fault in FAULTS.values()})},
        "settled_seconds": round(settled, 1),
    }


def report(figures: dict[str, object], done: Counter[str], violations: list[Violation]) -> None:
    """Figures as JSON lines, then the table."""
    for name, value in figures.items():
        print(json.dumps({"benchmark": "chaos", "figure": name, "value": value}), flush=True)
    for violation in violations:
        told = {"benchmark": "chaos", "violation": violation.promise, **violation.what}
        print(json.dumps(told), flush=True)
    rows = list(figures.items())
    rows += [(f"- {name}", times) for name, times in sorted(done.items())]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:{width}}  {value}" for name, value in rows), flush=True)


def say(what: str) -> None:
    """A line about how it goes."""
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
