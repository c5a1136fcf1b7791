"""The language model, from its switches to its screens."""
