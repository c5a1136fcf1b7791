"""What is learned from a text: the next token, gaps (UL2), masked tokens, or a target that the source gives."""
