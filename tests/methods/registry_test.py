"""Approaches of others beside ours: neither a name nor a code may be taken."""
import dataclasses
import importlib.metadata
import sys
import types
from unittest import mock

from absl.testing import absltest, parameterized

from jaxfix import methods
from jaxfix.errors import BadInputError
from tests.study.scale_plugin import METHOD


class _Point:
  """An entry point of an installed package."""

  def __init__(self, method):
    self.name, self.value, self._method = method.name, f'package:{method.name}', method

  def load(self):
    return self._method


class RegistryTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    for name in ('_plugins', '_loaded'):
      self.enterContext(mock.patch.object(methods, name, {}))
    self.addCleanup(methods._entry_points.cache_clear)

  def _plug(self, *found, name='a_plugin'):
    module = types.ModuleType(name)
    module.METHODS = tuple(dataclasses.replace(METHOD, **fields) for fields in found)
    sys.modules[name] = module
    self.addCleanup(sys.modules.pop, name)
    return methods.load_plugin(name)

  @parameterized.parameters(({'code': None}, 'code must be text'), ({'level': 'bit'}, 'level must be one of model'),
                            ({'needs': ('histories',)}, 'needs must be of history'), ({'title': 3}, 'title'))
  def test_fields_that_rows_could_not_hold_are_refused_at_once(self, fields, reason):
    with self.assertRaisesRegex(BadInputError, f"approach 'scale': {reason}"):
      dataclasses.replace(METHOD, **fields)

  def _install(self, *found):
    points = [_Point(dataclasses.replace(METHOD, **fields)) for fields in found]
    self.enterContext(mock.patch.object(importlib.metadata, 'entry_points', return_value=points))
    methods._entry_points.cache_clear()

  @parameterized.named_parameters(
    ('ours', ({'name': 'mine', 'code': 'AP'},), "'AP' of approach 'mine' is that of 'apricot'"),
    ('own', ({'name': 'a', 'code': 'X'}, {'name': 'b', 'code': 'X'}), "is that of '[ab]'"),
    ('name', ({'name': 'care', 'code': ''},), "named 'care'"))
  def test_taken_by(self, found, message):
    with self.assertRaisesRegex(BadInputError, message):
      self._plug(*found)
    self.assertEqual(methods.names(), methods.NAMES)   # nothing of it was taken in

  def test_taken_by_another_plugin(self):
    self._plug({'name': 'a', 'code': 'X'})
    with self.assertRaisesRegex(BadInputError, "that of 'a'"):
      self._plug({'name': 'b', 'code': 'X'}, name='another')

  def test_codes_of_ones_own(self):
    """Also one of the study's whose approach is not here, and none for several."""
    self._plug({'name': 'a', 'code': 'ET'}, {'name': 'b', 'code': ''}, {'name': 'c', 'code': ''})
    self.assertEqual(methods.names()[-3:], ('a', 'b', 'c'))

  def test_entry_points(self):
    self._install({'name': 'a', 'code': 'CARE'}, {'name': 'b', 'code': 'X'}, {'name': 'c', 'code': 'X'})
    with self.assertRaisesRegex(BadInputError, "Entry point 'a' .package:a.: the code 'CARE'.*that of 'care'"):
      methods.get('a')
    self.assertIs(methods.get('b'), methods.get('b'))
    with self.assertRaisesRegex(BadInputError, "that of 'b'"):
      methods.get('c')


if __name__ == '__main__':
  absltest.main()
