"""What must hold of every run, whatever has happened to it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.chaos_arena import Arena
from benchmarks.chaos_news import News, Told, missing, untrue
from benchmarks.chaos_users import Accepted, Recipe, Users
from trainer_app.client import Client
from trainer_app.core.files import sha256_file
from trainer_app.store import runs
from trainer_app.store.database import Database
from trainer_app.store.runs import Run
from trainer_app.verify import check_curve

# What two equal runs need not have in common: names, times, attempts, and files that hold them.
ASIDE: Final = (
    "run_id",
    "attempts",
    "created_at",
    "completed_at",
    "training_time_seconds",
    "performance",
    "files",
    "git_commit",
)
_OWN_FILE: Final = "logs.jsonl"  # of a run's folder: its log
_LEAVE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A promise that was not kept."""

    promise: str
    what: Mapping[str, object]


def check_all(
    arena: Arena, recipes: list[Recipe], users: Users, news: News, *, quiet_since: float
) -> list[Violation]:
    """Every promise about runs, answers and news, while the stack still runs.

    ``quiet_since``: when all was left alone, in unix seconds.
    """
    found = [
        Violation(promise="no answer of the API is an error of its own", what={"answer": answer})
        for answer in users.problems
    ]
    database_url = arena.state["database_url"]
    with closing(Database(database_url)) as database, Client(arena.api_url) as client:
        found += _check_none_lost(database, recipes, users)
        undisturbed = {
            recipe.name: _outcome(arena, client, recipe.undisturbed) for recipe in recipes
        }
        for recipe in recipes:
            run = runs.get(database, recipe.undisturbed)
            found += _check_news(run, news.of(run.run_id), resumes=0, quiet_since=0.0)
        for one in users.accepted:
            run = runs.get(database, one.run_id)
            found += _check_end(one, run)
            found += _check_folder(arena, run)
            told = news.of(run.run_id)
            found += _check_news(run, told, resumes=one.resumes, quiet_since=quiet_since)
            found += _check_log(arena, run)
            if run.status == "completed":
                found += _check_bytes(arena, client, one, run, undisturbed[one.recipe.name])
    return found


def attempts_fenced(arena: Arena) -> int:
    """How many attempts woke, or came back, to find that another had their run."""
    logs = (arena.root / "run" / "logs").glob("worker-*.log")
    return sum(log.read_text("utf-8", "replace").count("the lease was lost") for log in logs)


def check_leftovers(arena: Arena) -> list[Violation]:
    """No process outlives the stack for long."""
    give_up_at = time.monotonic() + _LEAVE_SECONDS
    while left := arena.all():
        if time.monotonic() > give_up_at:
            commands = [" ".join(process.cmdline()) for process in left]
            for process in left:
                process.kill()
            return [Violation(promise="no process is left behind", what={"left": commands})]
        time.sleep(0.5)
    return []


def _check_none_lost(
    database: Database, recipes: list[Recipe], users: Users
) -> Iterator[Violation]:
    expected = {recipe.undisturbed for recipe in recipes} | {one.run_id for one in users.accepted}
    if len(expected) != len(recipes) + len(users.accepted):
        yield Violation(promise="one run a request", what={"runs": len(expected)})
    there: set[str] = set()
    after: str | None = None
    while True:
        page = runs.list_(database, limit=200, after=after)
        there |= {run.run_id for run in page.items}
        after = page.next
        if after is None:
            break
    for run_id in sorted(expected ^ there):
        promise = "no accepted run is lost" if run_id in expected else "one run a request"
        yield Violation(promise=promise, what={"run_id": run_id})


def _check_end(one: Accepted, run: Run) -> Iterator[Violation]:
    allowed = {"completed", "cancelled"} if one.cancelled else {"completed"}
    if run.status not in allowed:
        what = {"run_id": run.run_id, "status": run.status, "message": run.message}
        yield Violation(promise="every run reaches its one final state", what=what)


def _check_folder(arena: Arena, run: Run) -> Iterator[Violation]:
    """Of what was cancelled, or has failed, nothing is published."""
    if run.status != "completed" and _folder(arena, run.run_id).exists():
        what = {"run_id": run.run_id, "status": run.status}
        yield Violation(promise="only what completes is published", what=what)


def _check_news(
    run: Run, told: list[Told], *, resumes: int, quiet_since: float
) -> Iterator[Violation]:
    """Each event is true, the order is the contract's, and each end is told once."""
    ends = resumes + (run.status != "completed")
    wrong = [*untrue(told, status=run.status, ends=ends)]
    wrong += missing(
        told, status=run.status, since=quiet_since, ended_at=run.completed_at or quiet_since
    )
    for why in wrong:
        yield Violation(
            promise="news are true and in order", what={"run_id": run.run_id, "why": why}
        )


def _check_log(arena: Arena, run: Run) -> Iterator[Violation]:
    """Each attempt began once, told why, and was silent once the next one had begun."""
    log = arena.root / "logs" / f"{run.run_id}.jsonl"
    if not log.exists() and run.attempt == 0:  # cancelled before it started
        return
    lines = log.read_text().splitlines()
    entries: list[dict[str, object]] = [json.loads(line) for line in lines]
    begun = Counter(int(str(one["attempt"])) for one in entries if one["event"] == "started")
    for attempt, times in begun.items():
        if times > 1 or attempt > run.attempt:
            what = {"run_id": run.run_id, "attempt": attempt, "times": times}
            yield Violation(promise="an attempt begins once", what=what)
    newest = 0
    for number, entry in enumerate(entries):
        attempt = int(str(entry["attempt"]))
        if entry["event"] == "started":
            newest = max(newest, attempt)
        elif attempt < newest and entry["event"] in {"step", "checkpoint", "evaluation"}:
            what = {"run_id": run.run_id, "line": number, "of": attempt, "while": newest}
            yield Violation(promise="one attempt at a time", what=what)
        if entry["event"] == "training" and "resumed_from" in entry and attempt > 1:
            told = f"attempt {attempt}: "
            before = [str(one["event"]) for one in entries[:number]]
            why = [event for event in before if event.startswith(told) and "resumed" in event]
            if not why or "None" in why[-1]:
                what = {"run_id": run.run_id, "attempt": attempt}
                yield Violation(promise="each resume names its cause", what=what)


def _check_bytes(
    arena: Arena, client: Client, one: Accepted, run: Run, undisturbed: Mapping[str, object]
) -> Iterator[Violation]:
    folder = _folder(arena, run.run_id)
    outcome = _outcome(arena, client, run.run_id)
    for name in sorted(undisturbed.keys() | outcome.keys()):
        if undisturbed.get(name) != outcome.get(name):
            what = {"run_id": run.run_id, "recipe": one.recipe.name, "what": name}
            yield Violation(promise="an interrupted run ends in the same bytes", what=what)
    verdict = check_curve(client.run_metrics(run.run_id)["points"], client.run_manifest(run.run_id))
    if not verdict.ok:
        what = {"run_id": run.run_id, "why": verdict.message}
        yield Violation(promise="a curve has no gap", what=what)
    if sha256_file(folder / "manifest.json") != run.artifact_sha256:
        yield Violation(
            promise="what was published is what the database knows", what={"run_id": run.run_id}
        )


def _outcome(arena: Arena, client: Client, run_id: str) -> dict[str, object]:
    """All that equal runs have in common: manifest, curve, and the files' own bytes."""
    manifest = client.run_manifest(run_id)
    folder = _folder(arena, run_id)
    files = manifest["files"]
    assert isinstance(files, dict)
    points = client.run_metrics(run_id)["points"]
    kept: dict[str, object] = {name: value for name, value in manifest.items() if name not in ASIDE}
    kept["curve"] = [(point["step"], point["train_loss"], point["val_loss"]) for point in points]
    kept["names"] = sorted(files)
    for name, entry in files.items():
        digest = sha256_file(folder / name)
        assert digest == entry["sha256"], f"{run_id}: {name} is not what its manifest says"
        if name != _OWN_FILE:
            kept[f"file {name}"] = digest
    return kept


def _folder(arena: Arena, run_id: str) -> Path:
    return arena.root / "artifacts" / "models" / run_id
