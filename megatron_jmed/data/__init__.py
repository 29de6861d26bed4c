"""tokens -> batches: what one training step reads. Only pretrain.py needs Megatron-Core, and only it and batch.py torch."""
