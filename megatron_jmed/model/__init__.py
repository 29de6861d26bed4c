"""config -> network: what Megatron-Core builds from a RunConfig."""

import megatron_jmed.parallel  # noqa: F401  (its CPU patches come before the first import of Megatron-Core)
