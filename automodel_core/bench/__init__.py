"""`automodel bench`: how fast a configuration trains here, and what bounds it."""
