"""The study's UTKFace-FaceNet column, with post-processing as in its figure; meant for an accelerator."""
from jaxfix.study.plan import Plan, SubjectPlan

PLAN = Plan('utkface', (SubjectPlan('utkface_facenet'),), postprocess=('sv', 'hv', 'up', 'ud', 'us'), summary=__doc__)
