"""The business calendar of a run: that of the fleet file, of the data, or the default."""

from __future__ import annotations

from dataclasses import replace

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.usage import note


def business_calendar(timezone: str | None, recorded: BusinessCalendar | None = None) -> BusinessCalendar:
    """The calendar that a fleet file names, else that of the data's metadata, else the default.

    timezone: of the flag --timezone, which replaces the calendar's. recorded: of the metadata. Prints a note if fleet
    file and metadata differ. Raises ValueError naming an unknown time zone.
    """
    fleet = fleet_in_use()
    calendar = recorded if recorded is not None and not fleet.names_calendar else fleet.calendar
    if recorded is not None and recorded != calendar:
        note(f"the calendar of {fleet.source} is used; the data's metadata record another: {recorded.as_document()}")
    return calendar if timezone is None else replace(calendar, timezone=timezone)
