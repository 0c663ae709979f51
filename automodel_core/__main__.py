"""`python -m automodel_core`: always this program, whatever else is called `automodel`."""

from automodel_core.cli import script

script()
