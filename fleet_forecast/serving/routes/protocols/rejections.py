"""The reasons why samples of a request were rejected, as one line of text."""

from __future__ import annotations

from fleet_forecast.serving.ingest.rows import CheckedRows

SHOWN_REJECTIONS = 3  # Prometheus logs the first 256 bytes of the response
SHOWN_CHARACTERS = 100  # of a value


def rejection_text(batch: CheckedRows) -> str:
    """The number of rejected samples and the first reasons."""
    shown = "; ".join(
        f"{each.field} {str(each.value)[:SHOWN_CHARACTERS]}: {each.reason}"
        for each in batch.refusals[:SHOWN_REJECTIONS]
    )
    return f"{batch.rejected_samples.total()} samples rejected, the others are stored: {shown}"
