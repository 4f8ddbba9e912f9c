"""Writes the Keras golden files of this folder. Run once in an environment with Keras; the suite does not need it.

  KERAS_BACKEND=jax python make_keras.py keras3        # keras 3.15.1, jax
  python make_keras.py keras2                          # tensorflow-cpu 2.15.1, keras 2.15.0

`NAME.h5` is what `model.save` wrote, `NAME.npz` holds inputs `x` and the probabilities `y` that Keras gave.
"""
import sys

import keras
import numpy as np

L = keras.layers


def functional():
  """Every supported layer with options away from their defaults, skips included."""
  image = L.Input((9, 10, 3), name='image')
  x = L.ZeroPadding2D(((1, 0), (2, 1)), name='pad')(image)
  x = L.Conv2D(4, (3, 2), strides=2, use_bias=False, name='c1')(x)
  x = L.BatchNormalization(epsilon=1e-2, momentum=0.9, name='b1')(x)
  x = skip = L.ReLU(name='r1')(x)
  x = L.Conv2D(4, 3, padding='same', activation='tanh', name='c2')(x)
  x = L.Add(name='sum')([x, skip])
  x = L.Concatenate(name='both')([skip, x])
  y = L.Conv2D(6, 3, strides=2, padding='same', activation='relu', name='c3')(x)
  z = L.AveragePooling2D(3, strides=2, padding='same', name='avg')(x)
  z = L.Conv2D(6, 1, name='c4')(z)
  x = L.Concatenate(name='three')([y, z, L.MaxPooling2D(3, strides=2, padding='same', name='max')(x)])
  x = L.BatchNormalization(scale=False, name='b2')(x)
  x = L.Dropout(0.3, name='drop')(x)
  x = L.Concatenate(name='poolings')([L.GlobalAveragePooling2D(name='gap')(x), L.GlobalMaxPooling2D(name='gmp')(x)])
  x = L.Dense(7, activation='sigmoid', name='d1')(x)
  x = L.BatchNormalization(center=False, name='b3')(x)
  x = L.Dense(4, name='d2')(x)
  return keras.Model(image, L.Activation('softmax', name='probabilities')(x))


def sequential():
  """Fused activations, dilation and groups."""
  return keras.Sequential([
    L.Conv2D(4, 3, dilation_rate=2, activation='relu', input_shape=(10, 10, 2)),
    L.MaxPooling2D(2), L.Conv2D(6, 2, groups=2), L.Activation('relu'), L.Flatten(),
    L.Dense(5, activation='tanh'), L.Dense(3), L.Softmax()])


def main(version):
  rng = np.random.default_rng(7)
  for make in (functional, sequential):
    model = make()
    for layer in model.layers:  # positive, since some are variances
      layer.set_weights([rng.uniform(0.2, 1.2, w.shape) if w.ndim == 1 else rng.normal(0, 0.4, w.shape)
                         for w in layer.get_weights()])
    x = rng.normal(size=(8, *model.input_shape[1:])).astype(np.float32)
    name = f'{version}_{make.__name__}'
    model.save(f'{name}.h5')
    np.savez(f'{name}.npz', x=x, y=np.asarray(model(x, training=False)))


if __name__ == '__main__':
  main(sys.argv[1])
