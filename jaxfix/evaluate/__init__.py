"""What a repair did: correctness, robustness and fairness, before and after, on a split that no method has seen."""
from jaxfix.evaluate.compare import Comparison, compare, compare_repeats
from jaxfix.evaluate.correctness import FlipCounts, accuracy, flip_counts, outcome
from jaxfix.evaluate.fairness import Odds, odds
from jaxfix.evaluate.robustness import ATTACK_SIZE, PGD, attack, attack_success, strong

__all__ = ('ATTACK_SIZE', 'PGD', 'Comparison', 'FlipCounts', 'Odds', 'accuracy', 'attack', 'attack_success', 'compare',
           'compare_repeats', 'flip_counts', 'odds', 'outcome', 'strong')
