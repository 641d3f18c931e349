"""What only the daemon needs: the durable store, the forecast cycle, alerts and HTTP."""
