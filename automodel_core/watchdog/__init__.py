"""Who keeps the other ranks waiting, found while they wait."""
