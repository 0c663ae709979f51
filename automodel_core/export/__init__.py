"""From what a run saved to folders that other programs load: adapters merged, models converted."""
