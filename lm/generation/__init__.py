"""Writing text with a trained model: token by token, and turn by turn."""

from lm.generation.writing import Writing, generate

__all__ = ["Writing", "generate"]
