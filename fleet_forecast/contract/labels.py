"""Text columns by their distinct values, and the names of servers and profiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.contract.specs import LONGEST_SERVER_NAME

SHOWN_PROFILES = 5


@dataclass
class Labels:
    """A text column as codes of its distinct values in alphabetical order; code -1 is null."""

    values: npt.NDArray[np.object_]  # [label]
    codes: npt.NDArray[np.integer[Any]]  # [row]

    def rows_where(self, flags: npt.NDArray[np.bool_], null: bool = False) -> npt.NDArray[np.bool_]:
        """[row] the flag of the row's value; `null` for rows without a value."""
        rows: npt.NDArray[np.bool_] = np.append(flags, null)[self.codes]  # code -1 selects the last one
        return rows

    def masked(self, flags: npt.NDArray[np.bool_]) -> Labels:
        """The column with null instead of the flagged values [label]."""
        kept = np.where(flags, -1, np.cumsum(~flags) - 1)
        return Labels(self.values[~flags], np.append(kept, -1)[self.codes])

    def at(self, rows: npt.NDArray[np.bool_]) -> Labels:
        """The values of some rows."""
        codes = self.codes[rows]
        unused = np.bincount(codes[codes >= 0], minlength=len(self.values)) == 0
        return Labels(self.values, codes).masked(unused)


def labels_of(column: pd.Series[Any]) -> Labels | None:
    """A column by its distinct values, whole numbers as text; None if it contains anything else."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        labels: Any = column.array  # column.cat keeps a reference to the column until the next garbage collection
        if len(pd.unique(labels.codes[labels.codes >= 0])) < len(labels.categories):
            labels = labels.remove_unused_categories()
        codes, values = labels.codes, labels.categories.to_numpy(dtype=object)
    elif pd.api.types.is_object_dtype(column.dtype) or pd.api.types.is_string_dtype(column.dtype):
        try:
            codes, unique = pd.factorize(column.to_numpy(dtype=object))
        except TypeError:  # unhashable
            return None
        values = np.asarray(unique, dtype=object)
    elif pd.api.types.is_integer_dtype(column.dtype):
        codes, numbers = pd.factorize(column)
        values = np.array([int(value) for value in numbers], dtype=object)
    else:
        return None
    if all(type(value) is int for value in values):
        values = np.array([str(value) for value in values], dtype=object)
    if not all(isinstance(value, str) for value in values):
        return None
    by_name = np.argsort(values.astype(str)) if len(values) else np.empty(0, dtype=np.intp)
    if bool(np.all(by_name == np.arange(len(values)))):
        return Labels(values, codes)
    rank = np.empty(len(values) + 1, dtype=np.int32)
    rank[by_name] = np.arange(len(values), dtype=np.int32)
    rank[-1] = -1
    return Labels(values[by_name], rank[codes])


def is_server_name(text: str) -> bool:
    """Whether a text can name a server: 1 to 253 printable characters, no space at either end, not "." or ".."."""
    return (
        0 < len(text) <= LONGEST_SERVER_NAME and text.isprintable() and text == text.strip() and text not in (".", "..")
    )


def unknown_profiles_notice(profiles: Iterable[str]) -> str | None:
    """The notice on profiles that the fleet does not have; None if there are none."""
    unknown = sorted(set(profiles) - set(PROFILES))
    if not unknown:
        return None
    more = f" and {len(unknown) - SHOWN_PROFILES:,} more" if len(unknown) > SHOWN_PROFILES else ""
    names = ", ".join(unknown[:SHOWN_PROFILES])
    return f"profile {names}{more}: not a profile of the fleet; only a model that was trained on it uses it"
