"""Approaches at neuron level."""
