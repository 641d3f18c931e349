"""Requests of Prometheus remote write, made with the message classes of the decoder."""

import cramjam

from fleet_forecast.sources.protocols.messages import V1, V2, Label, WriteRequest, WriteRequestV2


def write_body(series, message=V1):
    """A compressed request."""
    return bytes(cramjam.snappy.compress_raw(write_content(series, message)))


def write_content(series, message=V1):
    """A request. series: (labels by name, [(ms, value), ...]) of each."""
    return (_v2 if message == V2 else _v1)(series).SerializeToString()


def _v1(series):
    request = WriteRequest()
    for labels, samples in series:
        added = request.timeseries.add()
        for name, value in labels.items():
            added.labels.append(Label(name=name, value=value).SerializeToString())
        for instant, value in samples:
            added.samples.add(timestamp=instant, value=value)
    return request


def _v2(series):
    request, positions = WriteRequestV2(symbols=[""]), {"": 0}
    for labels, samples in series:
        added = request.timeseries.add()
        for text in (text for pair in labels.items() for text in pair):
            if text not in positions:
                positions[text] = len(positions)
                request.symbols.append(text)
            added.labels_refs.append(positions[text])
        for instant, value in samples:
            added.samples.add(timestamp=instant, value=value)
    return request


def fleet_series(metric="cpu_pct", instance="ppdb001:9100", samples=(), **labels):
    """One series as the recording rules make it."""
    return {"__name__": f"fleet:{metric}", "instance": instance, **labels}, list(samples)
