"""tokens -> batches: what one training step reads."""
