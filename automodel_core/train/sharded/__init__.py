"""Models cut over processes: which part is whose, and how parts are read, written and drawn."""
