"""A model behind an OpenAI-compatible endpoint, every request kept as it was sampled."""
