"""Post-processing: the original and the repaired model, combined into one classifier without training either.

| method | rule | needs |
|---|---|---|
| sv | soft voting: mean of the two softmax outputs | |
| hv | hard voting: the more confident model where they disagree | |
| up | the mean over input noise, weighted towards the model that noise changes less | a key |
| ud | the same under dropout before the last dense layer | a key |
| us | soft voting after the original's temperature is fitted to the repaired model's softness | validation inputs |
| us_cal | soft voting after both temperatures are fitted to the labels | validation inputs and labels |
| us_k | a mixture whose weight breaks the fewest validation samples at no loss of accuracy | the same |

`us` is the method of the sources, which needs no labels; the study's description of it (labels of the test set) would
leak, and is met by `us_cal` on validation data. Say which one is meant.

Source: the Fixing Study, section 7.2; Li et al., ICSE 2023 (up, ud, us; their code for us_k); You et al. (their code).
"""
from jaxfix.postprocess.api import (
  NAMES,
  PostProcessor,
  combine_and_compare,
  combine_and_compare_repeats,
  postprocess,
)
from jaxfix.postprocess.config import Config

__all__ = ('NAMES', 'Config', 'PostProcessor', 'combine_and_compare', 'combine_and_compare_repeats', 'postprocess')
