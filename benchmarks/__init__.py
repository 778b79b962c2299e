"""Measurements, by question."""
