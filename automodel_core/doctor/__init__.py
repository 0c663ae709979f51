"""`automodel doctor`: what a bug report needs to say of a machine, and quick self-checks of it."""
