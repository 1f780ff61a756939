"""Where ``SmetAdamW`` was: pickles and imports of earlier versions find it here."""

from smet.optim.adamw import SmetAdamW as SmetAdamW
from smet.optim.aged import TopologyPosition as TopologyPosition
