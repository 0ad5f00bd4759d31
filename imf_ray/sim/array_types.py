"""Array types of the simulation."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

Image = NDArray[np.uint8]
"""RGB image (H, W, 3)."""
