"""Adapters: a few new parameters beside a frozen model, in files that PEFT opens."""
