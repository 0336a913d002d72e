import numpy as np

from experiments import members
from jaxlab import training


def test_members_are_spread_over_devices():
  mesh = training.make_mesh({"data": 2, "model": 1})
  doubled = members.over_members(lambda x: {"twice": 2 * x}, np.arange(5.0), mesh)
  np.testing.assert_array_equal(doubled["twice"], 2 * np.arange(5.0))
