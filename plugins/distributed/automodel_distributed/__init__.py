"""Parallel managers: how a run is spread over devices."""
