"""Approaches at model level."""
