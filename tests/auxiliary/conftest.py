"""The small corpus and preset of tests/training."""

from tests.training.conftest import corpus, each_tokenizer_is_trained_once, tiny

__all__ = ["corpus", "each_tokenizer_is_trained_once", "tiny"]
