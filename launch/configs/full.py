"""All five subjects of the study; a subject whose data is not there is recorded as a failure."""
from jaxfix.study.plan import Plan
from launch.configs import cifar10, cifar10s, imagenet, mnist, utkface

_COLUMNS = (mnist, utkface, cifar10, cifar10s, imagenet)

PLAN = Plan('full', tuple(subject for column in _COLUMNS for subject in column.PLAN.subjects), summary=__doc__)
