"""automodel: fine-tune Hugging Face models from one YAML file."""
