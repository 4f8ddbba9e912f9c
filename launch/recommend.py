"""Recommends approaches for a situation, with the rows that each recommendation rests on.

  python -m launch.recommend --subject=mnist_lenet5 --keep=accuracy
  python -m launch.recommend --has=history,training_data --time=600 --prefer=nfr --results=STORE --json=advice.json

--has lists everything there is beside failing samples. Without --results, the stores that come with jaxfix count
(launch/results/); what they do not know is taken from the published tables and marked.
"""
import dataclasses

from absl import flags
from rich.table import Table
from rich.text import Text

from jaxfix import files
from jaxfix.study import published, recommend, store
from jaxfix.study.situation import HAS, KEEP, PREFER, Situation
from launch import cli, results

_HAS = flags.DEFINE_list('has', ['training_data'], f'What is at hand: some of {", ".join(HAS)}.')
_PROOF = flags.DEFINE_bool('proof', False, 'Whether the repair must come with a guarantee.')
_PARAMS = flags.DEFINE_integer('params', None, 'Trainable scalars of the model: the nearest subject counts.',
                               lower_bound=1)
_TIME = flags.DEFINE_float('time', None, 'Budget of a repair, seconds.', lower_bound=0)
_KEEP = flags.DEFINE_list('keep', [], f'What must not suffer: some of {", ".join(KEEP)}.')
_SUBJECT = flags.DEFINE_string('subject', '', 'Subject, or key of a published one, that is nearest to the problem.')
_PREFER = flags.DEFINE_string('prefer', 'rr', f'What decides: one of {", ".join(PREFER)}.')
_RESULTS = flags.DEFINE_list('results', None, 'Stores, separated by commas.')
_PUBLISHED = flags.DEFINE_bool('published', True, 'Whether the published tables fill gaps.')
_JSON = flags.DEFINE_string('json', None, 'File for the advice as JSON.')


def _table(choices: tuple[recommend.Choice, ...], title: str) -> Table:
  table = Table('', 'approach', 'level', 'why', 'but', 'rests on', title=title, title_justify='left', show_lines=True)
  for rank, c in enumerate(choices, start=1):
    more = [f'and {len(c.citations) - 3} more (--json)'] if len(c.citations) > 3 else []
    table.add_row(str(rank), *map(Text, (
      f'{c.title} ({c.approach})', c.category, '\n'.join(c.reasons), '\n'.join(c.cautions),
      '\n'.join([*c.citations[:3], *more]))))
  return table


def main() -> int:
  situation = Situation(
    has=tuple(_HAS.value), proof=_PROOF.value, params=_PARAMS.value, time=_TIME.value, keep=tuple(_KEEP.value),
    subject=_SUBJECT.value, prefer=_PREFER.value)
  stores = results.stores() if _RESULTS.value is None else _RESULTS.value
  rows = [row for path in stores for row in store.read(path).rows]
  advice = recommend.recommend(situation, rows, published.load() if _PUBLISHED.value else None)
  console = cli.console()
  for source in ('measured', 'published'):
    choices = tuple(c for c in advice.choices if c.source == source)
    if choices:
      console.print(_table(choices, f'Recommended by {source} figures'))
  if not advice.choices:
    console.print('Nothing fits.')
  excluded = Table('approach', 'source', 'excluded because', 'rests on', title='Excluded', title_justify='left')
  for e in advice.excluded:
    more = [f'and {len(e.citations) - 3} more (--json)'] if len(e.citations) > 3 else []
    excluded.add_row(*map(Text, (f'{e.title} ({e.approach})', e.source, '\n'.join(e.reasons),
                                   '\n'.join([*e.citations[:3], *more]))))
  if advice.excluded:
    console.print(excluded)
  for note in advice.notes:
    console.print(note, soft_wrap=True, highlight=False)
  if _JSON.value:
    files.write_json(_JSON.value, dataclasses.asdict(advice))
  return 0


if __name__ == '__main__':
  cli.run(main)
