"""Pure tensor functions that several units share."""
