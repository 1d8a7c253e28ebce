"""Stored measures: intervals and verdicts."""
