"""checkpoint folder <-> Hugging Face folder, with torch and safetensors alone: no Megatron, no GPU."""
