"""Small sequences for the estimators' tests."""

import numpy as np

TINY = {"hidden_size": 16, "num_layers": 1, "batch_size": 16, "learning_rate": 1e-2, "random_state": 0}


def waves(seed=0, n=48):
    """Sequences (T, 2) of a slow or a fast wave with noise, any phase; and which."""
    random = np.random.default_rng(seed)
    y = np.array(["slow", "fast"])[random.integers(2, size=n)]
    X = []
    for label in y:
        t = np.arange(random.integers(12, 20)) + 10 * random.random()
        angle = t * (0.3 if label == "slow" else 1.2)
        X.append(np.stack([np.sin(angle), np.cos(angle)], 1) + 0.1 * random.normal(size=(len(t), 2)))
    return X, y


def circle(start, stop, noise=0.0, seed=0):
    """A series (T, 2) with a period of 12 frames."""
    angle = np.arange(start, stop) * np.pi / 6
    random = np.random.default_rng(seed)
    return np.stack([np.sin(angle), np.cos(angle)], 1) + noise * random.normal(size=(len(angle), 2))


X, Y = waves()
CUBE = np.stack([x[:12] for x in X])  # (n, time, channels)
LEVELS = np.array([x[:, 0].mean() for x in X])
SERIES = circle(0, 200)
