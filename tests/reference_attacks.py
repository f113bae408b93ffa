# SPDX-License-Identifier: Apache-2.0
"""NumPy float64 references of AutoAttack's parts, written from their specification."""

import numpy as np


class Network:
    """A perceptron with one tanh layer; logits, and gradients of losses on them by hand."""

    def __init__(self, entries, hidden=7, classes=5, seed=0):
        rng = np.random.default_rng(seed)
        self.first = 3 * rng.normal(size=(entries, hidden)) / np.sqrt(entries)
        self.second = 2 * rng.normal(size=(hidden, classes)) / np.sqrt(hidden)

    def logits(self, x):
        return np.tanh((x - 0.5) @ self.first) @ self.second

    def backward(self, x, cotangent):
        hidden = np.tanh((x - 0.5) @ self.first)
        return ((cotangent @ self.second.T) * (1 - hidden**2)) @ self.first.T


def cross_entropy(z, y):
    """Losses and their derivatives by the logits."""
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    hit = np.eye(z.shape[1])[y]
    return -np.log(p[np.arange(len(y)), y]), p - hit


def dlr(z, y, target=None):
    """Losses and their derivatives by the logits; targeted where a target is given."""
    losses, slopes = np.zeros(len(y)), np.zeros_like(z)
    for i, (row, label) in enumerate(zip(z, y, strict=True)):
        order = np.argsort(-row)
        eye = np.eye(len(row))
        if target is None:
            other = next(j for j in order if j != label)
            below = eye[order[2]]
        else:
            other = target[i]
            below = 0.5 * (eye[order[2]] + eye[order[3]])
        top, bottom = -(eye[label] - eye[other]), eye[order[0]] - below
        numerator, denominator = top @ row, bottom @ row
        losses[i] = numerator / denominator
        slopes[i] = top / denominator - numerator / denominator**2 * bottom
    return losses, slopes


def apgd(network, x, y, start, epsilon, steps, loss, rho=0.75):
    """One run of APGD in the l-infinity ball and [0, 1]; returns points and which are wrong."""

    def project(v):
        return np.clip(np.clip(v, x - epsilon, x + epsilon), 0, 1)

    def look(v):
        z = network.logits(v)
        value, slope = loss(z, y)
        return value, network.backward(v, slope), z.argmax(1) != y

    point, previous = start.copy(), start.copy()
    value, gradient, wrong = look(point)
    best, best_value, best_gradient = point.copy(), value.copy(), gradient.copy()
    adversarial = point.copy()
    step = np.full(len(x), 2 * epsilon)
    history = [np.zeros(len(x))]  # what the history holds before the first step
    reduced, checked = np.ones(len(x), bool), value.copy()
    window, counter = max(int(0.22 * steps), 1), 0
    for i in range(steps):
        z = project(point + step[:, None] * np.sign(gradient))
        a = 0.75 if i else 1.0
        moved = project(point + a * (z - point) + (1 - a) * (point - previous))
        previous, point = point, moved
        value, gradient, now = look(point)
        adversarial[now] = point[now]
        wrong |= now
        history.append(value)
        up = value > best_value
        best[up], best_value[up], best_gradient[up] = point[up], value[up], gradient[up]
        counter += 1
        if counter == window:
            rises = sum(history[-j] > history[-j - 1] for j in range(1, window + 1))
            poor = (rises <= rho * window) | (~reduced & (checked >= best_value))
            step[poor] /= 2
            point[poor], gradient[poor] = best[poor], best_gradient[poor]
            reduced, checked, counter = poor, best_value.copy(), 0
            window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
        if wrong.all():
            break
    return np.where(wrong[:, None], adversarial, best), wrong


def hyperplane_move(t, w, b, low, high, norm):
    """The shortest move to a hyperplane within a box, by bisection on its multiplier."""
    excess = w @ t - b
    w = w if excess >= 0 else -w
    excess = abs(excess)
    room = np.where(w > 0, t - low, high - t)
    speed = np.ones_like(w) if norm == "linf" else np.abs(w)
    if (np.abs(w) * room).sum() <= excess:
        return -np.sign(w) * room
    small, large = 0.0, 1e12
    for _ in range(300):
        middle = (small + large) / 2
        reached = (np.abs(w) * np.minimum(speed * middle, room)).sum()
        small, large = (middle, large) if reached < excess else (small, middle)
    return -np.sign(w) * np.minimum(speed * large, room)
