"""Plans: the matrix, what a command line changes, what is refused; estimates of how long it takes."""
import dataclasses
import json
import math
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import methods
from jaxfix.errors import BadInputError, UnknownNameError
from jaxfix.recipe import Recipe
from jaxfix.study import campaign, plan
from jaxfix.study.estimate import Estimate, spoken
from jaxfix.study.plan import Plan, SubjectPlan
from launch import configs
from tests.study.rows import make_row

_PLAN = Plan('p', (SubjectPlan('digits_mlp'), SubjectPlan('mnist_lenet5', width=0.5)), ('prdnn', 'care'), (0, 3))


class PlanTest(parameterized.TestCase):

  def test_matrix(self):
    cells = plan.cells(_PLAN)
    self.assertEqual([c.label for c in cells[:4]], [
      'digits_mlp/prdnn/seed0', 'digits_mlp/prdnn/seed3', 'digits_mlp/care/seed0', 'digits_mlp/care/seed3'])
    self.assertEqual(cells[4].label, 'mnist_lenet5_w0.5/prdnn/seed0')
    self.assertLen(cells, 8)
    # The study's self-contained approaches learn from the training data's failures, the others from the repair split.
    self.assertEqual({c.method: c.failures for c in cells}, {'prdnn': 'repair', 'care': 'train'})

  def test_no_names_are_all_names(self):
    every = plan.cells(dataclasses.replace(_PLAN, methods=()))
    self.assertEqual(tuple(dict.fromkeys(c.method for c in every)), methods.names())

  def test_subjects_survive_json(self):
    for subject in (SubjectPlan('digits_mlp'), SubjectPlan('moons_mlp', 'f.onnx', 0.5, Recipe(epochs=3), 2, 'i.json')):
      self.assertEqual(SubjectPlan.of(json.loads(json.dumps(dataclasses.asdict(subject)))), subject)

  def test_what_json_lacks_is_made_plain(self):
    subject = SubjectPlan('digits_mlp', pathlib.Path('m.h5'), class_importance=pathlib.Path('i.json'))
    self.assertEqual(subject, SubjectPlan('digits_mlp', 'm.h5', class_importance='i.json'))
    settings = dataclasses.replace(_PLAN, settings={'a': np.float32(0.5), 'b': (1, 2), 'c': math.inf}).settings
    self.assertEqual(json.loads(json.dumps(settings)), {'a': 0.5, 'b': [1, 2], 'c': math.inf})

  def test_infinite_limits_are_none(self):
    """Also where the plan has others."""
    limited = dataclasses.replace(_PLAN, time_limit_s=5, memory_limit_bytes=2.5)
    self.assertEqual((limited.time_limit_s, limited.memory_limit_bytes), (5., 2))
    free = plan.restrict(limited, time_limit_s=math.inf, memory_limit_bytes=math.inf * 2**30)
    self.assertEqual((free.time_limit_s, free.memory_limit_bytes), (None, None))

  def test_radii_are_in_rising_order(self):
    self.assertEqual(dataclasses.replace(_PLAN, attack_radii=(2, 0.5, 2.)).attack_radii, (0.5, 2.))

  def test_restrict(self):
    asked = plan.restrict(_PLAN, subject_names=['digits_mlp'], models={'digits_mlp': 'm.h5'}, methods=('adrep',),
                          seeds=(), settings={'alpha': '2'}, time_limit_s=None)
    self.assertEqual(asked.subjects, (SubjectPlan('digits_mlp', 'm.h5'),))
    self.assertEqual((asked.methods, asked.seeds, asked.settings), (('adrep',), (0, 3), {'alpha': '2'}))

  @parameterized.named_parameters(
    ('subject', lambda: SubjectPlan('digit_mlp'), UnknownNameError, 'digits_mlp'),
    ('no_subjects', lambda: Plan('p', ()), BadInputError, 'no subjects'),
    ('no_integer', lambda: dataclasses.replace(_PLAN, seeds=(0.5,)), BadInputError, 'seeds must be integers'),
    ('no_seeds', lambda: dataclasses.replace(_PLAN, seeds=()), BadInputError, 'seeds'),
    ('negative_seed', lambda: dataclasses.replace(_PLAN, seeds=(-1,)), BadInputError, 'seeds'),
    ('twice', lambda: dataclasses.replace(_PLAN, methods=('care', 'care')), BadInputError, 'twice'),
    ('alike', lambda: Plan('p', (SubjectPlan('moons_mlp'), SubjectPlan('moons_mlp', 'm.h5'))), BadInputError, 'alike'),
    ('limit', lambda: dataclasses.replace(_PLAN, time_limit_s=0.), BadInputError, 'limit'),
    ('no_limit', lambda: dataclasses.replace(_PLAN, time_limit_s=math.nan), BadInputError, 'time_limit_s'),
    ('no_memory', lambda: dataclasses.replace(_PLAN, memory_limit_bytes=math.nan), BadInputError, 'memory_limit_bytes'),
    ('radius', lambda: dataclasses.replace(_PLAN, attack_radii=(0.,)), BadInputError, 'radii'),
    ('endless', lambda: dataclasses.replace(_PLAN, attack_radii=(math.inf,)), BadInputError, 'radii'),
    ('setting', lambda: dataclasses.replace(_PLAN, settings={'alpha': {1}}), BadInputError, 'setting alpha must be'),
    ('model', lambda: SubjectPlan('digits_mlp', 3), BadInputError, 'model must be'),
    ('width', lambda: SubjectPlan('digits_mlp', width=0.), BadInputError, 'width'),
    ('method', lambda: campaign.check(dataclasses.replace(_PLAN, methods=('cares',))), UnknownNameError, 'care'),
    ('option', lambda: campaign.check(dataclasses.replace(_PLAN, settings={'no': '1'})), UnknownNameError, 'no'),
    ('value', lambda: campaign.check(dataclasses.replace(_PLAN, settings={'care.share': 'x'})), BadInputError, 'share'),
    ('post', lambda: campaign.check(dataclasses.replace(_PLAN, postprocess=('xx',))), BadInputError, 'sv'),
    ('other_subject', lambda: plan.restrict(_PLAN, subject_names=['moons_mlp']), UnknownNameError, 'plan p'),
    ('plan', lambda: configs.load('digit'), UnknownNameError, 'digits'),
    ('plan_module', lambda: configs.load('no.such'), BadInputError, 'PYTHONPATH'),
    ('plan_without', lambda: configs.load('jaxfix.errors'), BadInputError, 'PLAN'))
  def test_refused(self, act, error, message):
    with self.assertRaisesRegex(error, message):
      act()

  @parameterized.parameters(*configs.NAMES)
  def test_plans_that_come_with_jaxfix(self, name):
    found = configs.load(name)
    self.assertEqual(found.name, name)
    self.assertTrue(found.summary)
    self.assertLen(campaign.check(found), len(found.subjects) * len(methods.names()) * 3)


class EstimateTest(parameterized.TestCase):

  def test_learns_and_fills_gaps(self):
    rows = [make_row('care', 'digits_mlp', seed=s, started_utc='2026-01-01T00:00:00Z',
                     ended_utc=f'2026-01-01T00:00:{s}0Z') for s in (1, 2, 3)]
    estimate, cells = Estimate.of(rows), plan.cells(_PLAN)
    care = next(c for c in cells if c.method == 'care')
    self.assertEqual(estimate.cell(care), 20.)
    self.assertEqual(estimate.total(cells, 2), (8 * 20 / 2, 6))
    self.assertEqual(estimate.total([care], 2), (20., 0))   # one cell is not done by two
    self.assertEqual(estimate.total(cells[:2], 1), (2 * 20., 2))   # nothing is known but of other cells
    self.assertEqual(Estimate().total(cells, 2), (None, 8))
    self.assertEqual(Estimate().total([], 2), (0., 0))

  def test_what_follows_a_repair_counts(self):
    """Repair 20 s, measurement 10 s: four radii take 40 s; sv is known to take 5 s, us counts like a measurement."""
    time = lambda seconds: {'started_utc': '2026-01-01T00:00:00Z', 'ended_utc': f'2026-01-01T00:00:{seconds:02d}Z'}
    rows = [make_row('care', 'digits_mlp', seconds=20., **time(30)),
            make_row('care', 'digits_mlp', postprocess='sv', seconds=None, **time(5)),
            make_row('prdnn', 'digits_mlp', outcome='UNADAPTABLE', **time(1))]
    estimate = Estimate.of(rows, ('sv', 'us'), 4)
    care, prdnn = (next(c for c in plan.cells(_PLAN) if c.method == name) for name in ('care', 'prdnn'))
    self.assertEqual(estimate.cell(care), 30. + 5 + 10 + 4 * 10)
    self.assertEqual(estimate.cell(care, is_repaired=True), 5. + 10 + 4 * 10)
    self.assertEqual(estimate.cell(prdnn), 1.)
    self.assertEqual(estimate.total([care, prdnn], 1, {care}), (55. + 1, 0))
    estimate.learn('care', 'digits_mlp', 70.)
    estimate.learn('care', 'digits_mlp', 72.)
    self.assertEqual(estimate.cell(care), 71.)   # measured here: no guess is mixed in

  @parameterized.parameters((None, 'unknown'), (40.2, '40 s'), (300., '5 min'), (3600. * 2 + 300, '2 h 05 min'))
  def test_spoken(self, seconds, text):
    self.assertEqual(spoken(seconds), text)


if __name__ == '__main__':
  absltest.main()
