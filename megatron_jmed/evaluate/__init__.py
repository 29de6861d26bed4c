"""Evaluation: a Hugging Face folder sits an exam, is scored, and a run folder becomes one readable page.

Nothing here imports Megatron, and only `answer` and `sitting` import torch: exams, scores and reports need the
standard library alone.
"""
