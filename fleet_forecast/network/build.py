"""Builds the network: pytorch-forecasting's Temporal Fusion Transformer (Lim et al. 2021, arXiv:1912.09363).

`build_network` follows the documented route (`TimeSeriesDataSet` -> `from_dataset`) with a small template frame that
has only names and categories. features/windows.py builds the actual batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TypeVar

import pandas as pd
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data import MultiNormalizer, NaNLabelEncoder, TorchNormalizer
from pytorch_forecasting.metrics import MultiLoss, QuantileLoss
from pytorch_forecasting.utils import get_embedding_size

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.features.windows import CALENDAR_SIZES, WindowSpec
from fleet_forecast.network.fleet_tft import FleetTFT

Item = TypeVar("Item")

PROFILE_WIDTH = get_embedding_size(8)  # pytorch-forecasting's choice for the seven profiles and the unknown one


def template_dataset(spec: WindowSpec, profiles: tuple[str, ...]) -> TimeSeriesDataSet:
    """A TimeSeriesDataSet with the variables and categories of `spec`, from which the network is built.

    `NaNLabelEncoder(add_nan=True)` maps a profile outside `profiles`, and a masked one, to category 0. Without profiles
    the variable is left out.
    """
    frame = pd.DataFrame({"server": "any", "step": range(3), "profile": profiles[0] if profiles else "any"})
    frame = frame.assign(**{name: _codes(frame["step"], size) for name, size in CALENDAR_SIZES.items()})
    return dataset_of(frame.assign(**dict.fromkeys((*spec.metrics, *_inputs(spec)), 0.0)), spec, profiles)


def dataset_of(
    frame: pd.DataFrame,
    spec: WindowSpec,
    profiles: tuple[str, ...],
    shortest_encoder: int = 0,
    shortest_horizon: int = 1,
) -> TimeSeriesDataSet:
    """pytorch-forecasting's data set over the variables of `spec`; `frame` has them, `server` and `step`."""
    identity = [TorchNormalizer(method="identity") for _ in spec.metrics]
    encoders = {name: NaNLabelEncoder().fit(_codes(range(size), size)) for name, size in CALENDAR_SIZES.items()}
    if profiles:
        encoders["profile"] = NaNLabelEncoder(add_nan=True).fit(pd.Series(profiles))
    return TimeSeriesDataSet(
        frame,
        time_idx="step",
        target=scalar_or_list(spec.metrics),
        group_ids=["server"],
        min_encoder_length=shortest_encoder,
        max_encoder_length=spec.context_steps,
        min_prediction_length=shortest_horizon,
        max_prediction_length=spec.horizon_steps,
        static_categoricals=["profile"] if profiles else [],
        static_reals=list(spec.static_reals),
        time_varying_known_categoricals=list(CALENDAR_SIZES),
        time_varying_known_reals=[*spec.decoder_reals, "market_open"],
        time_varying_unknown_reals=list(spec.encoder_reals),
        categorical_encoders=encoders,
        target_normalizer=MultiNormalizer(identity) if len(identity) > 1 else identity[0],
        scalers=dict.fromkeys(_inputs(spec)),
        add_relative_time_idx=True,
        add_encoder_length=False,
    )


def _inputs(spec: WindowSpec) -> tuple[str, ...]:
    """The real inputs except the relative time index, which the data set adds itself."""
    return (*spec.static_reals, *spec.encoder_reals, *spec.decoder_reals, "market_open")


def _codes(values: Iterable[int], size: int) -> pd.Series:
    """Calendar codes as strings that sort like numbers, as the category encoder sorts them."""
    return pd.Series([f"{value % size:02d}" for value in values])


def build_network(
    spec: WindowSpec,
    profiles: tuple[str, ...],
    hidden_size: int,
    network: type[TemporalFusionTransformer] = FleetTFT,
) -> TemporalFusionTransformer:
    """A freshly initialised network for `spec`; `network` is the stock class or FleetTFT (same weights)."""
    losses = [QuantileLoss(list(QUANTILE_LEVELS)) for _ in spec.metrics]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the template is tiny on purpose
        dataset = template_dataset(spec, profiles)
        return network.from_dataset(
            dataset,
            allowed_encoder_known_variable_names=[*CALENDAR_SIZES, "market_open", "relative_time_idx"],
            hidden_size=hidden_size,
            hidden_continuous_size=8,
            attention_head_size=4,
            dropout=0.1,
            output_size=scalar_or_list([len(QUANTILE_LEVELS) for _ in spec.metrics]),
            embedding_sizes=_embedding_sizes(profiles),
            loss=losses[0] if len(losses) == 1 else MultiLoss(losses),
        )


def _embedding_sizes(profiles: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """(categories, width) of each embedding: pytorch-forecasting's choice, except a fixed width for profiles.

    A network thereby keeps its shape when the set of profiles changes, and can start from earlier weights.
    """
    sizes = {name: (size, get_embedding_size(size)) for name, size in CALENDAR_SIZES.items()}
    return {**sizes, "profile": (1 + len(profiles), PROFILE_WIDTH)} if profiles else sizes


def scalar_or_list(items: Sequence[Item]) -> Item | list[Item]:
    """pytorch-forecasting takes a single target bare and several as a list."""
    return items[0] if len(items) == 1 else list(items)
