"""The recipes: functions that return a complete RunConfig; an experiment is one of them plus a few changes."""

from megatron_jmed.recipes.llmjp import llmjp_8x1p8b, llmjp_8x13b, llmjp_8x13b_fp8
from megatron_jmed.recipes.sft import llmjp_8x13b_sft, tiny_sft
from megatron_jmed.recipes.tiny import tiny

RECIPES = {recipe.__name__: recipe for recipe in (tiny, tiny_sft, llmjp_8x1p8b, llmjp_8x13b, llmjp_8x13b_fp8, llmjp_8x13b_sft)}
