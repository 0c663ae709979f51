"""Models: found, checked and read, from the Hugging Face Hub, folders, GGUF files or thin air."""
