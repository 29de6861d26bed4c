"""tokens -> batches: what one training step reads."""

import megatron_jmed.parallel  # noqa: F401  (its CPU patches come before the first import of Megatron-Core)
