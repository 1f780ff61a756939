"""Where ages were: pickles and imports of earlier versions find them here."""

from smet.optim.ages import CODES as CODES
from smet.optim.ages import AgeTable as AgeTable
from smet.optim.ages import Betas as Betas
from smet.optim.ages import Remedies as Remedies
