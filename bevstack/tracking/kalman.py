"""A Kalman filter of boxes that move at constant velocity over the ground (Kalman 1960; Wojke et al. 2017, 2.1)."""

from __future__ import annotations

import numpy as np

YAW, VELOCITY, STATE_SIZE = 6, slice(7, 9), 9


def wrapped(angle: np.ndarray) -> np.ndarray:
    """Angles of any shape in radians, each turned by whole turns into [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


class KalmanFilter:
    """Mean and covariance of boxes, moved on in time and corrected by measured boxes; keeps nothing itself.

    State and measurement are a box (x, y, z, l, w, h, yaw, vx, vy) in a frame that does not move: metres, radians,
    metres per second. Position follows the velocity, whose acceleration is white noise; height, size and yaw wander.
    A measured value that is NaN tells nothing: a detector without velocities makes the same filter of seven
    measurements. The measured yaw is taken up to half a turn, as detectors confuse front and rear.

    Args:
        position_std_m, size_std_m, yaw_std, velocity_std_mps: of the measurement noise.
        acceleration_std_mps2: spectral density of the acceleration along x and y: after dt seconds the velocity has
            wandered by ``acceleration_std_mps2 * sqrt(dt)``.
        wander_std: of height (m), of size (m) and of yaw (radians) after one second.
        initial_velocity_std_mps: what is believed of the velocity before any is measured.
    """

    def __init__(
        self,
        position_std_m: float = 0.6,
        size_std_m: float = 0.3,
        yaw_std: float = 0.3,
        velocity_std_mps: float = 1.5,
        acceleration_std_mps2: float = 3.0,
        wander_std: tuple[float, float, float] = (0.3, 0.05, 0.5),
        initial_velocity_std_mps: float = 6.0,
    ) -> None:
        stds = [position_std_m] * 3 + [size_std_m] * 3 + [yaw_std] + [velocity_std_mps] * 2
        self.measurement_noise = np.diag(np.square(stds))
        self.acceleration_std_mps2 = acceleration_std_mps2
        height, size, yaw = np.square(wander_std)
        self.wander = np.diag([0.0, 0.0, height, size, size, size, yaw, 0.0, 0.0])
        self.initial_velocity_variance = initial_velocity_std_mps**2

    def initiate(self, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (9,) and covariance (9, 9) of an object of which one box (9,) has been seen."""
        mean, covariance = np.nan_to_num(box, nan=0.0), self.measurement_noise.copy()
        prior = self.initial_velocity_variance
        for axis in (7, 8):
            noise = covariance[axis, axis]
            known = np.isfinite(box[axis])
            # The prior is a velocity of 0; a measured one corrects it.
            mean[axis] = mean[axis] * prior / (prior + noise) if known else 0.0
            covariance[axis, axis] = prior * noise / (prior + noise) if known else prior
        mean[YAW] = wrapped(mean[YAW])
        return mean, covariance

    def transition(self, seconds: float) -> np.ndarray:
        """(9, 9): the state ``seconds`` later."""
        matrix = np.eye(STATE_SIZE)
        matrix[0, 7] = matrix[1, 8] = seconds
        return matrix

    def process_noise(self, seconds: float) -> np.ndarray:
        """(9, 9): what may have happened within ``seconds`` (white acceleration, integrated)."""
        noise = self.wander * seconds
        density = self.acceleration_std_mps2**2
        for place, speed in ((0, 7), (1, 8)):
            noise[place, place] = density * seconds**3 / 3
            noise[place, speed] = noise[speed, place] = density * seconds**2 / 2
            noise[speed, speed] = density * seconds
        return noise

    def predict(self, mean: np.ndarray, covariance: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean (9,) and covariance (9, 9) of the same object ``seconds`` later."""
        moved = self.transition(seconds)
        return moved @ mean, moved @ covariance @ moved.T + self.process_noise(seconds)

    def update(self, mean: np.ndarray, covariance: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (9,) and covariance (9, 9) after a box (9,) of the object has been seen."""
        seen = np.flatnonzero(np.isfinite(box))
        gap = box - mean
        gap[YAW] = (gap[YAW] + np.pi / 2) % np.pi - np.pi / 2
        spread = covariance[np.ix_(seen, seen)] + self.measurement_noise[np.ix_(seen, seen)]
        gain = np.linalg.solve(spread, covariance[seen]).T
        corrected = mean + gain @ gap[seen]
        corrected[YAW] = wrapped(corrected[YAW])
        remaining = covariance - gain @ spread @ gain.T
        return corrected, (remaining + remaining.T) / 2

    def ground_distance(self, mean: np.ndarray, covariance: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance of measured places to where an object is expected (Wojke et al. 2017, eq. 1).

        Args:
            mean: (9,). covariance: (9, 9). xy: (G, 2) metres.

        Returns:
            (G,), chi-squared of two degrees of freedom for boxes of this very object.
        """
        spread = covariance[:2, :2] + self.measurement_noise[:2, :2]
        gap = xy - mean[:2]
        return np.einsum("gi,ig->g", gap, np.linalg.solve(spread, gap.T))
