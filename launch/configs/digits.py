"""Every approach on scikit-learn's digits: minutes, no data to fetch. The subject has no published counterpart."""
from jaxfix.study.plan import Plan, SubjectPlan

PLAN = Plan('digits', (SubjectPlan('digits_lenet5'),), postprocess=('sv', 'hv', 'up', 'ud', 'us'),
            attack_radii=(0.25, 0.5, 1., 1.5, 2.), time_limit_s=1200., summary=__doc__.partition(':')[0])
