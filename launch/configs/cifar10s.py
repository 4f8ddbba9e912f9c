"""The study's CIFAR10S-ResNet18 column; meant for an accelerator."""
from jaxfix.study.plan import Plan, SubjectPlan

PLAN = Plan('cifar10s', (SubjectPlan('cifar10s_resnet18'),), summary=__doc__)
