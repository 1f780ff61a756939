"""Where the bounds were: imports of earlier versions find them here."""

from smet.optim.bounds import displacement_bound as displacement_bound
from smet.optim.bounds import momentum_ratio_bound as momentum_ratio_bound
from smet.optim.bounds import update_bound as update_bound
