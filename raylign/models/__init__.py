"""Hugging Face models: loading, saving, and the forward passes that the learners need."""
