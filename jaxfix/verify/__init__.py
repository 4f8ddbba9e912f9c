"""Verification: what must hold of a network, and whether it does."""
from jaxfix.verify.spec import Box, Clause, HPolytope, InputSet, Points, Property, Spec, VPolytope, avoids, wins

__all__ = ('Box', 'Clause', 'HPolytope', 'InputSet', 'Points', 'Property', 'Spec', 'VPolytope', 'avoids', 'wins')
