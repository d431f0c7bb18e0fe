"""Scans on disk become batches."""
