"""batches + model -> checkpoints and metrics: `python -m megatron_jmed.train CONFIG [section.word=value ...]`."""
