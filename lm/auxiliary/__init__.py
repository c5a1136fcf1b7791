"""Heads on the hidden states, and the named losses they return."""
