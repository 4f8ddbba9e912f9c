"""Which approaches differ significantly, and by how much: t-tests, false discovery rate, letters, flips, ranks.

`groups` gives the letters of a table column; the rest is what it is made of, or stands beside it. The letters say that
two approaches differ, `Pair` by how much, `mcnemar` and `bootstrap_flips` what a single pair of models did on its test
inputs, `friedman` what many data sets say.

Arrays and mappings of plain numbers in, frozen records out, float64 on the host. Nothing here knows of rows or stores.
"""
from jaxfix.statistics.comparison import Groups, Pair, groups
from jaxfix.statistics.display import letters
from jaxfix.statistics.flips import Interval, bootstrap_flips, mcnemar
from jaxfix.statistics.multiplicity import benjamini_hochberg
from jaxfix.statistics.ranks import Ranks, friedman
from jaxfix.statistics.samples import UNITS
from jaxfix.statistics.ttest import TTest, paired, student, welch

__all__ = ('UNITS', 'Groups', 'Interval', 'Pair', 'Ranks', 'TTest', 'benjamini_hochberg', 'bootstrap_flips', 'friedman',
           'groups', 'letters', 'mcnemar', 'paired', 'student', 'welch')
