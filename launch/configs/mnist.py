"""The study's MNIST-LeNet5 column, settings as published but for Apricot: 100 epochs of retraining in place of 5,400.

Give the study's own network with --model=mnist_lenet5=lenet5_ori_model.h5; without it one is trained.
"""
from jaxfix.study.plan import Plan, SubjectPlan

PLAN = Plan('mnist', (SubjectPlan('mnist_lenet5'),), postprocess=('sv', 'hv', 'up', 'ud', 'us'),
            attack_radii=(0.25, 0.5, 1., 1.5), summary=__doc__.partition('\n')[0])
