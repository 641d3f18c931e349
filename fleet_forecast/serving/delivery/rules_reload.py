"""The alert rules, read again from the fleet file on SIGHUP."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.contract.fleet.flag import find_fleet
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.rules import alert_rules_of
from fleet_forecast.serving.delivery.outbox import Outbox
from fleet_forecast.serving.delivery.silence_book import SilenceBook

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RulesReload:
    """The users of the rules.

    fleet: the file of the settings. shadow: alerts are never delivered, whatever the file says.
    """

    fleet: Path | None
    book: AlertBook
    silences: SilenceBook
    outbox: Outbox
    shadow: bool

    def reload(self) -> None:
        """Use the current table [alerts]. If the file cannot be used, the old rules stay.

        Profiles, metrics and calendar stay those of the start: the store and the model depend on them.
        """
        try:
            found = find_fleet(self.fleet)
            rules = alert_rules_of(found)
        except TomlFileError as problem:
            LOG.error("fleet file refused", extra={"reason": str(problem)})
            return
        if replace(found, alerts={}) != replace(fleet_in_use(), alerts={}):
            remedy = "restart the daemon: only the table alerts is read again"
            LOG.warning("fleet file changed in other tables", extra={"file": str(found.source), "remedy": remedy})
        changed = rules != self.book.rules
        self.book.use_rules(rules)
        self.silences.use_file(rules.silences)
        self.outbox.shadow = self.shadow or rules.shadow
        LOG.info("rules of alerts read", extra={"changed": changed})
