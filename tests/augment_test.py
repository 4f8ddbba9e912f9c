import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.augment import augment, rotate


class AugmentTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.x = np.random.default_rng(0).integers(1, 256, (64, 9, 9, 2)).astype(np.uint8)   # no 0: that comes from outside

  def test_nothing_moves_without_a_kind(self):
    np.testing.assert_array_equal(augment(self.x, 'none', key=jax.random.key(0)), self.x)

  @parameterized.parameters(('shift', 2, False), ('crop_flip', 4, True))
  def test_each_image_is_moved_by_whole_pixels(self, kind, most, flips):
    moved, seen = np.asarray(augment(self.x, kind, key=jax.random.key(1))), set()
    self.assertEqual((moved.shape, moved.dtype), (self.x.shape, self.x.dtype))
    padded = np.pad(self.x, ((0, 0), (most, most), (most, most), (0, 0)))
    for image, out in zip(padded, moved, strict=True):
      found = [(i, j, flip) for i in range(2 * most + 1) for j in range(2 * most + 1) for flip in (False, True)
               if np.array_equal(image[i:i + 9, j:j + 9][:, ::-1 if flip else 1], out)]
      self.assertLen(found, 1)
      seen.update(found)
    self.assertEqual({flip for *_, flip in seen}, {False, True} if flips else {False})
    self.assertEqual({i for i, *_ in seen}, set(range(2 * most + 1)))

  def test_turned_images_stay_within_their_values(self):
    turned = np.asarray(augment(self.x, 'rotate', key=jax.random.key(2)))
    self.assertEqual((turned.shape, turned.dtype), (self.x.shape, self.x.dtype))
    self.assertFalse(np.array_equal(turned, np.asarray(augment(self.x, 'rotate', key=jax.random.key(3)))))
    flat = np.full((32, 21, 21, 1), 80, np.uint8)   # its middle stays inside under every turn and move
    np.testing.assert_array_equal(augment(flat, 'rotate', key=jax.random.key(2))[:, 7:14, 7:14], flat[:, 7:14, 7:14])

  def test_the_same_key_gives_the_same_images(self):
    for kind in ('shift', 'crop_flip', 'rotate'):
      first, second = (np.asarray(augment(self.x, kind, key=jax.random.key(5))) for _ in range(2))
      np.testing.assert_array_equal(first, second)

  def test_rotation_keeps_the_middle_and_turns_the_rest(self):
    image = np.zeros((5, 5, 1), np.uint8)
    image[2, 2], image[0, 2] = 200, 100
    turn = jax.jit(rotate)
    self.assertEqual(turn(image, 0.).dtype, np.uint8)
    np.testing.assert_array_equal(turn(image, 0.), image)
    quarter = np.asarray(turn(image, np.pi / 2))
    self.assertEqual((quarter[2, 2, 0], quarter[0, 2, 0]), (200, 0))
    self.assertEqual(int(quarter.sum()), 300)


if __name__ == '__main__':
  absltest.main()
