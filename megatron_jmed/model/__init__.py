"""config -> network: what Megatron-Core builds from a RunConfig."""
