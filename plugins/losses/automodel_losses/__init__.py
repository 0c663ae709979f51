"""Losses: from logits, or hidden states, and labels to the sum of the token losses."""
