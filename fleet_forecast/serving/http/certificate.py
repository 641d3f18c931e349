"""The certificate of HTTPS; read again on SIGHUP, so that a renewed one needs no restart."""

from __future__ import annotations

import logging
import ssl

from fleet_forecast.serving.settings import Settings, SettingsError, check_certificate

LOG = logging.getLogger(__name__)


class TlsCertificate:
    """The certificate and key of the settings, in the context that new connections use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context: ssl.SSLContext | None = None

    @property
    def in_use(self) -> bool:
        """Whether the daemon serves HTTPS."""
        return self._settings.tls_certificate is not None

    def load(self) -> ssl.SSLContext:
        """The context of new connections. Raises OSError if the files, which were checked, are no longer a pair."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(str(self._settings.tls_certificate), self._settings.tls_key)
        self._context = context
        return context

    def reload(self) -> None:
        """Read the files again, for new connections. If they are not a usable pair, the old certificate stays."""
        certificate, key = self._settings.tls_certificate, self._settings.tls_key
        if self._context is None or certificate is None:
            return
        try:
            check_certificate(self._settings)
            self._context.load_cert_chain(certificate, key)
        except (SettingsError, OSError) as problem:
            LOG.error("certificate refused", extra={"reason": str(problem)})
        else:
            LOG.info("certificate read")
