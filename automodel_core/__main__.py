"""`python -m automodel_core`: always this program, whatever else is called `automodel`."""

import sys

# Python puts the working directory first; a module lying there must not stand for an installed one.
sys.path.pop(0)

from automodel_core.cli import script

script()
