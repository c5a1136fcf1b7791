"""What stands in an exported folder beside the program's own modules, as transformers wants it. Only sources.py reads these files."""
