"""Training large Mixture-of-Experts language models for medicine in a local language, on Megatron-Core."""
