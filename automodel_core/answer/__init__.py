"""Talking to a model after training: in the terminal, and a file of prompts at a time."""
