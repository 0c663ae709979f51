"""Datasets and collators: from files and the Hub to tokenised, supervised, padded samples."""
