"""An alert in JSON types."""

from fleet_forecast.serving.alerting.alert import as_document
from tests.serving.alerting.examples import alert


def test_a_document_has_the_state_and_times_as_text():
    document = as_document(alert(ended=1_795_000_200.25))
    assert document["state"] == "resolved"
    assert document["ended_at"] == "2026-11-18T11:10:00.250Z"
    assert as_document(alert())["state"] == "firing"
    assert as_document(alert())["ended_at"] is None
    assert not any(name.endswith("_seconds") for name in document)
