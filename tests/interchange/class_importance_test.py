"""Class importance from a user's file: what is read, and that every mistake is one line with the file's name."""
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError
from jaxfix.interchange import class_importance
from jaxfix.problem import ClassImportance

_NAMES = ('person', 'rider', 'car', 'truck, big')
_WHOLE = {'weights_precisions': {'person': 3, 'car': 2}, 'general_misclassifications': ['person', 2]}


class ReadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'importance.json'

  def _read(self, content, names=_NAMES):
    self.path.write_text(content if isinstance(content, str) else json.dumps(content))
    return class_importance.read(self.path, names)

  def test_names_and_numbers_are_classes(self):
    self.assertEqual(self._read({
      'general_misclassifications': ['person', 2], 'target_misclassifications': {'car': ['truck, big', 1], '0': [1]},
      'weights_precisions': {'person': 3, '2': 2.5}, 'weights_misclassifications': {'person': 3, 'car,truck, big': 2,
                                                                                  '0, 1': 1}}),
      ClassImportance((0, 2), {0: 3., 2: 2.5}, ((2, 3), (2, 1), (0, 1)), {0: 3., (2, 3): 2., (0, 1): 1.}))

  def test_what_is_left_out_is_left_to_the_method(self):
    self.assertEqual(self._read(_WHOLE), ClassImportance((0, 2), {0: 3., 2: 2.}))
    self.assertEqual(self._read({**_WHOLE, 'target_misclassifications': {}}).confusions, ())

  def test_a_name_goes_before_a_number(self):
    self.assertEqual(self._read({'weights_precisions': {'1': 1}, 'general_misclassifications': ['1', 1]},
                                ('1', '0')).critical, (0, 1))

  @parameterized.parameters(
    ([], 'must be an object'), ({}, 'weights_precisions is missing'), ({**_WHOLE, 'weights': {}}, "'weights'"),
    ({**_WHOLE, 'general_misclassifications': 'car'}, 'must be a list'),
    ({**_WHOLE, 'general_misclassifications': ['cra']}, "'cra' is no class"),
    ({**_WHOLE, 'general_misclassifications': [4]}, '4 is no class'),
    ({**_WHOLE, 'general_misclassifications': [True]}, 'True is no class'),
    ({**_WHOLE, 'general_misclassifications': ['-1']}, "'-1' is no class"),
    ({**_WHOLE, 'general_misclassifications': [0, 'person']}, 'twice'),
    ({**_WHOLE, 'target_misclassifications': ['car']}, 'must be an object'),
    ({**_WHOLE, 'target_misclassifications': {'car': 'person'}}, 'must be a list'),
    ({**_WHOLE, 'target_misclassifications': {'car': ['car']}}, 'no \\(true, predicted\\) pair'),
    ({**_WHOLE, 'target_misclassifications': {'car': [0, 'person']}}, 'twice'),
    ({**_WHOLE, 'weights_precisions': {'car': '2'}}, 'must be a number below 1e300, got 2'),
    ({**_WHOLE, 'weights_precisions': {'car': 10**400}}, 'must be a number below 1e300'),
    ({**_WHOLE, 'weights_precisions': {'car': 1, '2': 2}}, 'twice'),
    ({**_WHOLE, 'weights_precisions': {'car': 0}}, 'not all 0'),
    ({**_WHOLE, 'weights_precisions': {'car': -1, 'person': 2}}, '>= 0'),
    ({**_WHOLE, 'weights_misclassifications': {'car,cra': 1}}, "'car,cra' is no class and no pair"),
    ({**_WHOLE, 'weights_misclassifications': {'car,car': 1}}, 'no \\(true, predicted\\) pair'),
    ({**_WHOLE, 'weights_misclassifications': {'car': 0}}, 'not all 0'),
    ('{"weights_precisions": {"car": NaN}, "general_misclassifications": [0]}', 'must be a number'),
    ({'weights_precisions': {'car': 1}}, 'nothing would be repaired'))
  def test_mistakes_name_the_file(self, content, words):
    with self.assertRaisesRegex(BadInputError, words) as caught:
      self._read(content)
    self.assertIn('importance.json', str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_files_that_are_not_there_or_not_json(self):
    with self.assertRaisesRegex(DataNotFoundError, 'importance.json'):
      class_importance.read(self.path, _NAMES)
    with self.assertRaisesRegex(CorruptFileError, 'importance.json'):
      self._read('{"weights_precisions": ')


if __name__ == '__main__':
  absltest.main()
