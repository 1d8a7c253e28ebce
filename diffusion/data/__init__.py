"""Data sets: prepared, stored, read in batches."""
