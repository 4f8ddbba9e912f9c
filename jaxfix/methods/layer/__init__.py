"""Approaches at layer level."""
