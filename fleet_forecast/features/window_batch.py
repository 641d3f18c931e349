"""The batch record: what windows consist of, in NumPy and in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

import numpy as np

Array = TypeVar("Array")  # np.ndarray or torch.Tensor
Other = TypeVar("Other")


class NetworkInputs(NamedTuple, Generic[Array]):
    """Inputs of the network for B windows of one encoder length E; H is the horizon, M the number of metrics.

    profile: int64 (B,), row of the profile, 0 = unknown or masked.
    encoder_calendar, decoder_calendar: int64 (B, E | H, 2): half_hour, day_kind.
    encoder_market, decoder_market: float32 (B, E | H, 1): market open.
    static: float32 (B, 4 M + 2). encoder: float32 (B, E, 2 M). decoder: float32 (B, H, 2 M + 2).
    """

    profile: Array
    encoder_calendar: Array
    decoder_calendar: Array
    encoder_market: Array
    decoder_market: Array
    static: Array
    encoder: Array
    decoder: Array


class TargetScale(NamedTuple, Generic[Array]):
    """Turns the network's normal scores into transformed values.

    loc: float32 (B, H, M), with the seasonal component. scale: float32 (B, M). window_quantiles: float32 (B, M, knot),
    standardised, at quantile_map.KNOT_LEVELS.
    """

    loc: Array
    scale: Array
    window_quantiles: Array


class WindowBatch(NamedTuple, Generic[Array]):
    """A batch of windows of one encoder length, in NumPy (`Windows`) or torch (network.model.WindowTensors)."""

    inputs: NetworkInputs[Array]
    target_scale: TargetScale[Array]

    def fields(self) -> dict[str, Array]:
        """All arrays by name, in the order of FIELDS; the names are the input names of the ONNX files."""
        return {**self.inputs._asdict(), **self.target_scale._asdict()}

    def map(self, function: Callable[[Array], Other]) -> WindowBatch[Other]:
        """The batch with `function` applied to each array."""
        return WindowBatch.of_fields({name: function(field) for name, field in self.fields().items()})

    @staticmethod
    def of_fields(fields: Mapping[str, Other]) -> WindowBatch[Other]:
        """The inverse of `fields`."""
        return WindowBatch(
            NetworkInputs(**{name: fields[name] for name in NetworkInputs._fields}),
            TargetScale(**{name: fields[name] for name in TargetScale._fields}),
        )


Windows = WindowBatch[np.ndarray]
FIELDS = (*NetworkInputs._fields, *TargetScale._fields)
