"""The text world: from raw records to token sets, with no torch and no Megatron in reach."""
