"""Samples, reading media, sampling, loading."""
