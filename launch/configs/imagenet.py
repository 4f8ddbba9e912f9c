"""The study's ImageNet-DenseNet121 column; needs the data, and accelerators."""
from jaxfix.study.plan import Plan, SubjectPlan

PLAN = Plan('imagenet', (SubjectPlan('imagenet_densenet121'),), summary=__doc__)
