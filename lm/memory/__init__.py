"""A memory of chunks: what the model has read, and which of it is near to what it reads now. Imports no torch."""
