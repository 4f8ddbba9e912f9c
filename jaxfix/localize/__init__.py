"""Scores per weight, neuron, layer or block: where in a network a fault sits."""
