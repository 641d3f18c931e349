"""The weights of one forecast as a JSON document and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fleet_forecast.inference.explanations import Interpretation, Variables, in_lag_bins, label_of, lag_bin_steps


def weights_document(found: Interpretation, variables: Variables, step_seconds: int) -> dict[str, Any]:
    """The weights of one server: variables by group, largest weight first, and attention by lag.

    With peers also their number and the weight of their level against the server's own, by metric.
    """
    bin_steps = lag_bin_steps(found.attention.shape[1])
    bin_hours = bin_steps * step_seconds / 3600
    of_context = in_lag_bins(found.attention[0])[: -(-int(found.encoder_steps[0]) // bin_steps)]
    return {
        "variables": {
            group: _by_weight(names, getattr(found, group)[0]) for group, names in variables._asdict().items()
        },
        "attention": {
            "bin_hours": round(bin_hours, 4),
            "lag_hours": [round(index * bin_hours, 4) for index in range(len(of_context))],
            "weights": [_rounded(weight) for weight in of_context],
            "horizon_weight": _rounded(found.attention_ahead[0]),
        },
        **_peers(found, variables),
    }


def as_text(weights: Mapping[str, Any]) -> str:
    """A weights_document as tables of percentages."""
    lines = []
    for group, entries in weights["variables"].items():
        lines += [f"{group} variables", *(f"{100 * e['weight']:8.1f} %  {e['label']}" for e in entries), ""]
    attention = weights["attention"]
    lines += ["attention", f"{100 * attention['horizon_weight']:8.1f} %  earlier steps of the horizon"]
    lines += [
        f"{100 * weight:8.1f} %  {lag:g} to {round(lag + attention['bin_hours'], 4):g} h before the origin"
        for lag, weight in zip(attention["lag_hours"], attention["weights"], strict=True)
    ]
    if "peers" in weights:
        lines += ["", f"weight of the level of {weights['peers']['count']} peers against the server's own"]
        lines += [f"{100 * weight:8.1f} %  {metric}" for metric, weight in weights["peers"]["weights"].items()]
    return "\n".join(lines)


def _peers(found: Interpretation, variables: Variables) -> dict[str, Any]:
    if found.peers is None:
        return {}
    metrics = [name.removesuffix("_scaled") for name in variables.encoder if name.endswith("_scaled")]
    weights = {metric: _rounded(weight) for metric, weight in zip(metrics, found.peers.weights[0], strict=True)}
    return {"peers": {"count": int(found.peers.counts[0]), "weights": weights}}


def _by_weight(names: Sequence[str], weights: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"variable": names[index], "label": label_of(names[index]), "weight": _rounded(weights[index])}
        for index in np.argsort(-weights, kind="stable")
    ]


def _rounded(weight: float) -> float:
    return round(float(weight), 5)
