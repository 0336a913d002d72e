"""A picture of a net."""

import numpy as np

from jaxlab import data


def place_variables(distances: np.ndarray, *, num_steps: int = 300) -> np.ndarray:
  """Places in the plane `[N, 2]` about as far apart as the variables are in the graph.

  The squared relative differences are lowered step by step (stress majorization), from a circle on.
  Distances are edges between variables, -1 for no path, `[N, N]`.
  """
  size = len(distances)
  wanted = np.where(distances < 0, distances.max() + 1, distances) + np.eye(size)
  weights = wanted**-2.0 - np.eye(size)
  inverse = np.linalg.pinv(np.diag(weights.sum(1)) - weights)
  angles = 2 * np.pi * np.arange(size) / size
  places = size / 6 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  for _ in range(num_steps):
    gaps = places[:, None] - places
    actual = np.maximum(np.linalg.norm(gaps, axis=-1), 1e-9)
    places = inverse @ ((weights * wanted / actual)[..., None] * gaps).sum(axis=1)
  return places


def draw_net(ax, parents: np.ndarray, pairs: np.ndarray) -> None:
  """Variables by number, arrows to children, and dashed arcs between pairs."""
  places = place_variables(data.graph_distances(parents))
  ends = {"shrinkA": 8, "shrinkB": 8}  # Points, so that arrows stay outside of the disks.
  for child, row in enumerate(parents):
    for parent in row[row >= 0]:
      arrow = {"arrowstyle": "-|>", "color": "black", **ends}
      ax.annotate("", places[child], places[parent], arrowprops=arrow)
  for first, second in pairs:
    arc = {"arrowstyle": "-", "linestyle": "--", "color": "tab:red", "linewidth": 1.5, **ends}
    arc["connectionstyle"] = "arc3,rad=0.25"
    ax.annotate("", places[second], places[first], arrowprops=arc)
  ax.scatter(*places.T, s=220, facecolors="white", edgecolors="black", zorder=3)
  for variable, place in enumerate(places):
    ax.text(*place, str(variable), ha="center", va="center", fontsize=8, zorder=4)
  ax.margins(0.12)
  ax.set_aspect("equal")
  ax.set_axis_off()
