"""The study's CIFAR10-VGG16 column; meant for an accelerator."""
from jaxfix.study.plan import Plan, SubjectPlan

PLAN = Plan('cifar10', (SubjectPlan('cifar10_vgg16'),), summary=__doc__)
