"""The tokens that requests must send; read again on SIGHUP."""

from __future__ import annotations

import logging
import os

from fleet_forecast.serving.settings import (
    Settings,
    SettingsError,
    read_token,
    require_token_beyond_loopback,
    token_from,
)

LOG = logging.getLogger(__name__)


class AccessTokens:
    """The clients' token and the administrator's; None where there is none."""

    def __init__(self, client: bytes | None = None, admin: bytes | None = None) -> None:
        self.client, self.admin = client, admin

    def reload(self, settings: Settings) -> None:
        """Read the files again. The tokens in use stay where a file cannot be used; the reason is logged."""
        try:
            client = read_token(settings.token_file) or token_from(os.environ)
            admin = read_token(settings.admin_token_file)
            require_token_beyond_loopback(settings, client)
        except SettingsError as problem:
            LOG.error("tokens refused", extra={"reason": str(problem)})
            return
        changed = (client, admin) != (self.client, self.admin)
        self.client, self.admin = client, admin
        LOG.info("tokens read", extra={"changed": changed})
