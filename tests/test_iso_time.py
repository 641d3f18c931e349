"""UTC times as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest

from fleet_forecast.iso_time import iso, iso_exact

SECONDS = 1_795_428_000  # 2026-11-23T10:00:00Z
MOMENT = datetime(2026, 11, 23, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "moment",
    [
        SECONDS,
        float(SECONDS),
        SECONDS + 0.75,
        np.int64(SECONDS),
        MOMENT,
        MOMENT.astimezone(timezone(timedelta(hours=-5))),
        np.datetime64(SECONDS, "s"),
        np.datetime64(SECONDS * 1000 + 250, "ms"),
        np.datetime64(SECONDS // 60, "m"),
        pd.Timestamp(MOMENT),
    ],
)
def test_every_kind_of_time_has_the_same_text_which_parses_back(moment: object) -> None:
    text = iso(moment)
    assert text == "2026-11-23T10:00:00Z"
    assert datetime.fromisoformat(text) == MOMENT


def test_exact_text_keeps_the_fraction_of_a_second() -> None:
    moment = pd.Timestamp("2026-11-23T11:00:00.123456789+01:00")
    assert iso_exact(moment) == "2026-11-23T10:00:00.123456789Z"
    assert pd.Timestamp(iso_exact(moment)) == moment
    assert iso_exact(MOMENT) == "2026-11-23T10:00:00Z"


@pytest.mark.parametrize("write", [iso, iso_exact])
def test_a_time_without_a_zone_is_refused(write: object) -> None:
    with pytest.raises(ValueError, match="has no zone; add one"):
        write(datetime(2026, 11, 23))  # noqa: DTZ001
