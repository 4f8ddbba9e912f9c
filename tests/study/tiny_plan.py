"""A plan of a minute: two tiny approaches on the digits, many seeds."""
from jaxfix.recipe import Recipe
from jaxfix.study.plan import Plan, SubjectPlan

PLAN = Plan('tiny', (SubjectPlan('digits_mlp', recipe=Recipe(epochs=2, learning_rate=3e-3)),), ('scale', 'remembering'),
            tuple(range(20)), postprocess=('sv',), attack_radii=(0.5,), train_failures=())
