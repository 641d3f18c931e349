"""What lives have come to: accuracy and WQL by time and by age of server, trainings, delays; as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.life.lives import NEVER, ORIGIN_HOURS, ORIGINS, Life
from benchmarks.life.worlds import World
from fleet_forecast.evaluation.loss_sums import LossSums

AGES = {
    "no history": (0, 0),
    "first day": (1, 24),
    "first week": (25, 168),
    "later": (169, 10**9),
}  # hours, of new ones
FROM_THE_START = "there from the start"


def pooled(scores: np.ndarray) -> dict[str, float] | None:
    """Accuracy (100 less WAPE) in percent, and WQL, both means over the metrics; None without a score.

    scores: [..., metric, 3], sums of error, loss and magnitude (lives.SUMS).
    """
    error, loss, magnitude = scores.reshape(-1, *scores.shape[-2:]).sum(axis=0, dtype=np.float64).T
    measured = magnitude > 0
    if not measured.any():
        return None
    wape, wql = ((total[measured] / magnitude[measured]).mean() for total in (error, loss))
    return {"accuracy": round(float(100 - 100 * wape), 3), "wql": round(float(wql), 5)}


def by_period(world: World, scores: np.ndarray) -> dict[str, dict[str, float] | None]:
    """`pooled` of each of the world's periods; scores as in Life."""
    days = {name: np.array(days) - world.first_day for name, days in world.periods.items()}
    return {name: pooled(scores[of_period]) for name, of_period in days.items()}


def by_age(world: World, scores: np.ndarray) -> dict[str, dict[str, float] | None]:
    """`pooled` by age of the server at the origin; scores as in Life."""
    appeared = world.appeared - world.first_day
    day = np.arange(scores.shape[0])[:, None, None]
    hours = 24 * (day - appeared) + ORIGIN_HOURS * np.arange(ORIGINS)[:, None]  # [day, origin, server]
    is_new = appeared >= 0
    found = {FROM_THE_START: pooled(scores[:, :, ~is_new])}
    for name, (first, last) in AGES.items():
        found[name] = pooled(scores[is_new & (hours >= first) & (hours <= last)])
    return found


def ratio_to_baseline(losses: Sequence[LossSums]) -> float | None:
    """The exponential of the mean of log(model loss / loss of window_quantiles_24h) over profiles and metrics."""
    merged = LossSums()
    for sums in losses:
        merged.merge(sums)
    ratios = list(merged.log_ratios().values())
    return round(float(np.exp(np.mean(ratios))), 4) if ratios else None


def delays(changes: Mapping[str, int], advised: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Days from each change to the morning on which it was advised about; None if it was not.

    A new type counts by its name, another change by the first advice of the test after it.
    """
    found: dict[str, int | None] = {}
    for name, day in changes.items():
        kind = name if name.startswith("new type") else "change"
        days = [int(each["day"]) - day for each in advised if each["what"] == kind and each["day"] >= day]
        found[name] = min(days, default=None)
    return found


def outcome(life: Life) -> dict[str, Any]:
    """All figures of a life, in JSON types."""
    world, trainings = life.world, life.trainings[1:]
    return {
        "accuracy_and_wql": pooled(life.scores),
        "by_period": by_period(world, life.scores),
        "by_age": by_age(world, life.scores),
        "ratio_to_window_quantiles_24h": {
            name: ratio_to_baseline([life.losses[day] for day in days if day in life.losses])
            for name, days in world.periods.items()
        },
        "first_training_processor_seconds": life.trainings[0]["processor_seconds"],
        "trainings": [{key: each[key] for key in each if key not in ("servers", "profiles")} for each in trainings],
        "processor_seconds": round(sum(each["processor_seconds"] for each in trainings), 1),
        "advised": [{key: each[key] for key in each if key != "model"} for each in life.advised],
        "delays_days": {} if life.policy == NEVER else delays(world.changes, life.advised),
    }


def tables(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown of one world; found: `outcome` by name of the life."""
    periods = list(next(iter(found.values()))["by_period"])
    parts = [_summary(found)]
    for score in ("accuracy", "wql"):
        for group, columns in (("by_period", periods), ("by_age", [FROM_THE_START, *AGES])):
            rows = {name: {key: v and v[score] for key, v in each[group].items()} for name, each in found.items()}
            parts.append(_table(score, columns, rows))
    ratios = {name: each["ratio_to_window_quantiles_24h"] for name, each in found.items()}
    return "\n\n".join([*parts, _table("loss / that of window_quantiles_24h", periods, ratios)])


def _summary(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| model, policy | accuracy | WQL | trainings | put in use | processor minutes | days to the advice |",
        "|---|" + "---|" * 6,
    ]
    for name, each in found.items():
        scores = each["accuracy_and_wql"]
        in_use = sum(training["in_use"] for training in each["trainings"])
        waits = ", ".join(f"{change}: {'-' if days is None else days}" for change, days in each["delays_days"].items())
        cells = [name, f"{scores['accuracy']:.2f}", f"{scores['wql']:.4f}", len(each["trainings"]), in_use]
        cells += [f"{each['processor_seconds'] / 60:.1f}", waits or "-"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _table(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, float | None]]) -> str:
    digits = 1 if title == "accuracy" else 3
    lines = [f"| {title} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, row in rows.items():
        cells = ["-" if row[column] is None else f"{row[column]:.{digits}f}" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
