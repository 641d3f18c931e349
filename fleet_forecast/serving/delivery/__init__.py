"""From alerts to receivers: the alert loop, silences, the record of alerts, Alertmanager and webhooks.

Imports alerting, forecasts and monitoring; imported by routes and serving's root modules.
"""
