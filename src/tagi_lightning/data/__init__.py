"""Tasks, readers, prompts, batches and samplers: no Lightning, no models."""
