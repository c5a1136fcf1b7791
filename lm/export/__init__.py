"""From a snapshot to a folder that transformers opens without this program."""

from lm.export.folder import ExportError, export_snapshot

__all__ = ["ExportError", "export_snapshot"]
