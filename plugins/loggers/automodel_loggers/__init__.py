"""Where the figures of a run go besides its own `training.jsonl`."""
