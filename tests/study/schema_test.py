"""Types of a row's fields: every field has one, and a wrong one is named."""
import json
import pathlib

from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.study import record, schema
from tests.study.rows import make_row, unloaded_row

_STORE = pathlib.Path(__file__).resolve().parents[2] / 'launch/results/mnist_lenet5/results.jsonl'
_FIELDS = [field for group in record.FIELDS.values() for field in group]


class SchemaTest(parameterized.TestCase):

  def test_every_field_has_a_type(self):
    self.assertCountEqual([*schema.REQUIRED, *schema.NULLABLE], _FIELDS)

  @parameterized.parameters(*_FIELDS)
  def test_no_field_may_hold_anything(self, field):
    """No field takes a set, and only what a row may not know takes null; each is named."""
    for value in ({1}, *([None] if field in schema.REQUIRED else [])):
      with self.assertRaisesRegex(BadInputError, field):
        record.check_row(make_row() | {field: value})

  @parameterized.parameters(
    ('flags', ['a', 1]), ('flags', 'a'), ('seed', True), ('seed', 1.5), ('acc', '0.9'), ('acc', True), ('n_train', 1.5),
    ('git_dirty', 1), ('started_utc', 'yesterday'), ('ended_utc', '2026-01-01T00:00:00'), ('phase_seconds', {'a': 'b'}),
    ('versions', {'jax': 1}), ('config', []), ('root_key', [0.5]), ('counts', [1]))
  def test_wrong_types(self, field, value):
    with self.assertRaisesRegex(BadInputError, f'{field} must be'):
      record.check_row(make_row() | {field: value})

  def test_what_there_is_still_reads(self):
    for line in _STORE.read_text().splitlines():
      record.check_row(json.loads(line))
    for row in (unloaded_row(), make_row(outcome='UNADAPTABLE'), make_row(acc_rel=1)):
      record.check_row(row)


if __name__ == '__main__':
  absltest.main()
