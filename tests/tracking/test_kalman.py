"""The Kalman filter against weighted least squares over the whole trajectory, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bevstack.tracking import KalmanFilter
from bevstack.tracking.kalman import wrapped


def box(x, y, vx=np.nan, vy=np.nan, yaw=0.3):
    return np.array([x, y, 0.2, 4.0, 2.0, 1.5, yaw, vx, vy])


def batch_estimate(kalman, times, boxes):
    """The last state's mean and covariance by generalised least squares over all states at once.

    Unknowns: the state of every frame. Equations, each weighted by its noise: first state = what is believed of it,
    each state = transition of the one before (process noise), each finite measured value (measurement noise).
    """
    size, number = 9, len(times)
    rows, values = [], []

    def add(matrix, value, covariance):
        root = np.linalg.cholesky(np.linalg.inv(covariance)).T
        rows.append(root @ matrix)
        values.append(root @ value)

    first = np.zeros((size, size * number))
    first[:, :size] = np.eye(size)
    mean, covariance = kalman.initiate(boxes[0])
    add(first, mean, covariance)
    for t in range(1, number):
        seconds = times[t] - times[t - 1]
        step = np.zeros((size, size * number))
        step[:, size * t : size * (t + 1)] = np.eye(size)
        step[:, size * (t - 1) : size * t] = -kalman.transition(seconds)
        add(step, np.zeros(size), kalman.process_noise(seconds) + 1e-12 * np.eye(size))
        seen = np.flatnonzero(np.isfinite(boxes[t]))
        look = np.zeros((len(seen), size * number))
        look[np.arange(len(seen)), size * t + seen] = 1
        add(look, boxes[t][seen], kalman.measurement_noise[np.ix_(seen, seen)])
    design, target = np.concatenate(rows), np.concatenate(values)
    information = design.T @ design
    solution = np.linalg.solve(information, design.T @ target)
    return solution[-size:], np.linalg.inv(information)[-size:, -size:]


@pytest.mark.parametrize("velocities", [True, False], ids=["velocities measured", "no velocities"])
def test_equals_least_squares_over_the_whole_trajectory(velocities):
    # Expected: the Kalman filter is the recursive solution of the linear Gaussian least-squares problem, so its last
    # mean and covariance are those of the batch problem. Uneven time steps, values of every kind noisy.
    rng = np.random.default_rng(0)
    times = np.array([0.0, 0.5, 1.0, 1.6, 2.0, 3.5])
    kalman = KalmanFilter()
    speeds = (2.0, -1.0) if velocities else (np.nan, np.nan)
    boxes = [box(2 * t, 5 - t, *speeds) + rng.normal(0, 0.2, 9) for t in times]
    mean, covariance = kalman.initiate(boxes[0])
    for t in range(1, len(times)):
        mean, covariance = kalman.predict(mean, covariance, times[t] - times[t - 1])
        mean, covariance = kalman.update(mean, covariance, boxes[t])
    expected_mean, expected_covariance = batch_estimate(kalman, times, boxes)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-6)
    np.testing.assert_allclose(covariance, expected_covariance, atol=1e-6)


def test_without_process_noise_it_is_a_line_fit():
    # Closed form: with no acceleration and hardly any belief before, place and speed are numpy's straight-line fit.
    kalman = KalmanFilter(acceleration_std_mps2=0.0, wander_std=(0, 0, 0), initial_velocity_std_mps=1e4)
    rng = np.random.default_rng(1)
    times = np.arange(8) * 0.5
    xs = 3 + 1.7 * times + rng.normal(0, 0.4, 8)
    mean, covariance = kalman.initiate(box(xs[0], 0))
    for x in xs[1:]:
        mean, covariance = kalman.predict(mean, covariance, 0.5)
        mean, covariance = kalman.update(mean, covariance, box(x, 0))
    slope, offset = np.polyfit(times, xs, 1)
    assert mean[7] == pytest.approx(slope, abs=1e-4)
    assert mean[0] == pytest.approx(offset + slope * times[-1], abs=1e-4)


def test_prediction_moves_on_and_grows_unsure():
    # Closed form: x + v t; variance of the place P_xx + 2 t P_xv + t^2 P_vv + q t^3 / 3.
    kalman = KalmanFilter()
    mean, covariance = kalman.initiate(box(1, 2, 3, -4))
    mean = mean.copy()
    mean[7:9] = 3, -4
    later, spread = kalman.predict(mean, covariance, 2.0)
    np.testing.assert_allclose(later[:2], [7, -6])
    np.testing.assert_allclose(later[2:], mean[2:])
    expected = covariance[0, 0] + 4 * covariance[7, 7] + kalman.acceleration_std_mps2**2 * 8 / 3
    assert spread[0, 0] == pytest.approx(expected)
    step, half = kalman.predict(mean, covariance, 1.0)
    np.testing.assert_allclose(kalman.predict(step, half, 1.0)[1], spread)  # two steps of 1 s are one of 2 s


def test_yaw_goes_the_short_way_and_ignores_half_turns():
    # Closed form: 3.1 and -3.1 are 0.083 apart across the cut; a box measured backwards tells the same yaw.
    kalman = KalmanFilter()
    mean, covariance = kalman.initiate(box(0, 0, yaw=3.1))
    corrected, _ = kalman.update(mean, covariance, box(0, 0, yaw=-3.1))
    assert abs(wrapped(corrected[6] - 3.1416)) < 0.02
    backwards, _ = kalman.update(mean, covariance, box(0, 0, yaw=3.1 - np.pi))
    assert wrapped(backwards[6] - 3.1) == pytest.approx(0, abs=1e-9)


def test_ground_distance_is_the_exponent_of_a_gaussian():
    # Expected from scipy: log N(x) = -d^2 / 2 + log N(mean).
    kalman = KalmanFilter()
    mean, covariance = kalman.predict(*kalman.initiate(box(1, 2, 3, 1)), 0.7)
    covariance[0, 1] = covariance[1, 0] = 0.2
    places = np.array([[1.0, 2.0], [4.0, 2.5], [-3.0, 8.0]])
    spread = covariance[:2, :2] + kalman.measurement_noise[:2, :2]
    gaussian = multivariate_normal(mean[:2], spread)
    expected = -2 * (gaussian.logpdf(places) - gaussian.logpdf(mean[:2]))
    np.testing.assert_allclose(kalman.ground_distance(mean, covariance, places), expected)
