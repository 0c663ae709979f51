"""Starts a run somewhere else than in the process that was asked to."""
